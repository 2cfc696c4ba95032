"""How often something has happened, counted where it happens and in the same transaction."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from .models import Tally
from .session import inserted


def add(session: Session, name: str, kind: str, count: int = 1) -> None:
    """Count `count` more. The last thing that a transaction locks, so that nobody waits for a tally while it holds one."""
    more = {"count": Tally.count + count}
    session.execute(
        inserted(session, Tally).values(name=name, kind=kind, count=count).on_conflict_do_update(index_elements=["name", "kind"], set_=more)
    )


def of(session: Session, name: str) -> dict[str, int]:
    """The counts of each kind that has happened."""
    return {one.kind: one.count for one in session.scalars(select(Tally).where(Tally.name == name))}
