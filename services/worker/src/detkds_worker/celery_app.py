"""The worker as a Celery application, for hosts with a broker. A message carries a job's id and nothing else.

    celery -A detkds_worker.celery_app worker

The message is only a doorbell: whoever is woken takes the jobs that are next in the queue of the database, whatever it was rung for, until
none waits; a message that comes twice or too late finds nothing and is dropped. A worker that drains stops listening, so that it takes no
message from those who work.
On SIGTERM Celery takes no more messages and waits for the running task; the task is told at once, gives its job back and ends in seconds.
(Celery's soft shutdown, REMAP_SIGTERM=SIGQUIT, would sleep through its whole timeout even when the task has already ended.)
"""

from __future__ import annotations

import logging
import os
import signal
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down

from detkds_core import logs
from detkds_core.store import Store, disk
from detkds_core.store.queue import Device
from detkds_worker.gpus import own_device
from detkds_worker.identity import Name
from detkds_worker.loop import Drain, take
from detkds_worker.presence import Presence
from detkds_worker.settings import Settings, stop_on_faulty_detectors
from detkds_worker.supervise import run_claim

log = logging.getLogger("detkds.worker")

TASK = "detkds.run_job"  # as the evolver calls it
CELERY_SETTINGS: dict[str, Any] = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,
    "task_acks_late": False,  # the lease recovers a job, not the broker: late acks ran one task four times
    "worker_consumer": "detkds_worker.messages:OurMessages",
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,  # prefetch 1 would still hold one message behind a long job
    "worker_concurrency": 1,  # one worker a GPU
    "worker_pool": "prefork",
    "worker_pool_start_method": "spawn",  # a forked child would share database connections
    "worker_max_tasks_per_child": 1,
    "worker_proc_alive_timeout": 120,  # by default a child that is not up in 4 s is killed: on a busy host every one of them, for ever
    "broker_transport_options": {"visibility_timeout": 3600, "unacked_restore_interval": 5, "unacked_restore_throttle": 1},
    "broker_connection_retry_on_startup": True,
    "worker_soft_shutdown_timeout": 60,
}

settings = Settings()
app = Celery("detkds", broker=settings.broker_url.get_secret_value() if settings.broker_url else None)
app.conf.update(CELERY_SETTINGS)

drain = Drain()
NAME = "DETKDS_HELD_NAME"  # environment variable by which a child knows its worker's name
node: list[str] = []  # what Celery calls this worker, once it is known


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Woken for `job_id`: supervise the jobs that are next, one after the other, until none waits that this worker may have.

    Not one job a message: the bell would ring for a job whose message another job has used up only after a while.
    """
    signal.signal(signal.SIGTERM, drain.ask)  # here and not at the child's start: Celery resets the signals of a new child
    worker = os.environ[NAME]
    with logs.bound(worker=worker):
        while not drain():
            if short := disk.shortage(settings.filled_folder, settings.disk_free_gib):
                log.warning("no job is taken", extra={"reason": short})
                return
            claim = take(store(), settings, worker, device())
            if claim is None:
                log.info("nothing waits (any more) that this worker may take", extra={"rung_for": job_id})
                return
            run_claim(store(), claim, settings, draining=drain)


@cache
def store() -> Store:
    return Store(settings.url)


@cache
def device() -> Device:
    return own_device()


@cache
def name() -> Name:
    """Of Celery's main process, which holds it; its children, which live for one message each, find it in their environment."""
    return Name(settings.home, settings.worker_name, device())


@cache
def presence() -> Presence:
    return Presence(store(), str(name()), device(), settings, listen)


def listen(draining: bool) -> None:
    """Let this worker take messages, or leave them to others."""
    control = app.control.cancel_consumer if draining else app.control.add_consumer
    control(app.conf.task_default_queue, destination=[node[0]])


@worker_init.connect  # type: ignore[untyped-decorator]
def begin(sender: Any, **_: object) -> None:
    """Before there are children; those are not ended by a file that somebody is about to write."""
    stop_on_faulty_detectors()
    node.append(sender.hostname)
    os.environ[NAME] = str(name())


@setup_logging.connect  # type: ignore[untyped-decorator]
def write_logs(**_: object) -> None:
    """In Celery's main process and in each child; whoever is connected here writes the log instead of Celery."""
    settings.configure_logs()


@worker_ready.connect  # type: ignore[untyped-decorator]
def arrive(**_: object) -> None:
    presence().begin()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def depart(**_: object) -> None:
    presence().end()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def tell_children(**_: object) -> None:
    """Runs in Celery's main process, inside its signal handler."""
    from billiard import active_children  # type: ignore[import-untyped]

    for child in active_children():
        os.kill(child.pid, signal.SIGTERM)
