"""The queue of record. A message that rings is only a doorbell; what runs, and whose it is, is decided here.

A worker holds a job by its claim (id, attempt, token) and only for as long as its lease. Every write of a worker names all three and the
state RUNNING; one that changes no row means that the job is somebody else's by now, or cancelled.
"""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, exists, func, or_, select, update
from sqlalchemy.orm import Session, defer

from . import candidates, events, labels, pages, queue, tallies
from .clock import db_time
from .ids import new_id
from .models import Distillation, Job, Result, Search
from .states import DISTILLATION, FINAL, RETRIED, active, move, terminal

MOST_ATTEMPTS = 12  # of a job whose worker or trainer is killed again and again: at first that says nothing of the job
FAILED = "failed_attempts"  # the tally of attempts whose worker saw them fail, by the kind of the failure
LOST = "lost_attempts"  # the tally of attempts whose worker was not heard of any more, by the kind of the job
SHORT = (defer(Job.spec, raiseload=True), defer(Job.result, raiseload=True))  # kilobytes of each job, which lists do not show
NO_LEASE: Mapping[str, None] = {"lease_token": None, "lease_expires_at": None}
# Given back: the number of the attempt is used up, for its files and its log lie under it, and another one may be tried in its place.
UNCOUNTED: Mapping[str, Any] = {"released": Job.released + 1, "max_attempts": Job.max_attempts + 1}


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's hold on one attempt of a job. attempt: 1 for the first."""

    job_id: str
    attempt: int
    token: str
    kind: str
    spec: dict[str, Any]
    search_id: str | None
    distillation_id: str | None


class AtWork(NamedTuple):
    """A running job of a search. rung: student iterations; None: as many as the recipe says. candidates: how many it trains."""

    kind: str
    rung: int | None
    candidates: int
    progress: dict[str, Any] | None


def enqueue(
    session: Session,
    *,
    kind: str,
    spec: Mapping[str, Any],
    search_id: str | None = None,
    distillation_id: str | None = None,
    owner: str = "",
    priority: int = 0,
    device_memory_gib: int | None = None,
    max_attempts: int = 3,
) -> Job:
    """Put work into the queue; `queue` says which waiting job is next. It needs as many devices as the recipe in its spec says.

    device_memory_gib: memory that each GPU must have; None: any device will do. max_attempts: tries before the job is DEAD. Those that are
    lost do not count, until there are `MOST_ATTEMPTS` of both.
    """
    job = Job(
        kind=kind,
        spec=dict(spec),
        search_id=search_id,
        distillation_id=distillation_id,
        owner=owner,
        priority=priority,
        devices=int((spec.get("recipe") or {}).get("devices") or 1),
        device_memory_gib=device_memory_gib,
        max_attempts=max_attempts,
    )
    session.add(job)
    session.flush()
    events.append(session, "job", job.id, "queued", {"kind": kind})
    return job


def get(session: Session, job_id: str) -> Job | None:
    return session.get(Job, job_id)


def seen(session: Session, job_id: str, *, owner: str | None) -> Job | None:
    """A job of one of this owner's searches or distillations, without specification and result; owner None: anybody's."""
    return session.scalar(select(Job).options(*SHORT).where(Job.id == job_id, *_of(owner)))


def list(
    session: Session, *, limit: int = 50, cursor: str | None = None, owner: str | None = None, **asked: str | None
) -> tuple[builtins.list[Job], str | None]:
    """A page of jobs as of `seen`, the newest first, and the cursor of the next one. owner: as there; asked: as of `labels.matching`.

    Raises ValueError for what is no cursor of these filters.
    """
    query = select(Job).options(*SHORT).where(*_of(owner), *labels.matching(Job, asked))
    return pages.ordered(session, query, Job, asked=asked, limit=limit, cursor=cursor)


def claim(
    session: Session,
    *,
    worker: str,
    lease_seconds: float,
    device: queue.Device = queue.CPU,
    most_running: int | None = None,
    job_id: str | None = None,
) -> Claim | None:
    """Take a waiting job for `lease_seconds`: the next one in the queue that suits the device, or the one that is named, if it waits.

    most_running: jobs that one owner may have running at once; None: any number.
    None: no job waits that this worker may take; a worker that drains takes none.
    """
    if job_id is None:
        wanted = Job.id == queue.next_job(worker=worker[:200], device=device, most_running=most_running).scalar_subquery()
    else:
        wanted = Job.id == job_id
    moved = move(
        session,
        Job,
        wanted,
        source="QUEUED",
        target="RUNNING",
        attempt=Job.attempt + 1,
        worker=worker[:200],
        device=device.name[:400],
        lease_token=new_id(),
        lease_expires_at=db_time(lease_seconds),
        progress=None,
        started_at=db_time(),
    )
    if not moved:
        return None
    job = _read(session, moved[0])
    assert job.lease_token is not None
    _mirror(session, job)
    events.append(session, "job", job.id, "started", {"attempt": job.attempt, "worker": job.worker, "device": job.device})
    return Claim(job.id, job.attempt, job.lease_token, job.kind, _whole(session, job), job.search_id, job.distillation_id)


def _whole(session: Session, job: Job) -> dict[str, Any]:
    """The specification of a job with the looks that it refers to.

    known_before: of how many of its search's decisions; known_told_before: told before which event of its ledger.
    """
    spec = dict(job.spec)
    before, told_before = spec.pop("known_before", 0), spec.pop("known_told_before", 0)
    if before or told_before:
        assert job.search_id is not None
        read = candidates.looks(session, job.search_id, before) if before else candidates.looks_told(session, job.search_id, told_before)
        spec["known"] = [*read, *spec["known"]]
    return spec


def renew(session: Session, claim: Claim, *, lease_seconds: float, progress: Mapping[str, Any] | None = None) -> bool:
    """Hold on for `lease_seconds` from now and tell the progress (None: nothing new).

    False: the job is not this claim's any more, or cancelled; the worker stops its trainer.
    """
    values: dict[str, Any] = {"lease_expires_at": db_time(lease_seconds), "updated_at": db_time()}
    if progress is not None:
        values["progress"] = dict(progress)
    statement = update(Job).where(*_held(claim), Job.state == "RUNNING").values(**values).returning(Job.id)
    if session.scalar(statement) is None:
        return False
    if progress is not None:
        _tell(session, claim, progress)
    return True


def _tell(session: Session, claim: Claim, progress: Mapping[str, Any]) -> None:
    """Write a progress event of whom people watch.

    A search's events are written under its lock, for a watcher takes them in the order of their numbers: one that got its number first and
    was committed last would never be seen. Whoever holds the search now shall not be waited for: this progress is then told by the next.
    """
    told = {"job": claim.job_id, **progress}
    if claim.distillation_id is not None:
        events.append(session, "distillation", claim.distillation_id, "progress", told)
    elif claim.search_id is None:
        events.append(session, "job", claim.job_id, "progress", told)
    elif session.scalar(select(Search.id).where(Search.id == claim.search_id).with_for_update(skip_locked=True)) is not None:
        events.append(session, "search", claim.search_id, "progress", told)


def finish(session: Session, claim: Claim, result: Mapping[str, Any]) -> bool:
    """Store the result of a claimed job. False: it is not this claim's any more; the result is dropped."""
    moved = move(
        session,
        Job,
        *_held(claim),
        source="RUNNING",
        target="SUCCEEDED",
        result=dict(result),
        failure=None,
        finished_at=db_time(),
        **NO_LEASE,
    )
    if moved:
        # A distillation that has succeeded has a result; `distillations.succeed` writes both at once.
        events.append(session, "job", claim.job_id, "succeeded", {"attempt": claim.attempt})
    return bool(moved)


def fail(session: Session, claim: Claim, *, kind: str, detail: str) -> bool:
    """Store why an attempt failed. The kind decides what follows.

    out_of_memory, timeout, bug, lost: QUEUED again, DEAD after the last attempt; those that are lost do not count (`enqueue`).
    not_finite, bad_data: FAILED, another try would end alike.
    False: the job is not this claim's any more. Raises ValueError for another kind.
    """
    failure = {"kind": kind, "detail": detail}
    if kind in FINAL:
        moved = move(session, Job, *_held(claim), source="RUNNING", target="FAILED", failure=failure, finished_at=db_time(), **NO_LEASE)
    elif kind in RETRIED:
        moved = _retry_or_bury(session, _held(claim), source="RUNNING", failure=failure)
    else:
        raise ValueError(f"{kind!r} is not a failure kind; one of {', '.join((*RETRIED, *FINAL))}")
    if moved:
        job = _read(session, claim.job_id)
        _mirror(session, job)
        events.append(session, "job", job.id, "failed", {"attempt": claim.attempt, "state": job.state, **failure})
        tallies.add(session, FAILED, kind)
    return bool(moved)


def release(session: Session, claim: Claim) -> bool:
    """Give a claimed job back uncounted, because its worker has to stop. False: it was not this claim's any more."""
    moved = move(session, Job, *_held(claim), source="RUNNING", target="QUEUED", **UNCOUNTED, **NO_LEASE)
    if moved:
        _mirror(session, _read(session, claim.job_id))
        events.append(session, "job", claim.job_id, "released", {"attempt": claim.attempt})
    return bool(moved)


def cancel(session: Session, job_id: str) -> bool:
    """Take a job out of the queue, or from its worker, whose next write is refused. False: it had ended."""
    return bool(_cancel(session, Job.id == job_id))


def cancel_search(session: Session, search_id: str) -> builtins.list[str]:
    """Cancel all jobs of a search that have not ended; their ids."""
    return _cancel(session, Job.search_id == search_id)


def pause(session: Session, where: ColumnElement[bool]) -> builtins.list[str]:
    """Take jobs out of the queue, or from their workers, whose next write is refused, without counting the attempt; their ids."""
    locked = _locked(session, where)
    waiting = move(session, Job, locked, source="QUEUED", target="PAUSED")
    running = move(session, Job, locked, source="RUNNING", target="PAUSED", **UNCOUNTED, **NO_LEASE)
    return _told(session, [*waiting, *running], "paused")


def resume(session: Session, where: ColumnElement[bool]) -> builtins.list[str]:
    """Put paused jobs back into the queue; their ids."""
    return _told(session, move(session, Job, where, source="PAUSED", target="QUEUED"), "resumed")


def prioritise(session: Session, subject: Search | Distillation, priority: int) -> bool:
    """Change how urgent a search or a distillation is: all its jobs, at once, and those to come. False: it had ended."""
    table = type(subject)
    # The row before the jobs: who drives the search holds it while it makes further ones.
    values = {"priority": priority, "updated_at": db_time()}
    changed = session.scalar(update(table).where(table.id == subject.id, table.state.in_(active(table))).values(values).returning(table.id))
    if changed is None:
        return False
    origin = Job.search_id if table is Search else Job.distillation_id
    session.execute(update(Job).where(origin == subject.id, Job.state.in_(active(Job))).values(priority=priority))
    events.append(session, labels.TOPICS[table], subject.id, "prioritised", {"priority": priority})
    session.refresh(subject)
    return True


def _told(session: Session, job_ids: builtins.list[str], kind: str) -> builtins.list[str]:
    for job_id in job_ids:
        _mirror(session, _read(session, job_id))
        events.append(session, "job", job_id, kind, {})
    return job_ids


def reap(session: Session) -> builtins.list[str]:
    """Take the jobs whose lease has run out from their workers, who are lost: QUEUED again, DEAD after the last attempt; their ids."""
    # Locked in the order of ids, and only what nobody else holds: two reapers cannot wait for one another, nor for a worker that renews.
    expired = builtins.list(
        session.scalars(
            select(Job.id)
            .where(Job.state == "RUNNING", Job.lease_expires_at < db_time())
            .order_by(Job.id)
            .with_for_update(skip_locked=True)
        )
    )
    reaped = []
    kinds: Counter[str] = Counter()
    for job_id in expired:
        if not move(session, Job, Job.id == job_id, source="RUNNING", target="LOST", **NO_LEASE):
            continue
        job = _read(session, job_id)
        failure = {"kind": "lost", "detail": f"worker {job.worker} was not heard of for the time of its lease (attempt {job.attempt})"}
        _retry_or_bury(session, [Job.id == job_id], source="LOST", failure=failure)
        job = _read(session, job_id)
        _mirror(session, job)
        events.append(session, "job", job_id, "lost", {"attempt": job.attempt, "worker": job.worker, "state": job.state})
        reaped.append(job_id)
        kinds[job.kind] += 1
    for kind, count in sorted(kinds.items()):
        tallies.add(session, LOST, kind, count)
    return reaped


def waiting(session: Session, *, limit: int = 100) -> builtins.list[str]:
    """The jobs that wait for a worker, next one first."""
    return builtins.list(session.scalars(queue.in_order().limit(limit)))


def depth(session: Session) -> builtins.list[tuple[str, str, str, int]]:
    """How many jobs wait: (kind, state, reason, count) of those that are QUEUED or PAUSED.

    reason: `new`, or the kind of the failure that the last attempt ended with.
    """
    reason = func.coalesce(Job.failure["kind"].as_string(), "new")
    query = (
        select(Job.kind, Job.state, reason, func.count()).where(Job.state.in_(("QUEUED", "PAUSED"))).group_by(Job.kind, Job.state, reason)
    )
    return [tuple(row) for row in session.execute(query)]


def running(session: Session) -> builtins.list[tuple[str, int, float | None]]:
    """What runs: (kind, count, mean seconds of a training step of those that have told one)."""
    step = func.avg(Job.progress["step_seconds"].as_float())
    query = select(Job.kind, func.count(), step).where(Job.state == "RUNNING").group_by(Job.kind)
    return [tuple(row) for row in session.execute(query)]


def prunable(session: Session, *, days: float, limit: int) -> builtins.list[str]:
    """Jobs that ended at least so long ago without a result of their distillation, and whose files are still there; the oldest first."""
    query = (
        select(Job.id)
        .where(
            Job.pruned.is_(False),
            Job.finished_at < db_time(-86_400 * days),
            Job.state.in_(terminal(Job)),
            or_(Job.state != "SUCCEEDED", Job.collected),  # one whose outcome nobody has counted may still become a result
            ~exists().where(Result.distillation_id == Job.distillation_id),
        )
        .order_by(Job.finished_at, Job.id)
        .limit(limit)
    )
    return builtins.list(session.scalars(query))


def mark_pruned(session: Session, job_id: str) -> None:
    """The files of a job are gone."""
    session.execute(update(Job).where(Job.id == job_id).values(pruned=True))


def ended(session: Session, job_ids: Sequence[str]) -> builtins.list[str]:
    """Those of these jobs that nothing will change any more."""
    return builtins.list(session.scalars(select(Job.id).where(Job.id.in_(job_ids), Job.state.in_(terminal(Job)))))


def of_search(session: Session, search_id: str) -> builtins.list[Job]:
    """All jobs of a search, oldest first."""
    return builtins.list(session.scalars(select(Job).where(Job.search_id == search_id).order_by(Job.created_at, Job.id)))


def at_work(session: Session, search_ids: Sequence[str]) -> dict[str, builtins.list[AtWork]]:
    """The running jobs of these searches, oldest first, without their specifications and results, which are most of a job."""
    found: dict[str, builtins.list[AtWork]] = {one: [] for one in search_ids}
    candidates_ = func.coalesce(func.json_array_length(Job.spec["candidates"]), 0)
    query = (
        select(Job.search_id, Job.kind, Job.spec["rung"].as_integer(), candidates_, Job.progress)
        # Only what has ended is collected: said here, it leads past all those in the index.
        .where(Job.search_id.in_(search_ids), Job.collected.is_(False), Job.state == "RUNNING")
        .order_by(Job.created_at, Job.id)
    )
    for search_id, *what in session.execute(query):
        found[search_id].append(AtWork(*what))
    return found


def under_way(session: Session, search_id: str) -> bool:
    """Whether a job of a search waits or runs."""
    # Only what has ended is collected: said here, it leads past all those in the index.
    query = select(Job.id).where(Job.search_id == search_id, Job.collected.is_(False), Job.state.in_(active(Job)))
    return session.scalar(query.limit(1)) is not None


def of_distillation(session: Session, distillation_id: str) -> Job | None:
    """The newest job of a distillation."""
    query = select(Job).where(Job.distillation_id == distillation_id).order_by(Job.created_at.desc(), Job.id.desc()).limit(1)
    return session.scalar(query)


def uncollected(session: Session, search_id: str) -> builtins.list[Job]:
    """The jobs of a search that have ended and whose outcome nobody has counted yet, in the order of their ids."""
    query = select(Job).where(Job.search_id == search_id, Job.collected.is_(False), Job.state.in_(terminal(Job))).order_by(Job.id)
    return builtins.list(session.scalars(query))


def succeeded_distillations(session: Session, *, limit: int = 50) -> Sequence[Job]:
    """Jobs of distillations that have succeeded and whose result is not written yet."""
    query = (
        select(Job)
        .where(Job.distillation_id.is_not(None), Job.collected.is_(False), Job.state == "SUCCEEDED")
        .order_by(Job.id)
        .limit(limit)
    )
    return builtins.list(session.scalars(query))


def collect(session: Session, job: Job) -> bool:
    """Mark a job's outcome as counted. False: it has been counted before."""
    statement = update(Job).where(Job.id == job.id, Job.collected.is_(False)).values(collected=True).returning(Job.id)
    return session.scalar(statement) is not None


def _of(owner: str | None) -> tuple[ColumnElement[bool], ...]:
    """The jobs of this owner's searches and distillations; owner None: all."""
    return () if owner is None else (Job.owner == owner,)


def _held(claim: Claim) -> builtins.list[ColumnElement[bool]]:
    return [Job.id == claim.job_id, Job.attempt == claim.attempt, Job.lease_token == claim.token]


def _retry_or_bury(session: Session, where: Sequence[ColumnElement[bool]], *, source: str, failure: dict[str, str]) -> builtins.list[str]:
    """To the queue while attempts are left, else DEAD: the same row cannot match both."""
    if failure["kind"] == "lost":
        left, uncounted = Job.attempt - Job.released < MOST_ATTEMPTS, {"max_attempts": Job.max_attempts + 1}
    else:
        left, uncounted = Job.attempt < Job.max_attempts, {}
    again = move(session, Job, *where, left, source=source, target="QUEUED", failure=failure, **uncounted, **NO_LEASE)
    if again:
        return again
    return move(session, Job, *where, source=source, target="DEAD", failure=failure, finished_at=db_time(), **NO_LEASE)


def _locked(session: Session, where: ColumnElement[bool]) -> ColumnElement[bool]:
    """Those of these jobs that have not ended, kept from everybody else: none passes from one state to another between two looks."""
    query = select(Job.id).where(where, Job.state.in_(active(Job))).order_by(Job.id).with_for_update()
    return Job.id.in_(builtins.list(session.scalars(query)))


def _cancel(session: Session, where: ColumnElement[bool]) -> builtins.list[str]:
    cancelled = []
    locked = _locked(session, where)
    for state in sorted(active(Job) - {"LOST"}):  # LOST is never visible outside the reaper's transaction
        moved = move(session, Job, locked, source=state, target="CANCELLED", finished_at=db_time(), **NO_LEASE)
        for job_id in moved:
            _mirror(session, _read(session, job_id))
            events.append(session, "job", job_id, "cancelled", {"from": state})
        cancelled += moved
    return cancelled


def _mirror(session: Session, job: Job) -> None:
    """Give a distillation the state of its job."""
    if job.distillation_id is None:
        return
    reason = readable(job.failure) if job.failure and job.state in ("FAILED", "DEAD") else None
    ended = {"finished_at": db_time()} if job.state in terminal(Distillation) else {}
    started = {"started_at": db_time()} if job.state == "RUNNING" else {}
    for source in sorted(source for source, ways in DISTILLATION.items() if job.state in ways):
        move(
            session,
            Distillation,
            Distillation.id == job.distillation_id,
            source=source,
            target=job.state,
            reason=reason,
            **started,
            **ended,
        )
    events.append(session, "distillation", job.distillation_id, job.state.lower(), {"job": job.id, "attempt": job.attempt})


def readable(failure: Mapping[str, Any]) -> str:
    """A failure in a line or a few: kind and detail, without what text columns refuse."""
    return f"{failure.get('kind')}: {failure.get('detail')}".replace("\0", "")[:2000]


def _read(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id, populate_existing=True)
    assert job is not None
    return job
