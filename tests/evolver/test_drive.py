"""A search from its specification to its result, whatever happens on the way. The worker trains nothing; queue and database are real."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from detkds_core.evolution import dumped
from detkds_core.policy import to_json
from detkds_core.store import Store, events, jobs, leases, results, searches
from detkds_core.store.queue import Device
from detkds_core.store.vocabulary import EVOLVER
from detkds_evolver.drive import recall, step

from .worker import DATASET, ap_of, create, drive, ended, evolver, measured, outcome, result_of, search_spec, specs, work


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the search finds when one evolver and one worker do one thing after the other."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('undisturbed') / 'detkds.sqlite'}")
    store.migrate()
    search = create(store)
    drive(store)
    found = outcome(store, search)
    store.close()
    return found


def test_a_search_is_driven_to_its_result(store: Store, undisturbed: dict[str, Any]) -> None:
    search = create(store)
    drive(store)
    found = outcome(store, search)
    assert found["state"] == "SUCCEEDED"
    candidates = found["candidates"]
    assert [one["index"] for one in candidates] == list(range(len(candidates)))
    assert len(candidates) > 30
    assert {one["stage"] for one in candidates} == {"reference", "stage1", "stage2"}
    assert {one["state"] for one in candidates} == {"MEASURED", "REJECTED"}
    for one in candidates:
        if one["rung"] in (25, 50):
            assert one["ap"] == ap_of(one["policy"], 5, f"evaluate {one['rung']}")
    assert found == undisturbed, "the same on SQLite and Postgres"
    with store.read() as session:
        assert searches.due(session) == []
        assert jobs.waiting(session) == []
        kinds = [event.kind for event in events.after(session, search)]
    assert kinds[:3] == ["queued", "running", "proposed"]
    assert kinds[-1] == "succeeded"
    assert kinds.count("measured") == sum(len(event["asked"]["members"]) for event in found["ledger"] if "asked" in event)
    assert kinds.count("confirmed") == 3 * len({one["entrant"] for one in found["confirmations"]})


def driven_with_looks(store: Store) -> dict[int, Any]:
    """Drive to the end; the looks that whoever claimed an evaluation was given, by its decision."""
    claimed: dict[int, Any] = {}

    def noted(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        if spec["kind"] == "evaluate":
            claimed[spec["number"]] = spec["known"]
        return measured(candidate, spec)

    drive(store, noted)
    return claimed


def test_the_jobs_of_a_search_are_its_decisions(sqlite: Store) -> None:
    search = create(sqlite)
    claimed = driven_with_looks(sqlite)
    evaluate = specs(sqlite, search, "evaluate")
    found = outcome(sqlite, search)
    asked = [event["asked"] for event in found["ledger"] if "asked" in event]
    assert [[one["index"] for one in spec["candidates"]] for spec in evaluate] == [job["members"] for job in asked]
    rungs = {0: 25, 1: 50, 2: None}
    whole = search_spec()
    for spec, job in zip(evaluate, asked, strict=True):
        assert spec["rung"] == rungs[job["rung"]]
        assert spec["seed"] == 5 + 1_000_003 * job["replicate"]
        assert (spec["fork"], spec["number"], spec["stands_for"]) == (50, job["index"], whole["confirmation"].get("iterations"))
        assert spec["gates"] == (["duplicate", "descent"] if job["new"] else [])
        assert {key: spec[key] for key in ("dataset", "teacher", "student", "inherit", "recipe")} == {
            key: whole[key] for key in ("dataset", "teacher", "student", "inherit", "recipe")
        }
    assert all(spec["known"] == [] for spec in evaluate), "looks are referred to, not repeated in every job"
    with sqlite.read() as session:
        evolution = recall(session, search)
    for job in evolution.jobs:  # and whoever claims a job reads those that the decision looked at
        looks: dict[int, Any] = {}
        for number in range(evolution.seen_by(job.index)) if job.new else ():
            for index, one in evolution.results[number].items():
                if one.sketch and one.same_as is None:
                    looks.setdefault(index, one)
        assert claimed[job.index] == [{"index": index, "sketch": [*one.sketch], "ratio": one.ratio} for index, one in looks.items()]
    assert any(len(known) > 20 for known in claimed.values())


def test_the_jobs_of_a_search_have_its_owner_its_priority_and_its_needs(sqlite: Store) -> None:
    with sqlite.begin() as session:
        search = searches.create(
            session, name="test", spec=search_spec(budget=600), dataset=DATASET, owner="me", priority=-3, device_memory_gib=24
        ).id
    one, failed = evolver(sqlite), False
    while True:
        one.round()
        with sqlite.begin() as session:
            claim = jobs.claim(session, worker="w", device=Device("GPU-0a", 1, 24), lease_seconds=60)
            if claim is None:
                break
            if not failed:  # its candidates are split, a job each
                failed = jobs.fail(session, claim, kind="not_finite", detail="once")
            else:
                jobs.finish(session, claim, result_of(claim.spec))
    with sqlite.read() as session:
        found = jobs.of_search(session, search)
        assert {job.kind for job in found} == {"evaluate", "confirm"}
        assert {(job.owner, job.priority, job.device_memory_gib) for job in found} == {("me", -3, 24)}
        assert searches.get(session, search).state == "SUCCEEDED"


def test_the_ledger_replays_and_the_trials_are_its_measurements(sqlite: Store) -> None:
    search = create(sqlite)
    drive(sqlite)
    found = outcome(sqlite, search)
    with sqlite.read() as session:
        trials = searches.trials(session, search)
        again = recall(session, search)
    assert again.ask() is None
    assert again.finished
    assert [dict(event) for event in again.ledger] == found["ledger"]
    asked = [(event["asked"]["index"], member) for event in found["ledger"] if "asked" in event for member in event["asked"]["members"]]
    assert [(one.number, one.candidate) for one in trials] == sorted(asked)
    climbed = {one.candidate for one in trials if one.rung == 100}
    assert climbed
    assert all({25, 50} <= {one.rung for one in trials if one.candidate == index} for index in climbed)


def test_a_candidate_climbs_with_the_weights_that_its_first_training_found(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = measured(candidate, spec)
        if spec["kind"] == "evaluate" and candidate["policy"]["terms"] and spec["gates"]:
            terms = [{**term, "weight": term["weight"] * 3} for term in candidate["policy"]["terms"]]
            one["policy"] = {**candidate["policy"], "terms": terms}
        return one

    search = create(sqlite)
    drive(sqlite, row)
    evaluate = specs(sqlite, search, "evaluate")
    first = {one["index"]: one["policy"] for spec in evaluate if spec["rung"] == 25 for one in spec["candidates"]}
    climbing = [one for spec in evaluate if spec["rung"] != 25 for one in spec["candidates"] if one["policy"]["terms"]]
    assert climbing
    for one in climbing:
        before = first[one["index"]]["terms"][0]["weight"]
        assert one["policy"]["terms"][0]["weight"] == pytest.approx(3 * before)
    finalists = [one for one in outcome(sqlite, search)["confirmations"] if one["role"] == "searched"]
    for one in finalists:
        assert one["policy"]["terms"][0]["weight"] == pytest.approx(3 * first[one["candidate"]]["terms"][0]["weight"])


def test_a_restart_at_every_step_changes_nothing(sqlite: Store, undisturbed: dict[str, Any]) -> None:
    """No evolver lives longer than a step, and before each step that counts one dies in the middle of it."""
    search = create(sqlite)

    class KilledError(Exception):
        pass

    def die() -> None:
        with sqlite.begin() as session:
            step(session, search)
            raise KilledError

    for _ in range(200):
        with sqlite.read() as session:
            due = search in searches.due(session)
        if due:
            with pytest.raises(KilledError):
                die()
            with sqlite.begin() as session:
                step(session, search)
        elif not work(sqlite):
            break
    assert outcome(sqlite, search) == undisturbed


def extend(store: Store, search: str, more: int) -> str:
    """The search that goes on, as the API makes it."""
    with store.begin() as session:
        source = searches.get(session, search)
        budget = source.spec["budget"] + more
        spec = {**source.spec, "budget": budget, "candidates": None, "continues": search}
        spec["begun"] = source.spec.get("begun") or {"budget": source.spec["budget"], "candidates": source.spec.get("candidates")}
        confirmation = source.spec["confirmation"]
        spec["confirmation"] = {**confirmation, "seeds_used": confirmation.get("seeds_used", 0) + confirmation["seeds"]}
        event = dumped({"extended": {"budget": budget, "candidates": None}})
        return searches.extend(session, source, name="more", spec=spec, event=event).id


def test_a_search_that_goes_on_measures_nothing_again_and_is_confirmed_anew(store: Store, undisturbed: dict[str, Any]) -> None:
    first = create(store)
    drive(store)
    more = extend(store, first, 1200)
    drive(store)
    assert outcome(store, first) == undisturbed, "the first is as it was"
    found = outcome(store, more)
    assert found["state"] == "SUCCEEDED"
    assert found["ledger"][: len(undisturbed["ledger"])] == undisturbed["ledger"]
    assert found["ledger"][len(undisturbed["ledger"])] == {"extended": {"budget": 2800, "candidates": None}}
    assert len(found["candidates"]) > len(undisturbed["candidates"]) + 10
    with store.read() as session:
        trials = searches.trials(session, more)
        again = recall(session, more)
        result = results.of_search(session, more)
    measured = Counter((one.candidate, one.rung, one.seed) for one in trials)
    assert max(measured.values()) == 1
    old = sum(len(event["asked"]["members"]) for event in undisturbed["ledger"] if "asked" in event)
    assert [one.job_id is None for one in trials] == [True] * old + [False] * (len(trials) - old)
    assert [dict(event) for event in again.ledger] == found["ledger"]
    assert 0.85 * 2800 < again.history().spent <= 2800 + 6
    assert {one["seed"] for one in found["confirmations"]} == {9, 10, 11}, "not 6, 7, 8"
    assert (result.evidence["continues"], result.evidence["summary"]["budget"]) == (first, 2800)
    assert result.evidence["cost"]["search_seconds"] == 2.0 * len(trials)
    funnel = result.evidence["summary"]["funnel"]
    assert funnel["look_seconds"] == 0.5 * len(trials) + 0.25 * len(found["candidates"]), "those of the first too"
    assert funnel["gates"]["descent"]["seconds"] == 0.125 * len(found["candidates"])


def test_the_trunks_that_were_grown_are_in_the_cost(sqlite: Store) -> None:
    """The first job of each seed grows one of 50 steps in 4 s; the others find it kept, and so does a search that goes on."""
    kept: set[int] = set()

    def forked(spec: Mapping[str, Any]) -> dict[str, Any]:
        if not spec.get("fork"):
            return result_of(spec)
        grown = spec["seed"] not in kept
        kept.add(spec["seed"])
        return result_of(spec) | {"fork": {"steps": spec["fork"], "grown": grown, "seconds": 4.0 if grown else 0.1}}

    def cost_of(search: str) -> dict[str, float]:
        one = evolver(sqlite)
        while not ended(sqlite, search):
            one.round()
            with sqlite.begin() as session:
                if (claim := jobs.claim(session, worker="w", lease_seconds=60)) is not None:
                    jobs.finish(session, claim, forked(claim.spec))
        with sqlite.begin() as session:
            leases.give_up(session, EVOLVER, holder=one.holder)
        with sqlite.read() as session:
            found: dict[str, float] = results.of_search(session, search).evidence["cost"]
        return found

    first = create(sqlite, budget=700)
    cost = cost_of(first)
    assert kept
    assert (cost["trunk_iterations"], cost["trunk_seconds"]) == (50 * len(kept), 4.0 * len(kept))
    assert cost["seconds"] == cost["search_seconds"] + cost["confirmation_seconds"] + cost["trunk_seconds"]
    with sqlite.read() as session:
        trained = sum(one.iterations or 0 for one in [*searches.trials(session, first), *searches.confirmations(session, first)])
    assert cost["iterations"] == trained + cost["trunk_iterations"]
    longer = cost_of(extend(sqlite, first, 600))
    assert (longer["trunk_iterations"], longer["trunk_seconds"]) == (50 * len(kept), 4.0 * len(kept)), "of both searches, each once"
    assert longer["search_seconds"] > cost["search_seconds"]


def test_a_restart_at_every_step_changes_nothing_of_a_search_that_goes_on(sqlite: Store) -> None:
    first = create(sqlite, budget=700)
    drive(sqlite)
    undisturbed = extend(sqlite, first, 600)
    drive(sqlite)
    again = extend(sqlite, first, 600)
    for _ in range(200):
        with sqlite.read() as session:
            due = again in searches.due(session)
        if due:
            with sqlite.begin() as session:
                step(session, again)
        elif not work(sqlite):
            break
    assert outcome(sqlite, again) == outcome(sqlite, undisturbed)


@pytest.mark.parametrize("seed", range(4))
def test_the_order_in_which_jobs_end_changes_nothing(sqlite: Store, undisturbed: dict[str, Any], seed: int) -> None:
    """Many workers hold jobs at once and finish them in any order; the evolver looks in between, or does not."""
    rng = random.Random(seed)
    search, one, held = create(sqlite), evolver(sqlite), []
    while not ended(sqlite, search):
        if rng.random() < 0.5:
            one.round()
        with sqlite.begin() as session:
            claim = jobs.claim(session, worker="w", lease_seconds=60)
        if claim is not None:
            held.append(claim)
        if held and rng.random() < 0.4:
            claim = held.pop(rng.randrange(len(held)))
            with sqlite.begin() as session:
                assert jobs.finish(session, claim, result_of(claim.spec))
    assert outcome(sqlite, search) == undisturbed


@pytest.mark.parametrize("seed", range(3))
def test_lost_workers_and_repeated_messages_change_nothing(store: Store, undisturbed: dict[str, Any], seed: int) -> None:
    rng = random.Random(seed)
    search, one, finished = create(store), evolver(store), []
    lost = 0
    while not ended(store, search):
        one.round()
        with store.begin() as session:
            claim = jobs.claim(session, worker="w", lease_seconds=-1 if rng.random() < 0.3 else 60)
        if claim is None:
            continue
        with store.read() as session:
            leased = jobs.get(session, claim.job_id)
            vanishes = leased.lease_expires_at < leased.started_at and claim.attempt < 3
        if vanishes:
            lost += 1
            continue
        if rng.random() < 0.2 and claim.attempt < 3:
            with store.begin() as session:
                assert jobs.fail(session, claim, kind="out_of_memory", detail="")
            continue
        with store.begin() as session:
            assert jobs.finish(session, claim, result_of(claim.spec))
        finished.append(claim)
        with store.begin() as session:
            assert not jobs.finish(session, rng.choice(finished), {"candidates": []})
    assert lost > 0
    assert outcome(store, search) == undisturbed


def test_a_search_is_recalled_without_holding_anybody_up(sqlite: Store) -> None:
    search, one = create(sqlite), evolver(sqlite)
    for _ in range(3):
        one.round()
        work(sqlite)
    with sqlite.begin() as writer, sqlite.read() as session:
        jobs.enqueue(writer, kind="evaluate", spec={})
        again = recall(session, search)
        assert recall(session, "no-such-search") is None
    with sqlite.read() as session:
        candidates = searches.all_candidates(session, search)
    assert [to_json(one.policy) for one in again.candidates] == [one.policy for one in candidates]
    measured_ = {index for outcomes in again.results.values() for index in outcomes}
    assert measured_ == {one.index for one in candidates if one.state != "PROPOSED"}


def test_two_evolvers_at_once_count_everything_once(store: Store, undisturbed: dict[str, Any]) -> None:
    """Should both believe to be on duty: the steps of one search wait for one another."""
    search = create(store)
    known: list[Any] = [None, None]
    for turn in range(400):
        if ended(store, search):
            break
        who = turn % 2
        with store.begin() as session:
            known[who] = step(session, search, known[who])
        work(store)
    assert outcome(store, search) == undisturbed


def test_a_policy_that_crashes_its_trainer_costs_itself_only(sqlite: Store, undisturbed: dict[str, Any]) -> None:
    """The group's job dies, each member is tried alone, and the search goes on without the one that crashes."""
    search, one = create(sqlite), evolver(sqlite)
    starts: list[list[int]] = []
    while not ended(sqlite, search):
        one.round()
        with sqlite.begin() as session:
            claim = jobs.claim(session, worker="w", lease_seconds=60)
        if claim is None:
            continue
        indices = [candidate["index"] for candidate in claim.spec["candidates"]]
        if claim.kind == "evaluate":
            starts.append(indices)
        with sqlite.begin() as session:
            if claim.kind == "evaluate" and 4 in indices:
                jobs.fail(session, claim, kind="bug", detail="segmentation fault")
            else:
                jobs.finish(session, claim, result_of(claim.spec))
    found = outcome(sqlite, search)
    assert found["state"] == "SUCCEEDED"
    assert [one["index"] for one in found["candidates"] if one["state"] == "INFEASIBLE"] == [4]
    assert found["candidates"][4]["failure"] == {"kind": "bug", "detail": "segmentation fault"}
    assert starts.count([3, 4, 5]) == 3
    assert starts.count([4]) == 3
    assert starts.count([3]) == starts.count([5]) == 1
    assert found["candidates"][:6] != undisturbed["candidates"][:6]
    first, expected = first_aps(found["ledger"]), first_aps(undisturbed["ledger"])
    assert [first[index] for index in (0, 1, 3, 5)] == [expected[index] for index in (0, 1, 3, 5)]
    assert (first[4], expected[4] is None) == (None, False)


def first_aps(ledger: list[dict[str, Any]]) -> dict[int, float | None]:
    """What the first measurement of each candidate gave."""
    found: dict[int, float | None] = {}
    for event in ledger:
        for index, one in event.get("outcomes", {}).items():
            found.setdefault(int(index), one["ap"])
    return found


def test_a_group_that_is_split_finds_its_doubles_all_the_same(sqlite: Store) -> None:
    """A worker that tells doubles, of earlier candidates and within a group, and one whose groups are all lost until they are split."""

    def result(spec: Mapping[str, Any]) -> dict[str, Any]:
        known = [(one["index"], one["sketch"]) for one in spec.get("known", ())]
        found = result_of(spec)
        for row in found["candidates"] if spec["kind"] == "evaluate" and spec["gates"] else ():
            row["look"]["sketch"] = [round(4 * row["look"]["sketch"][0]) / 4]
            first = next((index for index, sketch in known if sketch == row["look"]["sketch"]), None)
            known.append((row["index"], row["look"]["sketch"]))
            if first is not None:
                row |= {"ap": None, "ap50": None, "ap75": None, "same_as": first, "rejected": {"gate": "duplicate", "detail": ""}}
        return found

    def driven(losing: bool) -> dict[str, Any]:
        search, one = create(sqlite, candidates=48), evolver(sqlite)
        while not ended(sqlite, search):
            one.round()
            with sqlite.begin() as session:
                claim = jobs.claim(session, worker="w", lease_seconds=60)
                if claim is not None and losing and len(claim.spec["candidates"]) > 1:
                    jobs.fail(session, claim, kind="lost", detail="killed")
                elif claim is not None:
                    jobs.finish(session, claim, result(claim.spec))
        return outcome(sqlite, search)

    whole = driven(losing=False)
    groups = [set(event["asked"]["members"]) for event in whole["ledger"] if "asked" in event]
    doubles = {(one["index"], one["same_as"]) for one in whole["candidates"] if one["same_as"] is not None}
    assert any({index, first} <= group for index, first in doubles for group in groups), "no group has a double of its own"
    assert driven(losing=True) == whole


def test_a_policy_that_diverges_is_infeasible_and_never_wins(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = measured(candidate, spec)
        if candidate["index"] == 3 and spec["kind"] == "evaluate":
            one |= {"ap": None, "ap50": None, "ap75": None, "failure": {"kind": "not_finite", "detail": "step 12"}}
        return one

    search = create(sqlite)
    drive(sqlite, row)
    found = outcome(sqlite, search)
    assert found["candidates"][3]["state"] == "INFEASIBLE"
    assert found["state"] == "SUCCEEDED"
    assert 3 not in {one["candidate"] for one in found["confirmations"]}


def test_cancel_in_the_middle_ends_it_for_good(store: Store) -> None:
    search, one = create(store), evolver(store)
    for _ in range(3):
        one.round()
        work(store)
    with store.begin() as session:
        claim = jobs.claim(session, worker="w", lease_seconds=60)
    assert claim is not None
    with store.begin() as session:
        assert searches.cancel(session, search)
    with store.begin() as session:
        assert not jobs.renew(session, claim, lease_seconds=60)
        assert not jobs.finish(session, claim, result_of(claim.spec))
    before = outcome(store, search)
    drive(store)
    assert outcome(store, search) == before
    assert before["state"] == "CANCELLED"
    assert any(candidate["ap"] is not None for candidate in before["candidates"])


def failing(store: Store, kind: str, detail: str) -> None:
    """Every job fails, until none waits."""
    one = evolver(store)
    for _ in range(100):
        one.round()
        with store.begin() as session:
            claim = jobs.claim(session, worker="w", lease_seconds=60)
            if claim is None:
                return
            jobs.fail(session, claim, kind=kind, detail=detail)
    raise AssertionError("the search goes on for ever")


def test_data_that_nothing_can_be_trained_on_ends_the_search_at_once(sqlite: Store) -> None:
    search = create(sqlite)
    failing(sqlite, "bad_data", "no such file: /t.json")
    found = outcome(sqlite, search)
    assert (found["state"], found["reason"]) == ("FAILED", "bad_data: no such file: /t.json")
    with sqlite.read() as session:
        assert {job.state for job in jobs.of_search(session, search)} == {"FAILED", "CANCELLED"}


def test_a_search_whose_first_groups_all_fail_is_given_up(sqlite: Store) -> None:
    search = create(sqlite)
    failing(sqlite, "bug", "No module named 'torch'")
    found = outcome(sqlite, search)
    assert found["state"] == "FAILED"
    assert found["reason"] == "none of the first 6 candidates could be trained; candidate 0: bug: No module named 'torch'"
    assert len(found["candidates"]) < 14


def test_a_result_without_one_of_its_candidates_makes_that_one_infeasible(sqlite: Store) -> None:
    search, one = create(sqlite), evolver(sqlite)
    one.round()
    with sqlite.begin() as session:
        claim = jobs.claim(session, worker="w", lease_seconds=60)
        jobs.finish(session, claim, {"candidates": [measured(claim.spec["candidates"][0], claim.spec)]})
    one.round()
    states = [candidate["state"] for candidate in outcome(sqlite, search)["candidates"]]
    assert states[:4] == ["MEASURED", "INFEASIBLE", "INFEASIBLE", "PROPOSED"]


def test_a_search_of_few_candidates_and_large_groups_ends_too(sqlite: Store) -> None:
    search = create(sqlite, candidates=7, group=8)
    drive(sqlite)
    found = outcome(sqlite, search)
    assert (found["state"], len(found["candidates"])) == ("SUCCEEDED", 7)
    assert len(specs(sqlite, search, "evaluate")[0]["candidates"]) == 7


@pytest.mark.parametrize("algorithm", ["random", "random_halving", "evolution", "genetic"])
def test_other_algorithms_go_the_same_way(sqlite: Store, algorithm: str) -> None:
    halves = algorithm == "random_halving"
    search = create(sqlite, algorithm=algorithm, rungs=[25, 50, 100] if halves else [100], budget=1600, fork=50 if halves else 0)
    drive(sqlite)
    found = outcome(sqlite, search)
    assert found["state"] == "SUCCEEDED"
    assert max(one["rung"] or 0 for one in found["candidates"]) == 100


def test_a_logged_search_ends_and_its_ledger_says_what_was_seen(sqlite: Store) -> None:
    search = create(sqlite, mode="logged", parallelism=3)
    claimed = driven_with_looks(sqlite)
    found = outcome(sqlite, search)
    assert found["state"] == "SUCCEEDED"
    asked = [event["asked"] for event in found["ledger"] if "asked" in event]
    assert any(job["seen"] for job in asked)
    assert all("known_told_before" in spec or not spec["gates"] for spec in specs(sqlite, search, "evaluate")), "looks are referred to"
    told: dict[int, Any] = {}
    for event in found["ledger"]:
        if "told" in event:
            told |= {int(index): one for index, one in event["outcomes"].items() if one["sketch"] and one["same_as"] is None}
        elif "asked" in event and event["asked"]["new"]:
            looks = [{"index": index, "sketch": told[index]["sketch"], "ratio": told[index]["ratio"]} for index in sorted(told)]
            assert claimed[event["asked"]["index"]] == looks
    assert any(claimed.values())
    with sqlite.read() as session:
        again = recall(session, search)
    assert [dict(event) for event in again.ledger] == found["ledger"]


def test_a_ledger_that_this_program_would_not_write_is_noticed(sqlite: Store) -> None:
    """A search that another version of the program began must not go on with decisions of this one."""
    from sqlalchemy import update

    from detkds_core.store.models import Decision

    search, one = create(sqlite), evolver(sqlite)
    one.round()
    with sqlite.begin() as session:
        changed = searches.ledger(session, search)[0]
        changed["asked"]["rung"] = 1
        session.execute(update(Decision).where(Decision.number == 0).values(event=json.dumps(changed)))
    work(sqlite)
    one.retire()
    evolver(sqlite).round()
    found = outcome(sqlite, search)
    assert found["state"] == "FAILED"
    assert found["reason"].startswith("the search was begun by another version of this program: ledger[0]")
