"""That a worker is there: said to the database again and again, from a thread of its own, also while a trainer runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.orm import Session

from detkds_core.store import Store, workers
from detkds_worker.supervise import UNREACHABLE, first_line

log = logging.getLogger("detkds.worker")

LEAVING_SECONDS = 2.0  # a worker that ends does not wait longer for the database to hear of it


class Presence:
    """From `begin` to `end` the database counts this worker; one that is killed, for `seconds` more."""

    def __init__(self, store: Store, name: str, seconds: float) -> None:
        self.store, self.name, self.seconds = store, name, seconds
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
            self.tell(lambda session: workers.present(session, self.name, seconds=self.seconds))
            self.ending.wait(self.seconds / 3)
        self.tell(lambda session: workers.leave(session, self.name))

    def tell(self, what: Callable[[Session], None]) -> None:
        try:
            with self.store.begin() as session:
                what(session)
        except UNREACHABLE as error:
            log.warning("the database cannot be reached: %s", first_line(error))
