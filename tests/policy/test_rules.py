"""Illegal terms are refused with a reason, at the place that has to change."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from detkds_core.policy import Policy, Term, canonical, check, legality, parse_formula

from .strategies import terms

PLAIN = Term("global", ("none", "none", "none"), "l2", 1.0)


def term(knowledge: str, transforms: str, distance: str, **options) -> Term:
    return Term(knowledge, tuple(transforms.split()), distance, 1.0, **options)


@pytest.mark.parametrize(
    ("illegal", "field", "message"),
    [
        (replace(PLAIN, knowledge="neck"), "knowledge", "'neck' is not a kind of knowledge; one of global, fgbg, instance, logits"),
        (
            term("global", "none none norm_X", "l2"),
            "transforms[2]",
            "'norm_X' is not a normalisation; one of none, batch, channel, norm_HW",
        ),
        (term("fgbg", "no none none", "l2"), "transforms[0]", "'no' is not an attention; one of none, satt"),
        (term("global", "none", "l2"), "transforms", "'global' has 3 (attention, scale, normalisation), got 1; 'none' does nothing"),
        (term("logits", "none none none", "l2"), "transforms", "'logits' has 1 (normalisation), got 3"),
        (term("localization", "norm_C", "iou"), "transforms[0]", "'norm_C' is not a transform; one of none"),
        (term("localization", "none", "l2"), "distance", "'l2' is not a distance of localization; one of l1, iou, giou, kl_edges"),
        (term("logits", "none", "giou"), "distance", "'giou' is not a distance of logits; one of l1, l2"),
        (
            term("global", "none none none", "cor"),
            "distance",
            "'cor' is not a distance of global (it is not 0 where student and teacher agree",
        ),
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
        (term("instance", "none none batch", "pear"), "transforms[2]", "'batch' flattens the map"),
        (term("instance", "none none softmax_HW", "l2"), "transforms[2]", "'softmax_HW' flattens the map"),
        (term("global", "none local_s1 norm_HW", "l1"), "transforms[2]", "'norm_HW' is constant after 'local_s1'"),
        (term("global", "none local_s1 softmax_HW", "kl"), "transforms[2]", "'softmax_HW' is constant after 'local_s1'"),
        (term("fgbg", "none local_s1 standardize", "l2"), "transforms[2]", "'standardize' after 'local_s1' sees one value a channel"),
        (term("global", "natt none none", "l1", shared_attention=True), "shared_attention", "only 'satt' and 'catt' have an attention"),
        (term("logits", "none", "l1", shared_attention=True), "shared_attention", "only 'satt' and 'catt' have an attention"),
        (replace(PLAIN, weight=0.0), "weight", "0.0 is not a number above 0 and at most 1000"),
        (replace(PLAIN, weight=1000.5), "weight", "1000.5 is not a number above 0 and at most 1000"),
        (replace(PLAIN, weight=float("nan")), "weight", "nan is not a number above 0"),
        (replace(PLAIN, weight=float("inf")), "weight", "inf is not a number above 0"),
        (replace(PLAIN, temperature=2.0), "temperature", "only kl and kl_edges have a temperature, 'l2' does not; leave it out"),
        (term("logits", "softmax_C", "kl", temperature=0.0), "temperature", "0.0 is not a number from 0.01 to 100"),
        (replace(PLAIN, background=1.0), "background", "only 'fgbg' has a background, 'global' does not; leave it out"),
        (term("fgbg", "none none none", "l2", background=-1.0), "background", "-1.0 is not a number from 0 to 1000"),
        (replace(PLAIN, warm_up=-1), "warm_up", "-1 is not a number of steps from 0 to 10000000"),
        (replace(PLAIN, stop=0.0), "stop", "0.0 is not a share of the training, above 0 and at most 1"),
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


def test_a_softmax_inside_a_region_is_legal() -> None:
    assert legality(term("instance", "none none softmax_HW", "kl")) == []


def test_terms_that_are_the_same_loss_weigh_together() -> None:
    errors = check(Policy((replace(PLAIN, weight=800.0), replace(PLAIN, weight=200.5, transforms=("none", "scale_r1", "none")))))
    assert errors == [("policy.terms[1].weight", "the same loss as terms[0], and together they weigh 1000.5; at most 1000")]
    assert check(Policy((replace(PLAIN, weight=800.0), replace(PLAIN, weight=200.5, distance="l1")))) == []


def test_too_many_terms() -> None:
    assert check(Policy((PLAIN,) * 20)) == []
    assert check(Policy((PLAIN,) * 21)) == [("policy.terms", "21 terms; at most 20")]


@given(terms())
@settings(max_examples=150, deadline=None)
def test_folding_keeps_a_term_legal(one: Term) -> None:
    assert check(canonical(Policy((one,)))) == []


def test_released_policies_are_legal() -> None:
    assert check(parse_formula("6·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_HW(local_s4(fgbg)))")) == []
