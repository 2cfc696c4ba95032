"""Which workers are there: each says so again and again, also while its trainer runs. What it works on is in the jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from .clock import db_time
from .ids import new_id
from .models import Distillation, Job, Search, Worker
from .queue import CPU, Device
from .session import inserted


class Held(NamedTuple):
    """A running job, and the worker and device that it holds. title: the name of its search or distillation."""

    worker: str
    device: str
    job_id: str
    owner: str
    search_id: str | None
    distillation_id: str | None
    title: str


class Standing(NamedTuple):
    """A worker, whether it is heard of, and what it works on."""

    worker: Worker
    present: bool
    held: Held | None

    @property
    def state(self) -> str:
        """`idle`, `busy`, `draining` (it ends what it runs), `drained` (it runs nothing), `lost` (not heard of, but its job is its own)."""
        if self.worker.draining:
            return "draining" if self.held else "drained"
        if not self.present:
            return "lost"
        return "busy" if self.held else "idle"


def present(
    session: Session,
    name: str,
    *,
    seconds: float,
    device: Device = CPU,
    disk_low: bool = False,
    gpu_use: Sequence[Mapping[str, Any]] = (),
) -> bool:
    """A worker is there, and is taken to be for `seconds` from now; whether it drains. Those that are long gone are forgotten."""
    gone = (Worker.name != name[:200], Worker.expires_at < db_time(-86400), ~Worker.draining)
    session.execute(delete(Worker).where(*gone))
    said = {
        "device": device.name[:400],
        "gpus": device.gpus,
        "memory_gib": device.memory_gib,
        "disk_low": disk_low,
        "expires_at": db_time(seconds),
        "gpu_use": [dict(gpu) for gpu in gpu_use] or None,
    }
    first = inserted(session, Worker).values(id=new_id(), name=name[:200], draining=False, **said)
    statement = first.on_conflict_do_update(index_elements=[Worker.name], set_=said).returning(Worker.draining)
    return bool(session.scalar(statement))


def leave(session: Session, name: str) -> None:
    """A worker ends. That it drains stays known: started anew under its name, it takes no job either."""
    session.execute(delete(Worker).where(Worker.name == name[:200], ~Worker.draining))
    session.execute(update(Worker).where(Worker.name == name[:200]).values(expires_at=db_time()))


def drain(session: Session, worker_id: str, *, draining: bool) -> bool:
    """Let a worker end what it runs and take no new job, or take jobs again. False: there is none."""
    statement = update(Worker).where(Worker.id == worker_id).values(draining=draining).returning(Worker.id)
    return session.scalar(statement) is not None


def alive(session: Session) -> int:
    """How many workers are there that take jobs."""
    return session.scalar(select(func.count()).select_from(Worker).where(Worker.expires_at >= db_time(), ~Worker.draining)) or 0


def lost(session: Session) -> int:
    """How many were there within the last day and ended without saying so."""
    return session.scalar(select(func.count()).select_from(Worker).where(Worker.expires_at < db_time(), ~Worker.draining)) or 0


def gpu_use(session: Session) -> dict[str, dict[str, Any]]:
    """The GPUs of the workers that are there, by their UUID; one that several workers share stands once."""
    reported = session.scalars(select(Worker.gpu_use).where(Worker.expires_at >= db_time(), Worker.gpu_use.is_not(None)))
    return {gpu["uuid"]: gpu for found in reported for gpu in found or ()}


def held(session: Session) -> list[Held]:
    """Every running job, the newest last."""
    query = (
        select(
            Job.worker,
            Job.device,
            Job.id,
            Job.owner,
            Job.search_id,
            Job.distillation_id,
            func.coalesce(Search.name, Distillation.name, ""),
        )
        .outerjoin(Search, Search.id == Job.search_id)
        .outerjoin(Distillation, Distillation.id == Job.distillation_id)
        .where(Job.state == "RUNNING")
        .order_by(Job.started_at, Job.id)
    )
    return [
        Held(worker or "", device or "cpu", job, owner, search, distillation, title)
        for worker, device, job, owner, search, distillation, title in session.execute(query)
    ]


def present_ones(session: Session) -> Sequence[tuple[str, str, int, int, bool, bool]]:
    """The workers that are there, by name: (name, device, gpus, memory_gib, draining, disk_low)."""
    query = select(Worker.name, Worker.device, Worker.gpus, Worker.memory_gib, Worker.draining, Worker.disk_low)
    return session.execute(query.where(Worker.expires_at >= db_time()).order_by(Worker.name)).all()


def standings(session: Session, running: Sequence[Held] | None = None) -> list[Standing]:
    """The workers that are there, that drain, or whose job is still theirs, by name. running: what `held` said."""
    of_worker = {one.worker: one for one in (held(session) if running is None else running)}
    there = Worker.expires_at >= db_time()
    query = select(Worker, there).where(or_(there, Worker.draining, Worker.name.in_(of_worker))).order_by(Worker.name)
    return [Standing(worker, bool(present), of_worker.get(worker.name)) for worker, present in session.execute(query)]
