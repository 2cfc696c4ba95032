"""Optuna's samplers behind the same ask and tell: what they learn from, and that they repeat."""

import builtins
import random

import pytest

from detkds_core.evolution import Candidate, Job, Outcome, dumped
from detkds_core.evolution.history import History
from detkds_core.evolution.optuna_searchers import catalogue, genes_of, imported, parameters_of, sampled_policy
from detkds_core.policy import Policy, SearchSpace, check

from .worlds import NONE, PKD, make_spec, measure, run

SPACE = SearchSpace(
    knowledge=("global", "localization"), images_per_batch=8, balanced=True, feature_weights=(1.0,), response_weights=(1.0,)
)


def spec(**changes):
    return make_spec(
        **({"knowledge": SPACE.knowledge, "space": SPACE, "algorithm": "tpe", "rungs": (10,), "group": 1, "budget": 300} | changes)
    )


def test_a_term_is_its_genes():
    pytest.importorskip("optuna")
    made = catalogue(History(spec()), "localization")
    assert list(made.genes) == ["transform 0", "distance", "options", "weight"]
    assert all(made.terms[genes_of(term)] == term for term in SPACE.terms("localization"))


def test_what_the_samplers_cannot_draw_is_left_out():
    history = History(spec(references=(NONE, PKD)))
    term = next(iter(SPACE.terms("localization")))
    new = (Candidate(0, NONE, "reference"), Candidate(1, PKD, "reference"), Candidate(2, Policy((term,)), "stage1", "localization"))
    history.asked(Job(0, 0, 0, (0, 1, 2), new))
    catalogues = {island: catalogue(history, island) for island in SPACE.knowledge}
    assert parameters_of("tpe", history, catalogues, 0) == {"global": False, "localization": False}
    assert parameters_of("tpe", history, catalogues, 1) is None, "its weight is no ratio"
    only = parameters_of("tpe", history, catalogues, 2)
    assert (only["localization"], only["localization distance"], "global distance" in only) == (True, term.distance, False)
    whole = parameters_of("nsga2", history, catalogues, 2)
    assert whole == parameters_of("nsga2", history, catalogues, 2)
    assert {"global distance", "localization distance"} <= set(whole)


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_searches_repeat_and_propose_what_is_legal(algorithm):
    pytest.importorskip("optuna")
    wanted = spec(algorithm=algorithm, population=6)
    one, other, third = (run(made, measure(0)) for made in (wanted, wanted, spec(algorithm=algorithm, population=6, seed=1)))
    assert [dumped(event) for event in one.ledger] == [dumped(event) for event in other.ledger]
    assert one.candidates[2:] != third.candidates[2:]
    assert all(not check(candidate.policy) for candidate in one.candidates)


def test_the_estimator_prefers_the_knowledge_that_helps():
    pytest.importorskip("optuna")
    history = History(spec())
    rng = random.Random(0)
    terms = [SPACE.sample(rng, island) for island in SPACE.knowledge * 20]
    policies = list(dict.fromkeys(Policy((term,)) for term in terms))
    new = tuple(Candidate(index, policy, "stage1", policy.terms[0].knowledge) for index, policy in enumerate(policies))
    history.asked(Job(0, 0, 0, tuple(range(len(new))), new))
    history.told(0, {one.index: Outcome(30.0 if one.island == "global" else 10.0 + one.index / 100) for one in new})
    drawn = [sampled_policy("tpe", history, random.Random(seed)) for seed in range(20)]
    on = [sum(term.knowledge == island for policy in drawn if policy for term in policy.terms) for island in SPACE.knowledge]
    assert on[0] > 2 * on[1]


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    kept = builtins.__import__

    def lacking(name, *rest):
        if name == "optuna":
            raise ModuleNotFoundError(name)
        return kept(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(RuntimeError, match=r"'tpe' needs Optuna: pip install 'detkds_core\[optuna\]'"):
        imported("tpe")
