"""What a search tried: its candidates by index and the measurements of each, as people look at them, and how each looked."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import labels, pages
from .models import Candidate, Decision, Trial


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
    query = select(Trial).where(Trial.search_id == search_id, Trial.candidate.in_(indices))
    # In the order of an index that leads to these candidates: in that of the decisions, SQLite would walk through all of them.
    for trial in session.scalars(query.order_by(Trial.candidate, Trial.number)):
        found[trial.candidate].append(trial)
    return found


def looks(session: Session, search_id: str, before: int) -> builtins.list[dict[str, Any]]:
    """How the candidates of the first `before` decisions of a search looked, by index: those that have a look and are nobody's double."""
    query = select(Trial.candidate, Trial.sketch, Trial.ratio).where(
        Trial.search_id == search_id, Trial.number < before, Trial.sketch.is_not(None), Trial.same_as.is_(None)
    )
    found: dict[int, dict[str, Any]] = {}
    for index, sketch, ratio in session.execute(query.order_by(Trial.candidate, Trial.number)):
        found.setdefault(index, looked(index, sketch, ratio))
    return builtins.list(found.values())


def looks_told(session: Session, search_id: str, before: int) -> builtins.list[dict[str, Any]]:
    """The same of a logged search: of those whose results were told before event `before` of its ledger."""
    query = select(Decision.event).where(Decision.search_id == search_id, Decision.number < before)
    told = [event for event in map(json.loads, session.scalars(query)) if "told" in event]
    found: dict[int, dict[str, Any]] = {}
    for event in sorted(told, key=lambda one: int(one["told"])):
        for index, outcome in event["outcomes"].items():
            if outcome.get("sketch") and outcome.get("same_as") is None:
                found.setdefault(int(index), looked(int(index), outcome["sketch"], outcome.get("ratio")))
    return [found[index] for index in sorted(found)]


def looked(index: int, sketch: Iterable[float], ratio: float | None) -> dict[str, Any]:
    """An earlier candidate as a job's `duplicate` gate takes it."""
    return {"index": index, "sketch": builtins.list(sketch), "ratio": ratio}
