"""Distillations: a row to follow and a job that does the work."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from detkds_core.store import events, jobs, results
from detkds_core.store.models import Distillation, Job, Result
from detkds_core.store.pages import newest_first
from detkds_core.store.session import new_id, now
from detkds_core.store.states import is_final, move


def create(
    session: Session,
    *,
    name: str,
    spec: Mapping[str, Any],
    dataset: Mapping[str, Any],
    idempotency_key: str | None = None,
    owner: str | None = None,
    priority: int = 1,
) -> Distillation:
    """Store a distillation and its job. It goes before the candidates of searches: somebody waits for one student."""
    moment = now(session)
    distillation = Distillation(
        id=new_id(),
        name=name,
        state="QUEUED",
        spec=dict(spec),
        dataset=dict(dataset),
        idempotency_key=idempotency_key,
        owner=owner,
        created_at=moment,
        updated_at=moment,
    )
    session.add(distillation)
    session.flush()
    job_spec = {**spec, "kind": "distill", "dataset": dict(dataset)}
    jobs.enqueue(session, kind="distill", spec=job_spec, distillation_id=distillation.id, priority=priority)
    events.append(session, "distillation", distillation.id, "created", {"name": name})
    return distillation


def get(session: Session, distillation_id: str) -> Distillation | None:
    return session.get(Distillation, distillation_id)


def by_key(session: Session, idempotency_key: str) -> Distillation | None:
    return session.scalars(select(Distillation).where(Distillation.idempotency_key == idempotency_key)).one_or_none()


def list(
    session: Session, *, limit: int = 50, cursor: str | None = None, state: str | None = None
) -> tuple[Sequence[Distillation], str | None]:
    """A page, newest first. Raises ValueError for a cursor that no page gave."""
    statement = select(Distillation)
    return newest_first(session, statement.where(Distillation.state == state) if state else statement, Distillation, limit, cursor)


def cancel(session: Session, distillation_id: str) -> bool:
    """Stop it. False: it is not there, or has ended."""
    distillation = session.get(Distillation, distillation_id)
    if distillation is None or is_final(Distillation, distillation.state):
        return False
    job = jobs.of_distillation(session, distillation_id)
    if job is not None and not is_final(Job, job.state):
        return jobs.cancel(session, job.id)
    return False


def succeed(session: Session, distillation: Distillation, **result: Any) -> Result:
    """Write the result and end the distillation, together."""
    row = results.create(session, kind="distill", distillation_id=distillation.id, **result)
    move(session, Distillation, id=distillation.id, old=distillation.state, new="SUCCEEDED", reason=None, updated_at=now(session))
    events.append(session, "distillation", distillation.id, "succeeded", {"result": row.id})
    return row
