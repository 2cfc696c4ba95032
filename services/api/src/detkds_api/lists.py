"""Lists: keyset cursors, so that page 1,000 costs what page 1 costs and nothing is shown twice while new items arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from detkds_api.fields import Asked, Name, Tag
from detkds_api.problems import FieldError, invalid

Item = TypeVar("Item")
Row = TypeVar("Row")

LIMIT, CURSOR = "Items a page.", "`next_cursor` of the page before, of a list with the same order and filters."
Limit = Annotated[int, Query(ge=1, le=200, description=LIMIT)]
Cursor = Annotated[str | None, Query(min_length=1, max_length=400, description=CURSOR)]
SORT = (
    "The order; with `-` before it from the newest or highest down. Items that come at once follow by id; those that have not what the "
    "order is by (an end, an AP) are left out."
)
OF_WHAT_RUNS = Literal["created_at", "-created_at", "updated_at", "-updated_at", "finished_at", "-finished_at"]


class ListQuery(Asked):
    """What every list can be asked for. Filters are the fields of its subclasses; those that are null ask for nothing."""

    limit: int = Field(default=50, ge=1, le=200, description=LIMIT)
    cursor: str | None = Field(default=None, min_length=1, max_length=400, description=CURSOR)

    def page(self) -> dict[str, Any]:
        """Order, filters and page as the store's lists take them."""
        return self.model_dump()


class RunsQuery(ListQuery):
    """What lists of searches and of distillations can be asked for."""

    sort: OF_WHAT_RUNS = Field(default="-created_at", description=SORT)
    tag: Tag | None = Field(default=None, description="Those with this tag.")
    dataset: Name | None = Field(default=None, description="Those on this dataset.")
    name: Name | None = Field(default=None, description="Those whose name contains this, in upper or lower case.")
    teacher: Name | None = Field(default=None, description="Those with this teacher, a detector of `GET /detectors`.")
    student: Name | None = Field(default=None, description="Those with this student, a detector of `GET /detectors`.")


class Page(BaseModel, Generic[Item]):
    """Items, and where the next page starts (null: there is none)."""

    items: list[Item]
    next_cursor: str | None


def page_of(read: Callable[[], tuple[Sequence[Row], str | None]]) -> tuple[Sequence[Row], str | None]:
    """What `read` gives. Raises InvalidInput for a cursor that no page of this list gave."""
    try:
        return read()
    except ValueError as error:
        raise invalid([FieldError("?cursor", f"{error}; take next_cursor of the page before")]) from None
