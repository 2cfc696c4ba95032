"""Datasets are checked beside the requests: each by a process of its own (`check`), a few at a time, whatever becomes of this one.

The workers are not asked: they may train for hours, and a check needs no GPU. A check that is cut short, with this service or by itself, is
begun anew, here or by another service on the same database; one that ends badly again and again refuses its dataset (docs/adr/0011).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from detkds_api.intake import PASSED_ON
from detkds_api.paths import inside
from detkds_api.problems import FieldError
from detkds_api.settings import Settings
from detkds_core import processes
from detkds_core.store import UNREACHABLE, Store, datasets
from detkds_core.store.models import Dataset

THREAD = "dataset checks"
AT_ONCE = 2  # checks of this service
ATTEMPTS = 3  # that may end without an answer
MOST_ATTEMPTS = 10  # those included that ended with their service, which at first says nothing of the dataset
PATIENCE_SECONDS = 600.0  # that a service waits for another one which has the folders that it lacks itself
LEASE_SECONDS = 30.0
SILENCE_SECONDS = 900.0  # without a word; the largest annotation file is read in less
IDLE_SECONDS = 2.0  # between two looks for what other services left
TICK = 0.1
MEMORY = 4 << 30  # bytes that a check may have beside what its annotations need: eight images of 256 MiB are read at once
OF_ANNOTATIONS = 16  # bytes of memory that a byte of annotations may need, as Python objects
log = logging.getLogger("detkds.api")


class Check:
    """The process that checks one dataset. holder: of its lease."""

    def __init__(self, dataset: Dataset, holder: str, settings: Settings) -> None:
        self.name, self.holder, self.attempts = dataset.name, holder, dataset.attempts
        self.memory = memory_for(dataset.asked or {})
        asked = {"name": dataset.name, **(dataset.asked or {}), "roots": [str(root) for root in settings.data_roots], "memory": self.memory}
        environment = {name: value for name, value in os.environ.items() if name in PASSED_ON}
        self.process = processes.start_bound(
            [sys.executable, "-m", "detkds_api.check", json.dumps(asked)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.held = self.heard = time.monotonic()
        self.rest = b""
        self.progress: Mapping[str, Any] | None = None  # that nobody was told of yet
        self.answer: Mapping[str, Any] | None = None

    def read(self) -> None:
        """Take in what the process has said."""
        assert self.process.stdout is not None
        while said := self.process.stdout.read(1 << 16):
            self.heard = time.monotonic()
            *lines, self.rest = (self.rest + said).split(b"\n")
            for line in lines:
                told = json.loads(line)
                if "progress" in told:
                    self.progress = told["progress"]
                elif "crash" in told:
                    log.error("the check of a dataset failed", extra={"dataset": self.name, "crash": told["crash"]})
                else:
                    self.answer = told

    def end(self) -> int:
        """Stop the process, if it runs; its exit code."""
        code = processes.stop_group(self.process, grace=0)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Checker:
    """Checks what waits for it, in a thread that lives as long as the service."""

    def __init__(self, settings: Settings) -> None:
        self.store, self.settings = Store(settings.url), settings  # connections of its own: requests wait for none of them
        self.place = f"{socket.gethostname()}:{os.getpid()}"
        self.count = 0
        self.checks: list[Check] = []
        self.nudged, self.ending = threading.Event(), False
        self.thread = threading.Thread(target=self.run, name=THREAD, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def nudge(self) -> None:
        """Something waits."""
        self.nudged.set()

    def stop(self) -> None:
        """Give back what is being checked and end."""
        self.ending = True
        self.nudged.set()
        self.thread.join()

    def run(self) -> None:
        while not self.ending:
            pause = IDLE_SECONDS
            try:
                self.step()
                pause = TICK if self.checks else IDLE_SECONDS
            except UNREACHABLE as error:
                log.warning("the database cannot be reached", extra={"reason": str(error).partition("\n")[0]})
            except Exception:
                log.exception("the checks of datasets go on after an error")
            self.nudged.wait(pause)
            self.nudged.clear()
        for check in self.checks:
            check.end()
            try:
                self.leave(check, counted=False)
            except UNREACHABLE:
                log.warning("a check could not be given back; its lease runs out", extra={"dataset": check.name})
        self.store.close()

    def step(self) -> None:
        """Look at every check that runs, and begin what waits while there is room."""
        for check in list(self.checks):
            try:
                self.look(check)
            except UNREACHABLE:
                raise
            except Exception:  # of one check: the others go on
                log.exception("a check is ended after an error", extra={"dataset": check.name})
                self.checks.remove(check)
                check.end()
        if len(self.checks) < AT_ONCE and not self.ending:
            with self.store.read() as session:
                waiting = [one.name for one in datasets.unheld(session) if self.suits(one)]
            for name in waiting[: AT_ONCE - len(self.checks)]:
                self.begin(name)

    def suits(self, dataset: Dataset) -> bool:
        """Whether this service sees the files; one that has other folders leaves them to the others."""
        try:
            for split in (dataset.asked or {}).values():
                for path in split.values():
                    inside(path, self.settings.data_roots)
        except ValueError:
            return time.time() - dataset.updated_at.timestamp() > PATIENCE_SECONDS  # nobody does: its check says so
        return True

    def begin(self, name: str) -> None:
        """Begin a check; one that took its services with it, again and again, refuses its dataset."""
        self.count += 1
        holder = f"{self.place}:{self.count}:{time.monotonic_ns()}"
        with self.store.begin() as session:
            dataset = datasets.begin_check(session, name, holder=holder, seconds=LEASE_SECONDS)
            if dataset is not None and dataset.attempts > MOST_ATTEMPTS:
                why = f"its check was begun {MOST_ATTEMPTS} times, and each time the service ended before it"
                datasets.refuse(session, name, holder=holder, problems=[FieldError("", why)._asdict()])
                return
        if dataset is None:
            return
        try:
            self.checks.append(Check(dataset, holder, self.settings))
        except OSError as error:  # no process can be started: the lease runs out, and it is tried again
            log.warning("the check of a dataset cannot be begun", extra={"dataset": name, "reason": str(error)})
            return
        log.info("a dataset is checked", extra={"dataset": name, "attempt": dataset.attempts})

    def look(self, check: Check) -> None:
        """Tell its progress, or what came out."""
        over = processes.has_exited(check.process)  # asked before reading, so that what was said last is read too
        check.read()
        now = time.monotonic()
        if not over and now - check.heard > SILENCE_SECONDS:
            self.close(check, f"it said nothing for {SILENCE_SECONDS:.0f} s")
        elif over:
            self.close(check, "")
        elif check.progress is not None or now - check.held > LEASE_SECONDS / 3:
            with self.store.begin() as session:
                mine = datasets.hold(session, check.name, holder=check.holder, seconds=LEASE_SECONDS, progress=check.progress)
            check.held, check.progress = now, None
            if not mine:
                check.end()
                self.checks.remove(check)

    def close(self, check: Check, why: str) -> None:
        """Write what the check found; one that ended without an answer is tried again, a few times."""
        answer, code = check.answer, check.end()
        if answer is None and check.attempts >= ATTEMPTS:
            why = why or f"it ended with exit code {code} (it may have {check.memory >> 20} MiB of memory)"
            answer = {"problems": [FieldError("", f"the check ended {ATTEMPTS} times without an answer: {why}")._asdict()]}
        self.checks.remove(check)  # before anything is written: should that fail, the lease runs out and the check is begun anew
        if answer is None:
            log.warning("the check of a dataset ended without an answer", extra={"dataset": check.name, "exit_code": code})
            self.leave(check, counted=True)
            return
        with self.store.begin() as session:
            if "dataset" in answer:
                datasets.ready(session, check.name, holder=check.holder, data=answer["dataset"])
            else:
                datasets.refuse(session, check.name, holder=check.holder, problems=answer["problems"])
        log.info("a dataset was checked", extra={"dataset": check.name, "problems": len(answer.get("problems", ()))})

    def leave(self, check: Check, *, counted: bool) -> None:
        with self.store.begin() as session:
            datasets.leave(session, check.name, holder=check.holder, counted=counted)


def memory_for(asked: Mapping[str, Mapping[str, str]]) -> int:
    """Bytes that a check may have: annotations become Python objects. At most a share of the machine's."""
    # Here and not above: that room brings numpy and Pillow, which a start need not wait for.
    from detkds_core.datasets.registration import MAX_ANNOTATION_BYTES

    sizes = 0
    for split in asked.values():
        with suppress(OSError):  # it will be told
            sizes += min(Path(split["annotations"]).stat().st_size, MAX_ANNOTATION_BYTES)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(MEMORY + OF_ANNOTATIONS * sizes, max(MEMORY, whole // AT_ONCE))
