"""Many searches and many workers on one machine: `python benchmarks/load.py --searches 100 --candidates 1000 --workers 1000`.

Real: Postgres, Redis (Valkey), the API and the evolver, each a process of its own; the searches, begun over HTTP, with the algorithm, the
rungs, the groups and the gates of any other; and all that a worker says to the database, by the very functions of the worker: it is woken
by the evolver's messages, takes jobs (`detkds_worker.loop.take`), says that it is there, renews its leases, tells progress, and finishes.
Not real: the training. A job of a whole group "takes" `--job-seconds` at the lowest rung, others by their candidates and iterations; the
figures follow from policy and seed, and one candidate in ten is refused at its gates. All workers are one process.

Measured, in windows of candidates (`--windows` equal ones), because a machine that does other things beside changes from one to the next:

- the evolver's processor time a candidate, its own and that of its Postgres connection, in windows and in all. Whether it grows with the
  number of candidates is seen from two whole runs: `--searches 10 --workers 100` and `--searches 100 --workers 1000`;
- the wait of a worker from the end of a job to its next one;
- at the end, `--clients` HTTP clients ask at random for `/health`, the lists (searches, jobs, candidates, results) and the details of a
  search and of a job: p50 and p99 of each, and by how much they are above those of `/health`;
- resident memory of API, evolver and the process of all workers, every few seconds. With `--again` a new search begins for each that has
  ended, until `--seconds` are over: `--searches 10 --candidates 200 --workers 50 --again --seconds 3600` is an hour as a team has it.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import http.client
import itertools
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import Postgres, Redis
from kills import wait_for
from sqlalchemy import func, select, text

from detkds_core import processes
from detkds_core.store import Store, jobs, workers
from detkds_core.store.models import Candidate, Search, Trial
from detkds_core.store.queue import CPU
from detkds_worker.loop import take
from detkds_worker.settings import Settings

BUCKETS = 16  # of a gradient's sketch, as the real trainer gives it
REFUSED = 0.1  # share of the new candidates
SEARCH: dict[str, Any] = {"pair": "digits_gfl", "confirmation": {"finalists": 2, "seeds": 3, "distillers": ["pkd"]}}
LOWEST = 4  # the lowest rung is this part of the full proxy, unless a search says otherwise
QUEUE = "celery"  # as Celery calls the list of messages in Redis
DRIVEN = ("QUEUED", "RUNNING", "CONFIRMING")
TICKS = os.sysconf("SC_CLK_TCK")


# --- what a training would have found ----------------------------------------------------------------------------------


def share(of: str) -> float:
    """A number in 0-1 that depends on the text alone."""
    return int(hashlib.sha256(of.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF


def measured(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a job's result: AP in percent, mostly the policy's, a little the seed's."""
    rung = spec.get("rung") or spec["recipe"]["iterations"]
    words = json.dumps(candidate["policy"], sort_keys=True)
    ap = round(20 + 19 * share(words) + share(f"{words} {spec['seed']} {spec['kind']} {rung}"), 4)
    row = {"index": candidate["index"], "ap": ap, "ap50": round(ap * 1.5, 4), "ap75": round(ap * 0.9, 4), "images": 150}
    row |= {"iterations": rung, "seconds": 2.0, "failure": None}
    if spec["kind"] == "confirm":
        return row | {"resampled_ap": [round(ap + by, 4) for by in (-0.5, -0.25, 0.0, 0.25, 0.5)]}
    row |= {"look": None, "policy": candidate["policy"], "rejected": None, "same_as": None, "lenient_ap": ap}
    if spec["gates"] and candidate["policy"]["terms"]:
        sketch = [share(f"{words} {bucket}") - 0.5 for bucket in range(BUCKETS)]
        row["look"] = {"loss": 1.0, "ratio": share(f"{words} ratio"), "agreement": 0.1, "sketch": sketch, "failure": None}
        if share(f"{words} gate") < REFUSED:
            row["rejected"] = {"gate": "descent", "detail": "the gap grows"}
            if not candidate.get("audit"):
                row |= dict.fromkeys(("ap", "ap50", "ap75", "lenient_ap")) | {"iterations": 0}
    return row


def result_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"candidates": [measured(one, spec) for one in spec["candidates"]], "environment": {"trainer": "none"}}


# --- the workers --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Worker:
    """One of many. free_since: time.monotonic() of the end of its last job; None: it has had none."""

    name: str
    claim: jobs.Claim | None = None
    ends_at: float = 0.0
    told: int = 0
    free_since: float | None = None


class Workers:
    """All workers: what each does next and when, done by a few threads."""

    def __init__(self, store: Store, settings: Settings, count: int, job_seconds: float, group: int, threads: int) -> None:
        self.store, self.settings, self.job_seconds, self.group = store, settings, job_seconds, group
        self.pool = ThreadPoolExecutor(threads)
        self.changed = threading.Condition()
        self.agenda: list[tuple[float, int, Callable[[Worker], None], Worker]] = []
        self.idle: deque[Worker] = deque()
        self.number = 0
        self.stopping = False
        self.waits: list[tuple[float, float]] = []  # (time.time() at the claim, seconds from the end of the job before)
        self.finished = self.refused = self.lost = 0
        beat = settings.lease_seconds / 3
        for place in range(count):
            one = Worker(f"worker {place:04}")
            self.at(time.monotonic() + beat * place / count, self.present, one)
            self.at(time.monotonic() + 5 * place / count, self.take, one)

    def at(self, moment: float, what: Callable[[Worker], None], one: Worker) -> None:
        with self.changed:
            self.number += 1
            heapq.heappush(self.agenda, (moment, self.number, what, one))
            self.changed.notify()

    def run(self) -> None:
        """Until `stopping`."""
        slots = threading.Semaphore(64)  # what is due waits here in the order of its time, not in the pool's queue

        def do(what: Callable[[Worker], None], one: Worker) -> None:
            try:
                what(one)
            except Exception as error:
                print(f"{one.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                self.at(time.monotonic() + 1, what, one)
            finally:
                slots.release()

        while not self.stopping:
            with self.changed:
                now = time.monotonic()
                if not self.agenda or self.agenda[0][0] > now:
                    self.changed.wait(min(0.5, self.agenda[0][0] - now) if self.agenda else 0.5)
                    continue
                _, _, what, one = heapq.heappop(self.agenda)
            slots.acquire()
            self.pool.submit(do, what, one)

    def listen(self, redis: Any) -> None:
        """A message wakes a worker that has nothing to do, whatever it was sent for."""
        while not self.stopping:
            with self.changed:
                somebody = bool(self.idle)
            if not somebody:
                time.sleep(0.02)
                continue
            if redis.blpop(QUEUE, timeout=1) is None:
                continue
            with self.changed:
                one = self.idle.popleft() if self.idle else None
            if one is not None:
                self.at(0.0, self.take, one)

    def present(self, one: Worker) -> None:
        self.at(time.monotonic() + self.settings.lease_seconds / 3, self.present, one)
        with self.store.begin() as session:
            workers.present(session, one.name, seconds=self.settings.lease_seconds, device=CPU)

    def take(self, one: Worker) -> None:
        one.claim = take(self.store, self.settings, one.name, CPU)
        now = time.monotonic()
        if one.claim is None:
            with self.changed:
                self.idle.append(one)
            return
        if one.free_since is not None:
            self.waits.append((time.time(), now - one.free_since))
        spec = one.claim.spec
        full = spec["recipe"]["iterations"]
        part = len(spec["candidates"]) / self.group * (spec.get("rung") or full) / (full / LOWEST)
        one.ends_at = now + self.job_seconds * part * (0.8 + 0.4 * share(one.claim.token))
        one.told = 0
        self.next_of(one)

    def next_of(self, one: Worker) -> None:
        """Its next word to the database, or the end of its job."""
        again = time.monotonic() + self.settings.lease_seconds / 3
        if again < one.ends_at:
            self.at(again, self.renew, one)
        else:
            self.at(one.ends_at, self.finish, one)

    def renew(self, one: Worker) -> None:
        assert one.claim is not None
        one.told += 1
        progress = {"done": one.told, "total": 100, "message": "training", "best_ap": None, "step_seconds": 0.1}
        with self.store.begin() as session:
            mine = jobs.renew(session, one.claim, lease_seconds=self.settings.lease_seconds, progress=progress)
        if mine:
            self.next_of(one)
        else:
            self.lost += 1
            self.take(one)

    def finish(self, one: Worker) -> None:
        assert one.claim is not None
        result = result_of(one.claim.spec)
        with self.store.begin() as session:
            mine = jobs.finish(session, one.claim, result)
        self.finished += mine
        self.lost += not mine
        one.free_since = time.monotonic()
        self.at(0.0, self.take, one)  # before all that is due later, as a worker of its own would


def work(url: str, broker: str, home: str, options: Mapping[str, Any], waits: str) -> None:
    """The process of all workers. waits: the file that gets how long each waited, at its end."""
    import redis

    settings = Settings(home=Path(home), database_url=url, lease_seconds=options["lease_seconds"])
    everybody = Workers(Store(url), settings, options["workers"], options["job_seconds"], options["group"], options["threads"])

    def stop(*_: object) -> None:
        everybody.stopping = True

    signal.signal(signal.SIGTERM, stop)
    listener = threading.Thread(target=everybody.listen, args=(redis.Redis.from_url(broker),), daemon=True)
    listener.start()
    everybody.run()
    everybody.pool.shutdown(cancel_futures=True)
    told = {"waits": everybody.waits, "finished": everybody.finished, "lost": everybody.lost, "idle": len(everybody.idle)}
    Path(waits).write_text(json.dumps(told))


# --- the clients --------------------------------------------------------------------------------------------------------


def ask(port: int, targets: Mapping[str, Sequence[str]], seconds: float, pause: float, seed: int, answers: Any) -> None:
    """One client: for so long, one request after the other, each kind as often as every other. Puts (kind, seconds) into `answers`."""
    rng = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    found = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        kind = rng.choice(sorted(targets))
        path = rng.choice(targets[kind])
        began = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        found.append((kind, time.perf_counter() - began))
        if answer.status != 200:
            raise RuntimeError(f"GET {path}: {answer.status}")
        time.sleep(rng.expovariate(1 / pause) if pause else 0)
    answers.put(found)


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which this part of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def latencies(port: int, store: Store, *, clients: int, seconds: float, pause: float) -> dict[str, dict[str, float]]:
    """p50 and p99 of each kind of request in milliseconds, and p99 over that of /health."""
    with store.read() as session:
        searches = list(session.scalars(select(Search.id)))
        some_jobs = list(session.scalars(select(Trial.job_id).where(Trial.job_id.is_not(None)).order_by(Trial.id.desc()).limit(500)))
    targets = {
        "GET /health": ["/health"],
        "GET /searches": ["/searches", "/searches?limit=20"],
        "GET /searches/ID": [f"/searches/{one}" for one in searches],
        "GET /searches/ID/candidates": [f"/searches/{one}/candidates" for one in searches],
        "GET /jobs": ["/jobs", *(f"/jobs?search={one}" for one in searches)],
        "GET /jobs/ID": [f"/jobs/{one}" for one in some_jobs],
        "GET /results": ["/results"],
    }
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    asking = [context.Process(target=ask, args=(port, targets, seconds, pause, seed, answers), daemon=True) for seed in range(clients)]
    for one in asking:
        one.start()
    found: dict[str, list[float]] = defaultdict(list)
    for _ in asking:
        for kind, took in answers.get(timeout=seconds + 120):
            found[kind].append(took)
    health = quantile(found["GET /health"], 0.99)
    return {
        kind: {
            "requests": len(times),
            "p50_ms": round(1000 * quantile(times, 0.5), 1),
            "p99_ms": round(1000 * quantile(times, 0.99), 1),
            "p99_over_health": round(quantile(times, 0.99) / health, 2),
        }
        for kind, times in sorted(found.items())
    }


# --- the services -------------------------------------------------------------------------------------------------------


def processor_seconds(pid: int) -> float:
    """What a process has used of a processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid: int) -> float:
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@dataclass
class Services:
    """API and evolver as processes, and what they stand on."""

    store: Store
    port: int
    api: int
    evolver: int
    broker: str
    url: str
    samples: list[dict[str, float]] = field(default_factory=list)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {said.decode()}")
        return json.loads(said)

    def backends(self) -> list[int]:
        """Postgres' processes that serve the evolver."""
        with self.store.read() as session:
            return list(session.scalars(text("SELECT pid FROM pg_stat_activity WHERE application_name = 'evolver'")))

    def sample(self, workers_pid: int) -> dict[str, float]:
        """Where everything stands. workers_pid: the process of all workers."""
        with self.store.read() as session:
            counts = dict(session.execute(select(Search.state, func.count()).group_by(Search.state)).all())
            now = {
                "at": time.time(),
                "proposed": session.scalar(select(func.count()).select_from(Candidate)) or 0,
                "measured": session.scalar(select(func.count()).select_from(Candidate).where(Candidate.state != "PROPOSED")) or 0,
                "open": sum(counts.get(state, 0) for state in DRIVEN),
                "waiting": sum(count for _, state, _, count in jobs.depth(session) if state == "QUEUED"),
                "running": sum(count for _, count, _ in jobs.running(session)),
                "evolver": processor_seconds(self.evolver),
                "evolver_postgres": sum(map(processor_seconds, self.backends())),
                "evolver_mib": resident_mib(self.evolver),
                "api_mib": resident_mib(self.api),
                "workers_mib": resident_mib(workers_pid),
                "api": processor_seconds(self.api),
                "workers": processor_seconds(workers_pid),
            }
        self.samples.append(now)
        return now


@contextmanager
def services(home: Path, profile: str | None) -> Iterator[Services]:
    """All of them, from an empty database on, until the end."""
    with ExitStack() as stack:
        postgres = Postgres(home / "pg")
        stack.callback(postgres.stop)
        redis = Redis(home / "redis")
        stack.callback(redis.stop)
        store = Store(postgres.url)
        store.migrate()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
        joint = "&" if "?" in postgres.url else "?"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
        environment = inherited | {"DETKDS_HOME": str(home), "DETKDS_BROKER_URL": redis.url, "DETKDS_PORT": str(port)}

        def start(name: str, *options: str) -> int:
            variables = environment | {"DETKDS_DATABASE_URL": f"{postgres.url}{joint}application_name={name}"}
            log = stack.enter_context((home / f"{name}.log").open("ab"))
            process = processes.start_bound([sys.executable, *options, "-m", f"detkds_{name}"], env=variables, stdout=log, stderr=log)
            stack.callback(processes.stop_group, process, grace=60)
            return process.pid

        api = start("api")
        evolver = start("evolver", *(("-m", "cProfile", "-o", profile) if profile else ()))
        found = Services(store, port, api, evolver, redis.url, postgres.url)

        def answers() -> bool:
            try:
                return found.call("GET", "/health")["status"] == "ok"
            except OSError:
                return False

        wait_for(answers, 120, "an answer of the API")
        yield found
        store.close()


# --- the run ------------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="detkds-load-") as folder, services(Path(folder), options.profile) as all_of_it:
        began = time.time()
        seeds = itertools.count()

        def begin() -> None:
            wanted = {"candidates": options.candidates, "group": options.group, "parallelism": options.parallelism, "seed": next(seeds)}
            all_of_it.call("POST", "/searches", SEARCH | wanted)

        for _ in range(options.searches):
            begin()
        print(f"{options.searches} searches begun in {time.time() - began:.0f} s", flush=True)
        waits = Path(folder) / "waits.json"
        context = multiprocessing.get_context("spawn")
        arguments = (all_of_it.url, all_of_it.broker, folder, vars(options), str(waits))
        fleet = context.Process(target=work, args=arguments, daemon=True)
        fleet.start()
        asked: dict[str, Any] = {}
        total = options.searches * options.candidates
        began = time.time()
        try:
            while True:
                now = all_of_it.sample(fleet.pid or 0)
                print(json.dumps({name: round(value, 1) for name, value in now.items()} | {"at": round(now["at"] - began)}), flush=True)
                for _ in range(options.searches - int(now["open"]) if options.again else 0):
                    begin()
                over = (not now["open"] and not options.again) or time.time() - began > options.seconds or not fleet.is_alive()
                for part in options.ask_at:
                    if part not in asked and (now["measured"] >= part * total or over):
                        asked[part] = {"candidates": now["measured"], **latencies_of(options, all_of_it)}
                        print(json.dumps(asked[part], indent=1), flush=True)
                if over:
                    break
                time.sleep(options.every)
        finally:
            fleet.terminate()
            fleet.join(60)
        with all_of_it.store.read() as session:
            states = dict(session.execute(select(Search.state, func.count()).group_by(Search.state)).all())
            reasons = list(session.scalars(select(Search.reason).where(Search.reason.is_not(None)).limit(3)))
        told = json.loads(waits.read_text())
        return summary(options, all_of_it.samples, told, asked) | {"searches": states, "reasons": reasons}


def latencies_of(options: argparse.Namespace, all_of_it: Services) -> dict[str, Any]:
    found = latencies(all_of_it.port, all_of_it.store, clients=options.clients, seconds=options.ask_seconds, pause=options.pause)
    return {"requests": found}


def summary(
    options: argparse.Namespace, samples: Sequence[Mapping[str, float]], told: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures: by windows of candidates, and of the whole."""
    total = max(options.searches * options.candidates, samples[-1]["measured"])
    step = total / options.windows
    windows = []
    for place in range(options.windows):
        inside = [one for one in samples if place * step <= one["measured"] <= (place + 1) * step]
        if len(inside) < 2 or inside[-1]["measured"] == inside[0]["measured"]:
            continue
        first, last = inside[0], inside[-1]
        count = last["measured"] - first["measured"]
        waited = [seconds for at, seconds in told["waits"] if first["at"] <= at <= last["at"]]
        windows.append(
            {
                "measured": [first["measured"], last["measured"]],
                "proposed": [first["proposed"], last["proposed"]],
                "seconds": round(last["at"] - first["at"]),
                "evolver_ms": round(1000 * (last["evolver"] - first["evolver"]) / count, 2),
                "evolver_postgres_ms": round(1000 * (last["evolver_postgres"] - first["evolver_postgres"]) / count, 2),
                "wait_median_s": round(statistics.median(waited), 3) if waited else None,
                "wait_p90_s": round(quantile(waited, 0.9), 3) if waited else None,
                "waiting": round(statistics.fmean(one["waiting"] for one in inside)),
                "running": round(statistics.fmean(one["running"] for one in inside)),
                "evolver_mib": round(last["evolver_mib"]),
                "api_mib": round(last["api_mib"]),
            }
        )
    every = [seconds for _, seconds in told["waits"]]
    sixths = [samples[len(samples) * k // 6 : len(samples) * (k + 1) // 6] for k in range(6)]
    memory = {
        name: {
            "sixths": [round(statistics.fmean(one[name] for one in part), 1) for part in sixths if part],
            "last": round(samples[-1][name], 1),
            "most": round(max(one[name] for one in samples), 1),
        }
        for name in ("api_mib", "evolver_mib", "workers_mib")
    }
    return {
        "options": {name: value for name, value in vars(options).items() if name not in ("json", "profile")},
        "seconds": round(samples[-1]["at"] - samples[0]["at"]),
        "candidates": samples[-1]["measured"],
        "evolver_ms": round(1000 * samples[-1]["evolver"] / max(1, samples[-1]["measured"]), 2),
        "evolver_postgres_ms": round(1000 * samples[-1]["evolver_postgres"] / max(1, samples[-1]["measured"]), 2),
        "jobs": told["finished"],
        "lost": told["lost"],
        "wait_median_s": round(statistics.median(every), 3) if every else None,
        "wait_p90_s": round(quantile(every, 0.9), 3) if every else None,
        "windows": windows,
        "memory": memory,
        "asked": {str(part): found for part, found in asked.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=1000, help="of each search")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--group", type=int, default=8, help="candidates of a job, at most")
    parser.add_argument("--parallelism", type=int, default=32, help="jobs of a search under way at once")
    parser.add_argument(
        "--job-seconds", type=float, default=60.0, help="that a job of a whole group takes at the lowest rung, on the average"
    )
    parser.add_argument("--lease-seconds", type=float, default=120.0, help="of the workers (DETKDS_LEASE_SECONDS)")
    parser.add_argument("--threads", type=int, default=12, help="that do what the workers do")
    parser.add_argument("--again", action="store_true", help="a new search begins for each that has ended, until --seconds are over")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--clients", type=int, default=4, help="that ask the API")
    parser.add_argument("--pause", type=float, default=0.1, help="mean seconds between two requests of a client")
    parser.add_argument("--ask-seconds", type=float, default=60.0)
    parser.add_argument("--ask-at", type=float, nargs="*", default=[0.1, 0.97], help="shares of the candidates at which the clients ask")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--seconds", type=float, default=7200.0, help="after which the run is given up")
    parser.add_argument("--profile", help="file for the evolver's profile (cProfile)")
    parser.add_argument("--json", type=Path, help="file for all figures and samples")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends too
    found = run(options)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
