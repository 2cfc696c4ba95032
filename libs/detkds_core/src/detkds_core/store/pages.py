"""Keyset pages: a cursor names the last row of a page, so that page 1,000 costs what page 1 costs."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, or_
from sqlalchemy.orm import Session

Row = TypeVar("Row")


class CursorError(ValueError):
    """A text that is no cursor of this list."""


def newest_first(session: Session, query: Select[Row], table: Any, *, limit: int, cursor: str | None) -> tuple[list[Row], str | None]:
    """A page of `query` by (created_at, id) downwards, and the cursor of the next one (None: there is none)."""
    if cursor is not None:
        created, identity = _read(cursor, 2)
        try:
            moment = datetime.fromisoformat(str(created))
        except ValueError:
            raise CursorError(f"{cursor!r} is not a cursor of this list") from None
        if moment.tzinfo is None or not isinstance(identity, str):
            raise CursorError(f"{cursor!r} is not a cursor of this list")
        query = query.where(before(table, moment, identity))
    rows: list[Row] = list(session.scalars(query.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    last: Any = rows[limit - 1]
    return rows[:limit], _write(last.created_at.isoformat(), last.id)


def before(table: Any, moment: datetime, identity: str) -> ColumnElement[bool]:
    return or_(table.created_at < moment, and_(table.created_at == moment, table.id < identity))


def ascending(
    session: Session, query: Select[Row], column: Any, *, kind: type, limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    """A page of `query` by one unique column upwards, and the cursor of the next one. kind: the column's Python type."""
    if cursor is not None:
        (value,) = _read(cursor, 1)
        if type(value) is not kind or (isinstance(value, int) and abs(value) > 2**31 - 1):
            raise CursorError(f"{cursor!r} is not a cursor of this list")
        query = query.where(column > value)
    rows: list[Row] = list(session.scalars(query.order_by(column).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], _write(getattr(rows[limit - 1], column.key))


def _write(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def _read(cursor: str, length: int) -> list[Any]:
    """The values in a cursor. Raises CursorError for any other text."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        values = None
    if not isinstance(values, list) or len(values) != length or "\0" in str(values) or "\\u0000" in str(values):
        raise CursorError(f"{cursor!r} is not a cursor of this list")
    return values
