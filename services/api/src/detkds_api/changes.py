"""`PATCH`: what people call a search or a distillation, what they write beside it, and how urgent it is."""

from __future__ import annotations

from pydantic import Field
from sqlalchemy.orm import Session

from detkds_api import quota
from detkds_api.fields import NOTES, TAGS, Body, Name, Notes, Tags
from detkds_api.problems import Conflict
from detkds_api.quota import Priority
from detkds_api.service import Running
from detkds_core.store import jobs, labels
from detkds_core.store.models import Distillation, Search

EXAMPLE = {"name": "digits, wide space", "notes": "The seed that won.", "tags": ["paper", "digits"], "priority": -5}


class Change(Body):
    """What to change; what is left out, or null, stays as it is."""

    name: Name | None = Field(default=None, description="its result takes it too")
    notes: Notes | None = Field(default=None, description=f"{NOTES}; an empty text takes them away")
    tags: Tags | None = Field(default=None, description=f"{TAGS}, in place of those that it has")
    priority: Priority | None = None


def changed(session: Session, service: Running, subject: Search | Distillation, change: Change) -> None:
    """Raises Forbidden for a priority that the caller may not ask for, Conflict for one of what has ended."""
    if change.priority is not None and change.priority != subject.priority:
        quota.check_priority(service, change.priority)
        if not jobs.prioritise(session, subject, change.priority):
            raise Conflict(f"{subject.name} has ended ({subject.state}); none of its jobs waits any more, and a priority changes nothing")
    labels.relabel(session, subject, name=change.name, notes=change.notes, tags=change.tags)
