"""What the store counts for `GET /metrics`."""

from typing import Any

from sqlalchemy import event, text, update

from detkds_core.store import Store, distillations, jobs, migrations, searches, tallies, workers
from detkds_core.store.clock import db_time
from detkds_core.store.models import Candidate, Job, Worker

DATASET = {"name": "shapes", "digest": "d1"}
GPU = {"uuid": "GPU-1", "name": "A", "memory_bytes": 100, "memory_used_bytes": 40, "use": 0.5}


def enqueue(store: Store, kind: str = "evaluate", **fields: Any) -> str:
    with store.begin() as session:
        return jobs.enqueue(session, kind=kind, spec={}, **fields).id


def claim(store: Store, job_id: str) -> jobs.Claim:
    with store.begin() as session:
        claimed = jobs.claim(session, worker="w", lease_seconds=60, job_id=job_id)
    assert claimed is not None
    return claimed


def test_what_waits_is_counted_by_kind_state_and_reason(store: Store) -> None:
    for kind in ("evaluate", "evaluate", "distill"):
        enqueue(store, kind)
    failed = claim(store, enqueue(store))
    held = enqueue(store)
    with store.begin() as session:
        assert jobs.fail(session, failed, kind="out_of_memory", detail="")
        jobs.pause(session, Job.id == held)
    claim(store, enqueue(store))
    with store.read() as session:
        assert sorted(jobs.depth(session)) == [
            ("distill", "QUEUED", "new", 1),
            ("evaluate", "PAUSED", "new", 1),
            ("evaluate", "QUEUED", "new", 2),
            ("evaluate", "QUEUED", "out_of_memory", 1),
        ]


def test_what_runs_is_counted_with_the_mean_time_of_a_step(store: Store) -> None:
    first, second, silent = (claim(store, enqueue(store)) for _ in range(3))
    claim(store, enqueue(store, "confirm"))
    with store.begin() as session:
        for one, seconds in ((first, 0.25), (second, 0.75), (silent, None)):
            assert jobs.renew(session, one, lease_seconds=60, progress={"done": 1, "total": 2, "step_seconds": seconds})
    with store.read() as session:
        assert sorted(jobs.running(session)) == [("confirm", 1, None), ("evaluate", 3, 0.5)]


def test_failures_and_lost_attempts_are_counted_where_they_happen_and_stay_counted(store: Store) -> None:
    taken = [claim(store, enqueue(store)) for _ in range(4)]
    with store.begin() as session:
        assert jobs.fail(session, taken[0], kind="bug", detail="")
        assert jobs.fail(session, taken[1], kind="bad_data", detail="")
        assert not jobs.fail(session, taken[1], kind="bad_data", detail=""), "too late"
        session.execute(update(Job).where(Job.state == "RUNNING").values(lease_expires_at=db_time(-1)))
        assert len(jobs.reap(session)) == 2
    again = claim(store, taken[0].job_id)
    with store.begin() as session:
        assert jobs.fail(session, again, kind="bug", detail="")
        session.execute(text("DELETE FROM jobs"))
    with store.read() as session:
        assert tallies.of(session, jobs.FAILED) == {"bug": 2, "bad_data": 1}
        assert tallies.of(session, jobs.LOST) == {"evaluate": 2}
        assert tallies.of(session, "something else") == {}


def test_the_best_of_the_newest_searches_under_way(store: Store) -> None:
    def search(owner: str, **aps: float) -> str:
        with store.begin() as session:
            one = searches.create(session, name=owner, spec={}, dataset=DATASET, owner=owner)
            searches.start(session, one)
            for index, (rung, ap) in enumerate(aps.items()):
                rest = {"policy": {}, "policy_key": str(index), "stage": "s", "operator": "o", "parents": [], "state": "MEASURED"}
                session.add(Candidate(search_id=one.id, index=index, ap=ap, rung=int(rung[1:]), **rest))
            return one.id

    first, second, third = search("a", r15=40.0, r60=21.5), search("b"), search("b", r15=7.0)
    with store.begin() as session:
        searches.create(session, name="waits", spec={}, dataset=DATASET, owner="a")
    with store.read() as session:
        assert searches.running_best(session, owner=None, limit=9) == [(third, 7.0), (second, None), (first, 21.5)]
        assert searches.running_best(session, owner="a", limit=9) == [(first, 21.5)]
        assert searches.running_best(session, owner=None, limit=1) == [(third, 7.0)]


def test_workers_tell_of_their_gpus_and_those_that_share_one_count_it_once(store: Store) -> None:
    with store.begin() as session:
        workers.present(session, "one", seconds=60, gpu_use=[GPU])
        workers.present(session, "two", seconds=60, gpu_use=[{**GPU, "memory_used_bytes": 50}, {**GPU, "uuid": "GPU-2"}])
        workers.present(session, "cpu", seconds=60)
        workers.present(session, "gone", seconds=60, gpu_use=[{**GPU, "uuid": "GPU-3"}])
        session.execute(update(Worker).where(Worker.name == "gone").values(expires_at=db_time(-1)))
    with store.read() as session:
        assert workers.gpu_use(session).keys() == {"GPU-1", "GPU-2"}
        assert (workers.alive(session), workers.lost(session)) == (3, 1)
        (two,) = (one.worker.id for one in workers.standings(session) if one.worker.name == "two")
    with store.begin() as session:
        workers.present(session, "two", seconds=60)
    with store.read() as session:
        assert workers.gpu_use(session) == {"GPU-1": GPU}
    with store.begin() as session:
        workers.drain(session, two, draining=True)
        workers.leave(session, "two")
    with store.read() as session:
        assert workers.lost(session) == 1, "one that drains has not vanished when it ends"


def test_a_job_is_seen_by_its_owner(store: Store) -> None:
    with store.begin() as session:
        search = searches.create(session, name="s", spec={}, dataset=DATASET, owner="a")
        one = distillations.create(session, name="d", spec={}, dataset=DATASET, owner="b")
        job = jobs.of_distillation(session, one.id)
    ours = enqueue(store, search_id=search.id, owner="a")
    nobodys = enqueue(store)
    with store.read() as session:
        seen = {owner: [jobs.seen(session, one, owner=owner) is not None for one in (ours, job.id, nobodys)] for owner in ("a", "b", None)}
    assert seen == {"a": [True, False, False], "b": [False, True, False], None: [True, True, True]}


def test_what_is_asked_for_metrics_goes_through_indexes(sqlite_database: str) -> None:
    """Of jobs and candidates there are many: no question may read all of them. (Postgres decides that by the size of a table.)"""
    store = Store(sqlite_database)
    store.migrate()
    asked: list[tuple[str, Any]] = []
    event.listen(store.engine, "before_cursor_execute", lambda *call: asked.append((call[2], call[3])))
    with store.read() as session:
        jobs.depth(session), jobs.running(session), searches.running_best(session, owner=None, limit=5)
        questions = [(sql, parameters) for sql, parameters in asked if sql.startswith("SELECT")]
        plans = [session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters).all() for sql, parameters in questions]
    scans = [row for plan in plans for row in plan if str(row[3]).startswith("SCAN") and "USING" not in str(row[3])]
    assert len(plans) == 3
    assert scans == []


def test_a_database_knows_its_revision(store: Store) -> None:
    assert store.revision() == migrations.head()
    with store.altering() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    assert store.revision() is None
