"""The algorithms on a synthetic landscape whose worth is known: the search of this project finds more for less."""

import random
from statistics import fmean

import pytest

from detkds_core.evolution import ALGORITHMS, Spec
from detkds_core.evolution.landscapes import Landscape, double_of, found, search
from detkds_core.evolution.searchers import ALGORITHMS as WRITTEN
from detkds_core.policy import Policy, Term

FULL = 27
RUNGS = (1, 3, 9, FULL)
REPEATS = 10


def worth(algorithm, budget, repeats=REPEATS):
    """True worth of what is recommended, on one landscape a repeat. budget: in full proxies."""
    halves = algorithm in ("detkds", "random_halving")
    reached = []
    for seed in range(repeats):
        landscape = Landscape(seed)
        spec = Spec(
            landscape.knowledge,
            budget * FULL,
            seed,
            (Policy(()),),
            landscape,
            RUNGS if halves else (FULL,),
            algorithm=algorithm,
            group=4 if halves else 1,
            look=0.2 if halves else 0.0,
        )
        evolution = search(landscape, spec, gates=halves, doubles=halves)
        assert evolution.history().spent <= budget * FULL + 8
        reached.append(found(landscape, evolution))
    return fmean(reached)


@pytest.fixture(scope="module")
def reached():
    return {algorithm: worth(algorithm, 30) for algorithm in WRITTEN if algorithm not in ("tpe", "nsga2")}


def test_every_algorithm_finds_something(reached):
    assert set(WRITTEN) == set(ALGORITHMS)
    assert all(value > 0.2 for value in reached.values())


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_so_do_samplers_of_optuna(algorithm):
    pytest.importorskip("optuna")
    assert worth(algorithm, 30, 2) > 0.2


def test_rungs_and_gates_are_worth_more_than_full_proxies(reached):
    assert reached["random_halving"] > reached["random"] + 0.2


def test_the_search_beats_random_policies_with_the_same_rungs_and_gates(reached):
    assert reached["detkds"] > reached["random_halving"]


def test_the_search_beats_ten_times_the_budget_of_the_naive_genetic_algorithm(reached):
    assert reached["detkds"] > worth("genetic", 300, 5)


def test_doubles_are_worth_the_same():
    landscape = Landscape(0)
    one = Term("global", ("t1", "t2", "t1"), "d0", 1.0)
    assert double_of(one) == Term("global", ("t1", "t0", "t0"), "d0", 1.0)
    assert landscape.gain(one) == landscape.gain(double_of(one))
    other = Term("global", ("t1", "t2", "t1"), "d6", 1.0)
    assert double_of(other) == other


def test_a_measurement_follows_from_policy_rung_and_seed():
    landscape = Landscape(3)
    policy = Policy((landscape.sample(random.Random(0), "logits"),))
    first = landscape.measurement(policy, 0, 4, 0)
    assert first == Landscape(3).measurement(policy, 0, 4, 0)
    assert first != landscape.measurement(policy, 0, 4, 1)
    assert first != landscape.measurement(policy, 1, 4, 0)


def test_what_a_combination_is_worth_of_its_terms():
    rng = random.Random(2)
    landscapes = {together: Landscape(5, together=together) for together in ("sum", "best", "mean")}
    terms = tuple(landscapes["sum"].sample(rng, island) for island in ("global", "logits"))
    first, second = sorted((landscapes["sum"].gain(term) for term in terms), reverse=True)
    worths = {together: landscape.worth(Policy(terms)) for together, landscape in landscapes.items()}
    assert worths["best"] == first
    assert worths["mean"] == pytest.approx((first + second) / 2)
    assert abs(worths["sum"] - (first + (second / 2 if second > 0 else second))) < 1  # and luck of 0.15
    assert all(landscape.worth(Policy(terms[:1])) == landscapes["sum"].gain(terms[0]) for landscape in landscapes.values())
