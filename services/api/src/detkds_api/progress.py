"""Where a search or a distillation stands, in one line that a terminal and a page can show."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from detkds_core.store.clock import db_time


class Progress(BaseModel):
    """done, total: in units of the step. fraction: of the whole, 0 to 1. seconds_left: null while nothing can be said."""

    step: str
    done: int
    total: int
    fraction: float
    best_ap: float | None
    seconds_left: float | None
    message: str


EXAMPLE = {
    "step": "searching",
    "done": 915,
    "total": 2880,
    "fraction": 0.31,
    "best_ap": 27.4,
    "seconds_left": 212.0,
    "message": "training 4 candidates together",
}


def seconds_left(fraction: float, elapsed: float | None) -> float | None:
    """What is left when the rest goes as fast as what is done. None before 2 % are done: the first steps only warm up."""
    if elapsed is None or fraction < 0.02:
        return None
    return round(elapsed * (1 - fraction) / fraction, 1)


def share(progress: Mapping[str, Any] | None) -> float:
    """How much of its job a trainer says it has done, 0 to 1."""
    done, total = (progress or {}).get("done"), (progress or {}).get("total")
    if not isinstance(done, int | float) or not isinstance(total, int | float) or total <= 0:
        return 0.0
    return min(max(done / total, 0.0), 1.0)


def db_now(session: Session) -> datetime:
    """Now by the database's clock, as all stored moments are."""
    return session.scalars(select(db_time())).one()


def seconds_between(first: datetime | None, last: datetime) -> float | None:
    return None if first is None else (last - first).total_seconds()
