"""Distillations: one student, one policy, one job."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from . import events, jobs, labels, pages
from .clock import db_time
from .models import Distillation, Job
from .states import active, move


def create(
    session: Session,
    *,
    name: str,
    spec: Mapping[str, Any],
    dataset: Mapping[str, Any],
    idempotency_key: str | None = None,
    owner: str | None = None,
    search_id: str | None = None,
    notes: str = "",
    tags: Sequence[str] = (),
    request: Mapping[str, Any] | None = None,
    cloned_from: str | None = None,
    priority: int = 0,
    device_memory_gib: int | None = None,
    max_attempts: int = 3,
) -> Distillation:
    """Store a distillation and put its job into the queue. spec: the job's, whole. search_id: whose policy it trains with.
    priority, device_memory_gib: as `jobs.enqueue` takes them.

    request: the body that asked for it; cloned_from: whose request it repeats.

    Raises IntegrityError when the owner has used the idempotency key before; `by_key` finds that distillation.
    """
    distillation = Distillation(
        name=name,
        notes=notes,
        spec=dict(spec),
        teacher=spec.get("teacher", {}).get("detector", ""),
        student=spec.get("student", {}).get("detector", ""),
        request=None if request is None else dict(request),
        cloned_from=cloned_from,
        dataset=dataset["name"],
        dataset_digest=dataset.get("digest") or "",
        idempotency_key=idempotency_key,
        owner=owner or "",
        search_id=search_id,
        priority=priority,
        device_memory_gib=device_memory_gib,
    )
    session.add(distillation)
    session.flush()
    labels.give(session, distillation, tags)
    events.append(session, "distillation", distillation.id, "queued", {"name": name})
    jobs.enqueue(
        session,
        kind="distill",
        spec={"kind": "distill", **spec},
        distillation_id=distillation.id,
        owner=distillation.owner,
        priority=priority,
        device_memory_gib=device_memory_gib,
        max_attempts=max_attempts,
    )
    return distillation


def get(session: Session, distillation_id: str, *, owner: str | None = None) -> Distillation | None:
    """One distillation; None where there is none, or it is not the owner's (None: of anybody)."""
    return session.scalar(select(Distillation).where(Distillation.id == distillation_id, *_of(owner)))


def by_key(session: Session, idempotency_key: str, *, owner: str | None = None) -> Distillation | None:
    """The distillation that was created with this key."""
    query = select(Distillation).where(Distillation.owner == (owner or ""), Distillation.idempotency_key == idempotency_key)
    return session.scalar(query)


def list(
    session: Session, *, limit: int = 50, cursor: str | None = None, sort: str = pages.NEWEST, owner: str | None = None, **asked: str | None
) -> tuple[builtins.list[Distillation], str | None]:
    """A page of distillations and the cursor of the next one. sort: as of `pages.ordered`; asked: as of `labels.matching`.

    Raises ValueError for what is no cursor of this order and these filters.
    """
    query = select(Distillation).where(*_of(owner), *labels.matching(Distillation, asked))
    return pages.ordered(session, query, Distillation, sort=sort, asked=asked, limit=limit, cursor=cursor)


def count_active(session: Session, owner: str) -> int:
    """How many distillations of an owner have not ended."""
    query = select(func.count()).select_from(Distillation).where(Distillation.owner == owner, Distillation.state.in_(active(Distillation)))
    return session.scalar(query) or 0


def cancel(session: Session, distillation_id: str, *, owner: str | None = None) -> bool:
    """End a distillation and its job. False: there is none, or it had ended."""
    if get(session, distillation_id, owner=owner) is None:
        return False
    job = jobs.of_distillation(session, distillation_id)
    return job is not None and jobs.cancel(session, job.id)


def pause(session: Session, distillation_id: str, *, owner: str | None = None) -> bool:
    """Hold a distillation until it is resumed; its trainer ends and goes on from what it kept. False: there is none, or it had ended."""
    known = get(session, distillation_id, owner=owner) is not None
    return known and bool(jobs.pause(session, Job.distillation_id == distillation_id))


def resume(session: Session, distillation_id: str, *, owner: str | None = None) -> bool:
    """Let a paused distillation go on. False: there is none, or it is not paused."""
    known = get(session, distillation_id, owner=owner) is not None
    return known and bool(jobs.resume(session, Job.distillation_id == distillation_id))


def succeed(session: Session, distillation_id: str) -> bool:
    """RUNNING to SUCCEEDED; the caller writes its result in the same transaction. False: it had ended otherwise."""
    moved = move(
        session, Distillation, Distillation.id == distillation_id, source="RUNNING", target="SUCCEEDED", reason=None, finished_at=db_time()
    )
    if moved:
        events.append(session, "distillation", distillation_id, "succeeded", {})
    return bool(moved)


def fail(session: Session, distillation_id: str, reason: str) -> bool:
    """RUNNING to FAILED, for a reason that its job does not know. False: it had ended."""
    reason = reason.replace("\0", "")[:2000]
    where = Distillation.id == distillation_id
    moved = move(session, Distillation, where, source="RUNNING", target="FAILED", reason=reason, finished_at=db_time())
    if moved:
        events.append(session, "distillation", distillation_id, "failed", {"reason": reason})
    return bool(moved)


def _of(owner: str | None) -> builtins.list[ColumnElement[bool]]:
    return [] if owner is None else [Distillation.owner == owner]
