"""Which workers are there: each says so again and again, also while its trainer runs. What it works on is in the jobs."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from .clock import db_time
from .models import Worker


def present(session: Session, name: str, *, seconds: float) -> None:
    """A worker is there, and is taken to be for `seconds` from now. Those that are long gone are forgotten."""
    session.execute(delete(Worker).where(Worker.name != name, Worker.expires_at < db_time(-86400)))
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(Worker).values(name=name[:200], expires_at=db_time(seconds))
    session.execute(statement.on_conflict_do_update(index_elements=[Worker.name], set_={"expires_at": db_time(seconds)}))


def leave(session: Session, name: str) -> None:
    """A worker ends."""
    session.execute(delete(Worker).where(Worker.name == name[:200]))


def alive(session: Session) -> int:
    """How many workers are there."""
    return session.scalar(select(func.count()).select_from(Worker).where(Worker.expires_at >= db_time())) or 0
