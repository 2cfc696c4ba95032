"""The local loop: claim, supervise, repeat. What runs where there is no broker."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from detkds_core import logs
from detkds_core.store import UNREACHABLE, Store, disk, jobs
from detkds_core.store.queue import Device
from detkds_worker.gpus import own_device
from detkds_worker.identity import Name
from detkds_worker.presence import Presence
from detkds_worker.settings import Settings
from detkds_worker.supervise import first_line, run_claim

log = logging.getLogger("detkds.worker")


class Drain:
    """Set by SIGTERM or SIGINT: give the running job back and end. A plain flag: a lock taken in a signal handler can deadlock."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def ask(self, *_: object) -> None:
        self.asked = True

    def listen(self) -> Drain:
        signal.signal(signal.SIGTERM, self.ask)
        signal.signal(signal.SIGINT, self.ask)
        return self


def run(store: Store, settings: Settings, draining: Callable[[], bool]) -> None:
    """Work on one job after the other until `draining()`; a database that cannot be reached is asked again."""
    device = own_device()
    name = Name(settings.home, settings.worker_name, device)
    presence = Presence(store, str(name), device, settings)
    presence.begin()
    short = None
    try:
        with logs.bound(worker=str(name)):
            log.info("the worker waits for jobs", extra={"device": device.name, "artifacts": str(settings.artifacts)})
            while not draining():
                said, short = short, disk.shortage(settings.filled_folder, settings.disk_free_gib)
                if short and not said:
                    log.warning("no job is taken", extra={"reason": short})
                claim = None if short else take(store, settings, str(name), device)
                if claim is None:
                    time.sleep(settings.poll_seconds)
                else:
                    run_claim(store, claim, settings, draining=draining)
    finally:
        presence.end()


def take(store: Store, settings: Settings, name: str, device: Device) -> jobs.Claim | None:
    """The next job in the queue that this worker may have. None: there is none, or the database cannot be reached."""
    try:
        with store.begin() as session:
            return jobs.claim(
                session, worker=name, lease_seconds=settings.lease_seconds, device=device, most_running=settings.quota_running or None
            )
    except UNREACHABLE as error:
        log.warning("the database cannot be reached", extra={"reason": first_line(error)})
        return None
