"""The queue of record, on SQLite and Postgres: who may run a job, for how long, and what becomes of it."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from detkds_core.store import Store, distillations, events, jobs, searches
from detkds_core.store.jobs import Claim

DATASET = {"name": "shapes", "digest": "d1"}


def enqueue(store: Store, **changes: object) -> str:
    with store.begin() as session:
        return jobs.enqueue(session, **{"kind": "evaluate", "spec": {"seed": 1}, **changes}).id


def claim(store: Store, job_id: str | None = None, *, lease_seconds: float = 30, worker: str = "w1") -> Claim | None:
    with store.begin() as session:
        return jobs.claim(session, worker=worker, lease_seconds=lease_seconds, job_id=job_id)


def held(store: Store, **changes: float) -> Claim:
    found = claim(store, enqueue(store), **changes)
    assert found is not None
    return found


def row(store: Store, job_id: str, *fields: str) -> tuple[object, ...]:
    with store.read() as session:
        job = jobs.get(session, job_id)
        return tuple(getattr(job, field) for field in fields)


def kinds(store: Store, subject: str) -> list[str]:
    with store.read() as session:
        return [one.kind for one in events.after(session, subject)]


def expired(store: Store) -> Claim:
    """A claim whose lease ran out a second ago: the database's clock alone decided."""
    return held(store, lease_seconds=-1)


def test_a_job_is_claimed_renewed_and_finished(store: Store) -> None:
    job = enqueue(store, spec={"seed": 7})
    taken = claim(store, job)
    assert taken is not None
    assert (taken.job_id, taken.attempt, taken.kind, taken.spec) == (job, 1, "evaluate", {"seed": 7})
    with store.begin() as session:
        assert jobs.renew(session, taken, lease_seconds=30, progress={"done": 4})
        assert jobs.renew(session, taken, lease_seconds=30, progress=None)
    assert row(store, job, "state", "progress", "worker") == ("RUNNING", {"done": 4}, "w1")
    with store.begin() as session:
        assert jobs.finish(session, taken, {"ap": 31.5})
    assert row(store, job, "state", "result", "lease_token", "failure") == ("SUCCEEDED", {"ap": 31.5}, None, None)
    with store.begin() as session:
        assert not jobs.finish(session, taken, {"ap": 99.0}), "the same message twice"
        assert not jobs.renew(session, taken, lease_seconds=30)
    assert row(store, job, "result") == ({"ap": 31.5},)
    assert kinds(store, job) == ["queued", "started", "progress", "succeeded"]


def test_lease_and_times_are_the_databases(store: Store) -> None:
    before = datetime.now(UTC)
    taken = held(store, lease_seconds=30)
    expires, created, started = row(store, taken.job_id, "lease_expires_at", "created_at", "started_at")
    assert created.tzinfo is UTC
    assert before - timedelta(seconds=1) <= created <= started <= datetime.now(UTC) + timedelta(seconds=1)
    assert timedelta(seconds=29) < expires - started < timedelta(seconds=31)
    with store.begin() as session:
        assert jobs.renew(session, taken, lease_seconds=300)
    assert row(store, taken.job_id, "lease_expires_at")[0] - expires > timedelta(seconds=260)


def test_the_queue_is_by_priority_then_age(store: Store) -> None:
    old, new = enqueue(store), enqueue(store)
    urgent = enqueue(store, priority=5)
    with store.read() as session:
        assert jobs.waiting(session) == [urgent, old, new]
        assert jobs.waiting(session, limit=1) == [urgent]
    assert [claim(store).job_id for _ in range(3)] == [urgent, old, new]
    assert claim(store) is None


def test_a_job_that_does_not_wait_is_not_claimed(store: Store) -> None:
    job = enqueue(store)
    assert claim(store, job) is not None
    assert claim(store, job) is None
    assert claim(store, "no-such-job") is None
    assert row(store, job, "attempt") == (1,)


@pytest.mark.parametrize("named", [True, False])
def test_of_many_threads_exactly_one_gets_a_job(store: Store, named: bool) -> None:
    wanted = [enqueue(store) for _ in range(5)]
    barrier = threading.Barrier(6)
    claims: list[Claim | None] = []

    def take() -> None:
        barrier.wait()
        for job in wanted:
            claims.append(claim(store, job if named else None, worker=threading.current_thread().name))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(one.job_id for one in claims if one is not None) == Counter(wanted)
    assert len({one.token for one in claims if one is not None}) == 5


CLAIM_ALL = """
import sys, time
from detkds_core.store import Store, jobs
store = Store(sys.argv[1])
with store.read() as session:
    jobs.waiting(session)  # connected before the race begins
print("ready", flush=True)
sys.stdin.readline()
while True:
    with store.begin() as session:
        claim = jobs.claim(session, worker="p", lease_seconds=30)
    if claim is None:
        break
    print(claim.job_id, flush=True)
"""


def test_of_many_processes_exactly_one_gets_a_job(store: Store) -> None:
    wanted = [enqueue(store) for _ in range(12)]
    command = [sys.executable, "-c", CLAIM_ALL, store.url.render_as_string(hide_password=False)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [job for process in processes for job in process.communicate(timeout=60)[0].split()]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert Counter(found) == Counter(wanted)


def test_a_stale_token_loses(store: Store) -> None:
    old = expired(store)
    with store.begin() as session:
        assert jobs.reap(session) == [old.job_id]
    new = claim(store, old.job_id, worker="w2")
    assert new is not None
    assert (new.attempt, row(store, old.job_id, "worker")) == (2, ("w2",))
    writes: list[Callable[..., bool]] = [
        lambda session: jobs.renew(session, old, lease_seconds=30, progress={"done": 1}),
        lambda session: jobs.finish(session, old, {"ap": 1.0}),
        lambda session: jobs.fail(session, old, kind="bug", detail=""),
        lambda session: jobs.fail(session, old, kind="bad_data", detail=""),
        lambda session: jobs.release(session, old),
    ]
    for write in writes:
        with store.begin() as session:
            assert write(session) is False
    assert row(store, old.job_id, "state", "attempt", "result", "progress") == ("RUNNING", 2, None, None)
    with store.begin() as session:
        assert jobs.finish(session, new, {"ap": 2.0})


def test_a_token_is_good_for_its_attempt_only(store: Store) -> None:
    """A job that was given back runs again under another number, for the files of the first attempt lie under its own."""
    first = held(store)
    with store.begin() as session:
        assert jobs.release(session, first)
    assert row(store, first.job_id, "state", "attempt", "released", "max_attempts", "lease_token") == ("QUEUED", 1, 1, 4, None)
    second = claim(store, first.job_id)
    assert second is not None
    assert (first.attempt, second.attempt) == (1, 2)
    with store.begin() as session:
        assert not jobs.finish(session, first, {})
        assert jobs.finish(session, second, {})


def test_a_lease_that_ran_out_is_still_good_until_somebody_takes_it(store: Store) -> None:
    late = expired(store)
    with store.begin() as session:
        assert jobs.renew(session, late, lease_seconds=30)
        assert jobs.reap(session) == []


def test_the_reaper_takes_only_what_has_run_out(store: Store) -> None:
    lost, alive, waiting = expired(store), held(store), enqueue(store)
    with store.begin() as session:
        assert jobs.reap(session) == [lost.job_id]
        assert jobs.reap(session) == []
    assert row(store, lost.job_id, "state", "attempt") == ("QUEUED", 1)
    assert row(store, lost.job_id, "failure")[0]["kind"] == "lost"
    assert row(store, alive.job_id, "state") == ("RUNNING",)
    assert row(store, waiting, "state") == ("QUEUED",)
    assert kinds(store, lost.job_id) == ["queued", "started", "lost"]


def test_two_reapers_at_once_take_each_job_once(store: Store) -> None:
    lost = [expired(store).job_id for _ in range(6)]
    found: list[str] = []
    barrier = threading.Barrier(3)

    def sweep() -> None:
        barrier.wait()
        with store.begin() as session:
            found.extend(jobs.reap(session))

    threads = [threading.Thread(target=sweep) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(lost)


def test_a_job_is_dead_after_its_last_attempt(store: Store) -> None:
    """One that is lost every time has more of them: twenty processes killed during a search cost no candidate its measurement."""
    job = enqueue(store, max_attempts=2)
    for attempt, state in (*((attempt, "QUEUED") for attempt in range(1, 12)), (12, "DEAD")):
        taken = claim(store, job, lease_seconds=-1)
        assert taken is not None
        assert taken.attempt == attempt
        with store.begin() as session:
            assert jobs.reap(session) == [job]
        assert row(store, job, "state", "attempt") == (state, attempt)
    assert claim(store, job) is None
    assert row(store, job, "finished_at")[0] is not None


def test_lost_attempts_do_not_count_beside_failures(store: Store) -> None:
    job = enqueue(store, max_attempts=2)
    seen = []
    for kind in ("lost", "bug", "lost", "lost", "bug"):
        taken = claim(store, job)
        assert taken is not None
        with store.begin() as session:
            assert jobs.fail(session, taken, kind=kind, detail="")
        seen.append(row(store, job, "state")[0])
    assert seen == ["QUEUED"] * 4 + ["DEAD"]


@pytest.mark.parametrize(
    ("kind", "states"),
    [
        ("out_of_memory", ["QUEUED", "QUEUED", "DEAD"]),
        ("lost", ["QUEUED"] * 11 + ["DEAD"]),
        ("timeout", ["QUEUED", "QUEUED", "DEAD"]),
        ("bug", ["QUEUED", "QUEUED", "DEAD"]),
        ("not_finite", ["FAILED"]),
        ("bad_data", ["FAILED"]),
    ],
)
def test_the_kind_of_a_failure_decides(store: Store, kind: str, states: list[str]) -> None:
    job = enqueue(store)
    seen = []
    while (taken := claim(store, job)) is not None:
        with store.begin() as session:
            assert jobs.fail(session, taken, kind=kind, detail=f"attempt {taken.attempt}\0")
        seen.append(row(store, job, "state")[0])
    assert seen == states
    assert row(store, job, "failure") == ({"kind": kind, "detail": f"attempt {len(states)}\0"},)


def test_an_unknown_kind_of_failure_is_a_mistake(store: Store) -> None:
    taken = held(store)
    with store.begin() as session, pytest.raises(ValueError, match=r"'tired' is not a failure kind; one of out_of_memory"):
        jobs.fail(session, taken, kind="tired", detail="")


def test_a_success_forgets_the_failure_before_it(store: Store) -> None:
    taken = held(store)
    with store.begin() as session:
        jobs.fail(session, taken, kind="bug", detail="once")
    again = claim(store, taken.job_id)
    assert again is not None
    with store.begin() as session:
        jobs.finish(session, again, {})
    assert row(store, taken.job_id, "state", "attempt", "failure") == ("SUCCEEDED", 2, None)


def test_a_figure_that_is_not_finite_is_refused(store: Store) -> None:
    taken = held(store)
    with pytest.raises(Exception, match="Out of range float values are not JSON compliant"), store.begin() as session:
        jobs.finish(session, taken, {"ap": float("nan")})
    assert row(store, taken.job_id, "state") == ("RUNNING",)


def test_cancel_takes_a_job_from_the_queue_and_from_its_worker(store: Store) -> None:
    waiting, running = enqueue(store), held(store)
    with store.begin() as session:
        assert jobs.cancel(session, waiting)
        assert jobs.cancel(session, running.job_id)
        assert not jobs.cancel(session, running.job_id)
        assert not jobs.cancel(session, "no-such-job")
    assert claim(store) is None
    with store.begin() as session:
        assert not jobs.renew(session, running, lease_seconds=30)
        assert not jobs.finish(session, running, {})
    assert row(store, waiting, "state") == row(store, running.job_id, "state") == ("CANCELLED",)


def test_an_outcome_is_counted_once(store: Store) -> None:
    taken = held(store)
    with store.begin() as session:
        jobs.finish(session, taken, {})
    with store.begin() as session:
        job = jobs.get(session, taken.job_id)
        assert jobs.collect(session, job)
        assert not jobs.collect(session, job)


def test_a_distillation_mirrors_its_job(store: Store) -> None:
    with store.begin() as session:
        distillation = distillations.create(session, name="d", spec={"policy": {"terms": []}}, dataset=DATASET)
        job = jobs.of_distillation(session, distillation.id)
        assert (job.kind, job.spec["kind"], job.state) == ("distill", "distill", "QUEUED")

    def state() -> tuple[str, str | None]:
        with store.read() as session:
            one = distillations.get(session, distillation.id)
            return one.state, one.reason

    assert state() == ("QUEUED", None)
    first = claim(store, job.id)
    assert state() == ("RUNNING", None)
    with store.begin() as session:
        jobs.release(session, first)
    assert state() == ("QUEUED", None)
    claim(store, job.id, lease_seconds=-1)
    with store.begin() as session:
        jobs.reap(session)
    assert state() == ("QUEUED", None)
    third = claim(store, job.id)
    with store.begin() as session:
        jobs.fail(session, third, kind="bad_data", detail="no such\0 image")
    assert state() == ("FAILED", "bad_data: no such image")
    assert kinds(store, distillation.id) == ["queued", "running", "queued", "running", "queued", "running", "failed"]


def test_a_distillation_goes_before_a_search_that_runs_and_can_be_cancelled(store: Store) -> None:
    with store.begin() as session:
        search = searches.create(session, name="s", spec={}, dataset=DATASET).id
    claim(store, enqueue(store, search_id=search))
    enqueue(store, search_id=search)
    with store.begin() as session:
        distillation = distillations.create(session, name="d", spec={"policy": {"terms": []}}, dataset=DATASET)
    taken = claim(store)
    assert taken is not None
    assert taken.distillation_id == distillation.id
    with store.begin() as session:
        assert distillations.cancel(session, distillation.id)
        assert not distillations.cancel(session, distillation.id)
        assert not distillations.cancel(session, "no-such-distillation")
        assert not jobs.renew(session, taken, lease_seconds=30)
        assert distillations.get(session, distillation.id).state == "CANCELLED"
