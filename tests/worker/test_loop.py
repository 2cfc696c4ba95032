"""`python -m detkds_worker` as a process: the local loop, ended politely and not."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from detkds_core.store import Store, jobs, waiting, workers
from detkds_core.store.queue import CPU, Device
from detkds_worker import gpus
from detkds_worker.gpus import own_device
from detkds_worker.identity import Name

from .test_processes import alive, until

SLEEPER = "import os, sys, time; open(os.path.join(sys.argv[2], 'pid'), 'w').write(str(os.getpid())); time.sleep(60)"
QUICK = "import json, sys; json.dump({'seed': json.load(open(sys.argv[1]))['seed']}, open(sys.argv[2] + '/result.json', 'w'))"


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
    pid_file = tmp_path / "scratch" / job / "1" / "pid"
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
    pid_file = tmp_path / "scratch" / job / "1" / "pid"
    assert until(lambda: pid_file.exists() and pid_file.read_text() != "", 20)
    started[0].kill()
    assert until(lambda: not alive(int(pid_file.read_text())), 3)
    assert state(database, job) == "RUNNING"  # until its lease ends and the evolver's reaper comes by


def test_the_device_of_a_worker_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ "$3" = "--id=2" ] && echo "GPU-2c, 24564" || { echo "GPU-0a, 81559"; echo "GPU-1b, 12045"; }\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert own_device() == Device("GPU-0a+GPU-1b", 2, 12)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert own_device() == Device("GPU-2c", 1, 24)
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert own_device() == Device("cpu", 0, 0)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert own_device() == Device("cpu", 0, 0)


def test_a_worker_tells_how_busy_its_gpus_are(tmp_path: Path, database: Store, started: list[Any]) -> None:
    """nvidia-smi's own lines: a whole GPU, and a part of one, of which the driver tells no use."""
    smi = tmp_path / "nvidia-smi"
    lines = "GPU-0a, NVIDIA H100 80GB HBM3, 81559, 1024, 97\nGPU-1b, NVIDIA A100-SXM4-40GB, 40960, 0, [N/A]"
    smi.write_text(f'#!/bin/sh\n[ "$1" = "--query-gpu=uuid,memory.total" ] && exit 9\ncat <<END\n{lines}\nEND\n')
    smi.chmod(0o755)

    def devices() -> dict[str, Any]:
        with database.read() as session:
            return workers.gpu_use(session)

    started.append(start(tmp_path, QUICK, PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert until(devices, 20)
    assert devices() == {
        "GPU-0a": {
            "uuid": "GPU-0a",
            "name": "NVIDIA H100 80GB HBM3",
            "memory_bytes": 81559 << 20,
            "memory_used_bytes": 1 << 30,
            "use": 0.97,
        },
        "GPU-1b": {"uuid": "GPU-1b", "name": "NVIDIA A100-SXM4-40GB", "memory_bytes": 40 << 30, "memory_used_bytes": 0, "use": None},
    }


def test_a_driver_that_hangs_or_babbles_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho Unable to determine the device handle, unknown error\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert (gpus.measured(), own_device()) == ([], CPU)
    for limit in ("ASK_SECONDS", "START_SECONDS"):
        monkeypatch.setattr(gpus, limit, 0.2)
    smi.write_text("#!/bin/sh\nexec sleep 5\n")
    began = time.monotonic()
    assert (gpus.measured(), own_device()) == ([], CPU)
    assert time.monotonic() - began < 3


def test_a_worker_keeps_its_name_and_several_have_names_of_their_own(tmp_path: Path) -> None:
    host = socket.gethostname()
    first, second = Name(tmp_path, None, Device("GPU-0a", 1, 12)), Name(tmp_path, None, Device("GPU-0a", 1, 12))
    assert (str(first), str(second)) == (f"{host}/GPU-0a", f"{host}/GPU-0a#2")
    first.lock.close()  # as the kernel does when the process ends
    assert str(Name(tmp_path, None, Device("GPU-0a", 1, 12))) == f"{host}/GPU-0a"
    assert str(Name(tmp_path, "gpu-0", Device("GPU-0a", 1, 12))) == "gpu-0"


def standing(store: Store) -> dict[str, str]:
    with store.read() as session:
        return {one.worker.name: one.state for one in workers.standings(session)}


def drain(store: Store, name: str, *, draining: bool) -> None:
    assert until(lambda: name in standing(store), 10), "a busy machine may renew a lease of a second too late"
    with store.begin() as session:
        (worker,) = (one.worker for one in workers.standings(session) if one.worker.name == name)
        assert workers.drain(session, worker.id, draining=draining)


def test_a_draining_worker_ends_its_job_takes_none_and_stays_so_when_it_is_started_anew(
    tmp_path: Path, database: Store, started: list[Any]
) -> None:
    slow = SLEEPER.replace("time.sleep(60)", "time.sleep(2)") + "; open(sys.argv[2] + '/result.json', 'w').write('{}')"
    settings = {"DETKDS_WORKER_NAME": "gpu-0", "DETKDS_LEASE_SECONDS": "3"}
    first, second = enqueue(database), enqueue(database)
    started.append(start(tmp_path, slow, **settings))
    assert until(lambda: state(database, first) == "RUNNING", 20)
    assert column(database, first, "device") == "cpu"
    drain(database, "gpu-0", draining=True)
    assert until(lambda: standing(database) == {"gpu-0": "draining"}, 10)
    assert until(lambda: state(database, first) == "SUCCEEDED", 20)
    assert until(lambda: standing(database) == {"gpu-0": "drained"}, 10)
    started[0].kill()
    started[0].wait()
    started.append(start(tmp_path, slow, **settings))
    assert until(lambda: (tmp_path / "worker.log").read_text().count("drains: it takes no new job") == 2, 20), "each start is told"
    time.sleep(0.5)
    assert state(database, second) == "QUEUED"
    drain(database, "gpu-0", draining=False)
    assert until(lambda: state(database, second) == "SUCCEEDED", 20)


def test_a_worker_takes_no_job_while_the_disk_is_nearly_full(tmp_path: Path, database: Store, started: list[Any]) -> None:
    job = enqueue(database, seed=1)
    started.append(start(tmp_path, QUICK, DETKDS_DISK_FREE_GIB="1e9"))
    assert until(lambda: "no job is taken" in (tmp_path / "worker.log").read_text(), 20)
    assert until(lambda: standing(database) != {}, 10)
    with database.read() as session:
        (one,) = workers.standings(session)
        assert one.worker.disk_low
        assert waiting.of_job(waiting.gather(session, viewer=None, allowed=None), jobs.get(session, job)).startswith(
            "the disk for files of"
        )
    assert state(database, job) == "QUEUED"
    started[0].terminate()
    started[0].wait(10)
    started.append(start(tmp_path, QUICK, DETKDS_DISK_FREE_GIB="0"))
    assert until(lambda: state(database, job) == "SUCCEEDED", 20)


@pytest.fixture
def bell(redis_server: str) -> Iterator[Any]:
    """An empty broker, as who rings sees it."""
    app = Celery(broker=redis_server)
    app.control.purge()
    yield app
    app.close()


def test_with_a_broker_the_same_command_is_the_celery_worker_and_one_ring_has_it_take_all_that_waits_in_its_order(
    tmp_path: Path, database: Store, redis_server: str, bell: Any, started: list[Any]
) -> None:
    plain = enqueue(database, seed=1)
    with database.begin() as session:
        urgent = jobs.enqueue(session, kind="evaluate", spec={"candidates": [], "seed": 2}, priority=1).id
    started.append(start(tmp_path, QUICK, DETKDS_BROKER_URL=redis_server, DETKDS_WORKER_NAME="gpu-0"))
    worker_log = tmp_path / "worker.log"
    assert until(lambda: " ready." in worker_log.read_text(), 60)
    bell.send_task("detkds.run_job", args=[plain])
    assert until(lambda: state(database, plain) == "SUCCEEDED", 60)
    assert column(database, urgent, "finished_at") <= column(database, plain, "started_at")
    assert (state(database, urgent), column(database, urgent, "worker")) == ("SUCCEEDED", "gpu-0")
    assert until(lambda: f'"rung_for": "{plain}"' in worker_log.read_text(), 60), "nothing waits any more"
    started[0].terminate()
    assert started[0].wait(10) == 0


def test_a_celery_worker_that_drains_leaves_the_messages_to_others(
    tmp_path: Path, database: Store, redis_server: str, bell: Any, started: list[Any]
) -> None:
    broker = redis.Redis.from_url(redis_server)
    settings = {"DETKDS_BROKER_URL": redis_server, "DETKDS_WORKER_NAME": "gpu-0", "DETKDS_LEASE_SECONDS": "1"}
    worker_log = tmp_path / "worker.log"
    started.append(start(tmp_path, QUICK, **settings))
    assert until(lambda: standing(database) == {"gpu-0": "idle"}, 60)
    drain(database, "gpu-0", draining=True)
    assert until(lambda: "Canceling queue celery" in worker_log.read_text(), 10)
    job = enqueue(database, seed=1)
    bell.send_task("detkds.run_job", args=[job])
    time.sleep(1)
    assert broker.llen("celery") == 1
    assert state(database, job) == "QUEUED"
    drain(database, "gpu-0", draining=False)
    assert until(lambda: state(database, job) == "SUCCEEDED", 60)
    assert broker.llen("celery") == 0
    broker.close()
    started[0].terminate()
    assert started[0].wait(10) == 0
