"""What a search tried, as people look at it: its candidates by index, and the measurements of each."""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import labels, pages
from .models import Candidate, Trial


def list(
    session: Session, search_id: str, *, limit: int = 100, cursor: str | None = None, **asked: str | None
) -> tuple[builtins.list[Candidate], str | None]:
    """A page of a search's candidates by index and the cursor of the next one. asked: as of `labels.matching`.

    Raises ValueError for what is no cursor of these filters.
    """
    query = select(Candidate).where(Candidate.search_id == search_id, *labels.matching(Candidate, asked))
    return pages.ascending(session, query, Candidate.index, kind=int, asked=asked, limit=limit, cursor=cursor)


def trials(session: Session, search_id: str, indices: Sequence[int]) -> dict[int, builtins.list[Trial]]:
    """The measurements of these candidates, by candidate, in the order in which they were decided."""
    found: dict[int, builtins.list[Trial]] = {index: [] for index in indices}
    query = select(Trial).where(Trial.search_id == search_id, Trial.candidate.in_(indices)).order_by(Trial.number)
    for trial in session.scalars(query):
        found[trial.candidate].append(trial)
    return found
