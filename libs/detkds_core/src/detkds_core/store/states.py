"""The states of jobs, searches and distillations, and the only way from one to the next."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from detkds_core.store.models import Distillation, Job, Search

JOB: Mapping[str, frozenset[str]] = {
    "QUEUED": frozenset({"RUNNING", "CANCELLED"}),
    "RUNNING": frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "LOST", "QUEUED", "DEAD"}),  # QUEUED: tried again, or given back
    "LOST": frozenset({"QUEUED", "DEAD"}),
    "SUCCEEDED": frozenset(),
    "FAILED": frozenset(),
    "CANCELLED": frozenset(),
    "DEAD": frozenset(),
}
SEARCH: Mapping[str, frozenset[str]] = {
    "QUEUED": frozenset({"RUNNING", "FAILED", "CANCELLED"}),
    "RUNNING": frozenset({"CONFIRMING", "FAILED", "CANCELLED"}),
    "CONFIRMING": frozenset({"SUCCEEDED", "FAILED", "CANCELLED"}),
    "SUCCEEDED": frozenset(),
    "FAILED": frozenset(),
    "CANCELLED": frozenset(),
}
DISTILLATION: Mapping[str, frozenset[str]] = {  # mirrors its one job
    "QUEUED": frozenset({"RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "DEAD"}),
    "RUNNING": frozenset({"QUEUED", "SUCCEEDED", "FAILED", "CANCELLED", "DEAD"}),
    "SUCCEEDED": frozenset(),
    "FAILED": frozenset(),
    "CANCELLED": frozenset(),
    "DEAD": frozenset(),
}
MACHINES: Mapping[type, Mapping[str, frozenset[str]]] = {Job: JOB, Search: SEARCH, Distillation: DISTILLATION}


class IllegalTransition(RuntimeError):
    """A state change that the machine does not know: a defect of the caller."""


def move(session: Session, kind: type, *, id: str, old: str, new: str, where: Any = True, **values: Any) -> bool:
    """Change a row's state from `old` to `new` by compare-and-set. False: the row is not in `old` (any more), or `where` does not hold.

    Raises IllegalTransition for a change that the state machine does not have.
    """
    if new not in MACHINES[kind][old]:
        raise IllegalTransition(f"{kind.__name__} may not go from {old} to {new}; from {old} to {', '.join(sorted(MACHINES[kind][old])) or 'nowhere'}")
    table: Any = kind
    statement = update(table).where(table.id == id, table.state == old, where).values(state=new, **values)
    done: CursorResult[Any] = session.execute(statement.execution_options(synchronize_session=False))  # type: ignore[assignment]
    session.expire_all()
    return done.rowcount == 1


def is_final(kind: type, state: str) -> bool:
    return not MACHINES[kind][state]
