"""Illegal terms are refused with a reason, at the place that has to change."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from detkds_core.policy import Distiller, PairFacts, Policy, Term, canonical, check, images_needed, legality, pair_legality, parse_formula
from detkds_core.policy.distillers import DISTILLERS
from detkds_core.policy.vocabulary import DISTANCES, NOT_OFFERED, REGIONS, SLOTS

from .strategies import terms

PLAIN = Term("global", ("none", "none", "none"), "l2", 1.0)


def term(knowledge: str, transforms: str, distance: str, **options) -> Term:
    return Term(knowledge, tuple(transforms.split()), distance, 1.0, **options)


@pytest.mark.parametrize(
    ("illegal", "field", "message"),
    [
        (
            replace(PLAIN, knowledge="neck"),
            "knowledge",
            "'neck' is not a kind of knowledge (features are 'global', 'fgbg' or 'instance'); one of global, fgbg, instance",
        ),
        (
            term("global", "none none norm_X", "l2"),
            "transforms[2]",
            "'norm_X' is not a normalisation; one of none, batch, channel, norm_HW",
        ),
        (term("fgbg", "no none none", "l2"), "transforms[0]", "'no' is not an attention (written 'none' here); one of none, satt"),
        (term("global", "none", "l2"), "transforms", "'global' has 3 (attention, scale, normalisation), got 1; 'none' does nothing"),
        (term("logits", "none none none", "l2"), "transforms", "'logits' has 1 (normalisation), got 3"),
        (
            term("localization", "norm_C", "iou"),
            "transforms[0]",
            "'norm_C' is not a transform (a normalisation, which features and logits have); one of none, pow2",
        ),
        (
            term("localization", "none", "l2"),
            "distance",
            "'l2' is not a distance of localization (a distance of features and logits); one of l1, iou, giou, diou, kl_edges",
        ),
        (
            term("logits", "none", "giou"),
            "distance",
            "'giou' is not a distance of logits (a distance of boxes, which localization has); one of l1, l2",
        ),
        (
            term("global", "none none none", "kl_sigmoid"),
            "distance",
            "'kl_sigmoid' is not a distance of global (it reads raw class scores, which logits have); one of l1",
        ),
        (term("fgbg", "none none none", "l2", region="foreground"), "region", "'foreground' is not a region of fgbg; one of all"),
        (replace(PLAIN, reduction="batchmean"), "reduction", "'batchmean' is not a reduction (written 'sum', over all but the images)"),
        (
            term("global", "none none none", "kl"),
            "transforms[2]",
            "'kl' compares distributions, which 'none' does not give; one of softmax_N",
        ),
        (
            term("logits", "logsoftmax_C", "kl"),
            "transforms[0]",
            "'kl' takes the logarithm itself, on the student's side alone; use softmax_C",
        ),
        (term("instance", "none none softmax_N", "kl"), "transforms[2]", "'softmax_N' would run over unrelated boxes"),
        (term("instance", "none local_s2 none", "l1"), "transforms[1]", "'local_s2' moves positions to channels"),
        (term("instance", "none none batch", "pear"), "transforms[2]", "'batch' leaves no map, and 'instance' cuts its boxes from one"),
        (term("instance", "none none softmax_HW", "l2"), "transforms[2]", "'softmax_HW' leaves no map"),
        (term("global", "none local_s1 norm_HW", "l1"), "transforms[2]", "'norm_HW' is constant after 'local_s1'"),
        (term("global", "none local_s1 softmax_HW", "kl"), "transforms[2]", "'softmax_HW' is constant after 'local_s1'"),
        (term("fgbg", "none local_s1 standardize", "l2"), "transforms[2]", "'standardize' after 'local_s1' sees one value a channel"),
        (term("global", "natt none none", "l1", shared_attention=True), "shared_attention", "only 'satt' and 'catt' have an attention"),
        (term("logits", "none", "l1", shared_attention=True), "shared_attention", "only 'satt' and 'catt' have an attention"),
        # Domains.
        (term("global", "satt none sqrt", "l2"), "transforms[2]", "'sqrt' has no value below 0, and features have both signs"),
        (term("logits", "pow2", "kl_sigmoid"), "transforms[0]", "'kl_sigmoid' takes the sigmoid of the raw scores itself"),
        (term("logits", "sigmoid", "kl"), "transforms[0]", "'kl' compares distributions, which 'sigmoid' does not give"),
        # What the shape has left.
        (term("global", "none local_s1 none", "pear_HW"), "distance", "'pear_HW' is constant after 'local_s1'"),
        (term("global", "none none batch", "pear_HW"), "distance", "'pear_HW' runs over positions, of which 'batch' leaves none"),
        (term("logits", "mm", "pear_HW"), "distance", "'pear_HW' runs over positions, of which 'mm' leaves none"),
        (term("global", "none none mm", "pear_N"), "distance", "both axes of 'mm' are the images"),
        (term("fgbg", "none none mm", "cor"), "distance", "both axes of 'mm' are the images"),
        (term("global", "none local_s4 bmm", "l2"), "transforms[2]", "'bmm' after 'local_s4' holds the square of C*H*W/16 values an image"),
        (
            term("global", "none local_s2 none", "ssim"),
            "distance",
            "'ssim' compares windows of a map, and 'local_s2' leaves none of its size",
        ),
        (term("logits", "softmax_HW", "ssim"), "distance", "'ssim' compares windows of a map, which 'softmax_HW' flattens"),
        (term("instance", "none none bmm", "l2"), "transforms[2]", "'bmm' leaves no map, and 'instance' cuts its boxes from one"),
        (term("instance", "none none none", "pear_N"), "distance", "'pear_N' would run over unrelated boxes, of which there may be one"),
        (term("instance", "none none none", "cor", region="proposals"), "distance", "'cor' would run over unrelated boxes"),
        # Regions.
        (term("logits", "norm_HW", "l1", region="proposals"), "transforms[0]", "'norm_HW' needs positions, and a proposal has one vector"),
        (term("logits", "norm_N", "l1", region="proposals"), "transforms[0]", "'norm_N' would run over unrelated proposals"),
        (
            term("logits", "mm", "l1", region="proposals"),
            "transforms[0]",
            "'mm' would be as large as the square of the number of proposals",
        ),
        (term("logits", "none", "ssim", region="proposals"), "distance", "'ssim' needs positions, and a proposal has one vector"),
        (term("logits", "none", "kl_sigmoid", region="proposals"), "distance", "the scores of a proposal are a softmax"),
        (term("logits", "softmax_C", "kl", region="masks"), "transforms[0]", "'softmax_C' is constant on a single mask score"),
        (term("logits", "none", "cos", region="masks"), "distance", "'cos' over a single mask score is constant"),
        (term("logits", "norm_N", "l1", region="masks"), "transforms[0]", "'norm_N' would run over unrelated masks"),
        (term("logits", "none", "cor", region="masks"), "distance", "'cor' would run over unrelated masks"),
        (term("global", "none scale_r2 none", "l2", region="teacher_score"), "transforms[1]", "'scale_r2' moves positions"),
        (term("global", "none none batch", "l2", region="teacher_score"), "transforms[2]", "'batch' leaves no map whose positions"),
        (term("logits", "none", "ssim", region="assigned"), "distance", "'ssim' has no value at each position for region 'assigned'"),
        (term("logits", "softmax_HW", "kl", region="foreground"), "transforms[0]", "'kl' over HW has no value at each position"),
        (term("localization", "none", "deltas"), "distance", "'deltas' are relative to a proposal; region 'proposals'"),
        (term("localization", "none", "points", region="proposals"), "distance", "'points' are of the cells of a dense head"),
        (term("localization", "pow2", "kl_edges"), "transforms[0]", "'pow2' squares the distance of two boxes"),
        # Sums.
        (term("global", "none none none", "pear", reduction="sum"), "reduction", "'pear' is a likeness between fixed bounds"),
        (term("global", "none none softmax_N", "kl", reduction="sum"), "reduction", "'kl' over the images leaves none"),
        (term("instance", "none none none", "l2", reduction="sum"), "reduction", "a sum would grow with how many boxes there happen to be"),
        (term("logits", "none", "l2", reduction="sum", region="masks"), "reduction", "a sum would grow with how many boxes"),
        (term("logits", "none", "l2", reduction="sum", region="assigned"), "reduction", "the weights of the positions have no unit"),
        (term("localization", "none", "iou", reduction="sum"), "reduction", "the weights of the positions have no unit"),
        (replace(PLAIN, weight=0.0), "weight", "0.0 is not a number above 0 and at most 1e+09"),
        (replace(PLAIN, weight=1.5e9), "weight", "1500000000.0 is not a number above 0 and at most 1e+09"),
        (replace(PLAIN, auto=True, balanced=True), "balanced", "'auto' compares losses and 'balanced' gradients; a weight is one ratio"),
        (replace(PLAIN, weight=float("nan")), "weight", "nan is not a number above 0"),
        (replace(PLAIN, weight=float("inf")), "weight", "inf is not a number above 0"),
        (replace(PLAIN, temperature=2.0), "temperature", "only kl and kl_edges have a temperature, 'l2' does not; leave it out"),
        (term("logits", "softmax_C", "kl", temperature=0.0), "temperature", "0.0 is not a number from 0.01 to 100"),
        (replace(PLAIN, background=1.0), "background", "only 'fgbg' has a background, 'global' does not; leave it out"),
        (term("fgbg", "none none none", "l2", background=-1.0), "background", "-1.0 is not a number from 0 to 1000"),
        (replace(PLAIN, warm_up=-1), "warm_up", "-1 is not a number of steps from 0 to 10000000"),
        (replace(PLAIN, stop=0.0), "stop", "0.0 is not a share of the training, above 0 and at most 1"),
        (replace(PLAIN, decay=-0.5), "decay", "-0.5 is not a share of the weight, from 0 to 1"),
        (replace(PLAIN, decay=float("nan")), "decay", "nan is not a share of the weight"),
        (replace(PLAIN, stop=1.5), "stop", "1.5 is not a share of the training"),
    ],
)
def test_a_reason_names_the_field_and_what_is_wrong(illegal: Term, field: str, message: str) -> None:
    (reason,) = legality(illegal)
    assert reason.field == field
    assert reason.message.startswith(message)
    assert str(reason) == f"{field}: {reason.message}"
    assert check(Policy((PLAIN, illegal))) == [(f"policy.terms[1].{field}", reason.message)]


def test_every_fault_of_a_term_is_told() -> None:
    illegal = Term("global", ("x", "y", "z"), "l3", -1.0, stop=2.0)
    assert [reason.field for reason in legality(illegal)] == [
        "transforms[0]",
        "transforms[1]",
        "transforms[2]",
        "distance",
        "weight",
        "stop",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "kl(softmax_HW(instance))",  # a softmax inside a region
        "l2(sqrt(scale_r2(natt(global))))",
        "l2(sqrt(logits))",
        "pear_HW(softmax_HW(global))",  # (N, C, H*W) still has positions
        "pear(bmm(global))",
        "l2(mm(local_s4(global)))",
        "ssim[region=masks](logits)",
        "kl_sigmoid[region=masks](logits)",
        "pear_N[region=proposals](softmax_C(logits))",  # there are many of them
        "kl[T=2, region=proposals](softmax_C(logits))",
        "l2[region=teacher_score](norm_HW(scale(satt(global))))",
        "kl_sigmoid[region=assigned](logits)",
        "deltas[region=proposals](pow2(localization))",
        "kl[reduction=sum](softmax_HW(global))",
        "l2[reduction=sum](mm(fgbg))",
        "l1(exp(global)) + l1(log(fgbg))",
    ],
)
def test_what_has_a_meaning_is_legal(text: str) -> None:
    assert check(parse_formula(text)) == []


def test_every_name_is_known_where_it_is_not_offered() -> None:
    """A name of one slot that stands in another is told where it belongs."""
    names = {name for slots in SLOTS.values() for _, choices in slots for name in choices}
    names |= {name for choices in DISTANCES.values() for name in choices}
    assert names - {"none"} <= set(NOT_OFFERED)


def test_distillers_and_their_settings() -> None:
    name, entry = next((name, entry) for name, entry in DISTILLERS.items() if entry.settings)
    (key, setting), *_ = entry.settings.items()
    assert check(Policy((), (Distiller(name), Distiller("fgs")))) == [
        ("policy.distillers[1].name", f"'fgs' is not a distiller; one of {', '.join(DISTILLERS)}")
    ]
    assert check(Policy((), (Distiller(name, (("size", 1.0),)),))) == [
        ("policy.distillers[0].settings.size", f"not a setting of {name!r}; one of {', '.join(entry.settings)}")
    ]
    too_much = setting.high * 2 + 1
    assert check(Policy((), (Distiller(name, ((key, too_much),)),))) == [
        (
            f"policy.distillers[0].settings.{key}",
            f"{too_much!r} is not a number from {setting.low:g} to {setting.high:g} ({setting.meaning})",
        )
    ]
    assert [path for path, _ in check(Policy((), (Distiller(name, ((key, float("nan")),)),)))] == [f"policy.distillers[0].settings.{key}"]
    for weight in (0.0, -1.0, float("nan"), 2e9):
        message = f"{weight!r} is not a number above 0 and at most 1e+09"
        assert check(Policy((), (Distiller(name, weight=weight),))) == [("policy.distillers[0].weight", message)]
    assert check(Policy((PLAIN,), (Distiller(name), Distiller(name)))) == [
        ("policy.distillers[1].name", f"{name!r} is distillers[0] already; a distiller occurs once")
    ]
    assert check(Policy((PLAIN,), (Distiller(name, ((key, setting.default),)),))) == []


def test_a_whole_setting_has_no_fraction() -> None:
    whole = [(name, key, one) for name, entry in DISTILLERS.items() for key, one in entry.settings.items() if one.whole]
    assert whole
    for name, key, setting in whole:
        value = setting.low + 0.5
        ((path, message),) = check(Policy((), (Distiller(name, ((key, value),)),)))
        assert path == f"policy.distillers[0].settings.{key}"
        assert message.startswith(f"{value!r} is not a whole number from ")
        assert check(Policy((), (Distiller(name, ((key, setting.low),)),))) == []


FACTS = PairFacts(images_per_batch=2, score_channels=80, roi_channels=81)


@pytest.mark.parametrize(
    ("text", "facts", "field", "message"),
    [
        ("l1(natt(global))", replace(FACTS, images_per_batch=1), "transforms[0]", "'natt' compares the images of a batch"),
        ("l1(mm(logits))", replace(FACTS, images_per_batch=1), "transforms[0]", "'mm' compares the images of a batch"),
        ("pear_N(global)", FACTS, "distance", "'pear_N' over two images is 0 or 2, without gradient; train with a batch of at least 3"),
        ("cor(logits)", FACTS, "distance", "'cor' over two images is 0 or 2"),
        ("pear(mm(global))", FACTS, "transforms[2]", "'pear' over two images is 0 or 2"),
        ("kl_edges(localization)", FACTS, "distance", "'kl_edges' needs edge distributions of both detectors (GFL)"),
        (
            "kl_edges(localization)",
            replace(FACTS, lacking={"edges": "the teacher has 17 bins an edge, the student 9"}),
            "distance",
            "'kl_edges' needs edge distributions of both detectors (GFL), with as many bins (the teacher has 17 bins an edge",
        ),
        ("points(localization)", FACTS, "distance", "'points' needs point sets of both detectors (RepPoints)"),
        ("pear[region=proposals](logits)", replace(FACTS, roi_channels=2), "distance", "'pear' over two class scores is 0 or 2"),
        ("l1(bmm(logits))", replace(FACTS, score_channels=1), "transforms[0]", "'bmm' of a single class score is one number an image"),
        ("l2[region=teacher_score](global)", FACTS, "region", "this pair cannot look for 'global' at 'teacher_score'; one of all"),
        (
            "l2[region=proposals](instance)",
            replace(FACTS, regions={"logits": ("all", "proposals")}, lacking={"instance.proposals": "the student has no RoI head"}),
            "region",
            "this pair cannot look for 'instance' at 'proposals' (the student has no RoI head); one of all",
        ),
    ],
)
def test_what_a_pair_has_no_meaning_for(text: str, facts: PairFacts, field: str, message: str) -> None:
    if "region=proposals](logits" in text:
        facts = replace(facts, regions={"logits": ("all", "proposals")})
    (reason,) = pair_legality(parse_formula(text).terms[0], facts)
    assert reason.field == field
    assert reason.message.startswith(message)


def test_a_richer_pair_has_a_meaning_for_all_of_it() -> None:
    facts = PairFacts(3, has_edges=True, score_channels=80, has_points=True, roi_channels=81, regions=REGIONS)
    for text in (
        "pear_N(global) + cor(fgbg) + pear(mm(global)) + kl_edges(localization) + points(localization)",
        "l2[region=teacher_score](global) + l2[region=proposals](instance) + pear_N[region=proposals](logits)",
    ):
        for term in parse_formula(text).terms:
            assert pair_legality(term, facts) == []
    (proposals,) = parse_formula("pear_N[region=proposals](logits)").terms
    assert pair_legality(proposals, replace(facts, images_per_batch=1)) == []  # it runs over proposals


def test_terms_that_are_the_same_loss_weigh_together() -> None:
    errors = check(Policy((replace(PLAIN, weight=8e8), replace(PLAIN, weight=2.5e8, transforms=("none", "scale_r1", "none")))))
    assert errors == [("policy.terms[1].weight", "the same loss as terms[0], and together they weigh 1.05e+09; at most 1e+09")]
    assert check(Policy((replace(PLAIN, weight=8e8), replace(PLAIN, weight=2.5e8, distance="l1")))) == []


def test_too_many_terms() -> None:
    assert check(Policy((PLAIN,) * 20)) == []
    assert check(Policy((PLAIN,) * 21)) == [("policy.terms", "21 terms; at most 20")]


@given(terms())
@settings(max_examples=150, deadline=None)
def test_folding_keeps_a_term_legal(one: Term) -> None:
    assert check(canonical(Policy((one,)))) == []


def test_released_policies_are_legal() -> None:
    assert check(parse_formula("6·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_HW(local_s4(fgbg)))")) == []


@pytest.mark.parametrize(
    ("text", "images"),
    [("none", 1), ("l2(global)", 1), ("l1(norm_N(global)) + l2(fgbg)", 2), ("cor(global)", 3), ("cor[region=proposals](logits)", 1)],
)
def test_the_fewest_images_of_a_forward_on_which_every_term_has_a_gradient(text, images):
    assert images_needed(parse_formula(text).terms) == images
