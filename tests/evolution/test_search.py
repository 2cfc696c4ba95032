"""The whole search: what it asks for, in which order, and that nothing but the specification and the results decides it."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from detkds_core.evolution import Evolution, Outcome, dumped, replay
from detkds_core.evolution.searchers import ALGORITHMS
from detkds_core.policy import Policy, SearchSpace, Term, canonical, canonical_json, check

from .worlds import EVERY, NONE, PKD, RUNGS, make_spec, measure, run, told, uniform

NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # a whole search an example: shrinking one takes minutes


def decisions(evolution):
    return [dumped(event) for event in evolution.ledger]


# What it asks for


def test_references_come_first_then_single_terms_then_combinations():
    evolution = run(make_spec(), measure(0))
    first = evolution.candidates[:2]
    assert [one.policy for one in first] == [canonical(NONE), canonical(PKD)]
    assert [one.index for one in evolution.candidates] == list(range(len(evolution.candidates)))
    stages = [one.stage for one in evolution.candidates]
    assert stages.index("stage2") > stages.index("stage1") == 2
    for one in evolution.candidates:
        knowledge = [term.knowledge for term in one.policy.terms]
        assert len(set(knowledge)) == len(knowledge)
        if one.stage == "stage1":
            assert knowledge == [one.island]
    assert any(len(one.policy.terms) > 2 for one in evolution.candidates)


def test_every_policy_is_legal_new_and_canonical():
    evolution = run(make_spec(budget=6000), measure(1))
    keys = [canonical_json(one.policy) for one in evolution.candidates]
    assert len(set(keys)) == len(keys) > 100
    for one in evolution.candidates:
        assert not check(one.policy)
        assert canonical(one.policy) == one.policy


def test_new_candidates_start_at_the_lowest_rung_and_climb_one_by_one():
    evolution = run(make_spec(calibration=0), measure(2))
    seen = {}
    for job in evolution.jobs:
        for index in job.members:
            if job.replicate == 0:
                assert job.rung == seen.get(index, -1) + 1
                seen[index] = job.rung
        assert all(one.index in job.members for one in job.new)
        assert not job.new or job.rung == 0
    counts = [sum(rung >= place for rung in seen.values()) for place in range(len(RUNGS))]
    assert counts[0] >= 3 * counts[1] - 3 >= 9 * counts[2] - 12 > 0


def test_nobody_refused_infeasible_or_double_climbs():
    evolution = run(make_spec(budget=6000, audit=0.0), measure(3))
    out = {index for outcomes in evolution.results.values() for index, one in outcomes.items() if one.ap is None}
    assert out
    for job in evolution.jobs:
        for index in job.members:
            earlier = [number for number in range(job.index) if index in evolution.jobs[number].members]
            assert not earlier or index not in out or any(evolution.results[number][index].ap is not None for number in earlier)


def test_the_budget_is_kept_and_nearly_spent():
    for algorithm in ALGORITHMS:
        spec = make_spec(algorithm=algorithm, budget=4000)
        evolution = run(spec, measure(4))
        spent = evolution.history().spent
        assert 0.85 * 4000 < spent <= 4000 + spec.group * RUNGS[0] * 2, algorithm


@pytest.mark.parametrize("budget", [400, 700, 1000, 1440])
def test_somebody_reaches_the_full_proxy_however_small_the_budget(budget):
    spec = make_spec(budget=budget, group=8, look=4, rungs=(15, 30, 60, 120))
    evolution = run(spec, lambda policy, job, earlier: Outcome(uniform(canonical_json(policy)) + job.rung))
    assert evolution.best(1)[0].rung == 3
    assert evolution.history().spent <= budget


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_a_last_group_leaves_what_is_kept_for_those_that_climb(parallelism):
    spec = make_spec(budget=12 * 120, group=8, parallelism=parallelism, rungs=(30, 120))
    evolution = run(spec, lambda policy, job, earlier: Outcome(uniform(canonical_json(policy)) + job.rung))
    spent, kept = 0, 0.75 * spec.budget  # until so much is spent, new candidates begin
    for job in evolution.jobs:
        before, spent = spent, spent + spec.rungs[job.rung] * len(job.members)
        assert not job.new or spent < kept + 30 or before >= kept
    assert sum(len(job.members) for job in evolution.jobs if job.rung == 1) >= 3


def test_the_number_of_candidates_may_be_limited():
    evolution = run(make_spec(candidates=20), measure(0))
    assert len(evolution.candidates) == 20
    assert any(job.rung == 2 for job in evolution.jobs), "they climb all the same"


def test_a_group_is_never_larger_than_asked():
    assert max(len(job.members) for job in run(make_spec(group=5), measure(5)).jobs) == 5


def test_islands_that_earn_get_more_and_every_island_its_floor():
    def outcome(policy, job, earlier):
        good = bool(policy.terms) and policy.terms[0].knowledge == "fgbg"
        return Outcome(20 + 10 * good + uniform(canonical_json(policy)))

    evolution = run(make_spec(budget=6000, stage2_share=0.0, calibration=0), outcome)
    counts = {island: sum(one.island == island for one in evolution.candidates) for island in EVERY}
    assert counts["fgbg"] == max(counts.values())
    assert min(counts.values()) >= 4
    assert counts["fgbg"] > 2 * min(counts.values())


def first_combination(budget, *references):
    """Of a search of full proxies alone, 10 iterations each."""
    spec = make_spec(rungs=(10,), budget=budget, group=1, references=(NONE, *references))
    found = run(spec, lambda policy, job, earlier: Outcome(uniform(canonical_json(policy))))
    return next(one.index for one in found.candidates if one.stage == "stage2")


def test_stage_1_spends_the_more_the_more_candidates_a_budget_pays_for():
    assert first_combination(400) == 6  # 40 candidates: no distillation, and each island once
    assert first_combination(800) == 6
    assert first_combination(1090) == 11  # 29 more than 80, of 290: a tenth of 1,090
    assert first_combination(2800) == 182  # 65 %, never more


def test_each_hand_designed_reference_spares_the_islands_two_candidates():
    assert first_combination(1670, PKD) == 49  # 87 / 290 of 1,670 are 501
    assert first_combination(1670, PKD, Policy((replace(PKD.terms[0], weight=1.0),))) == 47


def test_however_many_references_every_island_is_tried_once():
    references = (NONE, *(Policy((replace(PKD.terms[0], weight=2.0**place),)) for place in range(12)))
    found = run(make_spec(budget=400, rungs=(10,), group=1, references=references), measure(0)).candidates
    assert [one.island for one in found[13:17]] == ["fgbg", "instance", "logits", "localization"]
    assert found[17].stage == "stage2"


def test_a_space_without_anything_new_ends_the_search_early():
    space = SearchSpace(knowledge=("localization",), images_per_batch=8, response_weights=(1.0,))
    evolution = run(make_spec(knowledge=("localization",), space=space, references=(NONE,), budget=100_000), measure(0))
    assert evolution.finished
    assert len(evolution.candidates) < 200


def test_children_of_a_term_with_fixed_weight_weigh_by_ratios_in_a_balanced_space():
    space = SearchSpace(knowledge=("global",), images_per_batch=8, feature_weights=(0.1, 1.0), response_weights=(0.1, 1.0), balanced=True)
    child = space.mutate(random.Random(0), PKD.terms[0])
    assert child.balanced
    assert child.weight in (0.1, 1.0)
    evolution = run(make_spec(knowledge=("global",), space=space), measure(0))
    searched = [one.policy.terms[0] for one in evolution.candidates if one.operator in ("sample", "mutate", "migrate")]
    assert searched
    assert all(term.balanced for term in searched)


TERMS = (
    Term("fgbg", ("catt", "none", "norm_C"), "l1", 0.3),
    Term("fgbg", ("none", "none", "norm_HW"), "l2", 0.1),
    Term("logits", ("none",), "l2", 1.0),
    Term("global", ("satt", "none", "norm_C"), "l1", 0.3),
)
SEEDS = (Policy((TERMS[0], TERMS[2])), *(Policy((term,)) for term in TERMS))


def test_terms_of_seeds_open_their_islands_too():
    evolution = run(make_spec(seeds=(Policy((TERMS[0], TERMS[2])), Policy((TERMS[1],)))), measure(0))
    opening = [one for one in evolution.candidates if one.island == "fgbg"][:4]
    assert [one.operator for one in opening] == ["warm", "sample", "warm", "sample"]
    assert [one.policy for one in opening[::2]] == [canonical(Policy((TERMS[1],))), canonical(Policy((TERMS[0],)))]
    assert next(one for one in evolution.candidates if one.island == "instance").operator == "seed"


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in ("tpe", "nsga2")])
@pytest.mark.parametrize("budget", [900, 3000])
def test_every_search_begins_with_the_seeds_as_they_are(algorithm, budget):
    evolution = run(make_spec(algorithm=algorithm, seeds=SEEDS, budget=budget), measure(0))
    assert [one.policy for one in evolution.candidates[2:7]] == list(map(canonical, SEEDS))
    assert {one.operator for one in evolution.candidates[2:7]} == {"warm"}
    assert len(evolution.candidates) > 7


def test_a_search_with_seeds_replays():
    evolution = run(make_spec(seeds=SEEDS, budget=1500), measure(0))
    assert decisions(replay(type(evolution.spec).from_json(evolution.spec.to_json()), evolution.ledger)) == decisions(evolution)


# What decides


def test_ask_waits_for_the_results_it_needs():
    evolution = Evolution(make_spec(parallelism=2))
    first, second = evolution.ask(), evolution.ask()
    assert (first.index, second.index) == (0, 1)
    assert evolution.ask() is None
    evolution.tell(1, told(evolution, second, measure(0)))
    assert evolution.ask() is None, "job 2 sees job 0"
    evolution.tell(0, told(evolution, first, measure(0)))
    assert evolution.ask().index == 2
    assert evolution.ask().index == 3, "both results are there"
    assert evolution.ask() is None


def test_tell_refuses_what_cannot_be():
    evolution = Evolution(make_spec())
    job = evolution.ask()
    outcomes = dict.fromkeys(job.members, Outcome(1.0))
    with pytest.raises(ValueError, match="job 1 has not been asked for"):
        evolution.tell(1, outcomes)
    with pytest.raises(ValueError, match=r"job 0 measures the candidates \[0, 1, 2\], told were \[0\]"):
        evolution.tell(0, {0: Outcome(1.0)})
    evolution.tell(0, outcomes)
    evolution.tell(0, outcomes)
    with pytest.raises(ValueError, match="a result does not change"):
        evolution.tell(0, outcomes | {0: Outcome(2.0)})


@settings(max_examples=12, deadline=None, phases=NO_SHRINKING)
@given(seed=st.integers(0, 2**31), parallelism=st.integers(1, 5), schedule=st.randoms(use_true_random=False))
def test_timing_changes_no_byte_of_the_ledger(seed, parallelism, schedule):
    spec = make_spec(seed=seed, parallelism=parallelism, budget=1500)
    outcome = plain(0)
    undisturbed = run(spec, outcome, in_flight=1)
    evolution, waiting = Evolution(spec), []
    while not evolution.finished:
        while schedule.random() < 0.7 and (job := evolution.ask()) is not None:
            waiting.append(job)
        if waiting and schedule.random() < 0.6:
            job = waiting.pop(schedule.randrange(len(waiting)))
            evolution.tell(job.index, told(evolution, job, outcome))
        elif not waiting:
            evolution.ask() and waiting.append(evolution.jobs[-1])
    assert decisions(evolution) == decisions(undisturbed)


@pytest.mark.parametrize("seed", range(3))
def test_a_rung_that_goes_by_another_ap_on_the_way_does_so_at_the_same_decision(seed):
    def faint(policy, job, earlier):
        words = (canonical_json(policy), job.rung, job.replicate)
        return Outcome(2.0 * uniform("ap", *words), lenient_ap=30.0 * uniform("lenient", *words))

    spec = make_spec(seed=seed, parallelism=3, lenient=True, budget=1500)
    one, together = run(spec, faint, in_flight=1), run(spec, faint)
    assert decisions(one) == decisions(together)
    assert decisions(replay(spec, one.ledger)) == decisions(one)
    prefixes = (replay(spec, one.ledger[:length]).history().values for length in range(0, len(one.ledger), 2))
    assert len({values[0][0][0] for values in prefixes if 0 in values}) == 2, "the first candidate goes by its AP and by the lenient one"
    strict = run(replace(spec, lenient=False), faint)
    assert decisions(strict) != decisions(one), "the lenient one decided something"


def plain(world):
    """A world without doubles: whose double a candidate is depends on what was told, which a test of timing varies."""
    outcome = measure(world)
    return lambda policy, job, earlier: outcome(policy, job, [])


@settings(max_examples=8, deadline=None, phases=NO_SHRINKING)
@given(length=st.integers(0, 200), logged=st.booleans())
def test_any_prefix_of_a_ledger_replays_to_the_same_next_decision(length, logged):
    whole = run(make_spec(budget=1500), measure(6), logged=logged)
    events = [json.loads(text) for text in decisions(whole)]
    length = min(length, len(events))
    again = replay(whole.spec, events[:length], logged=logged)
    assert decisions(again) == decisions(whole)[:length]
    following = next((event for event in events[length:] if "asked" in event), None)
    for event in events[length:]:
        if "asked" in event:
            break
        again.tell(event["told"], {int(index): Outcome.from_json(one) for index, one in event["outcomes"].items()})
    job = again.ask(following["asked"]["seen"] if logged and following else None)
    assert (None if job is None else dumped(job.to_json())) == (None if following is None else dumped(following["asked"]))


def test_a_logged_search_never_waits_and_its_ledger_says_what_it_saw():
    evolution = Evolution(make_spec(parallelism=3), logged=True)
    jobs = [evolution.ask() for _ in range(3)]
    assert evolution.ask() is None
    evolution.tell(2, told(evolution, jobs[2], measure(0)))
    job = evolution.ask()
    assert job.seen == (2,)
    evolution.tell(0, told(evolution, jobs[0], measure(0)))
    assert evolution.ask().seen == (0,), "what was looked at before is not said again"
    assert evolution.ledger[evolution.place(4)]["asked"]["index"] == 4
    assert [event["told"] for event in evolution.ledger[: evolution.place(4)] if "told" in event] == [2, 0]
    assert decisions(replay(evolution.spec, evolution.ledger, logged=True)) == decisions(evolution)


def test_a_ledger_that_says_all_that_had_been_looked_at_is_read_too():
    """As those of logged searches did before only what is new was written."""
    evolution = run(make_spec(parallelism=3, budget=900), measure(2), logged=True)
    old, seen = [], set()
    for event in evolution.ledger:
        if "asked" in event:
            seen |= set(event["asked"]["seen"])
            event = {"asked": {**event["asked"], "seen": sorted(seen)}}
        old.append(event)
    assert old != list(evolution.ledger)
    assert decisions(replay(evolution.spec, old, logged=True)) == decisions(evolution)


def test_a_ledger_of_another_spec_is_refused():
    whole = run(make_spec(budget=1500), measure(0))
    with pytest.raises(ValueError, match=r"ledger\[\d+\]: this spec asks for another job: "):
        replay(replace(whole.spec, seed=1), whole.ledger)


def test_seeds_differ_and_equal_seeds_do_not():
    one, other, third = (decisions(run(make_spec(seed=seed, budget=1500), measure(0))) for seed in (1, 1, 2))
    assert one == other != third


def test_nothing_is_drawn_from_shared_state():
    random.seed(1)
    first = decisions(run(make_spec(budget=1500), measure(0)))
    random.seed(2)
    assert decisions(run(make_spec(budget=1500), measure(0))) == first


# What comes out


def test_best_ranks_by_rung_then_ap_and_leaves_out_references_and_failures():
    evolution = run(make_spec(budget=4000), measure(7))
    best = evolution.best(10)
    assert best[0].rung == 2
    assert [one.rung for one in best] == sorted((one.rung for one in best), reverse=True)
    assert all(one.candidate.stage != "reference" for one in best)
    assert all(evolution.fitness(one.candidate.index) == one.fitness for one in best)


def test_a_double_has_the_fitness_of_its_original():
    evolution = run(make_spec(budget=4000), measure(8))
    doubles = {i: one.same_as for told_ in evolution.results.values() for i, one in told_.items() if one.same_as is not None}
    assert doubles
    for double, original in doubles.items():
        assert evolution.fitness(double) == evolution.fitness(original)


def test_everything_infeasible_ends_all_the_same():
    evolution = run(make_spec(budget=1500), lambda policy, job, earlier: Outcome(None, failure="not_finite"))
    assert evolution.best(3) == []
    assert evolution.summary()["funnel"]["infeasible"] == len(evolution.candidates)


def test_summary_is_json_and_its_funnel_adds_up():
    evolution = run(make_spec(budget=6000), measure(9))
    summary = json.loads(json.dumps(evolution.summary()))
    funnel = summary["funnel"]
    known = funnel["trained"][0] + sum(funnel["rejected"].values()) + funnel["duplicates"] + funnel["infeasible"]
    assert known == funnel["proposed"] == len(evolution.candidates)
    assert funnel["trained"] == sorted(funnel["trained"], reverse=True)
    assert summary["spent"] <= 6000
    assert [rung["iterations"] for rung in summary["rungs"]] == list(RUNGS)


def test_a_strict_search_sees_what_the_lag_lets_through():
    evolution = run(make_spec(parallelism=2), measure(0))
    assert [evolution.seen_by(number) for number in range(4)] == [0, 0, 1, 2]


def test_a_term_of_full_breadth_is_searched_too():
    space = SearchSpace(knowledge=("global", "logits"), images_per_batch=8, breadth="full")
    evolution = run(make_spec(knowledge=("global", "logits"), space=space, references=(NONE,), budget=1500), measure(0))
    assert all(not check(one.policy) for one in evolution.candidates)
    assert isinstance(evolution.candidates[3].policy.terms[0], Term)
    assert evolution.candidates[0].policy == Policy(())


@pytest.mark.parametrize("logged", [False, True])
def test_what_is_new_is_found_without_going_through_what_there_was(logged):
    evolution = Evolution(make_spec(budget=1500, parallelism=3), logged=logged)
    outcome, length = measure(6), 0
    while not evolution.finished:
        while (job := evolution.ask()) is not None:
            assert evolution.result(job.index) is None
        assert evolution.open == [one.index for one in evolution.jobs if one.index not in evolution.results]
        assert len(evolution.open) <= 3
        assert evolution.count == len(evolution.candidates)
        assert evolution.ledger_from(length) == evolution.ledger[length:]
        length = evolution.events
        if evolution.open:
            number = evolution.open[-1]
            evolution.tell(number, told(evolution, evolution.jobs[number], outcome))
            assert evolution.result(number) == evolution.results[number]
    assert evolution.candidate(7) == evolution.candidates[7]
    assert [event["told"] for event in evolution.ledger if "told" in event] == sorted(evolution.results) or logged
