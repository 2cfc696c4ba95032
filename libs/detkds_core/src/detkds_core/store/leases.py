"""Duties that one process at a time has: who holds the row's lease does the work, any other waits for it to run out."""

from __future__ import annotations

from sqlalchemy import delete, or_, update
from sqlalchemy.orm import Session

from .clock import db_time
from .models import Lease
from .session import inserted


def acquire(session: Session, name: str, *, holder: str, seconds: float) -> bool:
    """Take a duty, or keep it, for `seconds` from now. False: somebody else has it."""
    statement = (
        update(Lease)
        .where(Lease.name == name, or_(Lease.holder == holder, Lease.expires_at < db_time()))
        .values(holder=holder, expires_at=db_time(seconds))
        .returning(Lease.name)
    )
    if session.scalar(statement) is not None:
        return True
    first = (
        inserted(session, Lease)
        .values(name=name, holder=holder, expires_at=db_time(seconds))
        .on_conflict_do_nothing()
        .returning(Lease.name)
    )
    return session.scalar(first) is not None


def renew(session: Session, name: str, *, holder: str, seconds: float) -> bool:
    """Keep a duty for `seconds` from now. False: it was somebody else's meanwhile, who may have given it up by now."""
    statement = update(Lease).where(Lease.name == name, Lease.holder == holder).values(expires_at=db_time(seconds)).returning(Lease.name)
    return session.scalar(statement) is not None


def give_up(session: Session, name: str, *, holder: str) -> None:
    """Leave a duty to the next one at once."""
    session.execute(delete(Lease).where(Lease.name == name, Lease.holder == holder))
