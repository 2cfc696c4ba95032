"""Why something waits, as a sentence. `gather` reads what is known of the fleet at one moment; the rest is decided from that alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate
from threading import Lock
from time import monotonic
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import workers
from .clock import db_time
from .models import Job, Lease
from .queue import Device, in_order
from .vocabulary import EVOLVER

LARGE, KEPT_SECONDS = 500, 1.0  # jobs and workers of a fleet from which on it is looked at once a second
NAMED = 3  # workers that a sentence names; the others are counted


class Queued(NamedTuple):
    """A job that waits. subject: the id of its search or distillation; devices, memory_gib: what it needs."""

    job_id: str
    subject: str | None
    owner: str = ""
    priority: int = 0
    devices: int = 1
    memory_gib: int | None = None


class Seen(NamedTuple):
    """A worker that is there. holds: what it works on, in words; None: nothing."""

    name: str
    device: Device
    draining: bool = False
    disk_low: bool = False
    holds: str | None = None


class Choice(NamedTuple):
    """The workers that suit a job, those of them with room on their disk, how many of these are free; and for each place of the queue, how
    many jobs are before it that one of these could take."""

    suiting: list[Seen]
    able: list[Seen]
    free: int
    before: list[int]


@dataclass(frozen=True)
class Fleet:
    """What is known at one moment. queue: next one first. running: jobs of each owner. at_work: searches and distillations with such.

    allowed: jobs that one owner may have running at once, None: any number. evolver: whether one is on duty.
    """

    queue: tuple[Queued, ...] = ()
    workers: tuple[Seen, ...] = ()
    running: Mapping[str, int] = field(default_factory=dict)
    at_work: frozenset[str] = frozenset()
    allowed: int | None = None
    evolver: bool = True

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where each job stands in the queue."""
        return {one.job_id: place for place, one in enumerate(self.queue)}

    @cached_property
    def first_places(self) -> Mapping[str | None, int]:
        """Where the first job of each search and distillation stands."""
        return {self.queue[place].subject: place for place in reversed(range(len(self.queue)))}

    @cached_property
    def most_urgent(self) -> int:
        """The highest priority that waits."""
        return max(one.priority for one in self.queue)

    @cached_property
    def choices(self) -> dict[tuple[int, int | None], Choice]:
        """What was found of the workers for a need (GPUs, GiB); pages of jobs have few different ones."""
        return {}

    def choice(self, job: Queued) -> Choice:
        """The workers that a job could have."""
        need = (job.devices, job.memory_gib)
        if need not in self.choices:
            suiting = [one for one in self.workers if not one.draining and one.device.suits(*need)]
            able = [one for one in suiting if not one.disk_low]
            devices = {one.device for one in able}
            suits = cache(lambda devices_, memory_gib: any(device.suits(devices_, memory_gib) for device in devices))
            before = list(accumulate((suits(one.devices, one.memory_gib) for one in self.queue), initial=0))
            self.choices[need] = Choice(suiting, able, sum(one.holds is None for one in able), before)
        return self.choices[need]


def gather(session: Session, *, viewer: str | None, allowed: int | None) -> Fleet:
    """The fleet as it is. viewer: the owner who asks and to whom nobody else's work is named; None: one who may see everything."""
    held = workers.held(session)
    of_worker = {one.worker: told(one, viewer) for one in held}
    seen = [
        Seen(name, Device(device, gpus, memory_gib), draining, disk_low, of_worker.get(name))
        for name, device, gpus, memory_gib, draining, disk_low in workers.present_ones(session)
    ]
    rows = session.execute(in_order())
    return Fleet(
        queue=tuple(Queued(job, search or distillation, *rest) for job, search, distillation, *rest in rows),
        workers=tuple(seen),
        running=Counter(one.owner for one in held),
        at_work=frozenset(subject for one in held if (subject := one.search_id or one.distillation_id)),
        allowed=allowed,
        evolver=session.scalar(select(Lease.name).where(Lease.name == EVOLVER, Lease.expires_at >= db_time())) is not None,
    )


class Fleets:
    """The fleet for each viewer: as it is, or, where it is large, as it was at most KEPT_SECONDS ago. For the threads of one process.

    To read thousands of jobs and workers for every request would take most of a server.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[str | None, tuple[float, Fleet]] = {}

    def look(self, session: Session, *, viewer: str | None, allowed: int | None) -> Fleet:
        """As `gather` has it."""
        with self._lock:
            self._kept = {who: kept for who, kept in self._kept.items() if monotonic() - kept[0] < KEPT_SECONDS}
            if viewer in self._kept:
                return self._kept[viewer][1]
            fleet = gather(session, viewer=viewer, allowed=allowed)
            if len(fleet.queue) + len(fleet.workers) >= LARGE:
                self._kept[viewer] = monotonic(), fleet
            return fleet


def told(held: workers.Held, viewer: str | None) -> str:
    """What a worker holds, in words that this viewer may read."""
    if viewer is not None and held.owner != viewer:
        return "a job of another owner"
    kind = "search" if held.search_id else "distillation"
    return f"{kind} {held.title} (job {held.job_id})" if held.title else f"job {held.job_id}"


def of_subject(fleet: Fleet, state: str, subject: str) -> str | None:
    """Why a search or a distillation waits; None: it works, or has ended."""
    if state == "PAUSED":
        return "paused"
    if state not in ("QUEUED", "RUNNING", "CONFIRMING") or subject in fleet.at_work:
        return None
    place = fleet.first_places.get(subject)
    if place is not None:
        return reason(fleet, place)
    if not fleet.evolver:
        return "no evolver is there"
    return "the evolver takes it up in a moment" if state == "QUEUED" else None


def of_job(fleet: Fleet, job: Job) -> str | None:
    """Why a job waits; None: it runs, or has ended."""
    if job.state == "PAUSED":
        return "paused"
    place = fleet.places.get(job.id)
    if place is not None:
        return reason(fleet, place)
    return "it has just come into the queue" if job.state == "QUEUED" else None


def reason(fleet: Fleet, place: int) -> str:
    """Why the job at this place of the queue is not running: the first of the reasons that holds.

    No worker, none that takes jobs, none that suits, none with room on its disk; the bound of its owner; more urgent jobs; and at last
    what the workers that suit it do.
    """
    job = fleet.queue[place]
    if not fleet.workers:
        return "no worker is there"
    taking = [one for one in fleet.workers if not one.draining]
    if not taking:
        return "all workers are draining"
    suiting, able, free, before_each = fleet.choice(job)
    if not suiting:
        return f"needs {needs(job)}; no worker has that: {listed(taking, lambda one: f'{one.name} has {had(one.device)}')}"
    if not able:
        names = listed(suiting, lambda one: one.name)
        return f"the disk for files of jobs is nearly full, so that no job is begun (DETKDS_DISK_FREE_GIB): {names}"
    running = fleet.running.get(job.owner, 0)
    if fleet.allowed is not None and job.owner and running >= fleet.allowed:
        return f"owner {job.owner} runs {running} of {fleet.allowed} allowed"
    # Only what one of these workers could take is before it.
    before = before_each[place]
    if fleet.most_urgent > job.priority:
        could = (one for one, first, then in zip(fleet.queue[:place], before_each, before_each[1:], strict=False) if then > first)
        if urgent := sum(one.priority > job.priority for one in could):
            return f"{jobs_are(urgent, ' of higher priority')} before it"
    if free > before:
        return "a worker takes it in a moment"
    if free:
        return f"{jobs_are(before)} before it"
    busy = listed(able, lambda one: f"{one.name} is held by {one.holds}")
    wanted = f"needs {needs(job)}; " if job.devices > 1 or job.memory_gib else ""
    return f"{wanted}{busy}" + (f"; {jobs_are(before)} before it" if before else "")


def needs(job: Queued) -> str:
    """`1 GPU with 12 GiB`, `2 GPUs`."""
    return gpus(job.devices, job.memory_gib)


def had(device: Device) -> str:
    """`1 GPU with 12 GiB`, `a CPU`."""
    return gpus(device.gpus, device.memory_gib) if device.gpus else "a CPU"


def gpus(count: int, memory_gib: int | None) -> str:
    with_it = f" with {memory_gib} GiB" if memory_gib else ""
    return f"{count} GPU{'' if count == 1 else 's'}{with_it}{' each' if with_it and count > 1 else ''}"


def jobs_are(count: int, which: str = "") -> str:
    return f"1 job{which} is" if count == 1 else f"{count} jobs{which} are"


def listed(workers_: Sequence[Seen], told_of: Callable[[Seen], str]) -> str:
    """What is told of at most NAMED of them, and how many more there are."""
    more = len(workers_) - NAMED
    return ", ".join(map(told_of, workers_[:NAMED])) + (f", and {more} more" if more > 0 else "")
