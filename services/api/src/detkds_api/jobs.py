"""`/jobs`: the trainings of searches and distillations, and what their trainers wrote."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from detkds_api.caller import Caller
from detkds_api.lists import ListQuery, Page, page_of
from detkds_api.paths import inside
from detkds_api.problems import NotFound, Unavailable, answers
from detkds_api.service import Id, Running, Service, example
from detkds_api.workers import fleet
from detkds_core.store import jobs as stored
from detkds_core.store import waiting
from detkds_core.store.artifacts import Artifacts, LostError, UnreachableError, scratch_folder
from detkds_core.store.ids import is_id
from detkds_core.store.models import Job
from detkds_core.store.vocabulary import JobKind as Kind
from detkds_core.store.vocabulary import JobState as State

router = APIRouter(tags=["jobs"])
log = logging.getLogger("detkds.api")

LOG = "trainer.log"  # as the worker names it, in the folder of an attempt
MOST_BYTES = 1 << 20
WAITING = ("QUEUED", "PAUSED")  # the states in which there is a reason to be told


class JobsQuery(ListQuery):
    """What the list of jobs can be asked for."""

    search: str | None = Field(default=None, max_length=36, description="The id of a search: its jobs alone.")
    distillation: str | None = Field(default=None, max_length=36, description="The same of a distillation.")
    state: State | None = Field(default=None, description="Those in this state.")

    def page(self) -> dict[str, Any]:
        return {{"search": "search_id", "distillation": "distillation_id"}.get(name, name): value for name, value in super().page().items()}


class JobView(BaseModel):
    """Work for one trainer: some candidates of a search, a seed of its confirmation, or a distillation. waiting: why it is not running;
    with hundreds of jobs and workers, as they were at most a second ago.

    attempt: the one that runs, or ran last; logs: the attempts whose log can be read.
    """

    id: str
    kind: Kind
    state: State
    waiting: str | None
    owner: str
    search_id: str | None
    distillation_id: str | None
    priority: int
    devices: int
    device_memory_gib: int | None
    attempt: int
    max_attempts: int
    worker: str | None
    device: str | None
    progress: dict[str, Any] | None
    failure: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    logs: list[int]


class LogView(BaseModel):
    """A part of a log. offset, next_offset, size: bytes; ended: nothing more is written to it."""

    job_id: str
    attempt: int
    offset: int
    next_offset: int
    size: int
    ended: bool
    text: str


EXAMPLE = {
    "id": "0198a3c9-2b4c-7d11-8e5f-1f6a0c9d7b32",
    "kind": "evaluate",
    "state": "QUEUED",
    "waiting": "needs 1 GPU with 12 GiB; gpu-0 is held by search digits_gfl seed 0 (job 0198a3c2-9f21-7c43-9a51-2f60c1c3d9aa)",
    "owner": "vision team",
    "search_id": "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa",
    "distillation_id": None,
    "priority": 0,
    "devices": 1,
    "device_memory_gib": 12,
    "attempt": 2,
    "max_attempts": 4,
    "worker": "gpu-1",
    "device": "GPU-2c9f6c0a-9a51-4f60-8b44-0f1f6f5c2111",
    "progress": {"done": 40, "total": 124, "message": "training 4 candidates together", "best_ap": None, "step_seconds": 0.21},
    "failure": {"kind": "lost", "detail": "worker gpu-1 was not heard of for the time of its lease (attempt 2)"},
    "created_at": "2026-05-04T10:11:12Z",
    "started_at": "2026-05-04T10:12:40Z",
    "finished_at": None,
    "logs": [1, 2],
}
LOG_EXAMPLE = {
    "job_id": EXAMPLE["id"],
    "attempt": 1,
    "offset": 0,
    "next_offset": 74,
    "size": 74,
    "ended": True,
    "text": '{"event": "progress", "done": 4, "total": 124, "message": "training 4 ..."}\n',
}


@router.get("/jobs", responses={200: example({"items": [EXAMPLE], "next_cursor": None})})
def list_jobs(service: Service, query: Annotated[JobsQuery, Query()]) -> Page[JobView]:
    """The newest jobs first: all, or those of a search, of a distillation, in a state."""
    if not all(is_id(one) for one in (query.search, query.distillation) if one is not None):
        return Page(items=[], next_cursor=None)
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, owner=service.caller.sees, **query.page()))
        seen = fleet(session, service) if any(job.state in WAITING for job in found) else waiting.Fleet()
    left = logs(service, [job.id for job in found])
    return Page(items=[view(job, seen, left[job.id]) for job in found], next_cursor=after)


@router.get("/jobs/{job_id}", responses={200: example(EXAMPLE)})
def get_job(job_id: Id, service: Service) -> JobView:
    """One job of a search or a distillation: where it runs, or why it waits, and which attempts have left a log."""
    with service.store.read() as session:
        job = existing(session, service.caller, job_id)
        seen = fleet(session, service) if job.state in WAITING else waiting.Fleet()
    return view(job, seen, logs(service, [job_id])[job_id])


@router.get("/jobs/{job_id}/attempts/{attempt}/log", responses={200: example(LOG_EXAMPLE), **answers(Unavailable)})
def get_log(
    job_id: Id,
    attempt: Annotated[int, InPath(ge=1, le=1000, examples=[1])],
    service: Service,
    offset: Annotated[int, Query(ge=0, le=1 << 50, description="The first byte; `next_offset` of the part before.")] = 0,
    limit: Annotated[int, Query(ge=16, le=MOST_BYTES, description="Bytes at most.")] = 1 << 16,
) -> LogView:
    """What the trainer of an attempt wrote, a part at a time. Ask again from `next_offset` on until `ended` and `next_offset` is `size`.

    While it is written it can be read of trainers whose scratch folder this service sees; of others, when the attempt has ended.
    """
    with service.store.read() as session:
        job = existing(session, service.caller, job_id)
    running = job.state == "RUNNING" and job.attempt == attempt  # asked before the file, so that an end misses nothing
    found = log_part(service, f"{job_id}/{attempt}/{LOG}", offset, limit, running)
    if found is None:
        there = ", ".join(map(str, logs(service, [job_id])[job_id])) or "none"
        raise NotFound(f"job {job_id} has no log of attempt {attempt}; there are logs of: {there}")
    content, size = found
    text, read = decoded(content, final=not running and offset + len(content) >= size)
    return LogView(job_id=job_id, attempt=attempt, offset=offset, next_offset=offset + read, size=size, ended=not running, text=text)


def decoded(content: bytes, *, final: bool) -> tuple[str, int]:
    """The text of a part, and how many of its bytes that are: a character that is cut at the end waits for the next part."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(content, final)
    return text, len(content) - len(decoder.getstate()[0])


def existing(session: Session, caller: Caller, job_id: str) -> Job:
    """Raises NotFound, also for what is somebody else's."""
    job = stored.seen(session, job_id, owner=caller.sees) if is_id(job_id) else None
    if job is None:
        raise NotFound(f"there is no job {job_id}; GET /jobs lists them")
    return job


def log_part(service: Running, name: str, offset: int, limit: int, running: bool) -> tuple[bytes, int] | None:
    """Bytes of a log and the size of it all: where its trainer writes as long as it runs, then among the artifacts. None: there is none.

    Raises Unavailable.
    """
    written = partial(scratch_part, scratch_folder(service.settings.home), name, offset, limit)
    published = partial(published_part, service.artifacts, name, offset, limit)
    first, second = (written, published) if running else (published, written)
    return first() or second()


def scratch_part(scratch: Path, name: str, offset: int, limit: int) -> tuple[bytes, int] | None:
    try:
        with inside(str(scratch / name), [scratch.resolve()]).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(offset)
            return file.read(limit), size
    except (ValueError, OSError):
        return None


def published_part(artifacts: Artifacts, name: str, offset: int, limit: int) -> tuple[bytes, int] | None:
    """Raises Unavailable."""
    try:
        size = artifacts.size(name)
        return b"".join(artifacts.read(name, offset, offset + limit)) if offset < size else b"", size
    except (ValueError, LostError):
        return None
    except UnreachableError as error:
        raise Unavailable(f"the log cannot be read now: {error}", headers={"Retry-After": "10"}) from None


def logs(service: Running, job_ids: Iterable[str]) -> dict[str, list[int]]:
    """The attempts of each job that have left a log; as long as the artifacts cannot be reached, those that this machine has."""
    scratch, artifacts = scratch_folder(service.settings.home), service.artifacts
    found: dict[str, list[int]] = {}
    reached = True
    for job_id in job_ids:
        names = [str(path.relative_to(scratch)) for path in (scratch / job_id).glob(f"*/{LOG}")]
        if reached:
            try:
                names += artifacts.names(job_id)
            except UnreachableError as error:
                log.warning("the artifacts cannot be reached", extra={"reason": str(error)})
                reached = False
        parts = [name.split("/") for name in names]
        found[job_id] = sorted({int(attempt) for _, attempt, *rest in parts if rest == [LOG] and attempt.isdecimal()})
    return found


def view(job: Job, seen: waiting.Fleet, attempts: list[int]) -> JobView:
    return JobView(
        id=job.id,
        kind=cast(Kind, job.kind),
        state=cast(State, job.state),
        waiting=waiting.of_job(seen, job),
        owner=job.owner,
        search_id=job.search_id,
        distillation_id=job.distillation_id,
        priority=job.priority,
        devices=job.devices,
        device_memory_gib=job.device_memory_gib,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        worker=job.worker,
        device=job.device,
        progress=job.progress,
        failure=job.failure,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        logs=attempts,
    )
