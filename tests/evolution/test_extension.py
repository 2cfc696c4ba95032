"""A search that goes on after its end: its past stays as it was, nothing is measured again, and it replays from any point."""

import json
from collections import Counter

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from detkds_core.evolution import Evolution, Outcome, dumped, replay
from detkds_core.evolution.searchers import ALGORITHMS

from .worlds import RUNGS, make_spec, measure, run, told

NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # a whole search an example: shrinking one takes minutes


def decisions(evolution):
    return [dumped(event) for event in evolution.ledger]


def events_of(evolution):
    return [json.loads(text) for text in decisions(evolution)]


def go_on(evolution, outcome):
    """To the end, one job after the other."""
    while not evolution.finished:
        while (job := evolution.ask()) is not None:
            evolution.tell(job.index, told(evolution, job, outcome))
    return evolution


def extended(spec, world, *grants, logged=False):
    """A search that ends, is extended and ends again, for each grant: (budget, candidates)."""
    evolution = run(spec, measure(world), logged=logged)
    for budget, candidates in grants:
        evolution.extend(budget, candidates)
        go_on(evolution, measure(world))
    return evolution


@settings(max_examples=8, deadline=None, phases=NO_SHRINKING)
@given(
    seed=st.integers(0, 2**31),
    budgets=st.tuples(st.integers(90, 1500), st.integers(90, 1500)),
    limit=st.none() | st.integers(1, 30),
    length=st.integers(0, 250),
    logged=st.booleans(),
)
def test_an_extended_search_replays_from_any_point_to_the_byte(seed, budgets, limit, length, logged):
    spec = make_spec(seed=seed, budget=budgets[0], candidates=limit and 2 + limit)
    first = run(spec, measure(0), logged=logged)
    more = limit and len(first.candidates) + limit
    whole = extended(spec, 0, (sum(budgets), more), logged=logged)
    assert decisions(whole)[: len(first.ledger)] == decisions(first), "the past is as it was"
    events = events_of(whole)
    assert events[len(first.ledger)] == {"extended": {"budget": sum(budgets), "candidates": more}}
    again = replay(spec, events[:length], logged=logged)
    assert decisions(again) == decisions(whole)[:length]
    again.repeat(events[len(again.ledger) :])
    assert decisions(again) == decisions(whole)
    assert again.ask() is None
    assert again.finished


@pytest.mark.parametrize("logged", [False, True])
def test_killed_after_every_event_it_decides_the_same(logged):
    whole = extended(make_spec(budget=400), 3, (700, None), logged=logged)
    events = events_of(whole)
    for length in range(len(events)):
        again, following = replay(whole.spec, events[:length], logged=logged), events[length]
        if "asked" in following:
            assert dumped(again.ask(following["asked"]["seen"] if logged else None).to_json()) == dumped(following["asked"])
        elif "extended" in following:
            assert again.ask() is None
            assert again.finished
            again.extend(**following["extended"])
            assert decisions(again) == decisions(whole)[: length + 1]


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in ("tpe", "nsga2")])
def test_nothing_is_measured_again(algorithm):
    evolution = extended(make_spec(algorithm=algorithm, budget=1000), 1, (2000, None), (2600, None))
    measured = Counter((index, job.rung, job.replicate) for job in evolution.jobs for index in job.members)
    assert max(measured.values()) == 1
    assert 0.85 * 2600 < evolution.history().spent <= 2600 + evolution.spec.group * RUNGS[0] * 2
    assert evolution.summary()["budget"] == 2600


def test_what_the_first_budget_decided_stays():
    spec = make_spec(budget=2000, calibration=4)
    assert spec.calibrators == 0
    assert make_spec(budget=2100, calibration=4).calibrators == 4
    evolution = extended(spec, 0, (3000, None))
    reach = [max(job.rung for job in evolution.jobs if index in job.members) for index in range(4)]
    assert min(reach) == 0, "no calibration afterwards"


def test_an_extension_has_its_own_stages_and_keeps_some_of_it_for_climbing():
    first = run(make_spec(), measure(2))
    whole = extended(make_spec(), 2, (6000, None))
    later = whole.candidates[len(first.candidates) :]
    stages = [one.stage for one in later]
    assert stages[0] == "stage1", "though the first search had come to its combinations"
    assert min(stages.count("stage1"), stages.count("stage2")) > 20
    assert any(job.rung == 2 for job in whole.jobs[len(first.jobs) :])
    assert whole.best(1)[0].fitness >= first.best(1)[0].fitness


def test_an_extension_may_be_in_candidates():
    evolution = extended(make_spec(candidates=20), 0, (6000, 30))
    assert len(evolution.candidates) == 30
    evolution.extend(9000)
    assert len(go_on(evolution, measure(0)).candidates) > 40, "as many as the budget pays for"


@pytest.mark.parametrize("added", [300, 600])
def test_an_extension_need_not_spend_what_the_candidates_left(added):
    first = run(make_spec(candidates=20), measure(0))
    spent = first.history().spent
    whole = extended(make_spec(candidates=20), 0, (int(spent) + added, None))
    assert spent + added < whole.spec.budget
    assert 0.5 * added < whole.history().spent - spent <= added + whole.spec.group * RUNGS[0] * 2
    assert decisions(replay(whole.spec, events_of(whole))) == decisions(whole)


def test_extend_refuses_what_cannot_be():
    evolution = Evolution(make_spec())
    job = evolution.ask()
    with pytest.raises(ValueError, match="extended: the results of 1 jobs have not been looked at"):
        evolution.extend(9000)
    evolution = run(make_spec(candidates=20), measure(0))
    spent = int(evolution.history().spent)
    assert spent < evolution.spec.budget, "its number of candidates ended it"
    with pytest.raises(ValueError, match=rf"extended\.budget: {spent} is not more than the {spent} iterations that the search has spent"):
        evolution.extend(spent)
    with pytest.raises(ValueError, match=r"extended\.candidates: 20 leaves nothing to search after 20 candidates"):
        evolution.extend(4000, 20)
    evolution.tell(0, evolution.results[0])
    with pytest.raises(ValueError, match="a result does not change"):
        evolution.tell(0, dict.fromkeys(job.members, Outcome(1.0)))
