"""`python -m detkds_worker` as a process: the local loop, ended politely and not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detkds_core.store import Store, jobs, workers
from detkds_worker.loop import gpu, worker_name

from .test_processes import alive, until

SLEEPER = "import os, sys, time; open(os.path.join(sys.argv[2], 'pid'), 'w').write(str(os.getpid())); time.sleep(60)"
QUICK = "import json, sys; json.dump({'seed': json.load(open(sys.argv[1]))['seed']}, open(sys.argv[2] + '/result.json', 'w'))"


@pytest.fixture
def database(tmp_path: Path) -> Store:
    store = Store(f"sqlite:///{tmp_path / 'detkds.sqlite'}")
    store.migrate()
    return store


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[bytes]"]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def start(home: Path, trainer: str, **settings: str) -> "subprocess.Popen[bytes]":
    script = home / "trainer.py"
    script.write_text(trainer)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
    environment |= {"DETKDS_HOME": str(home), "DETKDS_TRAINER": f"{sys.executable} {script}", "DETKDS_POLL_SECONDS": "0.1", **settings}
    with (home / "worker.log").open("ab") as output:
        return subprocess.Popen([sys.executable, "-m", "detkds_worker"], env=environment, stdout=output, stderr=subprocess.STDOUT)


def enqueue(store: Store, **spec: Any) -> str:
    with store.begin() as session:
        return str(jobs.enqueue(session, kind="evaluate", spec={"candidates": [], **spec}).id)


def column(store: Store, job: str, name: str) -> Any:
    with store.begin() as session:
        return getattr(jobs.get(session, job), name)


def state(store: Store, job: str) -> Any:
    return column(store, job, "state")


def test_jobs_are_worked_off_and_sigterm_ends_an_idle_worker(tmp_path: Path, database: Store, started: list[Any]) -> None:
    queued = [enqueue(database, seed=seed) for seed in range(3)]
    started.append(start(tmp_path, QUICK))
    assert until(lambda: all(state(database, job) == "SUCCEEDED" for job in queued), 20)
    assert [column(database, job, "result") for job in queued] == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    started[0].terminate()
    assert started[0].wait(5) == 0


def test_workers_are_counted_from_start_to_end_also_while_they_train(tmp_path: Path, database: Store, started: list[Any]) -> None:
    def alive() -> int:
        with database.read() as session:
            return workers.alive(session)

    job = enqueue(database)
    for _ in range(2):
        started.append(start(tmp_path, SLEEPER, DETKDS_LEASE_SECONDS="1"))
    assert until(lambda: alive() == 2 and state(database, job) == "RUNNING", 30)
    time.sleep(1.5)
    assert alive() == 2, "both say so again"
    started[0].terminate()
    started[0].wait(10)
    assert alive() == 1
    started[1].kill()
    assert until(lambda: alive() == 0, 5), "not heard of any more"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_gives_its_job_back_within_seconds(
    tmp_path: Path, database: Store, started: list[Any], number: signal.Signals
) -> None:
    job = enqueue(database)
    started.append(start(tmp_path, SLEEPER))
    pid_file = tmp_path / "artifacts" / job / "1" / "pid"
    assert until(lambda: pid_file.exists() and pid_file.read_text() != "", 20)
    started[0].send_signal(number)
    before = time.monotonic()
    assert started[0].wait(10) == 0
    assert time.monotonic() - before < 5
    assert state(database, job) == "QUEUED"
    assert not alive(int(pid_file.read_text()))


def test_a_killed_worker_takes_its_trainer_along(tmp_path: Path, database: Store, started: list[Any]) -> None:
    job = enqueue(database)
    started.append(start(tmp_path, SLEEPER))
    pid_file = tmp_path / "artifacts" / job / "1" / "pid"
    assert until(lambda: pid_file.exists() and pid_file.read_text() != "", 20)
    started[0].kill()
    assert until(lambda: not alive(int(pid_file.read_text())), 3)
    assert state(database, job) == "RUNNING"  # until its lease ends and the evolver's reaper comes by


def test_a_worker_is_named_by_host_process_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_name().split("/")[1] == str(os.getpid())
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ "$3" = "--id=2" ] && echo GPU-2c || { echo GPU-0a; echo GPU-1b; }\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu() == "GPU-0a+GPU-1b"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert gpu() == "GPU-2c"
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert gpu() == "cpu"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert gpu() == "cpu"


def test_with_a_broker_the_same_command_is_the_celery_worker(tmp_path: Path, redis_server: str, started: list[Any]) -> None:
    started.append(start(tmp_path, QUICK, DETKDS_BROKER_URL=redis_server))
    worker_log = tmp_path / "worker.log"
    assert until(lambda: " ready." in worker_log.read_text(), 30)
    assert "detkds.run_job" in worker_log.read_text()
    started[0].terminate()
    assert started[0].wait(10) == 0
