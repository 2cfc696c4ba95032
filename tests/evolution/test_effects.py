"""What genes seem to add, by hand: an additive model of the lowest rung, shrunken where little is known."""

import pytest

from detkds_core.evolution import Candidate, Job, Outcome, effects
from detkds_core.evolution.effects import expected, genes
from detkds_core.evolution.history import History
from detkds_core.evolution.islands import first_values
from detkds_core.evolution.rungs import climbed
from detkds_core.policy import Policy, Term

from .worlds import EVERY, make_spec


def term(norm, distance="l2", weight=1.0, knowledge="global"):
    return Term(knowledge, ("none", "none", norm), distance, weight)


def history(rows):
    """A history of one job at the lowest rung: terms and their AP."""
    made = History(make_spec())
    new = tuple(Candidate(index, Policy((one,)), "stage1", one.knowledge, (), "sample") for index, (one, _) in enumerate(rows))
    made.asked(Job(0, 0, 0, tuple(range(len(rows))), new))
    made.told(0, {index: Outcome(ap) for index, (_, ap) in enumerate(rows)})
    return made


def test_genes_of_feature_terms_are_shared_and_of_responses_not():
    assert genes(Term("logits", ("none",), "l1", 1.0)) == (
        "logits",
        ("logits", 0, "none"),
        ("logits", "distance", "l1"),
        ("logits", "weight", False, 0),
    )
    shared = set(genes(term("norm_C"))) & set(genes(term("norm_C", knowledge="fgbg")))
    assert ("features", 2, "norm_C") in shared
    assert ("global", 2, "norm_C") not in shared


def test_nothing_is_expected_of_what_was_never_seen():
    assert expected(history([]), term("norm_C")) == 0.0
    assert expected(history([(term("norm_C"), 30.0), (term("norm_HW"), 20.0)]), Term("logits", ("none",), "l1", 1.0)) == 0.0


def test_a_gene_that_did_well_is_expected_to_and_one_seen_often_says_more():
    made = history([(term("norm_C", "l1"), 30.0), (term("norm_HW", "l1"), 20.0)])
    assert expected(made, term("norm_C")) > 0 > expected(made, term("norm_HW"))
    often = history([(term(norm, distance), ap) for norm, ap in (("norm_C", 30.0), ("norm_HW", 20.0)) for distance in ("l1", "l2", "pear")])
    assert 5 > expected(often, term("norm_C", "l2")) > expected(made, term("norm_C", "l2"))


def test_effects_by_hand(monkeypatch):
    monkeypatch.setattr(effects, "SWEEPS", 200)
    monkeypatch.setattr(effects, "PRIOR", 3.0)
    logits = [Term("logits", (name,), "l1", 1.0) for name in ("none", "standardize")]
    made = history([(logits[0], 28.0), (logits[1], 20.0)])
    # around their mean, +4 and -4: the island, the distance and the weight are the same for both and add 0; each transform 4 / (1 + 3)
    assert expected(made, logits[0]) == pytest.approx(1.0)
    assert expected(made, logits[1]) == pytest.approx(-1.0)


def test_a_feature_island_learns_from_another():
    made = history([(term("norm_C"), 30.0), (term("norm_HW"), 20.0)])
    assert expected(made, term("norm_C", knowledge="fgbg")) > expected(made, term("norm_HW", knowledge="fgbg"))


def test_a_rung_that_misleads_does_not_steer_stage_1_any_more():
    """Thirty candidates pass all rungs; what leads at the lowest is worst at the others, which agree."""
    made = History(make_spec(budget=100_000, calibration=30, group=30))
    terms = [term(norm, distance, weight) for norm in ("norm_C", "norm_HW") for distance in ("l1", "l2", "pear") for weight in range(1, 6)]
    new = tuple(Candidate(index, Policy((one,)), "stage1", "global", (), "sample") for index, one in enumerate(terms))
    for rung in range(3):
        made.asked(Job(rung, rung, 0, tuple(range(30)), new if rung == 0 else ()))
        worth = {index: float(index if rung else 30 - index) + 40 * (rung == 0) for index in range(30)}
        made.told(rung, {index: Outcome(ap) for index, ap in worth.items()})
    assert climbed(made) == [1, 2]
    assert expected(made, term("norm_HW")) > expected(made, term("norm_C"))
    assert first_values(made, "global") == [float(index) for index in range(30)]
    assert first_values(made, EVERY[1]) == []
