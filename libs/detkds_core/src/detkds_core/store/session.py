"""A database and its units of work."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

BUSY_SECONDS = 30.0
UNREACHABLE = (OperationalError, InterfaceError)  # a database that restarts or is busy: ask again; anything else is a bug
MIGRATION_LOCK = 0x6465746B6473  # "detkds": the key of Postgres' advisory lock


def inserted(session: Session, table: Any) -> Any:
    """An INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`, which each database spells its own way."""
    return (sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert)(table)


class Store:
    """A database at an SQLAlchemy URL, SQLite or Postgres. Making one connects to nothing yet; threads may share it."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        # A figure that is not finite must fail here: neither JSON nor Postgres has NaN.
        options: dict[str, Any] = {"json_serializer": partial(json.dumps, allow_nan=False)}
        if self.sqlite:
            if self.url.database in (None, "", ":memory:"):
                raise ValueError(f"{url}: the store is shared by processes, so it needs a file: sqlite:////path/to/detkds.sqlite")
            Path(str(self.url.database)).parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"timeout": BUSY_SECONDS}
        elif self.url.get_backend_name() == "postgresql":
            if self.url.drivername == "postgresql":
                self.url = self.url.set(drivername="postgresql+psycopg")
            options |= {
                "pool_pre_ping": True,  # after a restart of the server, a pooled connection is dead
                "pool_size": 10,  # the API answers in up to 40 threads; few of them need the database at once
                "max_overflow": 30,
                "connect_args": {"connect_timeout": 10},
            }
        else:
            raise ValueError(f"{self.url.get_backend_name()} is not a database of this store; sqlite or postgresql")
        self.engine = create_engine(self.url, **options)
        if self.sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._reading = self.engine.execution_options(detkds_reads_only=True)

    @property
    def sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """One unit of work: commits once at the end, or rolls back when an exception leaves it.

        The database is not locked before the first statement. Objects stay readable afterwards.
        """
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A unit of work that only reads: on SQLite it waits for no writer and holds none up, and the database refuses its writes."""
        with Session(self._reading, expire_on_commit=False) as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema up to date. Any number of processes may do so at once: one does, the others wait for it."""
        from .migrations import upgrade  # Alembic takes a while to import, and most processes never migrate

        with self.altering() as connection:
            if not self.sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            upgrade(connection)

    def revision(self) -> str | None:
        """The revision of the schema that the database has; None: it has none. Raises SQLAlchemyError when it does not answer."""
        with self._reading.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return found

    @contextmanager
    def altering(self) -> Iterator[Connection]:
        """A transaction that may change tables; on SQLite its lock is BEGIN IMMEDIATE.

        SQLite changes a table by making it anew, and dropping the old one would delete every row that refers to it: foreign keys are
        checked at the end instead. Raises RuntimeError, and changes nothing, where one leads nowhere.
        """
        with self.engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            try:
                if self.sqlite:
                    raw.execute("PRAGMA foreign_keys = OFF")  # only outside of a transaction, so not through SQLAlchemy, which begins one
                with connection.begin():
                    yield connection
                    if self.sqlite and (broken := connection.execute(text("PRAGMA foreign_key_check")).first()):
                        raise RuntimeError(f"a row of {broken[0]} would refer to none of {broken[2]}")
            finally:
                if self.sqlite:
                    raw.execute("PRAGMA foreign_keys = ON")

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """What every SQLite connection needs, each for its reason."""
    connection.isolation_level = None  # sqlite3 would begin transactions by itself, too late and deferred; `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")  # wait for another writer instead of failing at once
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        _write_ahead(cursor)
    cursor.execute("PRAGMA foreign_keys = ON")  # SQLite checks them only when asked, per connection
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """WAL: readers and the writer do not wait for one another. Changing to it does not honour busy_timeout, so try again."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except cursor.connection.OperationalError:  # "database is locked": another process is changing to it
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at the start: a transaction that reads first and writes later fails at once when another wrote between.

    That failure (SQLITE_BUSY_SNAPSHOT) no waiting can cure; waiting for the lock at BEGIN, busy_timeout does.
    """
    reads_only = connection.get_execution_options().get("detkds_reads_only", False)
    connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if reads_only else 'OFF'}")
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
