"""The states of searches, candidates, jobs and distillations, and the only way from one to another.

Every state that is written goes through `move`: one compare-and-set UPDATE that the machine allows. Who loses a race moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from sqlalchemy import ColumnElement, update
from sqlalchemy.orm import Session

from .clock import db_time
from .models import Candidate, Checkpoint, Confirmation, Distillation, Job, Search, Trial
from .vocabulary import CandidateState, CheckpointState, ConfirmationState, DistillationState, JobState, SearchState, TrialState

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

MACHINES: Mapping[type[Any], Machine] = {
    Job: JOB,
    Search: SEARCH,
    Distillation: DISTILLATION,
    Candidate: CANDIDATE,
    Trial: TRIAL,
    Confirmation: CONFIRMATION,
    Checkpoint: CHECKPOINT,
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
    machine = MACHINES[table]
    states = (source,) if isinstance(source, str) else tuple(source)
    for one in states:
        if target not in machine.get(one, ()):
            known = ", ".join(sorted(machine.get(one, ()))) or "nothing"
            raise IllegalTransitionError(f"{table.__tablename__}: {one} -> {target} is no transition; {one} leads to {known}")
    statement = (
        update(table)
        .where(*where, table.state.in_(states))
        .values(state=target, updated_at=db_time(), **values)
        .returning(table.id)
        .execution_options(synchronize_session="fetch")
    )
    return list(session.scalars(statement))
