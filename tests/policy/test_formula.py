"""Policies as text, both ways."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkds_core.policy import Distiller, Policy, PolicyError, Term, formula, parse_formula, readable
from detkds_core.policy.distillers import DISTILLERS

from .strategies import policies

UNWEIGHTED = {"weight": 1.0, "temperature": 1.0, "background": 0.0, "stop": 1.0, "decay": 0.0}  # the numbers of a term, at one value


def test_a_formula_is_read_from_the_inside() -> None:
    text = "6·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_HW(local_s4(fgbg)))"
    policy = Policy((Term("global", ("catt", "scale_r2", "norm_N"), "l1", 6.0), Term("fgbg", ("none", "local_s4", "norm_HW"), "l1", 2.0)))
    assert parse_formula(text) == policy
    assert formula(policy) == text


def test_options_stand_behind_the_distance() -> None:
    text = "kl[T=2](softmax_HW(global)) + 0.1·l2[shared, background=0, warm_up=500, stop=0.9](satt(fgbg))"
    policy = Policy(
        (
            Term("global", ("none", "none", "softmax_HW"), "kl", 1.0, temperature=2.0),
            Term("fgbg", ("satt", "none", "none"), "l2", 0.1, shared_attention=True, background=0.0, warm_up=500, stop=0.9),
        )
    )
    assert parse_formula(text) == policy
    assert formula(policy) == text


def test_every_option_is_written_where_it_differs() -> None:
    text = (
        "0.5·kl[auto, region=teacher_score, T=4, decay=0.1](softmax_C(logits)) + l2[reduction=sum](drop(global))"
        " + 0.3·iou[balanced, region=proposals](pow2(localization))"
    )
    policy = Policy(
        (
            Term("logits", ("softmax_C",), "kl", 0.5, temperature=4.0, decay=0.1, region="teacher_score", auto=True),
            Term("global", ("drop", "none", "none"), "l2", 1.0, reduction="sum"),
            Term("localization", ("pow2",), "iou", 0.3, region="proposals", balanced=True),
        )
    )
    assert parse_formula(text) == policy
    assert formula(policy) == text


def test_a_distiller_is_a_bare_name_with_its_settings() -> None:
    pkd = Term("global", ("none", "none", "standardize"), "l2", 5.0)
    policy = Policy((pkd,), (Distiller("fgd", (("alpha", 0.0005),)),))
    assert formula(policy) == "fgd[alpha=0.0005] + 5·l2(standardize(global))"
    for text in ("fgd[alpha=0.0005] + 5·l2(standardize(global))", "5·l2(standardize(global))+fgd [ alpha = 5e-4 ]"):
        assert parse_formula(text) == policy
    assert parse_formula("fgd") == Policy((), (Distiller("fgd"),))


def test_a_distiller_has_a_weight_before_it_and_may_be_balanced() -> None:
    text = "0.3·fgd[balanced, alpha=0.0005] + mgd[balanced] + 12.5·gid + l1(global)"
    policy = Policy(
        (Term("global", ("none", "none", "none"), "l1", 1.0),),
        (Distiller("fgd", (("alpha", 0.0005),), 0.3, balanced=True), Distiller("mgd", balanced=True), Distiller("gid", weight=12.5)),
    )
    assert formula(policy) == text
    assert (
        parse_formula(text)
        == parse_formula("l1(global) + .3*fgd[alpha=5e-4, balanced] + 1·mgd[ balanced ] + 12.50·gid")
        == Policy(policy.terms, policy.distillers)
    )


def test_a_distiller_has_a_schedule_as_a_term_has() -> None:
    text = "2·fgd[balanced, warm_up=500, stop=0.9, decay=0, alpha=0.0005] + maskd[warm_up=7, masks_from=10]"
    fgd = Distiller("fgd", (("alpha", 0.0005),), 2.0, True, warm_up=500, stop=0.9, decay=0.0)
    policy = Policy((), (fgd, Distiller("maskd", (("masks_from", 10.0),), warm_up=7)))
    assert formula(policy) == text
    assert parse_formula(text) == parse_formula(
        "2·fgd[alpha=5e-4, decay=0.0, stop=.9, warm_up=500, balanced] + maskd[masks_from=10, warm_up=7]"
    )
    assert parse_formula(text) == policy
    assert not {key for entry in DISTILLERS.values() for key in entry.settings} & {"balanced", "warm_up", "stop", "decay"}


def test_other_spellings() -> None:
    assert parse_formula(" 6 * l1 ( none ( global ) )\n+1.·giou(none(localization))") == parse_formula("6·l1(global)+giou(localization)")
    assert parse_formula(".5e1·l1(logits)").terms[0].weight == 5


def test_no_distillation_is_none() -> None:
    assert formula(Policy(())) == "none"
    assert parse_formula(" none ") == Policy(())


@given(policies())
@settings(max_examples=150, deadline=None)
def test_what_is_written_reads_back_equal(policy: Policy) -> None:
    assert parse_formula(formula(policy)) == policy


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("", "policy.terms[0]", "column 1: the end where a weight or a distance should be"),
        ("l5 + none", "policy.terms[0]", "column 4: '+' where '(' should be"),
        ("none + none", "policy.terms[0]", "column 1: 'none' is the name of a policy, which stands alone and is no part of a formula"),
        (
            "frs + crosskd",
            "policy.terms[0]",
            "column 1: 'frs' is the name of a policy, which stands alone and is no part of a formula; its own is 1.28·l2[region=",
        ),
        ("fgd + 2·ld_main", "policy.terms[0]", "column 9: 'ld_main' is the name of a policy, which stands alone"),
        ("pkd[stop=0.5]", "policy.terms[0]", "column 1: 'pkd' is the name of a policy, which stands alone"),
        ("l1(global", "policy.terms[0]", "column 10: the end where ')' should be"),
        ("l1(global))", "policy", "column 11: ')' where '+' and another term or distiller, or the end should be"),
        ("l1(global) + ", "policy.terms[1]", "column 14: the end where a weight or a distance should be"),
        ("-1·l1(global)", "policy.terms[0]", "column 1: '-' where a weight or a distance should be"),
        ("6 l1(global)", "policy.terms[0]", "column 3: 'l1' where '·' or '*' should be"),
        ("l1()", "policy.terms[0]", "column 4: ')' where a transform or knowledge should be"),
        ("l1(gl§bal)", "policy.terms[0]", "column 6: '§' where ')' should be"),
        (
            "l1(globl)",
            "policy.terms[0].knowledge",
            "'globl' is not a kind of knowledge; one of global, fgbg, instance, logits, localization",
        ),
        (
            "giou(catt(localization))",
            "policy.terms[0].transforms",
            "'catt' is not a transform of localization (an attention, which features have); one of pow2",
        ),
        ("l1(catt(norm_C(global)))", "policy.terms[0].transforms[0]", "'catt' acts before 'norm_C', so it stands inside it: attention"),
        ("l1(norm_C(norm_N(global)))", "policy.terms[0].transforms[2]", "'norm_C' and 'norm_N' are both normalisation"),
        (
            "kl[](softmax_C(global))",
            "policy.terms[0]",
            "column 4: ']' where an option (shared, auto, balanced, region, reduction, T, background, warm_up, stop, decay) should be",
        ),
        (
            "kl[t=2](softmax_C(global))",
            "policy.terms[0]",
            "column 4: 't' is not an option; one of shared, auto, balanced, region, reduction, T, background",
        ),
        ("kl[T](softmax_C(global))", "policy.terms[0].temperature", "column 5: ']' where '=' should be"),
        ("l1[auto, auto](global)", "policy.terms[0].auto", "column 10: auto is given twice"),
        ("l1[region=2](global)", "policy.terms[0].region", "column 11: '2' where the name of a region should be"),
        (
            "l1[region=gt](logits)",
            "policy.terms[0].region",
            "'gt' is not a region of logits (cells inside ground-truth boxes are 'foreground')",
        ),
        ("l1[decay=2](global)", "policy.terms[0].decay", "2.0 is not a share of the weight, from 0 to 1"),
        ("fgd[alpha](global)", "policy.distillers[0].settings.alpha", "column 10: ']' where '=' should be"),
        ("fgd[alpha=x]", "policy.distillers[0].settings.alpha", "column 11: 'x' where a number should be"),
        ("fgd[alpha=1, alpha=1]", "policy.distillers[0].settings.alpha", "column 14: alpha is given twice"),
        (
            "l1(global) + fgd[]",
            "policy.distillers[0]",
            "column 18: ']' where 'balanced', warm_up, stop, decay or a setting of fgd should be",
        ),
        ("fgd[alphabet=1]", "policy.distillers[0].settings.alphabet", "not a setting of 'fgd'; one of "),
        ("fgd[alpha=1e9]", "policy.distillers[0].settings.alpha", "1000000000.0 is not a number from "),
        ("fgd + l1(global) + fgd", "policy.distillers[1].name", "'fgd' is distillers[0] already; a distiller occurs once"),
        ("fgd(global)", "policy", "column 4: '(' where '+' and another term or distiller, or the end should be"),
        ("0·fgd", "policy.distillers[0].weight", "0.0 is not a number above 0 and at most 1e+09"),
        ("2(fgd", "policy.distillers[0]", "column 2: '(' where '·' or '*' should be"),
        ("2·", "policy.terms[0]", "column 3: the end where a weight or a distance should be"),
        ("fgd[balanced, balanced]", "policy.distillers[0].balanced", "column 15: balanced is given twice"),
        ("fgd[stop=0.5, alpha=1, stop=0.5]", "policy.distillers[0].stop", "column 24: stop is given twice"),
        ("fgd[warm_up=0.5]", "policy.distillers[0].warm_up", "column 13: '0.5' where a whole number of steps should be"),
        ("fgd[decay=2]", "policy.distillers[0].decay", "2.0 is not a share of the weight, from 0 to 1"),
        ("fgd[stop=0]", "policy.distillers[0].stop", "0.0 is not a share of the training, above 0 and at most 1"),
        ("fgd[balanced=1]", "policy.distillers[0]", "column 13: '=' where ']' should be"),
        ("2·fgd + l1(global) + fgd[balanced]", "policy.distillers[1].name", "'fgd' is distillers[0] already"),
        (" + ".join(["fgd"] * 99), "policy.distillers", "distillers; at most"),
        ("kl[T=2, T=3](softmax_C(global))", "policy.terms[0].temperature", "column 9: T is given twice"),
        ("l1[warm_up=1.5](global)", "policy.terms[0].warm_up", "column 12: '1.5' where a whole number of steps should be"),
        ("l1(global) + 2e9·l1(fgbg)", "policy.terms[1].weight", "2000000000.0 is not a number above 0 and at most 1e+09"),
        ("l1[warm_up=99999999999999999999999](global)", "policy.terms[0].warm_up", "is not a number of steps from 0 to 10000000"),
        ("1e999·l1(global)", "policy.terms[0].weight", "inf is not a number above 0"),
        (" + ".join(["l1(global)"] * 21), "policy.terms", "more than 20 terms; at most 20"),
        ("l1(" * 10_000, "policy.terms[0]", "column 30001: the end where a transform or knowledge should be"),
    ],
)
def test_errors_name_the_place(text: str, path: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_formula(text)
    assert caught.value.errors[0][0] == path
    assert message in caught.value.errors[0][1]
    assert len(str(caught.value)) < 2000


@given(st.text(alphabet="l1klgobafd()[]+·*=,.T 2eé", max_size=30) | st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_legal_policy_or_a_policy_error(text: str) -> None:
    try:
        policy = parse_formula(text)
    except PolicyError:  # and no other exception
        return
    assert parse_formula(formula(policy)) == policy


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.7421037228031555·l2(min_max_normalize(multi_scale_r4(instance)))", "0.7421·l2(min_max_normalize(multi_scale_r4(instance)))"),
        ("13.30719838844938·kl[T=2, warm_up=12500](logits) + fgd[alpha=5e-05]", "13.31·kl[T=2, warm_up=12500](logits) + fgd[alpha=5e-05]"),
        ("12345.678·l2(global) + 0.00012345·l1(fgbg)", "12346·l2(global) + 0.0001234·l1(fgbg)"),
        ("none", "none"),
    ],
)
def test_a_reader_sees_four_digits_of_a_number_and_every_name_whole(text: str, shown: str) -> None:
    assert readable(text) == shown
    assert readable(shown) == shown


@given(policies())
@settings(max_examples=50, deadline=None)
def test_what_a_reader_sees_is_the_same_policy_within_a_two_thousandth_of_each_weight(policy: Policy) -> None:
    again = parse_formula(readable(formula(policy)))
    assert [replace(one, **UNWEIGHTED) for one in again.terms] == [replace(one, **UNWEIGHTED) for one in policy.terms]
    for mine, theirs in zip(again.terms, policy.terms, strict=True):
        assert mine.weight == pytest.approx(theirs.weight, rel=5e-4)
