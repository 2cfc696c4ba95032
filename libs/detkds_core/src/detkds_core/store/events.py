"""What happened, in order: the source of live progress.

Append an event after writing the subject's own row in the same transaction: the row's lock then keeps the ids of one subject in the
order in which they become visible, so that a reader who remembers the last id misses none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .models import Event


def append(session: Session, topic: str, subject_id: str, kind: str, data: Mapping[str, Any]) -> None:
    """Record that something happened to a subject. topic: `search`, `job`, `distillation` or `checkpoint`."""
    session.add(Event(topic=topic, subject_id=subject_id, kind=kind, data=dict(data)))


def after(session: Session, subject_id: str, last_id: int = 0, *, limit: int = 500) -> list[Event]:
    """The events of a subject that follow `last_id`, oldest first; 0: from the first one."""
    session.flush()
    query = select(Event).where(Event.subject_id == subject_id, Event.id > last_id).order_by(Event.id).limit(limit)
    return list(session.scalars(query))
