"""The database: SQLite or Postgres, one unit of work a transaction, migrations under a lock, ids and the database's clock."""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.orm import Session

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x64657464  # a key of our own among Postgres's advisory locks


def new_id() -> str:
    """A UUIDv7 (RFC 9562): ids made later sort later, to the millisecond."""
    value = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def now(session: Session) -> datetime:
    """The database's own time in UTC: leases must not depend on a worker's clock."""
    if session.get_bind().dialect.name == "sqlite":
        moment = session.execute(text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")).scalar_one()
        return datetime.fromisoformat(moment).replace(tzinfo=UTC)
    moment = session.execute(text("SELECT clock_timestamp()")).scalar_one()
    assert isinstance(moment, datetime)
    return moment.astimezone(UTC)


class Store:
    """A database by its URL: `sqlite:///path` or `postgresql://...`. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self.url = _with_driver(make_url(url))
        self.engine = _engine(self.url)

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        """One unit of work: committed once at its end, rolled back by an exception."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Bring the schema up to date. Several processes may ask at once: one works, the others wait."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._migration_lock(), self.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextlib.contextmanager
    def _migration_lock(self) -> Iterator[None]:
        if self.url.get_backend_name() == "sqlite":
            database = self.url.database
            if not database or database == ":memory:":
                yield
                return
            Path(database).parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(f"{database}.migration-lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)
            return
        with self.engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})

    def close(self) -> None:
        self.engine.dispose()


def _with_driver(url: URL) -> URL:
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        # a connection that a restarted server has closed is noticed before it is used
        return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args={"connect_timeout": 10})
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # sqlite3 would begin late; SQLAlchemy's begin below decides
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")  # readers do not wait for the writer
        cursor.execute("PRAGMA synchronous=NORMAL")  # safe in WAL against a killed process; only a power cut may lose the last commits
        cursor.execute("PRAGMA foreign_keys=ON")  # off by default
        cursor.execute("PRAGMA busy_timeout=30000")  # wait for another writer instead of failing at once
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # a transaction that reads first and writes later would fail when another wrote in between; so take the write lock at once
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
