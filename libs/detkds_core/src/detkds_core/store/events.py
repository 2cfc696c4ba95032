"""What happened, in order, for whoever follows a search or a distillation."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from detkds_core.store.models import Event
from detkds_core.store.session import now


def append(session: Session, topic: str, subject_id: str, kind: str, data: Mapping[str, Any]) -> None:
    session.add(Event(topic=topic, subject_id=subject_id, kind=kind, data=dict(data), at=now(session)))


def after(session: Session, subject_id: str, last_id: int = 0, limit: int = 1000) -> Sequence[Event]:
    """The events of a subject that came after `last_id`, oldest first."""
    return [*session.scalars(select(Event).where(Event.subject_id == subject_id, Event.id > last_id).order_by(Event.id).limit(limit))]
