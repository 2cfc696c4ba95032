"""Which waiting job is next: higher priority first; within a priority, owners share the workers, and so do the searches of an owner.

The order is that of taking one job after the other: each time from the owner with the fewest running jobs (of those that run equally many,
the one that was served longest ago), of it from the search or distillation with the fewest running jobs, and of that the oldest job. A
job's *turn* is how many jobs its owner will run once it is taken. Written as a rank of every waiting job and not as the choice of one, so
that workers who ask at the same moment, each of whom skips what the others hold, come to the same shares as those who ask one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import aliased

from .models import Job, Worker


@dataclass(frozen=True, slots=True)
class Device:
    """What a worker trains on. name: the UUID of its GPU, several joined by "+", or "cpu". memory_gib: of the smallest GPU."""

    name: str = "cpu"
    gpus: int = 0
    memory_gib: int = 0

    def suits(self, devices: int, memory_gib: int | None) -> bool:
        """Whether a job that needs so many GPUs with so much memory can run here. On a CPU, whatever asks for no GPU memory can."""
        if self.gpus == 0:
            return memory_gib is None
        return devices <= self.gpus and (memory_gib is None or memory_gib <= self.memory_gib)


CPU = Device()


def next_job(*, worker: str, device: Device, most_running: int | None) -> Select[Any]:
    """The id of the job that this worker takes next, locked against every other one; none while it drains.

    most_running: jobs that one owner may have running at once; None: any number. What belongs to no owner has no bound.
    """
    anything = Job.device_memory_gib.is_(None)
    on_gpu = and_(Job.devices <= device.gpus, or_(anything, Job.device_memory_gib <= device.memory_gib))
    query, job, turn = _ordered(on_gpu if device.gpus else anything)
    query = query.with_only_columns(job.id).where(~select(Worker.id).where(Worker.name == worker, Worker.draining).exists())
    if most_running is not None:
        query = query.where(or_(turn <= most_running, job.owner == ""))
    # SKIP LOCKED: workers that ask at the same time get different jobs and do not wait for one another. SQLite has one writer.
    return query.limit(1).with_for_update(of=job, skip_locked=True)


def in_order() -> Select[Any]:
    """All waiting jobs, next one first: id, search_id, distillation_id, owner, priority, devices, device_memory_gib."""
    return _ordered()[0]


def _ordered(*where: ColumnElement[bool]) -> tuple[Select[Any], type[Job], ColumnElement[Any]]:
    """The waiting jobs for which `where` holds, in their order; what the query calls their table, and their turns."""
    subject = func.coalesce(Job.search_id, Job.distillation_id, Job.id)
    of_subjects = select(subject.label("subject"), func.count().label("running")).where(Job.state == "RUNNING").group_by(subject).subquery()
    of_owners = select(Job.owner, func.count().label("running")).where(Job.state == "RUNNING").group_by(Job.owner).subquery()
    turn_of_subject = func.coalesce(of_subjects.c.running, 0) + func.row_number().over(
        partition_by=subject, order_by=(Job.priority.desc(), Job.created_at, Job.id)
    )
    within = (
        select(Job.id, Job.owner, Job.priority, Job.created_at, turn_of_subject.label("turn"))
        .outerjoin(of_subjects, of_subjects.c.subject == subject)
        .where(Job.state == "QUEUED", *where)
        .subquery()
    )
    turn = func.coalesce(of_owners.c.running, 0) + func.row_number().over(
        partition_by=within.c.owner, order_by=(within.c.priority.desc(), within.c.turn, within.c.created_at, within.c.id)
    )
    waiting = select(within.c.id, turn.label("turn")).outerjoin(of_owners, of_owners.c.owner == within.c.owner).subquery()
    owners = select(Job.owner).where(Job.state == "QUEUED").distinct().subquery()
    earlier = aliased(Job)
    # A look into an index for each owner that waits: the newest start of all its jobs.
    served = select(
        owners.c.owner,
        select(func.max(earlier.started_at)).where(earlier.owner == owners.c.owner).correlate(owners).scalar_subquery().label("last"),
    ).subquery()
    job = aliased(Job, name="waiting_job")
    query: Any = (
        select(job.id, job.search_id, job.distillation_id, job.owner, job.priority, job.devices, job.device_memory_gib)
        .join(waiting, waiting.c.id == job.id)
        .join(served, served.c.owner == job.owner)
        .where(job.state == "QUEUED")
        .order_by(job.priority.desc(), waiting.c.turn, served.c.last.nulls_first(), job.created_at, job.id)
    )
    return query, job, waiting.c.turn
