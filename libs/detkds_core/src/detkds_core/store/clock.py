"""Database time: the one clock that all processes share. A worker's own clock decides nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator


class Moment(TypeDecorator[datetime]):
    """A point in time, always aware and in UTC; SQLite keeps it as text without a zone, whose order is that of time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; the store keeps UTC")
        return value.astimezone(UTC).replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class db_time(FunctionElement[datetime]):
    """The database's time of now, `seconds` later."""

    type = Moment()
    inherit_cache = False  # the seconds are part of the SQL text

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = float(seconds)


@compiles(db_time, "sqlite")
def _sqlite(element: db_time, compiler: Any, **_: Any) -> str:
    # %f has milliseconds; SQLAlchemy reads and writes six digits, and text of unequal length would sort wrongly.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '{element.seconds:+.3f} seconds')"


@compiles(db_time, "postgresql")
def _postgresql(element: db_time, compiler: Any, **_: Any) -> str:
    # Not now(), which is the transaction's start: a lease must not shrink by the time a statement waited for a lock.
    return f"(clock_timestamp() + interval '{element.seconds:.3f} seconds')"
