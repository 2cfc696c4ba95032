"""Keyset pages: `created_at|id` of the last row, newest first, so that page 1,000 costs what page 1 costs."""

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session


def newest_first(
    session: Session, statement: Select[Any], table: Any, limit: int, cursor: str | None
) -> tuple[Sequence[Any], str | None]:
    """A page of rows, and the cursor of the next one (None: this is the last). Raises ValueError for a cursor that no page gave."""
    if cursor is not None:
        moment, row_id = decoded(cursor).split("|")
        statement = statement.where(tuple_(table.created_at, table.id) < (datetime.fromisoformat(moment), row_id))
    rows = [*session.scalars(statement.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1))]
    more = len(rows) > limit
    rows = rows[:limit]
    return rows, encoded(f"{rows[-1].created_at.isoformat()}|{rows[-1].id}") if more else None


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decoded(cursor: str) -> str:
    """Raises ValueError for what is no cursor."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        moment, _, _ = text.partition("|")
        datetime.fromisoformat(moment) if "|" in text else int(text)
    except ValueError as error:
        raise ValueError("not a cursor of this list") from error
    return text
