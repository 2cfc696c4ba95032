"""The evolver's loop: every search a step further, lost workers' jobs back into the queue, the bell rung for what waits."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from detkds_core import logs
from detkds_core.evolution import Evolution
from detkds_core.store import UNREACHABLE, Store, distillations, jobs, leases, searches
from detkds_core.store.artifacts import artifacts_at
from detkds_core.store.ids import new_id
from detkds_core.store.vocabulary import EVOLVER
from detkds_evolver import distill
from detkds_evolver.doorbell import Doorbell
from detkds_evolver.drive import SearchError, recall, step
from detkds_evolver.retention import Retention
from detkds_evolver.settings import Settings

log = logging.getLogger("detkds.evolver")

RING_SECONDS = 0.5  # between two rings within a round
ERRORS = 5  # steps of one search that may fail in a row; more is no accident
GARBAGE = (50_000, 20, 20)  # thresholds of Python's collector, whose own are (700, 10, 10)


class Evolver:
    """What one process knows between two rounds; all of it can be lost."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.holder = f"{socket.gethostname()}/{os.getpid()}/{new_id()}"
        broker = settings.broker_url.get_secret_value() if settings.broker_url else None
        self.doorbell = Doorbell(broker)
        self.rings = broker is not None
        assert settings.artifacts is not None
        self.retention = Retention(store, artifacts_at(settings.artifacts), settings.keep_days)
        self.evolutions: dict[str, Evolution] = {}
        self.not_before: dict[str, float] = {}  # search that failed a step -> time.monotonic() of its next try
        self.on_duty_until = 0.0  # time.monotonic() by which the lease must be renewed
        self.reap_at = 0.0
        self.ring_at = 0.0  # time.monotonic() from which the bell is rung between two searches of a round

    def round(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Do what there is to do; False while another evolver is on duty.

        With many searches a round takes long. So between two of them it ends where `stopping()`, or where another evolver has taken over,
        lost jobs go back into the queue, and whoever is free hears of the first ones' jobs.
        """
        if not self.on_duty():
            return False
        self.reap()
        with self.store.read() as session:
            due = searches.due(session)
            succeeded = [job.id for job in jobs.succeeded_distillations(session)]
        for search_id in due:
            self.drive(search_id)
            if stopping():
                return True
            if not self.on_duty():
                return False
            self.reap()
            if time.monotonic() >= self.ring_at:
                self.ring()
        for job_id in succeeded:
            self.finish(job_id)
        self.ring()
        return True

    def ring(self) -> None:
        """Wake workers for what waits."""
        if self.rings:
            with self.store.read() as session:
                waiting = jobs.waiting(session)
            self.doorbell.ring(waiting)
            self.ring_at = time.monotonic() + RING_SECONDS

    def on_duty(self) -> bool:
        """Whether this process is the one that works. Two at once would only be slower: each step locks its search."""
        now = time.monotonic()
        if now < self.on_duty_until:
            return True
        with self.store.begin() as session:
            mine = leases.acquire(session, EVOLVER, holder=self.holder, seconds=self.settings.evolver_lease_seconds)
        if mine:
            self.on_duty_until = now + self.settings.evolver_lease_seconds / 3
        else:
            self.evolutions.clear()
        return mine

    def reap(self) -> None:
        now = time.monotonic()
        if now < self.reap_at:
            return
        self.reap_at = now + self.settings.reap_seconds
        with self.store.begin() as session:
            for job_id in jobs.reap(session):
                log.warning("the worker of a job was lost", extra={"job_id": job_id})
        self.retention.step()

    def drive(self, search_id: str) -> None:
        """One step of one search; whatever goes wrong in it is that search's alone."""
        if time.monotonic() >= self.not_before.get(search_id, 0.0):
            with logs.bound(search_id=search_id):
                self.take_step(search_id)

    def take_step(self, search_id: str) -> None:
        known = self.evolutions.pop(
            search_id, None
        )  # back only after a commit: a step that was rolled back leaves it ahead of the database
        try:
            if known is None:
                with self.store.read() as session:
                    known = recall(session, search_id)
            with self.store.begin() as session:
                evolution = step(session, search_id, known)
        except SearchError as error:
            log.warning("a search cannot go on", extra={"reason": str(error)})
            self.fail(search_id, str(error))
        except UNREACHABLE:
            raise
        except Exception as error:
            log.exception("a step of a search failed")
            with self.store.begin() as session:
                errors = searches.count_error(session, search_id)
            self.not_before[search_id] = time.monotonic() + self.settings.evolver_poll_seconds * 2**errors
            if errors >= ERRORS:
                self.fail(search_id, f"the evolver failed {errors} times in a row: {type(error).__name__}: {error}")
        else:
            self.not_before.pop(search_id, None)
            if evolution is not None:
                self.evolutions[search_id] = evolution
            else:
                log.info("a search has ended")

    def fail(self, search_id: str, reason: str) -> None:
        with self.store.begin() as session:
            searches.fail(session, search_id, reason)

    def finish(self, job_id: str) -> None:
        """The result of one distillation; one that cannot be read fails it."""
        try:
            with self.store.begin() as session:
                distill.finish(session, job_id)
        except UNREACHABLE:
            raise
        except Exception as error:
            log.exception("the result of a job cannot be read", extra={"job_id": job_id})
            with self.store.begin() as session:
                job = jobs.get(session, job_id)
                if job is not None and job.distillation_id is not None and jobs.collect(session, job):
                    distillations.fail(session, job.distillation_id, f"the trainer's result cannot be read: {error!r}")

    def retire(self) -> None:
        """Let another evolver begin at once."""
        with self.store.begin() as session:
            leases.give_up(session, EVOLVER, holder=self.holder)
        self.doorbell.close()


def run(store: Store, settings: Settings, stopping: Callable[[], bool]) -> None:
    """Drive all searches until `stopping()`; a database that cannot be reached is asked again."""
    evolver = Evolver(store, settings)
    log.info("the evolver drives the searches", extra={"holder": evolver.holder})
    while not stopping():
        try:
            evolver.round(stopping)
        except UNREACHABLE as error:
            log.warning("the database cannot be reached", extra={"reason": str(error).splitlines()[0]})
            evolver.evolutions.clear()
        time.sleep(settings.evolver_poll_seconds)
    try:
        evolver.retire()
    except UNREACHABLE as error:
        log.warning("the lease stays until it runs out", extra={"reason": str(error).splitlines()[0]})


class Stop:
    """Set by SIGTERM or SIGINT. A plain flag: a lock taken in a signal handler can deadlock."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def ask(self, *_: object) -> None:
        self.asked = True

    def listen(self) -> Stop:
        signal.signal(signal.SIGTERM, self.ask)
        signal.signal(signal.SIGINT, self.ask)
        return self


def collect_rarely() -> None:
    """Let Python look for garbage in cycles a hundred times more rarely, and never among what is there now.

    The histories of open searches are millions of objects that live for hours. Looking through them again and again made a candidate cost
    the more, the more searches were open.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)


def main() -> None:
    settings = Settings()
    settings.configure_logs()
    collect_rarely()
    run(Store(settings.url), settings, Stop().listen())
