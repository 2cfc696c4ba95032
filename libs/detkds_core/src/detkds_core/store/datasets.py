"""Registered datasets, by name: asked for, then checked, then READY for good or REFUSED until they are asked for again.

Who checks one holds the lease of its name (`leases`), so that of several services one does, and another goes on where that one died.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from . import leases, pages
from .clock import db_time
from .models import Dataset
from .states import move

AFRESH: Mapping[str, Any] = {"attempts": 0, "progress": None}


def ask(session: Session, *, name: str, asked: Mapping[str, Any]) -> Dataset:
    """The dataset of this name, CHECKING with these paths where it is new or was REFUSED; else as it is."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    values = {"name": name, "state": "CHECKING", "asked": dict(asked), **AFRESH, "created_at": db_time(), "updated_at": db_time()}
    session.execute(insert(Dataset).values(**values).on_conflict_do_nothing())
    move(session, Dataset, Dataset.name == name, source="REFUSED", target="CHECKING", asked=dict(asked), problems=None, **AFRESH)
    return session.scalars(select(Dataset).where(Dataset.name == name).execution_options(populate_existing=True)).one()


def get(session: Session, name: str) -> Dataset | None:
    return session.get(Dataset, name)


def names(session: Session) -> builtins.list[str]:
    """The names of those that are READY, sorted."""
    return builtins.list(session.scalars(select(Dataset.name).where(Dataset.state == "READY").order_by(Dataset.name)))


def list(session: Session, *, limit: int = 50, cursor: str | None = None) -> tuple[builtins.list[Dataset], str | None]:
    """The datasets by name and the cursor of the next page. Raises ValueError for what is no cursor."""
    return pages.ascending(session, select(Dataset), Dataset.name, kind=str, limit=limit, cursor=cursor)


def count_unchecked(session: Session) -> int:
    """How many wait for their check, or are being checked."""
    return session.scalar(select(func.count()).select_from(Dataset).where(Dataset.state == "CHECKING")) or 0


def begin_check(session: Session, *, holder: str, seconds: float) -> Dataset | None:
    """The dataset that has waited longest of those that nobody checks: it is the holder's to check for so many seconds. None: none waits.

    holder: of this check alone; whoever wakes up late and is not its holder any more decides nothing.
    """
    for name in session.scalars(select(Dataset.name).where(Dataset.state == "CHECKING").order_by(Dataset.updated_at, Dataset.name)).all():
        if leases.acquire(session, _duty(name), holder=holder, seconds=seconds):
            session.execute(update(Dataset).where(Dataset.name == name).values(attempts=Dataset.attempts + 1))
            return session.scalars(select(Dataset).where(Dataset.name == name).execution_options(populate_existing=True)).one()
    return None


def hold(session: Session, name: str, *, holder: str, seconds: float, progress: Mapping[str, Any] | None = None) -> bool:
    """Go on checking for so many seconds from now, and tell the progress (None: nothing new). False: it is not this holder's any more."""
    if not leases.renew(session, _duty(name), holder=holder, seconds=seconds):
        return False
    if progress is not None:
        session.execute(update(Dataset).where(Dataset.name == name).values(progress=dict(progress)))
    return True


def leave(session: Session, name: str, *, holder: str, counted: bool) -> None:
    """Leave a check to the next one at once. counted: whether the attempt was one; False: its process had to stop."""
    if not counted and leases.renew(session, _duty(name), holder=holder, seconds=1):
        session.execute(update(Dataset).where(Dataset.name == name).values(attempts=Dataset.attempts - 1))
    leases.give_up(session, _duty(name), holder=holder)


def ready(session: Session, name: str, *, holder: str, data: Mapping[str, Any]) -> bool:
    """The check found nothing wrong; the dataset's JSON. False: the check is not this holder's any more."""
    return _decide(session, name, holder, target="READY", digest=data["digest"], data=dict(data))


def refuse(session: Session, name: str, *, holder: str, problems: Sequence[Mapping[str, str]]) -> bool:
    """What is wrong, each {"pointer", "message"}. False: as of `ready`."""
    return _decide(session, name, holder, target="REFUSED", problems=[dict(one) for one in problems])


def _decide(session: Session, name: str, holder: str, *, target: str, **values: Any) -> bool:
    if not leases.renew(session, _duty(name), holder=holder, seconds=1):
        return False
    leases.give_up(session, _duty(name), holder=holder)
    return bool(move(session, Dataset, Dataset.name == name, source="CHECKING", target=target, progress=None, **values))


def _duty(name: str) -> str:
    return f"check of the dataset {name}"
