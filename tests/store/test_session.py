"""Units of work, migrations, ids and the clock."""

import os
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, DateTime, inspect, select, text
from sqlalchemy.exc import DBAPIError, StatementError

from detkds_core.store import Store, jobs, searches, workers
from detkds_core.store.clock import db_time
from detkds_core.store.ids import new_id
from detkds_core.store.migrations import upgrade
from detkds_core.store.models import Base, Dataset, Job

DATASET = {"name": "shapes", "digest": "d1"}


def test_models_and_migrations_agree(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        inspector = inspect(connection)
        for table in Base.metadata.sorted_tables:
            named = {one.name for one in table.constraints if isinstance(one, CheckConstraint)}
            assert {one["name"] for one in inspector.get_check_constraints(table.name)} == named, table.name
            for column in inspector.get_columns(table.name):
                if isinstance(column["type"], DateTime) and not store.sqlite:
                    assert column["type"].timezone, f"{table.name}.{column['name']}"


def take_back(connection: Connection, revision: str) -> None:
    from alembic import command
    from alembic.config import Config

    from detkds_core.store import migrations

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


def test_the_schema_can_be_taken_back_and_made_again(store: Store) -> None:
    with store.altering() as connection:
        take_back(connection, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
    store.migrate()
    with store.read() as session:
        assert searches.list(session) == ([], None)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_what_the_first_schema_remembered_is_kept(request: pytest.FixtureRequest, kind: str) -> None:
    """A database of revision 0001 with a measured, a failed and a waiting candidate."""
    store = Store(request.getfixturevalue(f"{kind}_database"))
    with store.engine.begin() as connection:
        upgrade(connection, "0001")
        now = {"now": datetime.now(UTC).replace(tzinfo=None) if kind == "sqlite" else datetime.now(UTC)}
        search = "INSERT INTO searches (id, owner, name, state, spec, dataset, dataset_digest, errors, created_at, updated_at)"
        connection.execute(text(f"{search} VALUES ('s', '', 'old', 'RUNNING', '{{}}', 'd', '', 0, :now, :now)"), now)
        job = "INSERT INTO jobs (id, kind, state, priority, spec, search_id, attempt, max_attempts, collected, created_at, updated_at)"
        connection.execute(text(f"{job} VALUES ('j', 'evaluate', 'QUEUED', 0, '{{}}', 's', 0, 3, :no, :now, :now)"), {**now, "no": False})
        columns = 'id, search_id, "index", policy, policy_key, stage, operator, parents, state, job_id, ap, iterations, seconds, failure'
        for row in (
            """'a', 's', 0, '{"terms": []}', 'k0', 'reference', 'reference', '[]', 'MEASURED', 'j', 21.5, 120, 9.5, NULL""",
            """'b', 's', 1, '{"terms": [1]}', 'k1', 'stage1', 'mutate', '[0]', 'INFEASIBLE', 'j', NULL, 3, 1, '{"kind": "bug"}'""",
            """'c', 's', 2, '{"terms": [2]}', 'k2', 'stage1', 'mutate', '[0]', 'PROPOSED', 'j', NULL, NULL, NULL, NULL""",
        ):
            statement = f"INSERT INTO candidates ({columns}, created_at, updated_at) VALUES ({row}, :now, :now)"
            connection.execute(text(statement.replace('":', '"\\:')), now)
    store.migrate()
    with store.read() as session:
        measured, failed, waiting = searches.all_candidates(session, "s")
        assert (measured.state, measured.ap, measured.rung, measured.iterations, measured.seconds) == ("MEASURED", 21.5, 120, 120, 9.5)
        assert (measured.policy, measured.parents, measured.audit, measured.rejected, measured.look) == (
            {"terms": []},
            [],
            False,
            None,
            None,
        )
        assert (failed.state, failed.failure, failed.rung, failed.parents) == ("INFEASIBLE", {"kind": "bug"}, None, [0])
        assert (waiting.state, waiting.rung) == ("PROPOSED", None)
        assert searches.best_candidates(session, ["s"])["s"].index == 0
        assert jobs.get(session, "j").state == "QUEUED"
        assert (searches.get(session, "s").spent, searches.get(session, "s").inherited) == (123, 0)
        assert searches.trials(session, "s") == searches.ledger(session, "s") == []
    with store.begin() as session:  # and it can go on
        searches.try_out(session, "s", 0, [2], rung=15, replicate=0, seed=1, job_id="j")
        assert searches.measure(session, "s", 0, 2, {"same_as": 0, "iterations": 4})
        searches.record(session, "s", 0, ["{}"])
    with store.altering() as connection:
        take_back(connection, "0001")
        rows = connection.execute(text('SELECT "index", state, ap, failure FROM candidates ORDER BY "index"')).all()
        assert [tuple(row[:3]) for row in rows] == [(0, "MEASURED", 21.5), (1, "INFEASIBLE", None), (2, "INFEASIBLE", None)]
        assert "double" in str(rows[2].failure), "the first schema has no word for a double"
        assert not {"trials", "ledger"} & set(inspect(connection).get_table_names())
        assert "job_id" in {one["name"] for one in inspect(connection).get_columns("candidates")}
    store.migrate()
    with store.read() as session:
        assert [(one.state, one.rung) for one in searches.all_candidates(session, "s")] == [
            ("MEASURED", 120),
            ("INFEASIBLE", None),
            ("INFEASIBLE", None),
        ]
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_jobs_from_before_they_had_owners_get_those_of_what_they_belong_to(request: pytest.FixtureRequest, kind: str) -> None:
    store = Store(request.getfixturevalue(f"{kind}_database"))
    with store.engine.begin() as connection:
        upgrade(connection, "0005")
        now = {"now": datetime.now(UTC).replace(tzinfo=None) if kind == "sqlite" else datetime.now(UTC), "no": False}
        for table, row, owner in (("searches", "s", "a"), ("distillations", "d", "b")):
            columns = "id, owner, name, state, spec, dataset, dataset_digest, created_at, updated_at"
            columns, errors = (f"{columns}, errors", ", 0") if table == "searches" else (columns, "")
            values = f"'{row}', '{owner}', 'old', 'RUNNING', '{{}}', 'd', '', :now, :now{errors}"
            connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), now)
        columns = "id, kind, state, priority, spec, search_id, distillation_id, attempt, max_attempts, collected, created_at, updated_at"
        for values in (
            "'j', 'evaluate', 'QUEUED', 0, '{}', 's', NULL",
            "'k', 'distill', 'QUEUED', 10, '{}', NULL, 'd'",
            "'l', 'evaluate', 'QUEUED', 0, '{}', NULL, NULL",
        ):
            connection.execute(text(f"INSERT INTO jobs ({columns}) VALUES ({values}, 0, 3, :no, :now, :now)"), now)
        connection.execute(text("INSERT INTO workers (name, expires_at) VALUES ('w', :now)"), now)
    store.migrate()
    with store.read() as session:
        found = [jobs.get(session, one) for one in "jkl"]
        assert [(one.owner, one.priority, one.devices, one.device) for one in found] == [(owner, 0, 1, None) for owner in ("a", "b", "")]
        assert searches.get(session, "s").priority == 0
        assert workers.standings(session) == []
    with store.altering() as connection:
        take_back(connection, "0005")
        assert [tuple(row) for row in connection.execute(text("SELECT id, priority FROM jobs ORDER BY id"))] == [
            ("j", 0),
            ("k", 10),
            ("l", 0),
        ]
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_many_may_migrate_at_once(request: pytest.FixtureRequest, kind: str) -> None:
    url = request.getfixturevalue(f"{kind}_database")
    errors: list[BaseException] = []
    barrier = threading.Barrier(4)

    def migrate() -> None:
        own = Store(url)
        barrier.wait()
        try:
            own.migrate()
        except BaseException as error:  # told by the main thread
            errors.append(error)
        own.close()

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = Store(url)
    with store.begin() as session:
        jobs.enqueue(session, kind="evaluate", spec={})
    store.close()


def test_migrating_as_a_command(tmp_path: Path) -> None:
    environment = {**os.environ, "DETKDS_HOME": str(tmp_path / "home")}
    environment.pop("DETKDS_DATABASE_URL", None)
    done = subprocess.run(
        [sys.executable, "-m", "detkds_core.store"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    store = Store(f"sqlite:///{tmp_path}/home/detkds.sqlite")
    with store.read() as session:
        assert jobs.waiting(session) == []


def test_a_unit_of_work_is_kept_whole_or_not_at_all(store: Store) -> None:
    def fails() -> None:
        with store.begin() as session:
            jobs.enqueue(session, kind="evaluate", spec={})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    with store.begin() as session:
        assert jobs.waiting(session) == []
        job = jobs.enqueue(session, kind="evaluate", spec={"a": [1, None]})
    assert (job.state, job.spec, job.attempt) == ("QUEUED", {"a": [1, None]}, 0), "readable afterwards"


def test_a_reader_does_not_wait_for_a_writer(store: Store) -> None:
    with store.begin() as session:
        jobs.enqueue(session, kind="evaluate", spec={})
        began = time.monotonic()
        with store.read() as reader:
            assert jobs.waiting(reader) == [], "and does not see what is not committed"
        assert time.monotonic() - began < 1


def test_a_reader_cannot_write_on_sqlite(sqlite_database: str) -> None:
    store = Store(sqlite_database)
    store.migrate()
    with pytest.raises(DBAPIError, match="readonly"), store.read() as session:
        jobs.enqueue(session, kind="evaluate", spec={})
    with store.begin() as session:
        jobs.enqueue(session, kind="evaluate", spec={})


def test_a_writer_waits_for_another_one(store: Store) -> None:
    """Read, then write: with a deferred BEGIN, SQLite would refuse the second writer at once."""

    def count_up() -> None:
        for _ in range(5):
            with store.begin() as session:
                session.execute(select(Dataset).with_for_update()).all()
                dataset = session.get(Dataset, "n")
                dataset.data = {"n": dataset.data["n"] + 1}

    with store.begin() as session:
        session.add(Dataset(name="n", state="READY", digest="", data={"n": 0}))
    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as session:
        assert session.get(Dataset, "n").data == {"n": 20}


def test_sqlite_is_prepared(sqlite_database: str) -> None:
    store = Store(sqlite_database)
    with store.engine.connect() as connection:
        settings = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "foreign_keys", "busy_timeout")}
    assert settings == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30000}


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://localhost/x"])
def test_a_database_that_cannot_be_shared_is_refused(url: str) -> None:
    with pytest.raises(Exception, match=r"needs a file|sqlite or postgresql"):
        Store(url)


def test_times_come_back_in_utc_as_the_database_counts_them(store: Store) -> None:
    with store.begin() as session:
        now, later, again = (session.scalar(select(db_time(seconds))) for seconds in (0, 90, -0.5))
    for moment in (now, later, again):
        assert moment.tzinfo is UTC
    assert abs((datetime.now(UTC) - now).total_seconds()) < 5
    assert (later - now).total_seconds() == pytest.approx(90, abs=0.5)
    assert (again - now).total_seconds() == pytest.approx(-0.5, abs=0.3)


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(StatementError, match="has no time zone"), store.begin() as session:
        session.scalars(select(Job).where(Job.created_at < datetime(2026, 1, 1))).all()


def test_ids_are_version_7_and_increase() -> None:
    made = [new_id() for _ in range(2000)]
    assert made == sorted(made)
    assert len(set(made)) == 2000
    parsed = uuid.UUID(made[0])
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert abs((parsed.int >> 80) - time.time() * 1000) < 60_000


def test_ids_of_threads_differ() -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend(new_id() for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2000
