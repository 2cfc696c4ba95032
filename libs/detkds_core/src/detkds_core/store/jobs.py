"""The queue of record: jobs are claimed with a lease, and every later write of a worker carries its token."""

import builtins
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from detkds_core.store import events
from detkds_core.store.models import Distillation, Job
from detkds_core.store.session import new_id, now
from detkds_core.store.states import is_final, move

RETRIED = frozenset({"out_of_memory", "lost", "timeout", "bug"})  # another attempt may go better
HOPELESS = frozenset({"not_finite", "bad_data"})  # the same again would fail the same way


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job until the lease ends."""

    job_id: str
    attempt: int
    token: str
    kind: str
    spec: dict[str, Any]
    search_id: str | None
    distillation_id: str | None


def enqueue(
    session: Session,
    *,
    kind: str,
    spec: Mapping[str, Any],
    search_id: str | None = None,
    distillation_id: str | None = None,
    purpose: str | None = None,
    priority: int = 0,
    max_attempts: int = 3,
) -> Job:
    """Put a job into the queue."""
    job = Job(
        id=new_id(),
        kind=kind,
        state="QUEUED",
        spec=dict(spec),
        search_id=search_id,
        distillation_id=distillation_id,
        purpose=purpose,
        priority=priority,
        attempt=0,
        max_attempts=max_attempts,
        taken=False,
        created_at=now(session),
    )
    session.add(job)
    session.flush()
    return job


def get(session: Session, job_id: str) -> Job | None:
    return session.get(Job, job_id)


def of_search(session: Session, search_id: str) -> builtins.list[Job]:
    """The jobs of a search, oldest first."""
    return [*session.scalars(select(Job).where(Job.search_id == search_id).order_by(Job.created_at, Job.id))]


def of_distillation(session: Session, distillation_id: str) -> Job | None:
    return session.scalars(select(Job).where(Job.distillation_id == distillation_id)).one_or_none()


def claim(session: Session, *, worker: str, lease_seconds: float, job_id: str | None = None) -> Claim | None:
    """Take a job: this one, or the first of the queue (priority, then age). None: there is none, or another was faster.

    A job whose attempts are spent is never handed out; the reaper buries it.
    """
    waiting = select(Job.id, Job.attempt).where(Job.state == "QUEUED").order_by(Job.priority.desc(), Job.created_at, Job.id).limit(1)
    if job_id is not None:
        waiting = waiting.where(Job.id == job_id)
    row = session.execute(waiting.with_for_update(skip_locked=True)).one_or_none()
    if row is None:
        return None
    moment, token = now(session), secrets.token_hex(16)
    taken = move(
        session,
        Job,
        id=row.id,
        old="QUEUED",
        new="RUNNING",
        attempt=row.attempt + 1,
        worker=worker,
        lease_token=token,
        lease_expires_at=moment + timedelta(seconds=lease_seconds),
        started_at=moment,
        progress=None,
    )
    if not taken:
        return None
    job = session.get_one(Job, row.id)
    _tell(session, job, "started", {"attempt": job.attempt, "worker": worker})
    _mirror(session, job)
    return Claim(job.id, job.attempt, token, job.kind, dict(job.spec), job.search_id, job.distillation_id)


def _mine(claim: Claim) -> Any:
    return (Job.attempt == claim.attempt) & (Job.lease_token == claim.token)


def renew(session: Session, claim: Claim, *, lease_seconds: float, progress: Mapping[str, Any] | None) -> bool:
    """Hold the lease for another `lease_seconds` and note progress. False: the job is not the caller's any more; stop its trainer."""
    values: dict[str, Any] = {"lease_expires_at": now(session) + timedelta(seconds=lease_seconds)}
    if progress is not None:
        values["progress"] = dict(progress)
    statement = update(Job).where(Job.id == claim.job_id, Job.state == "RUNNING", _mine(claim)).values(**values)
    done: CursorResult[Any] = session.execute(statement.execution_options(synchronize_session=False))  # type: ignore[assignment]
    return done.rowcount == 1


def finish(session: Session, claim: Claim, result: Mapping[str, Any]) -> bool:
    """Store the result. False: too late, it is not the caller's job any more, and nothing was stored."""
    return _end(session, claim, "SUCCEEDED", result=dict(result))


def fail(session: Session, claim: Claim, *, kind: str, detail: str) -> bool:
    """Store why an attempt failed. The kind decides: tried again until the attempts are spent (DEAD), or FAILED at once."""
    if kind not in RETRIED | HOPELESS:
        raise ValueError(f"failure kind {kind!r} is not known; one of {', '.join(sorted(RETRIED | HOPELESS))}")
    failure = {"kind": kind, "detail": detail}
    if kind in HOPELESS:
        return _end(session, claim, "FAILED", failure=failure)
    job = session.get(Job, claim.job_id)
    if job is not None and job.attempt < job.max_attempts:
        return _end(session, claim, "QUEUED", failure=failure)
    return _end(session, claim, "DEAD", failure=failure)


def release(session: Session, claim: Claim) -> bool:
    """Give the job back to the queue without counting the attempt: its worker drains."""
    return _end(session, claim, "QUEUED", attempt=claim.attempt - 1)


def _end(session: Session, claim: Claim, state: str, **values: Any) -> bool:
    ended_at = None if state == "QUEUED" else now(session)
    done = move(
        session,
        Job,
        id=claim.job_id,
        old="RUNNING",
        new=state,
        where=_mine(claim),
        lease_token=None,
        lease_expires_at=None,
        ended_at=ended_at,
        **values,
    )
    if done:
        job = session.get_one(Job, claim.job_id)
        _tell(session, job, state.lower(), {"attempt": claim.attempt, **({"failure": job.failure} if "failure" in values else {})})
        _mirror(session, job)
    return done


def cancel(session: Session, job_id: str) -> bool:
    """Take a job out of the queue, or away from its worker, who notices at its next renewal. False: it had ended."""
    job = session.get(Job, job_id)
    if job is None or is_final(Job, job.state):
        return False
    done = move(session, Job, id=job_id, old=job.state, new="CANCELLED", lease_token=None, lease_expires_at=None, ended_at=now(session))
    if done:
        job = session.get_one(Job, job_id)
        _tell(session, job, "cancelled", {"attempt": job.attempt})
        _mirror(session, job)
    return done


def reap(session: Session) -> builtins.list[str]:
    """Return jobs whose lease has ended to the queue, or bury them after the last attempt. Gives the ids that wait again."""
    expired = select(Job).where(Job.state == "RUNNING", Job.lease_expires_at < now(session)).with_for_update(skip_locked=True)
    waiting = []
    for job in [*session.scalars(expired)]:
        failure = {"kind": "lost", "detail": f"attempt {job.attempt} on {job.worker} was not heard of until its lease ended"}
        job_id, attempt, token, more = job.id, job.attempt, job.lease_token, job.attempt < job.max_attempts
        if not move(session, Job, id=job_id, old="RUNNING", new="LOST", where=Job.lease_token == token, lease_token=None, failure=failure):
            continue
        ended_at = None if more else now(session)
        move(session, Job, id=job_id, old="LOST", new="QUEUED" if more else "DEAD", lease_expires_at=None, ended_at=ended_at)
        job = session.get_one(Job, job_id)
        _tell(session, job, "lost", {"attempt": attempt, "state": job.state})
        _mirror(session, job)
        if more:
            waiting.append(job_id)
    return waiting


def waiting(session: Session) -> builtins.list[str]:
    """The ids of the queue, in its order: ring again for each, a lost ring must not leave a job lying."""
    return [*session.scalars(select(Job.id).where(Job.state == "QUEUED").order_by(Job.priority.desc(), Job.created_at, Job.id))]


def untaken(session: Session, kind: str) -> builtins.list[Job]:
    """Ended jobs of a kind whose outcome nobody has carried over yet."""
    final = ("SUCCEEDED", "FAILED", "DEAD")
    return [*session.scalars(select(Job).where(Job.kind == kind, Job.state.in_(final), Job.taken.is_(False)).order_by(Job.id))]


def _tell(session: Session, job: Job, kind: str, data: dict[str, Any]) -> None:
    topic, subject = ("search", job.search_id) if job.search_id else ("distillation", job.distillation_id)
    if subject:
        events.append(session, topic, subject, f"job {kind}", {"job": job.id, "purpose": job.purpose, **data})


def _mirror(session: Session, job: Job) -> None:
    """A distillation is in its job's state, but SUCCEEDED only with its result, which the evolver writes."""
    if job.distillation_id is None or job.state in ("SUCCEEDED", "LOST"):
        return
    distillation = session.get_one(Distillation, job.distillation_id)
    if distillation.state != job.state and not is_final(Distillation, distillation.state):
        reason = job.failure["detail"] if job.failure and job.state in ("FAILED", "DEAD") else None
        move(session, Distillation, id=distillation.id, old=distillation.state, new=job.state, reason=reason, updated_at=now(session))
