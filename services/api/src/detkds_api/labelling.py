"""`PATCH`: what people call a search or a distillation and write beside it, which may change at any time."""

from __future__ import annotations

from pydantic import Field
from sqlalchemy.orm import Session

from detkds_api.fields import NOTES, TAGS, Body, Name, Notes, Tags
from detkds_core.store import labels
from detkds_core.store.models import Distillation, Search

EXAMPLE = {"name": "digits, wide space", "notes": "The seed that won.", "tags": ["paper", "digits"]}


class LabelChange(Body):
    """What to change; what is left out, or null, stays as it is."""

    name: Name | None = Field(default=None, description="its result takes it too")
    notes: Notes | None = Field(default=None, description=f"{NOTES}; an empty text takes them away")
    tags: Tags | None = Field(default=None, description=f"{TAGS}, in place of those that it has")


def relabel(session: Session, subject: Search | Distillation, change: LabelChange) -> None:
    labels.relabel(session, subject, name=change.name, notes=change.notes, tags=change.tags)
