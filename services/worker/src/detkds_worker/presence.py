"""That a worker is there, with which GPUs: said to the database again and again, from a thread of its own, also while a trainer runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from detkds_core.store import UNREACHABLE, Store, disk, workers
from detkds_core.store.queue import Device
from detkds_worker import gpus
from detkds_worker.settings import Settings
from detkds_worker.supervise import first_line

log = logging.getLogger("detkds.worker")

LEAVING_SECONDS = 2.0  # a worker that ends does not wait longer for the database to hear of it


class Presence:
    """From `begin` to `end` the database counts this worker; one that is killed, for a lease more.

    on_drain: called with whether the worker drains, whenever that has changed. What it raises is logged, and it is called again later.
    """

    def __init__(
        self, store: Store, name: str, device: Device, settings: Settings, on_drain: Callable[[bool], None] = lambda draining: None
    ) -> None:
        self.store, self.name, self.device, self.settings, self.on_drain = store, name, device, settings, on_drain
        self.drains = False
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.beat, name="presence", daemon=True)

    def begin(self) -> None:
        self.thread.start()

    def end(self) -> None:
        self.ending.set()
        if self.thread.is_alive():
            self.thread.join(LEAVING_SECONDS)

    def beat(self) -> None:
        while not self.ending.is_set():
            # Asked before the database is held: a busy driver takes its time.
            low = disk.shortage(self.settings.filled_folder, self.settings.disk_free_gib) is not None
            self.tell(partial(self.say, disk_low=low, gpu_use=gpus.measured()))
            self.ending.wait(self.settings.lease_seconds / 3)
        self.tell(lambda session: workers.leave(session, self.name))

    def say(self, session: Session, *, disk_low: bool, gpu_use: Sequence[Mapping[str, Any]]) -> None:
        """That the worker is there; and hear whether it drains."""
        drains = workers.present(
            session, self.name, seconds=self.settings.lease_seconds, device=self.device, disk_low=disk_low, gpu_use=gpu_use
        )
        if drains == self.drains:
            return
        log.info("the worker drains: it takes no new job" if drains else "the worker takes jobs again", extra={"worker": self.name})
        try:
            self.on_drain(drains)
        except Exception:
            log.exception("whether the worker drains could not be passed on", extra={"worker": self.name})
        else:
            self.drains = drains

    def tell(self, what: Callable[[Session], None]) -> None:
        try:
            with self.store.begin() as session:
                what(session)
        except UNREACHABLE as error:
            log.warning("the database cannot be reached", extra={"worker": self.name, "reason": first_line(error)})
