"""A search from its specification to its result, whatever happens on the way. The worker trains nothing; queue and database are real."""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from detkds_core.policy import named_policies, to_json
from detkds_core.store import Store, events, jobs, results, searches
from detkds_evolver.drive import recall, step
from detkds_evolver.main import Evolver
from detkds_evolver.settings import Settings

from .worker import ap_of, create, measured, outcome, result_of, search_spec, work


@pytest.fixture
def sqlite(sqlite_database: str) -> Iterator[Store]:
    made = Store(sqlite_database)
    made.migrate()
    yield made
    made.close()


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


def evolver(store: Store, **settings: float) -> Evolver:
    return Evolver(store, Settings(**{"reap_seconds": 0.001, "evolver_poll_seconds": 0.001, **settings}))


def drive(store: Store, row: Callable[..., dict[str, Any]] = measured) -> None:
    """Evolver and worker by turns, until neither has anything to do."""
    one = evolver(store)
    for _ in range(300):
        one.round()
        with store.read() as session:
            due = searches.due(session)
        if not work(store, row) and not due:
            return
    raise AssertionError("the search does not end")


def ended(store: Store, search: str) -> bool:
    with store.read() as session:
        return searches.get(session, search).state not in ("QUEUED", "RUNNING", "CONFIRMING")


def specs(store: Store, search: str, kind: str) -> list[dict[str, Any]]:
    with store.read() as session:
        return [job.spec for job in jobs.of_search(session, search) if job.kind == kind]


def test_a_search_is_driven_to_its_result(store: Store, undisturbed: dict[str, Any]) -> None:
    search = create(store)
    drive(store)
    found = outcome(store, search)
    assert found["state"] == "SUCCEEDED"
    assert [one["index"] for one in found["candidates"]] == list(range(14))
    assert {one["stage"] for one in found["candidates"]} == {"reference", "stage1", "stage2"}
    assert all(one["ap"] == ap_of(one["policy"], 5, "evaluate") for one in found["candidates"])
    assert found == undisturbed, "the same on SQLite and Postgres"
    with store.read() as session:
        assert searches.due(session) == []
        assert jobs.waiting(session) == []
        kinds = [event.kind for event in events.after(session, search)]
    assert kinds[:3] == ["queued", "running", "proposed"]
    assert kinds[-1] == "succeeded"
    assert kinds.count("measured") == 14
    assert kinds.count("confirmed") == 3 * len({one["entrant"] for one in found["confirmations"]})


def test_candidates_are_trained_in_groups_fixed_by_index(sqlite: Store) -> None:
    search = create(sqlite)
    drive(sqlite)
    evaluate = specs(sqlite, search, "evaluate")
    assert [[one["index"] for one in spec["candidates"]] for spec in evaluate] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13]]
    asked = search_spec()
    for spec in evaluate:
        assert {key: spec[key] for key in spec if key != "candidates"} == {
            "kind": "evaluate",
            "seed": 5,
            **{key: asked[key] for key in ("dataset", "teacher", "student", "inherit", "recipe")},
        }


def test_the_confirmation_measures_everybody_on_fresh_seeds(sqlite: Store) -> None:
    search = create(sqlite)
    drive(sqlite)
    confirm = specs(sqlite, search, "confirm")
    assert [spec["seed"] for spec in confirm] == [6, 7, 8]
    assert {spec["recipe"]["iterations"] for spec in confirm} == {300}
    assert len({str(spec["candidates"]) for spec in confirm}) == 1
    found = outcome(sqlite, search)
    entrants = found["confirmations"][::3]
    assert [(one["name"], one["role"], one["candidate"]) for one in entrants[:2]] == [("none", "alone", 0), ("pkd", "reference", 1)]
    searched = sorted((one for one in found["candidates"] if one["stage"] != "reference"), key=lambda one: -one["ap"])
    assert [one["candidate"] for one in entrants[2:]] == [one["index"] for one in searched[:2]]
    assert all(one["ap"] == ap_of(one["policy"], one["seed"], "confirm") for one in found["confirmations"])


def test_the_winner_is_chosen_on_the_selection_images_and_reported_on_the_others(sqlite: Store) -> None:
    """The finalist that looks better on the report images must not win by them."""

    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = measured(candidate, spec)
        if spec["kind"] == "confirm" and candidate["index"] in (2, 3):  # the finalists
            one["ap"], one["selection_ap"] = {2: (50.0, 41.0), 3: (60.0, 40.0)}[candidate["index"]]
        return one

    search = create(sqlite)
    drive(sqlite, row)
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert result.metrics["winner"]["entrant"] == 2
    assert result.ap == result.metrics["ap"] == 50.0


def test_the_result_carries_its_evidence(sqlite: Store) -> None:
    search = create(sqlite)
    drive(sqlite)
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert (result.kind, result.dataset, result.dataset_digest, result.environment) == ("search", "shapes", "d1", {"torch": "none"})
    assert result.evidence["seeds"] == {"search": 5, "confirmation": [6, 7, 8]}
    assert result.evidence["images"] == {"selection": 150, "report": 150}
    assert result.evidence["candidates"] == {"measured": 14, "infeasible": 0}
    # 14 candidates of 100 iterations, 4 policies with 3 seeds of 300 iterations, 2 s each
    assert result.evidence["cost"] == {"seconds": 52.0, "iterations": 5000, "search_seconds": 28.0, "confirmation_seconds": 24.0}
    assert set(result.evidence["versions"]) == {"detkds_core", "detkds_evolver"}
    rows = {row["name"]: row for row in result.metrics["rows"]}
    assert rows["none"]["ap"] == [ap_of({"terms": []}, seed, "confirm") for seed in (6, 7, 8)]
    assert rows["none"]["mean_ap"] == pytest.approx(sum(rows["none"]["ap"]) / 3)
    assert rows["none"]["interval"][0] < rows["none"]["mean_ap"] < rows["none"]["interval"][1]
    assert result.metrics["against_alone"]["outcome"] == "better"
    assert "beat the student alone beyond noise" in result.metrics["verdict"]


def test_a_winner_that_is_no_better_is_called_so(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = measured(candidate, spec)
        if spec["kind"] == "confirm":
            one["ap"] = 30.0 + (candidate["index"] * 7 + spec["seed"] * 5) % 3  # seeds differ more than policies
        return one

    search = create(sqlite)
    drive(sqlite, row)
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert result.metrics["against_reference"]["outcome"] == "within noise"
    assert "do not differ beyond noise" in result.metrics["verdict"]
    assert "did not beat the student alone beyond noise" in result.metrics["verdict"]


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
    assert [to_json(proposal.policy) for proposal in again.proposals] == [one.policy for one in candidates]
    assert sorted(again.results) == [one.index for one in candidates if one.state != "PROPOSED"]


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
    assert [one["ap"] for one in found["candidates"][:4]] == [one["ap"] for one in undisturbed["candidates"][:4]]


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


def test_a_finalist_that_fails_with_one_seed_does_not_win(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = measured(candidate, spec)
        if spec["kind"] == "confirm" and candidate["index"] == 2 and spec["seed"] == 7:
            return {"index": 2, "failure": {"kind": "not_finite", "detail": "step 5"}}
        return one

    search = create(sqlite)
    drive(sqlite, row)
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert result.metrics["winner"]["entrant"] == 3
    failed = next(row for row in result.metrics["rows"] if row["entrant"] == 2)
    assert failed["seeds"] == [6, 8]
    assert failed["failures"] == [{"seed": 7, "kind": "not_finite", "detail": "step 5"}]


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


def test_a_search_that_has_nothing_to_confirm_says_why(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        if candidate["index"] < 2:
            return measured(candidate, spec)
        return {"index": candidate["index"], "failure": {"kind": "not_finite", "detail": "step 1"}}

    search = create(sqlite)
    drive(sqlite, row)
    found = outcome(sqlite, search)
    assert found["state"] == "FAILED"
    assert found["reason"] == "no searched candidate could be trained; candidate 2: not_finite: step 1"


def test_a_result_without_one_of_its_candidates_makes_that_one_infeasible(sqlite: Store) -> None:
    search, one = create(sqlite), evolver(sqlite)
    one.round()
    with sqlite.begin() as session:
        claim = jobs.claim(session, worker="w", lease_seconds=60)
        jobs.finish(session, claim, {"candidates": [measured(claim.spec["candidates"][0], claim.spec)]})
    one.round()
    states = [candidate["state"] for candidate in outcome(sqlite, search)["candidates"]]
    assert states[:4] == ["MEASURED", "INFEASIBLE", "INFEASIBLE", "PROPOSED"]


def test_a_partial_last_group_and_a_group_larger_than_the_parallelism_end_too(sqlite: Store) -> None:
    search = create(sqlite, candidates=7, group=8, parallelism=2)
    drive(sqlite)
    assert outcome(sqlite, search)["state"] == "SUCCEEDED"
    sizes = [len(spec["candidates"]) for spec in specs(sqlite, search, "evaluate")]
    assert sizes == [2, 2, 2, 1]


def test_a_search_without_references_is_still_compared_with_them(sqlite: Store) -> None:
    search = create(sqlite, references=[])
    drive(sqlite)
    found = outcome(sqlite, search)
    assert found["state"] == "SUCCEEDED"
    assert {one["name"] for one in found["confirmations"] if one["role"] != "searched"} == {"none", "pkd"}
    assert [one["candidate"] for one in found["confirmations"] if one["role"] == "alone"] == [None] * 3


def test_the_best_other_reference_is_confirmed_too(sqlite: Store) -> None:
    named = [to_json(named_policies()[name].policy) for name in ("none", "pkd", "fitnets", "defeat")]
    search = create(sqlite, references=named)
    drive(sqlite)
    found = outcome(sqlite, search)
    best = max((2, 3), key=lambda index: found["candidates"][index]["ap"])
    references = {one["name"]: one["candidate"] for one in found["confirmations"] if one["role"] == "reference"}
    assert references == {"pkd": 1, ("fitnets", "defeat")[best - 2]: best}


def test_a_candidate_that_would_be_proposed_otherwise_now_is_noticed(sqlite: Store) -> None:
    """A search that another version of the program began must not go on with proposals of this one."""
    from sqlalchemy import update

    from detkds_core.store.models import Candidate

    search, one = create(sqlite), evolver(sqlite)
    one.round()
    with sqlite.begin() as session:
        session.execute(update(Candidate).where(Candidate.index == 3).values(policy_key="another"))
    work(sqlite)
    one.retire()
    evolver(sqlite).round()
    found = outcome(sqlite, search)
    assert found["state"] == "FAILED"
    assert found["reason"].startswith("candidate 3 cannot be proposed again")
