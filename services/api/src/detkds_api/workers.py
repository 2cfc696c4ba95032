"""`/workers`: which workers are there, what each holds, and that they may be emptied."""

from __future__ import annotations

from typing import Any, Literal, cast

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from sqlalchemy.orm import Session

from detkds_api.problems import NotFound
from detkds_api.service import Id, Running, Service, administers, example
from detkds_core.store import waiting
from detkds_core.store import workers as stored

router = APIRouter(tags=["workers"])


class HeldJob(BaseModel):
    """What a device is held by. Of somebody else's work only that there is some: the ids, the name and the owner are null."""

    id: str | None
    owner: str | None
    search_id: str | None
    distillation_id: str | None
    name: str | None


class WorkerView(BaseModel):
    """A worker. device: the UUID of its GPU (several joined by "+"), or `cpu`; memory_gib: of the smallest GPU, 0 on a CPU.

    state: `idle`, `busy`, `draining` (ends what it runs and takes nothing new), `drained` (runs nothing and takes nothing), `lost` (not
    heard of; its job goes back into the queue when its lease ends). present: whether it is heard of. disk_low: for lack of room it takes
    nothing.
    """

    id: str
    name: str
    device: str
    gpus: int
    memory_gib: int
    state: Literal["idle", "busy", "draining", "drained", "lost"]
    present: bool
    disk_low: bool
    job: HeldJob | None


class Workers(BaseModel):
    """All that are there, by name."""

    items: list[WorkerView]


EXAMPLE = {
    "id": "0198a3c1-11b0-7a51-8d0f-6c0a1a2b3c4d",
    "name": "gpu-0",
    "device": "GPU-5d0f6c0a-9a51-4f60-8b44-0f1f6f5c2111",
    "gpus": 1,
    "memory_gib": 12,
    "state": "busy",
    "present": True,
    "disk_low": False,
    "job": {
        "id": "0198a3c2-9f21-7c43-9a51-2f60c1c3d9aa",
        "owner": "vision team",
        "search_id": "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa",
        "distillation_id": None,
        "name": "digits_gfl seed 0",
    },
}


@router.get("/workers", responses={200: example({"items": [EXAMPLE]})})
def list_workers(service: Service) -> Workers:
    """The workers that are there, that drain, or that were lost with a job, and which job of which search each device holds."""
    with service.store.read() as session:
        return Workers(items=[view(one, service.caller.sees) for one in stored.standings(session)])


@router.post("/workers/{worker_id}/drain", responses={200: example({**EXAMPLE, "state": "draining"})}, dependencies=[Depends(administers)])
def drain_worker(worker_id: Id, service: Service) -> WorkerView:
    """Let a worker end what it runs and take nothing new, also when it is started anew under its name. Needs a key with scope `admin`.

    Draining again changes nothing. To have its job elsewhere at once, stop the worker: it gives the job back.
    """
    return changed(service, worker_id, draining=True)


@router.post(
    "/workers/{worker_id}/undrain", responses={200: example({**EXAMPLE, "state": "idle", "job": None})}, dependencies=[Depends(administers)]
)
def undrain_worker(worker_id: Id, service: Service) -> WorkerView:
    """Let a worker take jobs again. One that does not drain stays as it is. Needs a key with scope `admin`."""
    return changed(service, worker_id, draining=False)


def changed(service: Running, worker_id: str, *, draining: bool) -> WorkerView:
    """Raises NotFound."""
    with service.store.begin() as session:
        before = next((one for one in stored.standings(session) if one.worker.id == worker_id), None)
        if before is None or not stored.drain(session, worker_id, draining=draining):
            raise NotFound(f"there is no worker {worker_id}; GET /workers lists them")
        session.refresh(before.worker)
        return view(before, service.caller.sees)


def fleet(session: Session, service: Running) -> waiting.Fleet:
    """The fleet as this caller may see it."""
    return service.fleets.look(session, viewer=service.caller.sees, allowed=service.settings.quota_running or None)


def view(one: stored.Standing, viewer: str | None) -> WorkerView:
    worker = one.worker
    return WorkerView(
        id=worker.id,
        name=worker.name,
        device=worker.device,
        gpus=worker.gpus,
        memory_gib=worker.memory_gib,
        state=cast(Any, one.state),
        present=one.present,
        disk_low=worker.disk_low,
        job=held_view(one.held, viewer) if one.held else None,
    )


def held_view(held: stored.Held, viewer: str | None) -> HeldJob:
    if viewer is not None and held.owner != viewer:
        return HeldJob(id=None, owner=None, search_id=None, distillation_id=None, name=None)
    return HeldJob(id=held.job_id, owner=held.owner, search_id=held.search_id, distillation_id=held.distillation_id, name=held.title)
