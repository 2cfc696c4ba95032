"""Lists: keyset cursors, so that page 1,000 costs what page 1 costs and nothing is shown twice while new items arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

from detkds_api.problems import FieldError, invalid

Item = TypeVar("Item")
Row = TypeVar("Row")

Limit = Annotated[int, Query(ge=1, le=200, description="Items a page.")]
Cursor = Annotated[str | None, Query(min_length=1, max_length=200, description="`next_cursor` of the page before.")]


class Page(BaseModel, Generic[Item]):
    """Items, and where the next page starts (null: there is none)."""

    items: list[Item]
    next_cursor: str | None


def page_of(read: Callable[[], tuple[Sequence[Row], str | None]]) -> tuple[Sequence[Row], str | None]:
    """What `read` gives. Raises InvalidInput for a cursor that no page gave."""
    try:
        return read()
    except ValueError as error:
        raise invalid([FieldError("?cursor", f"{error}; take next_cursor of the page before")]) from None
