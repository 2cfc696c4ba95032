"""The whole search, on landscapes that cost nothing: fitness is a function of the policy alone."""

import hashlib
import json
import math
import random
from collections import Counter, deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkds_core.evolution import Evolution, Result, Spec, replay
from detkds_core.policy import Distiller, Policy, SearchSpace, Term, canonical, canonical_json, check, formula, named_policies
from detkds_core.policy.vocabulary import UNPUBLISHED
from detkds_core.report import mean_interval

EVERY = ("global", "fgbg", "instance", "logits", "localization")
PKD = Policy((Term("global", ("none", "none", "standardize"), "l2", 5.0),))
NONE = Policy(())


def uniform(*parts):
    """A number in 0-1 that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") / 2**64


def gain(world, term):
    """What one term adds to AP: the sum of its genes' effects, times how near its weight is to the formula's own best one."""
    places = {"distance": term.distance, **{f"transform {i}": name for i, name in enumerate(term.transforms)}}
    genes = sum(uniform(world, term.knowledge if "transform" in place else "any", place, name) - 0.35 for place, name in places.items())
    best_weight = 10 ** (2.5 * uniform(world, "weight", term.transforms[-1], term.distance) - 1)
    distance = math.log2(term.weight / best_weight)
    return 4 * genes * math.exp(-((distance / 2.5) ** 2)) - max(0.0, distance - 3)


def quality(world, policy):
    """AP without noise: 25 and the gains of the terms, of which all but the largest lose half: they teach partly the same."""
    gains = sorted((gain(world, term) for term in policy.terms), reverse=True)
    overlap = sum(0.5 * max(0.0, value) for value in gains[1:])
    return 25 + sum(gains) - overlap


def noisy(world, policy, sd=0.4):
    """AP as one short training measures it."""
    return quality(world, policy) + random.Random(f"{world} {canonical_json(policy)}").gauss(0, sd)


def measure(world):
    """Results of a landscape in which one candidate in twelve is infeasible."""

    def result(policy):
        if policy.terms and uniform(world, "infeasible", canonical_json(policy)) < 1 / 12:
            return Result(None, "not_finite")
        return Result(round(noisy(world, policy), 3))

    return result


def run(spec, result, in_flight=None):
    """Run a search to its end with at most `in_flight` candidates at once (default: as many as ask gives); the finished evolution."""
    evolution = Evolution(spec)
    waiting = deque()
    while not evolution.finished:
        while (in_flight is None or len(waiting) < in_flight) and (proposal := evolution.ask()) is not None:
            waiting.append(proposal)
        if not waiting:
            break
        done = waiting.popleft()
        evolution.tell(done.index, result(done.policy))
    assert evolution.finished
    return evolution


SPACE = SearchSpace(knowledge=EVERY, images_per_batch=8, has_edges=True)


def make_spec(**changes):
    """A spec with everything at hand; the test names what matters to it."""
    fields = {"knowledge": EVERY, "candidates": 40, "parallelism": 4, "seed": 0, "references": (NONE, PKD), "space": SPACE}
    return Spec(**(fields | changes))


def texts(evolution):
    return [json.dumps(proposal.to_json(), sort_keys=True) for proposal in evolution.proposals]


# What a search proposes, and in which order


def test_references_then_islands_then_combinations():
    evolution = run(make_spec(candidates=42), measure(0))
    stages = [proposal.stage for proposal in evolution.proposals]
    # 40 after the references: 35 % = 14 combine, 26 stand alone
    assert stages == ["reference"] * 2 + ["stage1"] * 26 + ["stage2"] * 14
    assert [proposal.policy for proposal in evolution.proposals[:2]] == [canonical(NONE), canonical(PKD)]
    assert [proposal.index for proposal in evolution.proposals] == list(range(42))
    for proposal in evolution.proposals[2:28]:
        assert [term.knowledge for term in proposal.policy.terms] == [proposal.island]
    for proposal in evolution.proposals[28:]:
        knowledge = [term.knowledge for term in proposal.policy.terms]
        assert len(set(knowledge)) == len(knowledge) >= 1
    assert any(len(proposal.policy.terms) > 1 for proposal in evolution.proposals[28:])


def test_the_first_of_an_island_is_hand_designed_and_the_second_random():
    evolution = run(make_spec(candidates=62), measure(0))  # 39 stand alone: openings of 3
    hand_made = {canonical_json(Policy((replace(term),))) for named in named_policies().values() for term in named.policy.terms}
    for island in ("global", "fgbg"):
        first, second, third = [proposal for proposal in evolution.proposals if proposal.island == island][:3]
        assert [first.operator, second.operator] == ["seed", "sample"]
        assert third.operator in ("seed", "sample")  # sampled, where there is no further hand-designed term
        assert canonical_json(first.policy) in hand_made


def test_every_policy_is_legal_new_and_canonical():
    evolution = run(make_spec(candidates=150, parallelism=8), measure(1))
    keys = [canonical_json(proposal.policy) for proposal in evolution.proposals]
    assert len(set(keys)) == 150
    for proposal in evolution.proposals:
        assert not check(proposal.policy)
        assert canonical(proposal.policy) == proposal.policy


def test_parents_are_feasible_and_old_enough():
    spec = make_spec(candidates=120, parallelism=5)
    evolution = run(spec, measure(2))
    infeasible = {index for index, result in evolution.results.items() if result.fitness is None}
    assert infeasible
    bred = [proposal for proposal in evolution.proposals if proposal.parents]
    assert len(bred) > 60
    for proposal in bred:
        assert max(proposal.parents) < proposal.index - spec.parallelism
        assert not infeasible & set(proposal.parents)


def test_genes_migrate_between_feature_islands_only():
    evolution = run(make_spec(candidates=300), measure(3))
    moved = [proposal for proposal in evolution.proposals if proposal.operator == "migrate"]
    assert moved
    for proposal in moved:
        assert proposal.island in ("global", "fgbg", "instance")
        home, abroad = [evolution.proposals[index].policy.terms[0].knowledge for index in proposal.parents]
        assert home == proposal.island
        assert abroad in {"global", "fgbg", "instance"} - {home}


def test_weights_leave_the_list_of_the_space_on_their_own_scale():
    proposals = [proposal for world in (4, 5) for proposal in run(make_spec(candidates=200), measure(world)).proposals]
    weights = {term.weight for proposal in proposals if proposal.operator == "weight" for term in proposal.policy.terms}
    beyond = weights - set(SPACE.feature_weights) - set(SPACE.response_weights)
    assert min(beyond) < 1
    assert max(beyond) > 10


def test_a_reference_with_a_distiller_is_measured_and_breeds_nothing():
    learned = replace(PKD, distillers=(Distiller("fgd"),))
    alone = Policy((), (Distiller("mgd"),))

    def result(policy):
        return Result(90.0) if policy.distillers else measure(7)(policy)

    evolution = run(make_spec(references=(NONE, PKD, learned, alone), candidates=60), result)
    assert [proposal.policy for proposal in evolution.proposals[:4]] == [NONE, PKD, learned, alone]
    assert not {2, 3} & {parent for proposal in evolution.proposals for parent in proposal.parents}
    assert not any(proposal.policy.distillers for proposal in evolution.proposals[4:])


def test_a_full_space_is_searched_as_the_published_one():
    space = SearchSpace(
        images_per_batch=8, breadth="full", regions={"logits": ("all", "teacher_score", "assigned"), "global": ("all", "teacher_score")}
    )
    evolution = run(make_spec(space=space, candidates=120), measure(3))
    terms = [term for proposal in evolution.proposals for term in proposal.policy.terms]
    assert len(evolution.proposals) == 120
    assert {"all"} < {term.region for term in terms}
    assert UNPUBLISHED & {name for term in terms for name in (*term.transforms, term.distance)}
    assert not [term for term in terms if space.contains(term)]


# Who gets the budget


def test_budget_flows_to_the_island_that_earns_and_every_island_keeps_its_floor():
    def result(policy):  # only `instance` is worth anything, whatever its formula
        noise = uniform("flat", canonical_json(policy))
        return Result(25 + noise + (5.0 if any(term.knowledge == "instance" for term in policy.terms) else 0.0))

    spec = make_spec(candidates=102, floor=0.1, stage2_share=0.0)
    counts = Counter(proposal.island for proposal in run(spec, result).proposals if proposal.stage == "stage1")
    assert sum(counts.values()) == 100
    assert min(counts.values()) >= 10
    assert counts["instance"] >= 35
    assert counts["instance"] == max(counts.values())


def test_an_island_that_is_always_infeasible_gets_its_floor_and_no_more():
    def result(policy):
        return Result(None, "not_finite") if any(term.knowledge == "logits" for term in policy.terms) else measure(5)(policy)

    evolution = run(make_spec(candidates=102, stage2_share=0.3), result)
    counts = Counter(proposal.island for proposal in evolution.proposals if proposal.stage == "stage1")
    assert 5 <= counts["logits"] <= 12
    for proposal in evolution.proposals:
        if proposal.stage == "stage2":
            assert "logits" not in {term.knowledge for term in proposal.policy.terms}


def test_an_exhausted_island_stops_and_leaves_its_budget_to_the_others():
    """Localization has half of the budget for its floor, but, as nothing there is feasible and no weight can be improved, few policies."""

    def result(policy):
        return Result(None, "not_finite") if any(term.knowledge == "localization" for term in policy.terms) else measure(6)(policy)

    spec = make_spec(knowledge=("localization", "global"), candidates=62, stage2_share=0.0, floor=0.5)
    proposals = run(spec, result).proposals[2:]
    terms = [term for named in named_policies().values() for term in named.policy.terms if term.knowledge == "localization"]
    hand_made = [term for term in terms if not SPACE.contains(term)]
    everything = {canonical_json(Policy((term,))) for term in [*SPACE.terms("localization"), *hand_made]}
    assert 4 * 3 <= len(everything) < 30
    assert {canonical_json(proposal.policy) for proposal in proposals if proposal.island == "localization"} == everything
    assert sum(proposal.island == "global" for proposal in proposals) == 60 - len(everything)


def test_a_space_without_anything_new_ends_the_search_early():
    tiny = SearchSpace(knowledge=("localization",), images_per_batch=8, has_edges=False)
    evolution = run(make_spec(knowledge=("localization",), space=tiny, candidates=5000, references=(NONE,)), measure(7))
    assert evolution.exhausted
    keys = [canonical_json(proposal.policy) for proposal in evolution.proposals]
    assert len(set(keys)) == len(keys) < 5000
    # Every formula and weight of the space is among them.
    assert {canonical_json(Policy((term,))) for term in tiny.terms("localization")} <= set(keys)


# Stage 2


def test_stage_2_opens_with_all_terms_damped():
    """Three islands with one good formula each: the first combination is all three at half of their weights."""
    spec = make_spec(knowledge=("global", "logits", "instance"), candidates=32, parallelism=1)
    evolution = run(spec, lambda policy: Result(round(quality(8, policy), 6)))
    first = next(proposal for proposal in evolution.proposals if proposal.stage == "stage2")
    assert first.operator == "combine"
    visible = [
        (-evolution.results[index].fitness, index) for index in range(first.index - 1) if len(evolution.proposals[index].policy.terms) == 1
    ]
    best = {}
    for _, index in sorted(visible):
        term = evolution.proposals[index].policy.terms[0]
        best.setdefault(term.knowledge, (index, term))
    helping = {island: pair for island, pair in best.items() if evolution.results[pair[0]].fitness > evolution.results[0].fitness}
    assert len(helping) > 1
    assert set(first.parents) == {index for index, _ in helping.values()}
    assert first.policy == canonical(Policy(tuple(replace(term, weight=term.weight / 2) for _, term in helping.values())))


def test_stage_2_uses_the_best_two_formulas_of_each_island_and_several_weights():
    evolution = run(make_spec(candidates=202, stage2_share=0.5, parallelism=1), measure(9))
    used = {}
    weights = {}
    for proposal in evolution.proposals[102 + 2 :]:  # from the third on all results of stage 1 are visible
        for term in proposal.policy.terms:
            used.setdefault(term.knowledge, Counter())[canonical_json(Policy((replace(term, weight=1.0),)))] += 1
            weights.setdefault(term.knowledge, set()).add(term.weight)
    assert len(used) >= 3
    assert max(len(found) for found in weights.values()) >= 4
    most = sum(sum(count for _, count in formulas.most_common(2)) for formulas in used.values())
    assert most / sum(sum(formulas.values()) for formulas in used.values()) > 0.8  # parents of stage 1 bring a few others


# Ask and tell


def test_ask_waits_for_the_results_it_needs():
    evolution = Evolution(make_spec(parallelism=3))
    asked = [evolution.ask() for _ in range(6)]
    # Candidate n needs the results below n - 3: 0 .. 3 need none.
    assert [proposal and proposal.index for proposal in asked] == [0, 1, 2, 3, None, None]
    evolution.tell(1, Result(27.0))
    assert evolution.ask() is None  # candidate 4 needs result 0
    evolution.tell(0, Result(25.0))
    assert [evolution.ask().index, evolution.ask().index] == [4, 5]
    assert evolution.ask() is None
    assert not evolution.finished


def test_tell_refuses_what_cannot_be():
    evolution = Evolution(make_spec())
    with pytest.raises(ValueError, match="candidate 0 has not been asked for"):
        evolution.tell(0, Result(1.0))
    evolution.ask()
    evolution.tell(0, Result(1.0))
    evolution.tell(0, Result(1.0))
    with pytest.raises(ValueError, match=r"candidate 0 was told .* a result does not change"):
        evolution.tell(0, Result(2.0))
    with pytest.raises(ValueError, match="candidate -1"):
        evolution.tell(-1, Result(2.0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), parallelism=st.integers(1, 12), schedule=st.randoms(use_true_random=False))
def test_timing_changes_nothing(seed, parallelism, schedule):
    """However asking and telling interleave, in whatever order results arrive: the same candidates."""
    spec = make_spec(seed=seed, parallelism=parallelism, candidates=26, knowledge=("global", "fgbg", "logits"))
    result = measure(seed)
    evolution, running = Evolution(spec), []
    while not evolution.finished:
        proposal = evolution.ask() if schedule.random() < 0.6 else None
        if proposal is not None:
            running.append(proposal)
        elif running:
            done = running.pop(schedule.randrange(len(running)))
            evolution.tell(done.index, result(done.policy))
    assert texts(evolution) == texts(run(spec, result))


@settings(max_examples=20, deadline=None)
@given(asked=st.integers(0, 30), parallelism=st.integers(1, 6), schedule=st.randoms(use_true_random=False))
def test_any_prefix_replays_to_the_same_next_decision(asked, parallelism, schedule):
    spec = make_spec(parallelism=parallelism, candidates=30)
    whole = run(spec, measure(11))
    told = max(0, asked - parallelism - 1)
    extra = [index for index in range(told, asked) if schedule.random() < 0.5]
    resumed = replay(spec, {index: whole.results[index] for index in [*range(told), *extra]}, asked)
    assert texts(resumed) == texts(whole)[:asked]
    for index in range(asked):
        resumed.tell(index, whole.results[index])
    proposal = resumed.ask()
    assert (proposal is None) == (asked == 30)
    if proposal is not None:
        assert proposal == whole.proposals[asked]


def test_replay_refuses_more_than_the_results_allow():
    with pytest.raises(ValueError, match="20 candidates cannot have been asked for: with 1 results only 6 can"):
        replay(make_spec(parallelism=4), {0: Result(25.0)}, 20)
    with pytest.raises(ValueError, match="candidate 12 has not been asked for"):
        replay(make_spec(parallelism=4), {12: Result(25.0)}, 3)


@settings(max_examples=25, deadline=None)
@given(changed=st.integers(0, 35), parallelism=st.integers(1, 8), fitness=st.one_of(st.none(), st.floats(0, 100)))
def test_a_result_is_not_looked_at_before_its_lag_is_over(changed, parallelism, fitness):
    """Proposals up to changed + parallelism are the same, whatever that result is."""
    spec = make_spec(parallelism=parallelism, candidates=36)
    plain = run(spec, measure(12))
    surprising = Evolution(spec)
    for index in range(36):
        while surprising.ask() is not None:
            pass
        if index < len(surprising.proposals):
            told = Result(fitness) if index == changed else measure(12)(surprising.proposals[index].policy)
            surprising.tell(index, told)
    assert texts(surprising)[: changed + parallelism + 1] == texts(plain)[: changed + parallelism + 1]


def test_a_result_is_looked_at_once_its_lag_is_over():
    spec = make_spec(parallelism=1, candidates=60)
    plain = run(spec, measure(12))
    best = next(proposal for proposal in plain.best(60) if proposal.index < 40)  # with 20 more to breed from it
    without = run(spec, lambda policy: Result(None, "bug") if policy == best.policy else measure(12)(policy))
    assert texts(without) != texts(plain)


def test_seeds_differ_and_equal_seeds_do_not():
    assert texts(run(make_spec(), measure(13))) == texts(run(make_spec(), measure(13)))
    assert texts(run(make_spec(seed=1), measure(13))) != texts(run(make_spec(), measure(13)))


def test_nothing_is_drawn_from_shared_state():
    random.seed(5)
    before = random.getstate()
    run(make_spec(candidates=20), measure(0))
    assert random.getstate() == before


# Any size, any subset


@pytest.mark.parametrize(
    "knowledge", [("global",), ("logits",), ("localization",), ("instance", "logits"), ("localization", "fgbg", "global"), EVERY]
)
@pytest.mark.parametrize(("beyond", "parallelism"), [(1, 1), (3, 1), (3, 50), (12, 4), (30, 30), (30, 100)])
def test_any_subset_any_budget_any_parallelism(knowledge, beyond, parallelism):
    spec = make_spec(knowledge=knowledge, candidates=2 + beyond, parallelism=parallelism)
    evolution = run(spec, measure(14))
    count = len(evolution.proposals)
    # A few losses and three weights: without results that show which weights to go on from, localization alone has no 30 policies.
    everything = 2 + len(list(SPACE.terms("localization")))
    few = knowledge == ("localization",) and parallelism >= beyond == 30 and evolution.exhausted and count >= everything
    assert count == 2 + beyond or few
    assert len({canonical_json(proposal.policy) for proposal in evolution.proposals}) == count
    assert {term.knowledge for proposal in evolution.proposals[2:] for term in proposal.policy.terms} <= set(knowledge)
    if len(knowledge) > 1:  # a single knowledge may run out of weights to try in stage 2, and goes on with stage 1
        assert sum(proposal.stage == "stage2" for proposal in evolution.proposals) == spec.stage2_candidates


def test_everything_infeasible_ends_all_the_same():
    evolution = run(make_spec(candidates=30), lambda policy: Result(None, "out_of_memory"))
    assert len(evolution.proposals) == 30
    assert evolution.best(3) == []
    assert all(proposal.parents == () for proposal in evolution.proposals if proposal.stage == "stage1")


# What comes out


def test_best_ranks_by_fitness_then_index_and_leaves_out_references_and_failures():
    evolution = Evolution(make_spec(candidates=6, parallelism=10))
    while evolution.ask() is not None:
        pass
    for index, fitness in enumerate([99.0, 98.0, 20.0, None, 31.0, 31.0]):
        evolution.tell(index, Result(fitness))
    assert [proposal.index for proposal in evolution.best(2)] == [4, 5]
    assert [proposal.index for proposal in evolution.best(10)] == [4, 5, 2]
    assert evolution.best(0) == []


def test_summary_counts_by_stage_and_island():
    evolution = Evolution(make_spec(knowledge=("global", "logits"), candidates=6, parallelism=10))
    while evolution.ask() is not None:
        pass
    # 4 after the references: 1 combines, 3 stand alone: global, logits, global
    for index, fitness in enumerate([25.0, 28.0, 26.0, None, 29.0]):
        evolution.tell(index, Result(fitness))
    summary = evolution.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["stages"]["reference"]["mean"] == 26.5
    assert summary["stages"]["stage1"] | {"best": None} == {"proposed": 3, "measured": 3, "infeasible": 1, "mean": 27.5, "best": None}
    assert summary["islands"]["global"]["best"] == {"index": 4, "fitness": 29.0, "formula": formula(evolution.proposals[4].policy)}
    assert summary["islands"]["logits"] == {"proposed": 1, "measured": 1, "infeasible": 1, "mean": None, "best": None}
    assert summary["stages"]["stage2"] == {"proposed": 1, "measured": 0, "infeasible": 0, "mean": None, "best": None}
    assert summary["all"]["best"]["index"] == 4
    assert not summary["finished"]


# Is it worth it


def random_search(world, spec):
    """As many policies as the search tries, of one term or of several in equal parts, the best of them as measured."""
    rng = random.Random(world)
    tried = []
    while len(tried) < spec.candidates - len(spec.references):
        count = rng.choice((1, 1, 2, 3))
        policy = Policy(tuple(spec.space.sample(rng, knowledge) for knowledge in rng.sample(EVERY, count)))
        if (result := measure(world)(policy)).fitness is not None:
            tried.append((result.fitness, len(tried), policy))
    return max(tried)[2]


def test_beats_random_search_of_the_same_budget():
    """True quality of the winner over 40 landscapes, at a budget of 72: ahead on average, by more than three standard errors."""
    ahead = []
    for world in range(40):
        spec = make_spec(candidates=72, parallelism=4, seed=world)
        found = run(spec, measure(world)).best(1)[0].policy
        ahead.append(quality(world, found) - quality(world, random_search(world, spec)))
    mean, low, _ = mean_interval(ahead, confidence=0.997)
    assert low > 0, (mean, low)
    assert mean > 1.5
