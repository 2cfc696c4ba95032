"""Idempotency-Key: the same request with the same key is done once, and answered with the same document again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from detkds_api.problems import KeyReused

Row = TypeVar("Row")


def once(
    session: Session,
    key: str | None,
    find: Callable[[str], Row | None],
    create: Callable[[], Row],
    same: Callable[[Row], bool],
) -> Row:
    """The row that an earlier request with this key made, or a new one.

    Key and row are stored in one transaction, so there is no state in between: of two requests at once, the second meets the unique
    key and answers with the first one's row. Raises KeyReused when that row was made by another request.
    """
    if key is None:
        return create()
    found = find(key)
    if found is None:
        try:
            with session.begin_nested():
                return create()
        except IntegrityError:
            found = find(key)
            if found is None:
                raise
    if not same(found):
        raise KeyReused(f"Idempotency-Key {key!r} came with another request before; use a new key for a new request")
    return found
