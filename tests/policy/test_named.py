"""Policies with a name: as published, legal, without torch, and refused on pairs that cannot run them."""

from dataclasses import dataclass, field

import pytest

from detkds_core.catalogue.entry import FAMILIES as KINDS
from detkds_core.catalogue.pairs import PAPER_PAIRS
from detkds_core.policy import Distiller, PairFacts, Policy, SearchSpace, Term, canonical, check, named_policies
from detkds_core.policy.distillers import DISTILLERS, pair_faults
from detkds_core.policy.named import FAMILIES, RELEASED, STAGES, cannot_run, name_of, suiting


@dataclass(frozen=True)
class Exchange:
    """As the catalogue's."""

    excluded: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)


REGIONS = {
    "global": ("all", "teacher_score"),
    "logits": ("all", "teacher_score", "assigned"),
    "localization": ("all", "assigned_score", "valuable", "proposals"),
}
GFL = PairFacts(images_per_batch=2, has_edges=True, score_channels=80, regions=REGIONS)  # and proposals, as if it had two stages


def test_their_formulas() -> None:
    assert {name: one.formula for name, one in named_policies().items()} == {
        "none": "none",
        "fitnets": "l2(global)",
        "pkd": "5·l2(standardize(global))",
        "pkd_two_stage": "3·l2(standardize(global))",
        "cwd": "5·kl(softmax_HW(global))",
        "cwd_logits": "5·kl(softmax_HW(logits))",
        "defeat": "3·l2[background=4](fgbg)",
        "dist": "pear(logits) + pear_HW(logits)",
        "fgd": "fgd",
        "fgd_two_stage": "fgd[alpha=5e-05, beta=2.5e-05, gamma=5e-05, lambda=5e-07]",
        "fgd_fcos": "fgd[alpha=0.0016, beta=0.0008, gamma=0.0008, lambda=8e-06, temperature=0.8]",
        "fgd_reppoints": "fgd[alpha=0.0016, beta=0.0008, gamma=0.0008, lambda=8e-06]",
        "mgd": "mgd",
        "mgd_two_stage": "mgd[alpha=5e-07, mask_ratio=0.45]",
        "maskd": "maskd",
        "maskd_fcos": "maskd[weight=10]",
        "maskd_boxes": "maskd + l1(localization)",
        "maskd_two_stage": "maskd[weight=1]",
        "maskd_two_stage_boxes": "maskd[weight=1] + deltas[region=proposals](localization)",
        "ld_main": "0.25·kl_edges[region=assigned_score, T=10](localization)",
        "ld": "0.125·kl[region=assigned, T=2](softmax_C(logits)) + 0.25·kl_edges[region=assigned_score, T=10](localization)"
        " + 0.25·kl_edges[region=valuable, T=10](localization)",
        "frs": "1.28·l2[region=teacher_score, warm_up=500](global) + 0.02·kl_sigmoid[region=teacher_score, warm_up=500](logits)",
        "frs_gfl": "25.6·l2[region=teacher_score, warm_up=500](global) + 0.05·kl_sigmoid[region=teacher_score, warm_up=500](logits)",
        "frs_fcos": "2.56·l2[region=teacher_score, warm_up=500](global) + 0.05·kl_sigmoid[region=teacher_score, warm_up=500](logits)",
        "frs_two_stage": "0.512·l2[region=teacher_score, warm_up=500](global) + 0.1·kl_sigmoid[region=teacher_score, warm_up=500](logits)",
        "gid": "gid",
        "crosskd": "crosskd",
        "crosskd_fcos": "crosskd[boxes=0.75, classes=0.4, giou=0, layer=2]",
        "crosskd_gfl": "crosskd[boxes=4]",
        "crosskd_pkd": "crosskd + 3·l2(standardize(global))",
        "detkds_retinanet": "6·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_HW(local_s4(fgbg)))",
        "detkds_retinanet_x101": "50·l1(norm_C(catt(instance)))",
        "detkds_faster_rcnn": "2·l1(norm_N(scale_r2(catt(global)))) + 2·l2(norm_C(mask(fgbg)))"
        " + 0.1·pear(norm_C(mask(instance))) + 0.1·pear(softmax_C(logits))",
        "detkds_fcos": "5·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_C(mask(fgbg)))",
        "detkds_gfl": "10·l1(norm_N(scale_r2(catt(global))))",
        "detkds_reppoints": "10·l1(norm_N(scale_r2(catt(global))))",
        "detkds_cascade_faster_rcnn": "mgd[alpha=5e-07, l1=1, mask_ratio=0.45]",
        "detkds_cascade_mask_rcnn": "mgd[alpha=5e-07, l1=1, mask_ratio=0.45]",
    }


def test_each_is_legal_and_canonical_and_says_where_it_is_from_and_what_it_is_for() -> None:
    named = named_policies()
    assert next(iter(named)) == "none"
    for name, one in named.items():
        assert one.name == name
        assert one.note.endswith(".")
        assert one.expected_use.endswith(".")
        assert one.source or name == "none"
        assert not check(one.policy)
        assert canonical(one.policy) == one.policy


def test_the_eight_released_say_their_pair_and_schedule() -> None:
    released = [one for one in named_policies().values() if one.name.startswith("detkds_")]
    assert len(released) == len(RELEASED) == 8
    assert all(" -> " in one.pair and "24 epochs" in one.schedule for one in released)
    assert len({one.pair for one in released}) == 8
    assert not any(one.pair for one in named_policies().values() if one not in released)


def test_a_released_schedule_says_how_its_pair_trains() -> None:
    schedules = {name: one.schedule for name, one in named_policies().items() if one.schedule}
    for pair in PAPER_PAIRS:
        (schedule,) = (schedules[name] for name in pair.policies)
        assert f"learning rate {pair.full.lr}, {pair.full.batch // 8} images a GPU" in schedule
        assert ("without inheriting" in schedule) != pair.inherit
        sides = pair.full.train_short_sides
        text = f"shorter sides of {sides[0]} {'and' if len(sides) == 2 else 'to'} {sides[-1]} pixels" if sides else "sides"
        assert (text in schedule) == bool(sides)
        assert ("biases at twice the rate" in schedule) == (pair.full.bias_lr_factor == 2)


def test_pkd_is_half_of_its_published_weight() -> None:
    assert named_policies()["pkd"].policy == Policy((Term("global", ("none", "none", "standardize"), "l2", 5.0),))


def test_a_policy_is_called_by_the_first_name_of_its_loss() -> None:
    assert name_of(named_policies()["detkds_reppoints"].policy) == "detkds_gfl"
    assert name_of(named_policies()["detkds_cascade_mask_rcnn"].policy) == "detkds_cascade_faster_rcnn"
    assert name_of(Policy((), (Distiller("mgd", (("alpha", 2e-5),)),))) == "mgd"  # a setting at its default
    assert name_of(Policy(())) == "none"
    assert name_of(Policy((Term("global", ("none", "none", "none"), "l1", 3.0),))) is None


def test_a_search_on_a_pair_with_everything_may_open_with_all_of_them() -> None:
    space = SearchSpace(images_per_batch=8, has_edges=True, regions=REGIONS)
    assert not [reason for one in named_policies().values() for term in one.policy.terms for reason in space.contains(term)]


def test_a_pair_with_everything_can_run_all_of_them() -> None:
    assert not {name: why for name, one in named_policies().items() if (why := cannot_run(one.policy, Exchange(), GFL, ("gfl", "gfl")))}


def test_every_one_stage_family_has_weights_of_fgd_maskd_and_frs() -> None:
    families = {name for name, family in KINDS.items() if family.stages == 1}
    for base, own in (("fgd", ("fgd_fcos", "fgd_reppoints")), ("maskd", ("maskd_fcos",)), ("frs", ("frs_gfl", "frs_fcos"))):
        assert sorted(name for one in (base, *own) for name in FAMILIES[one]) == sorted(families)


def test_a_pair_is_refused_with_a_reason() -> None:
    named = named_policies()
    anchors = "the teacher has 9 predictions a cell, the student 1"
    offer = Exchange({"logits": anchors, "localization": anchors}, {"towers": "Faster R-CNN has no tower"})
    facts = PairFacts(images_per_batch=1, has_edges=False, regions={"global": ("all", "teacher_score")})
    refused = {name: cannot_run(one.policy, offer, facts, ("retinanet", "faster_rcnn")) for name, one in named.items()}
    able = {"none", "fitnets", "pkd", "pkd_two_stage", "cwd", "defeat", "fgd", "fgd_two_stage", "mgd", "mgd_two_stage", "maskd"}
    able |= {
        "fgd_fcos",
        "fgd_reppoints",
        "maskd_fcos",
        "maskd_two_stage",
        "detkds_retinanet_x101",
        "detkds_cascade_faster_rcnn",
        "detkds_cascade_mask_rcnn",
    }
    assert {name for name, why in refused.items() if not why} == able
    assert refused["gid"] == [
        ("policy.distillers[0]", f"'gid' compares boxes: {anchors}"),
        ("policy.distillers[0]", f"'gid' compares logits: {anchors}"),
    ]
    assert ("policy.distillers[0]", "'crosskd' compares towers: Faster R-CNN has no tower") in refused["crosskd"]
    where = "'crosskd' is defined for retinanet, gfl, fcos, atss; the student is of family 'faster_rcnn'"
    assert ("policy.distillers[0]", where) in refused["crosskd"]
    assert refused["ld_main"] == [("policy.terms[0].knowledge", f"this pair cannot exchange 'localization': {anchors}")]
    assert refused["detkds_gfl"][0][0] == "policy.terms[0].transforms[2]"  # over the images of a batch of one
    assert cannot_run(named["ld_main"].policy, Exchange(), facts)[0][0].startswith("policy.terms[0].")
    points = PairFacts(
        has_edges=True, regions=REGIONS | {"localization": ("all", "assigned_score")}, lacking={"valuable": "it has no anchors"}
    )
    why = "this pair cannot look for 'localization' at 'valuable' (it has no anchors); one of all, assigned_score"
    assert cannot_run(named["ld"].policy, Exchange(), points) == [("policy.terms[2].region", why)]


@pytest.mark.parametrize("name", DISTILLERS)
def test_facts_of_a_distiller(name: str) -> None:
    entry = DISTILLERS[name]
    assert entry.name == name
    assert entry.needs <= {"features", "logits", "boxes", "edges", "points", "assigned", "towers", "rois"}
    assert entry.source
    assert entry.formula
    assert entry.note.endswith(".")
    for setting in entry.settings.values():
        assert setting.low <= setting.default <= setting.high
        assert setting.meaning
        assert not setting.whole or setting.default.is_integer()
    assert not pair_faults(name, Exchange())
    assert not check(Policy((), (Distiller(name),)))


def test_a_search_is_compared_with_the_distillers_that_suit_its_student() -> None:
    one_stage = suiting(Exchange(), GFL, ("gfl", "gfl"), 1)
    assert {"pkd", "fgd", "mgd", "maskd", "crosskd_gfl", "ld", "ld_main", "detkds_gfl"} <= set(one_stage)
    assert not {
        "none",
        "pkd_two_stage",
        "fgd_two_stage",
        "maskd_two_stage_boxes",
        "crosskd",
        "maskd_boxes",
        "detkds_fcos",
        "detkds_reppoints",
    } & set(one_stage)
    two_stage = suiting(Exchange(), GFL, ("retinanet", "faster_rcnn"), 2)
    assert {"pkd_two_stage", "fgd_two_stage", "mgd_two_stage", "maskd_two_stage", "maskd_two_stage_boxes"} <= set(two_stage)
    assert {"detkds_faster_rcnn", "detkds_cascade_faster_rcnn"} <= set(two_stage)
    assert not {"pkd", "fgd", "mgd", "crosskd", "crosskd_gfl"} & set(two_stage)
    points = suiting(Exchange(), GFL, ("fcos", "fcos"), 1)
    assert {name for name in points if name.startswith("crosskd")} == {"crosskd_fcos"}
    unable = Exchange({"logits": "why", "localization": "why"}, {"towers": "why"})
    assert not {"dist", "ld", "ld_main", "gid", "crosskd_gfl"} & set(suiting(unable, GFL, ("gfl", "gfl"), 1))
    assert set(STAGES) | set(FAMILIES) <= set(named_policies())
    for names in (one_stage, two_stage):
        assert len({canonical(named_policies()[name].policy) for name in names}) == len(names)
