"""Registered datasets, by name: asked for, then checked, then READY for good or REFUSED until they are asked for again.

Who checks one holds the lease of its name (`leases`), so that of several services one does, and another goes on where that one died.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from . import leases, pages
from .clock import db_time
from .models import Dataset, Lease
from .session import inserted
from .states import move

_DUTY = "check of the dataset "  # of a lease, before the name
AFRESH: Mapping[str, Any] = {"attempts": 0, "progress": None}


def ask(session: Session, *, name: str, owner: str | None, asked: Mapping[str, Any]) -> Dataset:
    """The dataset of this name, CHECKING with these paths where it is new, or was REFUSED to the same owner; else as it is."""
    values = {"name": name, "owner": owner or "", "state": "CHECKING", "asked": dict(asked), **AFRESH}
    session.execute(inserted(session, Dataset).values(**values, created_at=db_time(), updated_at=db_time()).on_conflict_do_nothing())
    mine = [Dataset.name == name, Dataset.owner == (owner or "")]
    move(session, Dataset, *mine, source="REFUSED", target="CHECKING", asked=dict(asked), problems=None, **AFRESH)
    return session.scalars(select(Dataset).where(Dataset.name == name).execution_options(populate_existing=True)).one()


def get(session: Session, name: str) -> Dataset | None:
    return session.get(Dataset, name)


def names(session: Session) -> builtins.list[str]:
    """The names of those that are READY, sorted."""
    return builtins.list(session.scalars(select(Dataset.name).where(Dataset.state == "READY").order_by(Dataset.name)))


def list(session: Session, *, limit: int = 50, cursor: str | None = None) -> tuple[builtins.list[Dataset], str | None]:
    """The datasets by name and the cursor of the next page. Raises ValueError for what is no cursor."""
    return pages.ascending(session, select(Dataset), Dataset.name, kind=str, limit=limit, cursor=cursor)


def count_unchecked(session: Session, *, owner: str | None = None) -> int:
    """How many wait for their check, or are being checked; of an owner (None: of all)."""
    of_owner = [] if owner is None else [Dataset.owner == owner]
    return session.scalar(select(func.count()).select_from(Dataset).where(Dataset.state == "CHECKING", *of_owner)) or 0


def unheld(session: Session, *, limit: int = 1000) -> builtins.list[Dataset]:
    """The datasets that wait for their check and that nobody checks now, the one that has waited longest first."""
    held = select(Lease.name).where(Lease.name == _DUTY + Dataset.name, Lease.expires_at >= db_time()).exists()
    query = select(Dataset).where(Dataset.state == "CHECKING", ~held).order_by(Dataset.updated_at, Dataset.name)
    return builtins.list(session.scalars(query.limit(limit)))


def begin_check(session: Session, name: str, *, holder: str, seconds: float) -> Dataset | None:
    """Take the check of a dataset for so many seconds, which is one attempt more. None: somebody else has it, or it is decided.

    holder: of this check alone; whoever wakes up late and is not its holder any more decides nothing.
    """
    if not leases.acquire(session, _duty(name), holder=holder, seconds=seconds):
        return None
    # Only now: before, somebody else could decide it, and only the lease keeps it as it is.
    counted = update(Dataset).where(Dataset.name == name, Dataset.state == "CHECKING").values(attempts=Dataset.attempts + 1)
    if session.scalar(counted.returning(Dataset.name)) is None:
        leases.give_up(session, _duty(name), holder=holder)
        return None
    return session.scalars(select(Dataset).where(Dataset.name == name).execution_options(populate_existing=True)).one()


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


def remove(session: Session, name: str) -> bool:
    """Forget a dataset that is not READY; who checks it finds out. False: there is none such."""
    gone = delete(Dataset).where(Dataset.name == name, Dataset.state != "READY").returning(Dataset.name)
    if session.scalar(gone) is None:
        return False
    session.execute(delete(Lease).where(Lease.name == _duty(name)))
    return True


def _decide(session: Session, name: str, holder: str, *, target: str, **values: Any) -> bool:
    if not leases.renew(session, _duty(name), holder=holder, seconds=1):
        return False
    leases.give_up(session, _duty(name), holder=holder)
    return bool(move(session, Dataset, Dataset.name == name, source="CHECKING", target=target, progress=None, **values))


def _duty(name: str) -> str:
    return _DUTY + name
