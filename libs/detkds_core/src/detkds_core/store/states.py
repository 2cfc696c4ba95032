"""The states of searches, candidates, jobs and distillations, and the only way from one to another.

Every state that is written goes through `move`: one compare-and-set UPDATE that the machine allows. Who loses a race moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, get_args

from sqlalchemy import ColumnElement, bindparam, update
from sqlalchemy.orm import Session

from .clock import db_time
from .models import Candidate, Checkpoint, Confirmation, Dataset, Distillation, Job, Search, Trial
from .vocabulary import (
    CandidateState,
    CheckpointState,
    ConfirmationState,
    DatasetState,
    DistillationState,
    JobState,
    SearchState,
    TrialState,
)

Machine = Mapping[str, frozenset[str]]


def _machine(states: Any, **ways: Iterable[str]) -> Machine:
    return {state: frozenset(ways.get(state, ())) for state in get_args(states)}


JOB: Machine = _machine(
    JobState,
    QUEUED=("RUNNING", "CANCELLED", "PAUSED"),
    RUNNING=("SUCCEEDED", "FAILED", "QUEUED", "DEAD", "LOST", "CANCELLED", "PAUSED"),  # QUEUED: worth another try, or given back
    PAUSED=("QUEUED", "CANCELLED"),
    LOST=("QUEUED", "DEAD"),  # for the moment of the reaper's transaction only
)
SEARCH: Machine = _machine(
    SearchState,
    QUEUED=("RUNNING", "FAILED", "CANCELLED", "PAUSED"),
    RUNNING=("CONFIRMING", "FAILED", "CANCELLED", "PAUSED"),
    CONFIRMING=("SUCCEEDED", "FAILED", "CANCELLED", "PAUSED"),
    PAUSED=("QUEUED", "RUNNING", "CONFIRMING", "FAILED", "CANCELLED"),
)
DISTILLATION: Machine = _machine(
    DistillationState,
    QUEUED=("RUNNING", "CANCELLED", "PAUSED"),
    RUNNING=("SUCCEEDED", "FAILED", "DEAD", "QUEUED", "CANCELLED", "PAUSED"),
    PAUSED=("QUEUED", "CANCELLED"),
)
TRIAL: Machine = _machine(TrialState, PROPOSED=("MEASURED", "INFEASIBLE", "REJECTED", "DUPLICATE"))
CANDIDATE: Machine = _machine(
    CandidateState,
    PROPOSED=("MEASURED", "INFEASIBLE", "REJECTED", "DUPLICATE"),
    MEASURED=("MEASURED", "INFEASIBLE"),  # at a higher rung, or with another seed
)
CONFIRMATION: Machine = _machine(ConfirmationState, PROPOSED=("MEASURED", "INFEASIBLE"))
CHECKPOINT: Machine = _machine(CheckpointState, UPLOADING=("READY", "REFUSED"))
DATASET: Machine = _machine(DatasetState, CHECKING=("READY", "REFUSED"), REFUSED=("CHECKING",))  # CHECKING: its files were mended

MACHINES: Mapping[type[Any], Machine] = {
    Job: JOB,
    Search: SEARCH,
    Distillation: DISTILLATION,
    Candidate: CANDIDATE,
    Trial: TRIAL,
    Confirmation: CONFIRMATION,
    Checkpoint: CHECKPOINT,
    Dataset: DATASET,
}

# What a failure of an attempt means: worth another one, or final.
RETRIED = ("out_of_memory", "lost", "timeout", "bug")
FINAL = ("not_finite", "bad_data")


class IllegalTransitionError(RuntimeError):
    """A way that the state machine does not have: a mistake of the program, not of the data."""


def terminal(table: type[Any]) -> frozenset[str]:
    """The states that nothing leaves."""
    return frozenset(state for state, ways in MACHINES[table].items() if not ways)


def active(table: type[Any]) -> frozenset[str]:
    """The states that something leaves."""
    return frozenset(MACHINES[table]) - terminal(table)


def move(
    session: Session, table: type[Any], *where: ColumnElement[bool], source: str | Iterable[str], target: str, **values: Any
) -> list[str]:
    """Move the rows that `where` names and that are in `source` to `target`, and set `values`; the ids of those that moved.

    Raises IllegalTransitionError when the machine has no such way from one of the sources.
    """
    states = (source,) if isinstance(source, str) else tuple(source)
    for one in states:
        _check(table, one, target)
    statement = (
        update(table)
        .where(*where, table.state.in_(states))
        .values(state=target, updated_at=db_time(), **values)
        .returning(table.id)
        .execution_options(synchronize_session="fetch")
    )
    return list(session.scalars(statement))


class Move(NamedTuple):
    """A way of one row, and the values that it gets with it."""

    id: str
    source: str
    target: str
    values: Mapping[str, Any]


def move_each(session: Session, table: type[Any], moves: Sequence[Move]) -> None:
    """Move rows that the caller has read and holds, each its own way: a statement for all that set the same columns.

    Rows that the session has read as objects keep their old values.
    Raises IllegalTransitionError as `move` does, and RuntimeError where a row was in another state than was read.
    """
    for one in moves:
        _check(table, one.source, one.target)
    for names, group in groupby(sorted(moves, key=_columns), key=_columns):
        rows = [
            {"its_id": one.id, "source": one.source, "target": one.target} | {f"new_{name}": one.values[name] for name in names}
            for one in group
        ]
        statement = (
            update(table.__table__)
            .where(table.id == bindparam("its_id"), table.state == bindparam("source"))
            .values(state=bindparam("target"), updated_at=db_time(), **{name: bindparam(f"new_{name}") for name in names})
        )
        moved = session.connection().execute(statement, rows).rowcount
        if moved != len(rows):
            raise RuntimeError(f"{table.__tablename__}: {len(rows) - moved} of {len(rows)} rows are not in the state that was read")


def _columns(one: Move) -> list[str]:
    return sorted(one.values)


def _check(table: type[Any], source: str, target: str) -> None:
    """Raises IllegalTransitionError."""
    ways = MACHINES[table].get(source, frozenset())
    if target not in ways:
        known = ", ".join(sorted(ways)) or "nothing"
        raise IllegalTransitionError(f"{table.__tablename__}: {source} -> {target} is no transition; {source} leads to {known}")
