"""Registered datasets, by name."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import pages
from .models import Dataset


def create(session: Session, *, name: str, data: Mapping[str, Any]) -> Dataset:
    """Remember a checked dataset (its JSON). Raises IntegrityError for a name that is taken."""
    dataset = Dataset(name=name, digest=data["digest"], data=dict(data))
    session.add(dataset)
    session.flush()
    return dataset


def get(session: Session, name: str) -> Dataset | None:
    return session.get(Dataset, name)


def names(session: Session) -> builtins.list[str]:
    """All names, sorted."""
    return builtins.list(session.scalars(select(Dataset.name).order_by(Dataset.name)))


def list(session: Session, *, limit: int = 50, cursor: str | None = None) -> tuple[builtins.list[Dataset], str | None]:
    """The datasets by name and the cursor of the next page. Raises ValueError for what is no cursor."""
    return pages.ascending(session, select(Dataset), Dataset.name, kind=str, limit=limit, cursor=cursor)
