"""Registered datasets, by name."""

import builtins
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from detkds_core.store.models import Dataset
from detkds_core.store.session import now


def create(session: Session, *, name: str, data: Mapping[str, Any]) -> Dataset:
    dataset = Dataset(name=name, data=dict(data), created_at=now(session))
    session.add(dataset)
    session.flush()
    return dataset


def get(session: Session, name: str) -> Dataset | None:
    return session.get(Dataset, name)


def names(session: Session) -> builtins.list[str]:
    return [*session.scalars(select(Dataset.name).order_by(Dataset.name))]


def list(session: Session, *, limit: int = 50, cursor: str | None = None) -> tuple[builtins.list[Dataset], str | None]:
    """A page by name; the cursor is the last name of the page before."""
    statement = select(Dataset).order_by(Dataset.name).limit(limit + 1)
    rows = [*session.scalars(statement if cursor is None else statement.where(Dataset.name > cursor))]
    return rows[:limit], rows[limit - 1].name if len(rows) > limit else None
