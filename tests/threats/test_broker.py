"""Messages in the broker that nobody of ours sent: unknown tasks, pickles, wrong ids. The worker drops them, and goes on."""

import base64
import json
import os
import pickle
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from detkds_core.store import Store, jobs

QUICK = "import json, sys; json.dump({}, open(sys.argv[2] + '/result.json', 'w'))"


def until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


class Worker:
    """The Celery worker as a process, over a real broker, and what its log says."""

    def __init__(self, home: Path, broker: str) -> None:
        self.home, self.broker = home, redis.Redis.from_url(broker)
        self.store = Store(f"sqlite:///{home / 'detkds.sqlite'}")
        self.store.migrate()
        (home / "trainer.py").write_text(QUICK)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
        environment |= {"DETKDS_HOME": str(home), "DETKDS_TRAINER": f"{sys.executable} {home / 'trainer.py'}", "DETKDS_BROKER_URL": broker}
        with (home / "worker.log").open("wb") as output:
            self.process = subprocess.Popen([sys.executable, "-m", "detkds_worker"], env=environment, stdout=output, stderr=output)

    def log(self) -> str:
        return (self.home / "worker.log").read_text()

    def events(self) -> list[str]:
        """The events of its log. A line that is being written is not whole yet."""
        lines = [line for line in self.log().splitlines(keepends=True) if line.startswith('{"time"') and line.endswith("\n")]
        return [json.loads(line)["event"] for line in lines]

    def send(self, body: bytes, content_type: str = "application/json", encoding: str = "utf-8", **headers: Any) -> None:
        """A message as whoever reached the broker would write it."""
        known = {"lang": "py", "task": "detkds.run_job", "id": str(uuid.uuid4()), "root_id": None, "parent_id": None, "group": None}
        properties = {
            "correlation_id": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        }
        message = {"body": base64.b64encode(body).decode(), "content-encoding": encoding, "content-type": content_type}
        self.broker.lpush("celery", json.dumps({**message, "headers": known | headers, "properties": properties}))

    def send_task(self, *arguments: Any, **headers: Any) -> None:
        self.send(
            json.dumps([list(arguments), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode(), **headers
        )

    def enqueue(self) -> str:
        with self.store.begin() as session:
            return str(jobs.enqueue(session, kind="evaluate", spec={}).id)

    def state(self, job_id: str) -> str:
        with self.store.read() as session:
            return str(jobs.get(session, job_id).state)


@pytest.fixture
def worker(tmp_path: Path, redis_server: str) -> Iterator[Worker]:
    started = Worker(tmp_path, redis_server)
    started.broker.delete("celery")
    try:
        until(lambda: " ready." in started.log(), 120, "the worker is ready")
        yield started
    finally:
        started.process.terminate()
        started.process.wait(30)
        started.broker.close()


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_what_nobody_of_ours_sent_runs_nothing_and_stops_nothing(worker: Worker, tmp_path: Path) -> None:
    trace = tmp_path / "the-payload-ran"
    waiting = worker.enqueue()
    evil = pickle.dumps([[Payload(trace)], {}, {}])
    sent = 0

    def send(how: Callable[..., None], *arguments: Any, **headers: Any) -> None:
        nonlocal sent
        how(*arguments, **headers)
        sent += 1

    for content_type in ("application/x-python-serialize", "application/json", "application/x-yaml", "application/data", "text/plain"):
        send(worker.send, evil, content_type, "binary")
    send(worker.send, b"!!python/object/apply:os.system ['touch " + str(trace).encode() + b"']", "application/x-yaml")
    for body in (
        b"not json at all",
        b"[" * 4000,
        b"[" * 100_000,
        b"7",
        b"null",
        b'"text"',
        b"{}",
        b'{"args": [], "kwargs": {}}',
        b"[[], {}]",
    ):
        send(worker.send, body)
    for task in ("os.system", "celery.map", "celery.chord_unlock", "detkds.evil", "", "detkds_worker.celery_app.run_job", None, 7):
        send(worker.send_task, f"touch {trace}", task=task)
    for job_id in (None, "", "' OR '1'='1", "../../etc", {"id": waiting}, [waiting], 7, "\0" * 36, waiting.upper(), waiting + " "):
        send(worker.send_task, job_id)
    for arguments in ((), (waiting, waiting)):
        send(worker.send_task, *arguments)
    for headers in ({"eta": "2999-01-01T00:00:00"}, {"timelimit": [0.001, 0.001]}, {"group": "g"}, {"id": None}, {"id": 7}):
        send(worker.send_task, waiting, **headers)
    links = {"callbacks": [{"task": "detkds.run_job", "args": [waiting]}]}
    send(worker.send, json.dumps([[waiting], {}, links]).encode())
    dropped = "a message that is not ours is dropped"
    until(lambda: worker.events().count(dropped) == sent or worker.process.poll() is not None, 240, "each of them is dropped")
    assert worker.process.poll() is None, worker.log()[-3000:]
    assert worker.state(waiting) == "QUEUED", "none of them was a ring"
    worker.send_task("0" * 36)  # it looks like one of ours; no such job is there, and a ring only says that something may wait
    until(lambda: worker.state(waiting) == "SUCCEEDED" or worker.process.poll() is not None, 120, "what was next in the queue")
    last = worker.enqueue()
    worker.send_task(last)
    until(lambda: worker.state(last) == "SUCCEEDED" or worker.process.poll() is not None, 120, "the job that was really rung for")
    until(lambda: worker.events().count("nothing waits (any more) that this worker may take") == 2, 120, "both rings have ended")
    assert worker.process.poll() is None, worker.log()[-3000:]
    assert not trace.exists()
    assert worker.broker.llen("celery") == 0
    assert worker.events().count(dropped) == sent
