"""Formulas that compute the same have one fingerprint, others do not; and what the census counts."""

import random
from dataclasses import replace

import pytest

from detkds_core.losses.census import count, header, lines
from detkds_core.losses.fingerprint import fingerprint, same
from detkds_core.policy import PairFacts, SearchSpace, Term, parse_formula
from detkds_core.policy.canonical import canonical_term
from detkds_core.policy.space import combinations_of
from detkds_core.policy.vocabulary import KNOWLEDGE, REGIONS

FACTS = PairFacts(images_per_batch=3, has_edges=True, has_points=True, regions=REGIONS)
SPACE = SearchSpace.of(FACTS, breadth="full")


def of(formula: str) -> str:
    (term,) = parse_formula(formula).terms
    return fingerprint(term)


ALIKE = [
    ("l1(global)", "l1(scale_r1(global))"),
    ("l1(global)", "3·l1(scale(global))"),  # half of it: a weight
    ("l1(batch(global))", "l1(channel(global))"),
    ("pear(norm_C(global))", "pear(global)"),
    ("cos(global)", "l2(norm_C(global))"),  # |a - b|^2 is 2 - 2 cos, but for the channels: what no fold knows
    ("kl(softmax_C(scale(global)))", "kl[T=2](softmax_C(global))"),
    ("l1(norm_HW(catt(fgbg)))", "l1(norm_HW(fgbg))"),
]
DIFFERENT = [
    ("l1(global)", "l2(global)"),
    ("l1(global)", "l1(fgbg)"),
    ("l1(fgbg)", "l1[background=1](fgbg)"),
    ("l1(scale_r2(global))", "l1(multi_scale_r4(global))"),
    ("pear(global)", "cos(global)"),
    ("l2(standardize(global))", "l2(norm_HW(global))"),
    ("kl(softmax_C(logits))", "kl[T=2](softmax_C(logits))"),
    ("giou(localization)", "diou(localization)"),
    ("l1(global)", "l1[warm_up=5](global)"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_formulas_that_compute_the_same(one: str, other: str) -> None:
    assert of(one) == of(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_formulas_that_compute_something_else(one: str, other: str) -> None:
    assert of(one) != of(other)


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_a_formula_and_its_canonical_form(knowledge: str) -> None:
    rng = random.Random(0)
    terms = [term for term in combinations_of(knowledge, "full", REGIONS[knowledge]) if not SPACE.contains(term)]
    folded = [term for term in terms if canonical_term(term) != replace(term, weight=1.0)]
    for term in rng.sample(folded, min(40, len(folded))):
        assert fingerprint(term) == fingerprint(canonical_term(term)), term


def test_the_order_of_terms_and_their_common_factor_make_no_difference() -> None:
    policy = parse_formula("2·l1(global) + 0.5·giou(localization)")
    assert fingerprint(policy) == fingerprint(parse_formula("giou(localization) + 4·l1(global)"))
    assert fingerprint(policy) != fingerprint(parse_formula("2·l1(global) + giou(localization)"))
    assert fingerprint(policy) != fingerprint(parse_formula("2·l1(global)"))
    late = [parse_formula(text) for text in ("l1[stop=0.5](global) + l2(global)", "l1(global) + l2[stop=0.5](global)")]
    assert fingerprint(late[0]) != fingerprint(late[1])


def test_no_distillation_has_a_fingerprint() -> None:
    assert fingerprint(parse_formula("none")) == fingerprint(parse_formula("none")) != of("l1(global)")


def test_groups_of_the_same() -> None:
    one, other, third = (Term("global", ("none", "none", norm), "l1", 1.0) for norm in ("none", "batch", "norm_C"))
    assert same([one, other, third]) == [[one, other]]


def test_census_of_localization() -> None:
    result = count("localization", full=True)
    assert (result.raw, result.legal, result.proper, result.distinct, result.different) == (70, 54, 54, 54, 54)
    assert result.improper == {}
    assert result.alike == []
    text = list(lines(result))
    assert text == [f"{'localization':<13}{70:>9}{54:>9}{54:>9}{54:>10}{54:>13}{result.per_image:>11}"]
    assert "3,920 formulas" in header()
