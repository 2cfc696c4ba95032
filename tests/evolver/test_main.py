"""The evolver's loop and process: one search cannot stop another, one process works at a time, the bell rings."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import redis

from detkds_core.store import Store, distillations, jobs, leases, results, searches
from detkds_core.store.models import Lease
from detkds_core.store.vocabulary import EVOLVER
from detkds_evolver.doorbell import Doorbell
from detkds_evolver.main import ERRORS, Evolver
from detkds_evolver.settings import Settings

from .worker import DATASET, create, outcome, work


def evolver(store: Store, **settings: Any) -> Evolver:
    return Evolver(store, Settings(**{"reap_seconds": 0.001, "evolver_poll_seconds": 0.001, **settings}))


def state(store: Store, search: str) -> tuple[str, str | None]:
    with store.read() as session:
        one = searches.get(session, search)
        return one.state, one.reason


def until(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def test_a_specification_that_cannot_be_read_fails_its_search_alone(sqlite: Store) -> None:
    bad, good = create(sqlite, knowledge=["color"]), create(sqlite)
    one = evolver(sqlite)
    one.round()
    assert state(sqlite, bad) == ("FAILED", "the specification cannot be read: " + state(sqlite, bad)[1].split(": ", 1)[1])
    assert "'color'" in state(sqlite, bad)[1]
    assert state(sqlite, good) == ("RUNNING", None)


def test_a_search_whose_steps_keep_failing_is_given_up_and_the_others_go_on(sqlite: Store) -> None:
    bad = create(sqlite)
    one = evolver(sqlite)
    one.round()
    with sqlite.begin() as session:
        claim = jobs.claim(session, worker="w", lease_seconds=60)
        jobs.finish(session, claim, {"candidates": 7})  # no trainer of ours writes that
    good = create(sqlite)
    for _ in range(ERRORS):
        one.round()
        assert state(sqlite, good)[0] == "RUNNING"
        time.sleep(0.001 * 2**ERRORS)
    status, reason = state(sqlite, bad)
    assert status == "FAILED"
    assert reason.startswith(f"the evolver failed {ERRORS} times in a row: TypeError")
    with sqlite.read() as session:
        assert {job.state for job in jobs.of_search(session, bad)} == {"SUCCEEDED", "CANCELLED"}


def test_a_lost_workers_job_is_done_by_another_one(sqlite: Store) -> None:
    search, one = create(sqlite), evolver(sqlite)
    one.round()
    with sqlite.begin() as session:
        lost = jobs.claim(session, worker="w", lease_seconds=-1)
    one.round()
    with sqlite.begin() as session:
        again = jobs.claim(session, worker="v", lease_seconds=60, job_id=lost.job_id)
    assert again.attempt == 2
    assert state(sqlite, search)[0] == "RUNNING"


RESULT = {
    "checkpoint": "student.safetensors",
    "checkpoint_pth": "student.pth",
    "config": "student_config.py",
    "sha256": "ab",
    "student": {"ap": 31.0, "ap50": 50.0, "ap75": 30.0, "parameters": 1000, "images": 150},
    "teacher": {"ap": 56.0, "ap50": 80.0, "ap75": 60.0, "parameters": 9000, "images": 150},
    "curve": [{"iteration": 10, "loss": 1.0}],
    "detections": "detections.json",
    "files": {"student.safetensors": {"sha256": "ab", "bytes": 3}, "detections.json": {"sha256": "cd", "bytes": 2}},
    "seconds": 71.5,
    "environment": {"torch": "2.14.1"},
}


def distilled(store: Store, result: dict[str, Any]) -> tuple[str, str]:
    """A distillation whose trainer left this result: its id and its job's."""
    spec = {"policy": {"terms": []}, "seed": 3, "recipe": {"iterations": 300}, "teacher": {"detector": "big"}}
    with store.begin() as session:
        one = distillations.create(session, name="mine", spec=spec, dataset=DATASET)
    with store.begin() as session:
        claim = jobs.claim(session, worker="w", lease_seconds=60)
        assert jobs.finish(session, claim, result)
    return one.id, claim.job_id


def test_a_distillation_succeeds_together_with_its_result(store: Store) -> None:
    distillation, job = distilled(store, RESULT)
    one = evolver(store)
    with store.read() as session:
        assert distillations.get(session, distillation).state == "RUNNING"
    one.round()
    one.round()
    with store.read() as session:
        assert distillations.get(session, distillation).state == "SUCCEEDED"
        result = results.of_distillation(session, distillation)
        assert len(results.list(session)[0]) == 1
    assert (result.kind, result.ap, result.name, result.policy) == ("distill", 31.0, "mine", {"terms": []})
    assert result.artifacts == {
        "checkpoint": f"{job}/1/student.safetensors",
        "checkpoint_pth": f"{job}/1/student.pth",
        "config": f"{job}/1/student_config.py",
        "detections": f"{job}/1/detections.json",
        "sha256": "ab",
        "digests": {"checkpoint": "ab", "detections": "cd"},
    }
    assert result.metrics == {"student": RESULT["student"], "teacher": RESULT["teacher"], "seconds": 71.5}
    assert result.evidence["dataset"] == {"name": "shapes", "digest": "d1"}
    assert result.evidence["cost"] == {"seconds": 71.5, "iterations": 300}
    assert result.environment == {"torch": "2.14.1"}


@pytest.mark.parametrize(
    "wrong", [{"student": {}}, {"checkpoint": "../../other/1/student.safetensors"}, {"config": "/etc/passwd"}, {"checkpoint_pth": ".."}]
)
def test_a_result_that_cannot_be_read_fails_its_distillation_alone(sqlite: Store, wrong: dict[str, Any]) -> None:
    bad, _ = distilled(sqlite, {**RESULT, **wrong})
    good, _ = distilled(sqlite, RESULT)
    evolver(sqlite).round()
    with sqlite.read() as session:
        failed = distillations.get(session, bad)
        assert failed.state == "FAILED"
        assert "the trainer's result cannot be read" in failed.reason
        assert distillations.get(session, good).state == "SUCCEEDED"


def test_a_cancelled_distillation_has_no_result(sqlite: Store) -> None:
    distillation, _ = distilled(sqlite, RESULT)
    with sqlite.begin() as session:
        distillations.fail(session, distillation, "ended meanwhile")
    evolver(sqlite).round()
    with sqlite.read() as session:
        assert results.of_distillation(session, distillation) is None


def test_one_evolver_works_and_another_takes_over(store: Store) -> None:
    # longer than a first round takes, which counts the space of the search
    first, second = evolver(store, evolver_lease_seconds=3), evolver(store, evolver_lease_seconds=3)
    search = create(store)
    assert first.round()
    assert not second.round()
    first.retire()
    assert second.round(), "at once after a retirement"
    work(store)
    until(first.round, 20)  # after the second one's lease has run out without a renewal
    assert state(store, search)[0] == "RUNNING"
    assert len(first.evolutions) == 1


SHORT = {"DETKDS_EVOLVER_LEASE_SECONDS": "0.5", "DETKDS_EVOLVER_POLL_SECONDS": "0.05"}


def start(store: Store, settings: Mapping[str, str] = SHORT) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
    environment |= {"DETKDS_DATABASE_URL": store.url.render_as_string(hide_password=False)}
    environment |= settings
    return subprocess.Popen([sys.executable, "-m", "detkds_evolver"], env=environment, stderr=subprocess.DEVNULL)


def test_as_a_process_killed_and_started_again(store: Store) -> None:
    search = create(store, budget=600)
    process = start(store)
    try:
        until(lambda: work(store), 30)
        process.kill()
        process.wait()
        process = start(store)
        until(lambda: (work(store) and False) or state(store, search)[0] == "SUCCEEDED", 180)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert outcome(store, search)["result"] is not None
    assert evolver(store).round(), "the lease was given up"


def test_of_two_processes_one_drives_and_the_other_takes_over_when_it_is_killed(store: Store) -> None:
    """With the settings that they have by themselves. 30 s is what is promised; the lease is 6 s, the rest is for a busy machine."""

    def driver() -> int | None:
        """The process that is on duty by the database."""
        with store.read() as session:
            lease = session.get(Lease, EVOLVER)
            return int(lease.holder.split("/")[1]) if lease is not None else None

    first = create(store)
    both = {process.pid: process for process in (start(store, {}), start(store, {}))}
    try:
        pid = until(driver, 30)
        until(lambda: state(store, first)[0] == "RUNNING", 30)
        until(lambda: work(store), 30)
        began = time.monotonic()
        while time.monotonic() - began < 7:  # longer than a lease: it is renewed, and nobody else gets it
            assert driver() == pid
            time.sleep(0.1)
        with store.read() as session:
            decided = searches.count_ledger(session, first)
        both[pid].kill()
        second = create(store)
        killed = time.monotonic()
        until(lambda: state(store, second)[0] == "RUNNING", 30)
        assert time.monotonic() - killed < 30
        assert driver() in both.keys() - {pid}
        until(lambda: work(store), 30)
        with store.read() as session:
            assert searches.count_ledger(session, first) >= decided
            assert state(store, first) == ("RUNNING", None), "and the search that was begun goes on"
    finally:
        for process in both.values():
            process.kill()
            process.wait()


@pytest.fixture
def queue(redis_server: str) -> Iterator["redis.Redis[Any]"]:
    client = redis.Redis.from_url(redis_server)
    client.flushall()
    yield client
    client.close()


def messages(queue: "redis.Redis[Any]") -> list[dict[str, Any]]:
    return [json.loads(message) for message in queue.lrange("celery", 0, -1)]


def test_the_bell_carries_an_id_and_nothing_else(redis_server: str, queue: "redis.Redis[Any]") -> None:
    import base64

    bell = Doorbell(redis_server)
    assert bell.ring(["job-1", "job-2"]) == ["job-1", "job-2"]
    found = messages(queue)
    assert {one["headers"]["task"] for one in found} == {"detkds.run_job"}
    assert all(one["headers"]["expires"] and one["content-type"] == "application/json" for one in found)
    bodies = [json.loads(base64.b64decode(one["body"])) for one in found]
    assert sorted(args[0] for args, _, _ in bodies) == ["job-1", "job-2"]
    assert all(kwargs == {} for _, kwargs, _ in bodies)
    bell.close()


def test_the_bell_rings_once_and_again_after_a_while(redis_server: str, queue: "redis.Redis[Any]", monkeypatch: pytest.MonkeyPatch) -> None:
    bell = Doorbell(redis_server)
    assert bell.ring(["job-1"]) == ["job-1"]
    assert bell.ring(["job-1", "job-2"]) == ["job-2"]
    assert bell.ring([]) == []
    assert bell.ring(["job-1"]) == ["job-1"], "it ran meanwhile and waits again"
    monkeypatch.setattr("detkds_evolver.doorbell.AGAIN_SECONDS", 0.05)
    time.sleep(0.06)
    assert bell.ring(["job-1"]) == ["job-1"], "the ring may have been lost"
    assert len(messages(queue)) == 4
    bell.close()


def test_a_long_queue_is_not_rung_for_as_a_whole(redis_server: str, queue: "redis.Redis[Any]") -> None:
    bell = Doorbell(redis_server)
    assert len(bell.ring([f"job-{number}" for number in range(1000)])) == 32
    assert queue.llen("celery") == 32
    bell.close()


def test_a_broker_that_is_not_there_stops_nothing(sqlite: Store) -> None:
    search = create(sqlite)
    one = evolver(sqlite, broker_url="redis://127.0.0.1:9/0")
    began = time.monotonic()
    one.round()
    assert time.monotonic() - began < 20
    assert state(sqlite, search)[0] == "RUNNING"
    assert len(one.doorbell.ring(["job-1"])) == 0
    assert time.monotonic() - began < 20, "left alone for a while"
    one.retire()


def test_nobody_waits_for_the_end_of_a_round(
    sqlite: Store, redis_server: str, queue: "redis.Redis[Any]", monkeypatch: pytest.MonkeyPatch
) -> None:
    searches_ = [create(sqlite), create(sqlite)]
    one, rung = evolver(sqlite, broker_url=redis_server), []
    drive = one.drive

    def driven(search_id: str) -> None:
        rung.append(queue.llen("celery"))
        drive(search_id)

    monkeypatch.setattr(one, "drive", driven)
    monkeypatch.setattr("detkds_evolver.main.RING_SECONDS", 0.0)
    one.round()
    assert rung == [0, 2], "the jobs of the first search are rung for before the second one is driven"
    assert queue.llen("celery") == 2 * len(searches_)
    one.retire()


def test_a_round_ends_between_two_searches_where_it_is_told_to(sqlite: Store) -> None:
    first, second = create(sqlite), create(sqlite)
    assert evolver(sqlite).round(stopping=lambda: True)
    assert [state(sqlite, one)[0] for one in (first, second)] == ["RUNNING", "QUEUED"]


def test_a_round_ends_where_another_evolver_has_taken_over(sqlite: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = create(sqlite), create(sqlite)
    slow, other = evolver(sqlite), evolver(sqlite)
    drive = slow.drive

    def driven(search_id: str) -> None:
        drive(search_id)
        with sqlite.begin() as session:
            leases.give_up(session, EVOLVER, holder=slow.holder)  # as if it had run out
        assert other.on_duty()
        slow.on_duty_until = 0.0

    monkeypatch.setattr(slow, "drive", driven)
    assert not slow.round()
    assert [state(sqlite, one)[0] for one in (first, second)] == ["RUNNING", "QUEUED"]


def test_the_loop_rings_for_what_waits(sqlite: Store, redis_server: str, queue: "redis.Redis[Any]") -> None:
    create(sqlite)
    one = evolver(sqlite, broker_url=redis_server)
    one.round()
    one.round()
    with sqlite.read() as session:
        assert len(messages(queue)) == len(jobs.waiting(session)) == 2  # parallelism 6, groups of 3
    one.retire()
