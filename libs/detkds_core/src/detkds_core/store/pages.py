"""Keyset pages: a cursor names the last row of a page, so that page 1,000 costs what page 1 costs.

A cursor also says which order and which filters it belongs to: with others it would skip rows without a word.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, or_
from sqlalchemy.orm import Session

from .clock import Moment

Row = TypeVar("Row")
NEWEST = "-created_at"
NOTHING: Mapping[str, Any] = {}


class CursorError(ValueError):
    """A text that is no cursor of this list, or of another order or other filters of it."""


def ordered(
    session: Session,
    query: Select[Row],
    table: Any,
    *,
    sort: str = NEWEST,
    asked: Mapping[str, Any] = NOTHING,
    limit: int,
    cursor: str | None,
) -> tuple[list[Row], str | None]:
    """A page of `query` and the cursor of the next one (None: there is none).

    sort: a column of times or numbers, with `-` before it from the highest down; rows of one value follow by id, and rows without a value
    are left out. asked: the filters that `query` carries already, which the cursor must have been made with. Raises CursorError.
    """
    name, down = sort.removeprefix("-"), sort.startswith("-")
    column, identity = getattr(table, name), table.id
    if column.nullable:
        query = query.where(column.is_not(None))
    if cursor is not None:
        value, last_id = _read(cursor, sort, asked, 2)
        query = query.where(_beyond(column, identity, _value(column, value, cursor), _text(last_id, cursor), down))
    order = (column.desc(), identity.desc()) if down else (column, identity)
    rows: list[Row] = list(session.scalars(query.order_by(*order).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    last: Any = rows[limit - 1]
    value = getattr(last, name)
    return rows[:limit], _write(sort, asked, value.isoformat() if isinstance(value, datetime) else value, last.id)


def _beyond(column: Any, identity: Any, value: datetime | float, last_id: str, down: bool) -> ColumnElement[bool]:
    """What comes after a row. The first condition says nothing new, but it is what an index is entered by."""
    if down:
        return and_(column <= value, or_(column < value, identity < last_id))
    return and_(column >= value, or_(column > value, identity > last_id))


def ascending(
    session: Session,
    query: Select[Row],
    column: Any,
    *,
    kind: type,
    asked: Mapping[str, Any] = NOTHING,
    limit: int,
    cursor: str | None,
) -> tuple[list[Row], str | None]:
    """A page of `query` by one unique column upwards, and the cursor of the next one. kind: the column's Python type; asked as above."""
    if cursor is not None:
        (value,) = _read(cursor, column.key, asked, 1)
        if type(value) is not kind or (isinstance(value, int) and abs(value) > 2**31 - 1):
            raise _no_cursor(cursor)
        query = query.where(column > value)
    rows: list[Row] = list(session.scalars(query.order_by(column).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], _write(column.key, asked, getattr(rows[limit - 1], column.key))


def _no_cursor(cursor: str) -> CursorError:
    return CursorError(f"{cursor!r} is not a cursor of this list")


def _text(value: object, cursor: str) -> str:
    if not isinstance(value, str):
        raise _no_cursor(cursor)
    return value


def _value(column: Any, value: object, cursor: str) -> datetime | float:
    """A column's value as a cursor carries it. Raises CursorError."""
    if isinstance(column.type, Moment):
        try:
            moment = datetime.fromisoformat(_text(value, cursor))
        except ValueError:
            raise _no_cursor(cursor) from None
        if moment.tzinfo is None:
            raise _no_cursor(cursor)
        return moment
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
        raise _no_cursor(cursor)
    return value


def _digest(asked: Mapping[str, Any]) -> str:
    """Which filters a page has; those that ask for nothing are none."""
    given = sorted((name, value) for name, value in asked.items() if value is not None)
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:12] if given else ""


def _write(sort: str, asked: Mapping[str, Any], *key: Any) -> str:
    text = json.dumps([sort, _digest(asked), *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str, sort: str, asked: Mapping[str, Any], length: int) -> list[Any]:
    """The key in a cursor. Raises CursorError for any other text, another order and other filters."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        values = None
    if not isinstance(values, list) or len(values) != length + 2 or "\0" in str(values) or "\\u0000" in str(values):
        raise _no_cursor(cursor)
    made_with, filters, *key = values
    if made_with != sort:
        raise CursorError(f"this cursor belongs to a list in the order {str(made_with)[:40]!r}, and this one is in the order {sort!r}")
    if filters != _digest(asked):
        raise CursorError("this cursor belongs to a list with other filters; page on with the filters of its first page")
    return key
