"""The local loop: claim, supervise, repeat. What runs where there is no broker."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable

from detkds_core.store import Store, jobs
from detkds_worker.presence import Presence
from detkds_worker.settings import Settings
from detkds_worker.supervise import UNREACHABLE, first_line, run_claim

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
    worker = worker_name()
    log.info("worker %s waits for jobs, artifacts go to %s", worker, settings.artifacts)
    presence = Presence(store, worker, settings.lease_seconds)
    presence.begin()
    try:
        while not draining():
            try:
                with store.begin() as session:
                    claim = jobs.claim(session, worker=worker, lease_seconds=settings.lease_seconds)
            except UNREACHABLE as error:
                log.warning("the database cannot be reached: %s", first_line(error))
                claim = None
            if claim is None:
                time.sleep(settings.poll_seconds)
            else:
                run_claim(store, claim, settings, draining=draining)
    finally:
        presence.end()


def worker_name() -> str:
    """Who holds a lease: host, process and GPU, so that a person finds the machine."""
    return f"{socket.gethostname()}/{os.getpid()}/{gpu()}"


def gpu() -> str:
    """The UUID of the GPU that this worker may use, by nvidia-smi; "cpu" without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "cpu"
    command = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return "+".join(answer.stdout.split()) if answer.returncode == 0 and answer.stdout.strip() else "cpu"
