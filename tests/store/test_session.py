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
from sqlalchemy import CheckConstraint, DateTime, inspect, select, text
from sqlalchemy.exc import DBAPIError, StatementError

from detkds_core.store import Store, jobs, searches
from detkds_core.store.clock import db_time
from detkds_core.store.ids import new_id
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


def test_the_schema_can_be_taken_back_and_made_again(store: Store) -> None:
    from alembic import command
    from alembic.config import Config

    from detkds_core.store import migrations

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
    store.migrate()
    with store.read() as session:
        assert searches.list(session) == ([], None)


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
        session.add(Dataset(name="n", digest="", data={"n": 0}))
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
