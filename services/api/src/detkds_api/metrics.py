"""`GET /metrics`: what there is to watch, in the text format of Prometheus.

What is remembered comes from the database, by sums over its indexes; requests are counted by this process, since it started.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from sqlalchemy.orm import Session

from detkds_api.service import Service
from detkds_core.store import jobs, searches, tallies, workers
from detkds_core.store.states import FINAL, RETRIED

router = APIRouter(tags=["health"])

MEDIA_TYPE = "text/plain; version=0.0.4"
WORKER_STATES = ("busy", "idle", "draining", "drained", "lost")
MOST_SEARCHES = 50  # with a series of their own, the newest ones: a series lives on in Prometheus for as long as it keeps anything
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")  # a client may write any word there
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds; longer ones are above all of them
EXAMPLE = '# TYPE detkds_jobs_waiting gauge\ndetkds_jobs_waiting{kind="evaluate",state="QUEUED",reason="new"} 3\n'

Samples = Iterable[tuple[Mapping[str, Any], float | None]]


class Requests:
    """The requests that this process has answered. Of a stream, the time until it begins counts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[tuple[str, str, int]] = Counter()  # (method, route, status)
        self.buckets: dict[tuple[str, str], list[int]] = {}  # (method, route) -> requests of each bucket, the last one open
        self.seconds: Counter[tuple[str, str]] = Counter()

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in METHODS else "other"
        place = sum(seconds > bound for bound in BUCKETS)
        with self.lock:
            self.counts[method, route, status] += 1
            self.buckets.setdefault((method, route), [0] * (len(BUCKETS) + 1))[place] += 1
            self.seconds[method, route] += seconds  # type: ignore[assignment]

    def lines(self) -> Iterator[str]:
        with self.lock:
            counts, seconds = sorted(self.counts.items()), dict(self.seconds)
            buckets = [(key, list(found)) for key, found in sorted(self.buckets.items())]
        answered: Samples = (({"method": method, "route": route, "status": status}, count) for (method, route, status), count in counts)
        yield from family("http_requests_total", "counter", "Requests by route and status.", answered)
        name = "http_request_duration_seconds"
        yield from family(name, "histogram", "Seconds from a request to the beginning of its answer.", ())
        for (method, route), found in buckets:
            labels = {"method": method, "route": route}
            for bound, count in zip((*BUCKETS, "+Inf"), accumulate(found), strict=True):
                yield sample(f"{name}_bucket", {**labels, "le": bound}, count)
            yield sample(f"{name}_sum", labels, seconds[method, route])
            yield sample(f"{name}_count", labels, sum(found))


@router.get("/metrics", response_class=PlainTextResponse, responses={200: {"content": {"text/plain": {"example": EXAMPLE}}}})
def get_metrics(service: Service, request: Request) -> PlainTextResponse:
    """Queue, workers, GPUs, searches, failures and requests, for Prometheus. APs are told of the searches that the key sees."""
    requests: Requests = request.app.state.requests
    with service.store.read() as session:
        found = [*remembered(session, service.caller.sees), *requests.lines()]
    return PlainTextResponse("".join(f"{line}\n" for line in found), media_type=MEDIA_TYPE)


def remembered(session: Session, owner: str | None) -> Iterator[str]:
    """The metrics that the database knows. owner: whose searches are told of; None: everybody's."""
    yield from family("info", "gauge", "The version of the service.", [({"version": version("detkds_api")}, 1)])
    waiting = [({"kind": kind, "state": state, "reason": reason}, count) for kind, state, reason, count in sorted(jobs.depth(session))]
    yield from family("jobs_waiting", "gauge", "Jobs that wait; reason: new, or the failure that the last attempt ended with.", waiting)
    at_work = sorted(jobs.running(session))
    yield from family("jobs_running", "gauge", "Jobs that a worker holds.", [({"kind": kind}, count) for kind, count, _ in at_work])
    steps = [({"kind": kind}, seconds) for kind, _, seconds in at_work]
    yield from family("training_step_seconds", "gauge", "Mean time of a training step of the jobs that run, as trainers told last.", steps)
    counts = Counter(one.state for one in workers.standings(session))
    counts["lost"] = workers.lost(session)
    states = [({"state": state}, counts[state]) for state in WORKER_STATES]
    yield from family("workers", "gauge", "Workers, as of GET /workers; lost: ended within the last day without saying so.", states)
    gpus = [({"gpu": uuid, "name": gpu["name"]}, gpu) for uuid, gpu in sorted(workers.gpu_use(session).items())]
    for name, field, about in (
        ("gpu_memory_bytes", "memory_bytes", "Memory of a GPU that a worker has."),
        ("gpu_memory_used_bytes", "memory_used_bytes", "How much of it is in use, by whomever."),
        ("gpu_use_ratio", "use", "Share of the last moments in which the GPU computed."),
    ):
        yield from family(name, "gauge", about, ((labels, gpu[field]) for labels, gpu in gpus))
    best = searches.running_best(session, owner=owner, limit=MOST_SEARCHES)
    about = f"AP of the best candidate so far in percent, of the newest {MOST_SEARCHES} searches under way."
    yield from family("search_best_ap", "gauge", about, (({"search_id": search_id}, ap) for search_id, ap in best))
    failed, lost = tallies.of(session, jobs.FAILED), tallies.of(session, jobs.LOST)
    kinds = [({"kind": kind}, failed.get(kind, 0)) for kind in (*RETRIED, *FINAL)]
    yield from family("attempt_failures_total", "counter", "Attempts that failed, by the kind of the failure.", kinds)
    yield from family("attempts_lost_total", "counter", "Attempts whose worker was not heard of any more.", [({}, sum(lost.values()))])


def family(name: str, kind: str, about: str, samples: Samples) -> Iterator[str]:
    """A metric with its samples; one without a value is left out."""
    yield f"# HELP detkds_{name} {about}"
    yield f"# TYPE detkds_{name} {kind}"
    for labels, value in samples:
        if value is not None:
            yield sample(name, labels, value)


def sample(name: str, labels: Mapping[str, Any], value: float) -> str:
    """`detkds_workers{state="idle"} 2`"""
    pairs = ",".join(f'{label}="{escaped(str(text))}"' for label, text in labels.items())
    return f"detkds_{name}{{{pairs}}} {value:.10g}" if pairs else f"detkds_{name} {value:.10g}"


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
