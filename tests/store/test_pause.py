"""Pause and resume: devices are given back at once, nothing measured is lost, and everything goes on where it was."""

import pytest

from detkds_core.store import Store, distillations, jobs, searches
from detkds_core.store.models import Job

DATASET = {"name": "digits", "digest": "d"}


def new_search(store: Store) -> str:
    with store.begin() as session:
        return searches.create(session, name="s", spec={}, dataset=DATASET).id


def job_of(store: Store, search: str) -> str:
    with store.begin() as session:
        return jobs.enqueue(session, kind="evaluate", spec={}, search_id=search).id


def state(store: Store, table, identity: str) -> str:
    with store.read() as session:
        return table.get(session, identity).state


def test_a_paused_search_gives_its_devices_back_and_goes_on_where_it_was(store: Store) -> None:
    search = new_search(store)
    running, waiting, ended = (job_of(store, search) for _ in range(3))
    with store.begin() as session:
        searches.start(session, searches.get(session, search))
        held = jobs.claim(session, worker="w", lease_seconds=60, job_id=running)
        done = jobs.claim(session, worker="w", lease_seconds=60, job_id=ended)
        assert jobs.finish(session, done, {"candidates": []})
    with store.begin() as session:
        assert searches.pause(session, search)
        assert not searches.pause(session, search)
    with store.begin() as session:
        assert not jobs.renew(session, held, lease_seconds=60), "its worker stops the trainer"
        assert not jobs.finish(session, held, {"candidates": []})
        assert jobs.claim(session, worker="w", lease_seconds=60) is None
        assert searches.due(session) == []
        assert searches.lock(session, search) is None
    assert [state(store, jobs, job) for job in (running, waiting, ended)] == ["PAUSED", "PAUSED", "SUCCEEDED"]
    with store.begin() as session:
        assert searches.resume(session, search)
        assert not searches.resume(session, search)
        assert searches.get(session, search).state == "RUNNING"
        assert searches.due(session) == [search], "a job has ended that nobody has counted"
        again = jobs.claim(session, worker="w", lease_seconds=60, job_id=running)
    assert (again.attempt, state(store, jobs, waiting)) == (2, "QUEUED")


@pytest.mark.parametrize("before", ["QUEUED", "RUNNING", "CONFIRMING"])
def test_a_search_is_resumed_into_the_state_that_it_was_paused_in(store: Store, before: str) -> None:
    search = new_search(store)
    with store.begin() as session:
        one = searches.get(session, search)
        if before != "QUEUED":
            searches.start(session, one)
        if before == "CONFIRMING":
            searches.confirm(session, one)
            job = jobs.enqueue(session, kind="confirm", spec={}, search_id=search).id
            entrant = {"entrant": 0, "candidate": None, "name": "none", "role": "alone", "policy": {"terms": []}}
            searches.enter(session, search, job_id=job, seed=1, entrants=[entrant])
    with store.begin() as session:
        assert searches.pause(session, search)
        assert searches.resume(session, search)
    assert state(store, searches, search) == before


def test_what_has_ended_is_neither_paused_nor_resumed(store: Store) -> None:
    search = new_search(store)
    with store.begin() as session:
        assert searches.cancel(session, search)
        assert not searches.pause(session, search)
        assert not searches.resume(session, search)


def test_a_paused_search_can_be_cancelled(store: Store) -> None:
    search = new_search(store)
    job = job_of(store, search)
    with store.begin() as session:
        assert searches.pause(session, search)
        assert searches.cancel(session, search)
    assert (state(store, searches, search), state(store, jobs, job)) == ("CANCELLED", "CANCELLED")


def test_a_paused_distillation_loses_no_attempt(store: Store) -> None:
    with store.begin() as session:
        one = distillations.create(session, name="d", spec={}, dataset=DATASET).id
        job = jobs.of_distillation(session, one).id
        jobs.claim(session, worker="w", lease_seconds=60, job_id=job)
    with store.begin() as session:
        assert distillations.pause(session, one)
    assert (state(store, distillations, one), state(store, jobs, job)) == ("PAUSED", "PAUSED")
    with store.begin() as session:
        assert distillations.resume(session, one)
    with store.read() as session:
        assert distillations.get(session, one).state == "QUEUED"
        found = session.get(Job, job)
        assert (found.attempt, found.released, found.max_attempts) == (1, 1, 4)


def test_what_belongs_to_somebody_else_is_neither_paused_nor_resumed(store: Store) -> None:
    search = new_search(store)
    with store.begin() as session:
        assert not searches.pause(session, search, owner="somebody else")
        assert searches.pause(session, search)
        assert not searches.resume(session, search, owner="somebody else")
