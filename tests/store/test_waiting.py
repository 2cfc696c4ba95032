"""Why something waits: the sentences by hand, and the facts that they are made from."""

import pytest

from detkds_core.store import Store, distillations, jobs, leases, searches, waiting, workers
from detkds_core.store.queue import CPU, Device
from detkds_core.store.vocabulary import EVOLVER
from detkds_core.store.waiting import Fleet, Queued, Seen

DATASET = {"name": "shapes", "digest": "d1"}
TWELVE, EIGHTY = Device("GPU-a", 1, 12), Device("GPU-b", 1, 80)
MINE = Queued("j9", "s9", "me")
OTHER = Queued("j1", "s1", "you")


def idle(name: str = "gpu-0", device: Device = TWELVE, **changes: object) -> Seen:
    return Seen(name, device, **changes)


def busy(name: str = "gpu-0", device: Device = TWELVE) -> Seen:
    return Seen(name, device, holds=f"search {name}'s (job j)")


@pytest.mark.parametrize(
    ("queue", "workers_there", "changes", "sentence"),
    [
        ([MINE], [], {}, "no worker is there"),
        ([MINE], [idle(draining=True), busy("gpu-1")._replace(draining=True)], {}, "all workers are draining"),
        (
            [MINE._replace(devices=2, memory_gib=24)],
            [idle(), idle("gpu-1", Device("GPU-c+GPU-d", 2, 12)), idle("host/cpu", CPU)],
            {},
            "needs 2 GPUs with 24 GiB each; no worker has that: gpu-0 has 1 GPU with 12 GiB, gpu-1 has 2 GPUs with 12 GiB each, "
            "host/cpu has a CPU",
        ),
        ([MINE._replace(memory_gib=12)], [idle(device=CPU)], {}, "needs 1 GPU with 12 GiB; no worker has that: gpu-0 has a CPU"),
        (
            [MINE],
            [idle(disk_low=True), idle("gpu-1", disk_low=True)],
            {},
            "the disk for files of jobs is nearly full, so that no job is begun (DETKDS_DISK_FREE_GIB): gpu-0, gpu-1",
        ),
        ([MINE], [idle()], {"running": {"me": 2}, "allowed": 2}, "owner me runs 2 of 2 allowed"),
        ([MINE._replace(owner="")], [idle()], {"running": {"": 2}, "allowed": 2}, "a worker takes it in a moment"),
        ([OTHER._replace(priority=1)] * 3 + [MINE], [busy()], {}, "3 jobs of higher priority are before it"),
        ([OTHER._replace(priority=1), OTHER, MINE], [busy()], {}, "1 job of higher priority is before it"),
        (
            [OTHER._replace(priority=1, memory_gib=80), MINE],
            [busy()],
            {},
            "gpu-0 is held by search gpu-0's (job j)",  # what no worker here can take is not before it
        ),
        (
            [MINE._replace(memory_gib=12)],
            [busy(), idle("gpu-1", Device("GPU-c", 1, 8))],
            {},
            "needs 1 GPU with 12 GiB; gpu-0 is held by search gpu-0's (job j)",
        ),
        ([OTHER, OTHER, MINE], [busy()], {}, "gpu-0 is held by search gpu-0's (job j); 2 jobs are before it"),
        ([OTHER, MINE], [idle(), busy("gpu-1")], {}, "1 job is before it"),
        ([OTHER, MINE], [idle(), idle("gpu-1")], {}, "a worker takes it in a moment"),
        (
            [MINE],
            [busy(f"gpu-{n}") for n in range(5)],
            {},
            "gpu-0 is held by search gpu-0's (job j), gpu-1 is held by search gpu-1's (job j), gpu-2 is held by search gpu-2's (job j), "
            "and 2 more",
        ),
    ],
)
def test_the_first_reason_that_holds_is_told(queue: list[Queued], workers_there: list[Seen], changes: dict, sentence: str) -> None:
    fleet = Fleet(tuple(queue), tuple(workers_there), **changes)
    assert waiting.reason(fleet, len(queue) - 1) == sentence
    assert waiting.of_subject(fleet, "RUNNING", "s9") == sentence
    assert waiting.of_subject(fleet, "PAUSED", "s9") == "paused"


def test_every_job_of_one_queue_has_its_own_reason() -> None:
    wide, narrow = MINE._replace(job_id="j2", subject="s2", memory_gib=80), MINE._replace(job_id="j3", subject="s3", memory_gib=12)
    last = OTHER._replace(job_id="j4", subject="s3", memory_gib=12)
    fleet = Fleet((OTHER, wide, narrow, last), (busy(), busy("gpu-1", EIGHTY), idle("gpu-2", Device("GPU-c", 1, 8))))
    held = [f"gpu-{n} is held by search gpu-{n}'s (job j)" for n in range(2)]
    assert [waiting.reason(fleet, place) for place in range(4)] == [
        "a worker takes it in a moment",
        f"needs 1 GPU with 80 GiB; {held[1]}; 1 job is before it",
        f"needs 1 GPU with 12 GiB; {', '.join(held)}; 2 jobs are before it",
        f"needs 1 GPU with 12 GiB; {', '.join(held)}; 3 jobs are before it",
    ]
    assert waiting.of_subject(fleet, "RUNNING", "s3") == waiting.reason(fleet, 2), "of its first job"


@pytest.mark.parametrize(
    ("state", "changes", "told"),
    [
        ("QUEUED", {}, "the evolver takes it up in a moment"),
        ("QUEUED", {"evolver": False}, "no evolver is there"),
        ("RUNNING", {"evolver": False}, "no evolver is there"),
        ("RUNNING", {}, None),
        ("RUNNING", {"queue": (MINE,), "at_work": frozenset({"s9"})}, None),
        ("SUCCEEDED", {"queue": (MINE,)}, None),
        ("CANCELLED", {"evolver": False}, None),
    ],
)
def test_a_search_without_a_waiting_job_waits_for_the_evolver_or_not_at_all(state: str, changes: dict, told: str | None) -> None:
    assert waiting.of_subject(Fleet(**changes), state, "s9") == told


def test_the_facts_are_those_of_the_database(store: Store) -> None:
    with store.begin() as session:
        mine = searches.create(session, name="mine", spec={}, dataset=DATASET, owner="me").id
        yours = searches.create(session, name="yours", spec={}, dataset=DATASET, owner="you", priority=2, device_memory_gib=40).id
        for search, owner, changes in ((mine, "me", {}), (mine, "me", {}), (yours, "you", {"priority": 2, "device_memory_gib": 40})):
            jobs.enqueue(session, kind="evaluate", spec={}, search_id=search, owner=owner, **changes)
        training = distillations.create(session, name="student", spec={"recipe": {"devices": 2}}, dataset=DATASET, owner="me").id
        workers.present(session, "gpu-0", seconds=60, device=TWELVE)
        workers.present(session, "gone", seconds=-1, device=EIGHTY)
        held = jobs.claim(session, worker="gpu-0", device=TWELVE, lease_seconds=60)
        assert held.search_id == mine

    def told(viewer: str | None, allowed: int | None = None) -> dict[str, str | None]:
        with store.read() as session:
            fleet = waiting.gather(session, viewer=viewer, allowed=allowed)
            rest = [job for job in jobs.of_search(session, mine) if job.id != held.job_id]
            return {
                "mine": waiting.of_subject(fleet, "RUNNING", mine),
                "yours": waiting.of_subject(fleet, "RUNNING", yours),
                "student": waiting.of_subject(fleet, "QUEUED", training),
                "running": waiting.of_job(fleet, jobs.get(session, held.job_id)),
                "rest": waiting.of_job(fleet, rest[0]),
                "taken up": waiting.of_subject(fleet, "QUEUED", "s"),
            }

    everything = told(None)
    assert everything == {
        "mine": None,
        "yours": "needs 1 GPU with 40 GiB; no worker has that: gpu-0 has 1 GPU with 12 GiB",
        "student": "needs 2 GPUs; no worker has that: gpu-0 has 1 GPU with 12 GiB",
        "running": None,
        "rest": f"gpu-0 is held by search mine (job {held.job_id})",
        "taken up": "no evolver is there",
    }
    assert told("me") == everything
    assert told("you")["rest"] == "gpu-0 is held by a job of another owner"
    assert told("me", allowed=1)["rest"] == "owner me runs 1 of 1 allowed"
    with store.begin() as session:
        leases.acquire(session, EVOLVER, holder="e", seconds=60)
        workers.present(session, "gpu-0", seconds=60, device=TWELVE, disk_low=True)
    assert told("me")["taken up"] == "the evolver takes it up in a moment"
    assert told("me")["rest"].startswith("the disk for files of jobs is nearly full")
    with store.begin() as session:
        workers.leave(session, "gpu-0")
    assert told("me")["rest"] == "no worker is there"
    with store.begin() as session:
        jobs.pause(session, jobs.Job.search_id == mine)
    assert told("me")["rest"] == "paused"


def test_a_large_fleet_is_looked_at_once_in_a_while_by_each_viewer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fleets, clock = waiting.Fleets(), [100.0]
    monkeypatch.setattr(waiting, "monotonic", lambda: clock[0])
    monkeypatch.setattr(waiting, "LARGE", 2)

    def seen(viewer: str | None) -> int:
        with store.read() as session:
            return len(fleets.look(session, viewer=viewer, allowed=None).workers)

    def join(name: str) -> None:
        with store.begin() as session:
            workers.present(session, name, seconds=60, device=TWELVE)

    join("gpu-0")
    assert seen(None) == 1
    join("gpu-1")
    assert seen(None) == 2  # a small fleet is looked at each time
    join("gpu-2")
    assert seen(None) == 2
    assert seen("me") == 3
    clock[0] += waiting.KEPT_SECONDS
    assert seen(None) == 3


def test_a_job_that_came_since_a_large_fleet_was_looked_at_is_not_called_running(store: Store) -> None:
    with store.begin() as session:
        search = searches.create(session, name="mine", spec={}, dataset=DATASET, owner="me").id
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search, owner="me")
    with store.read() as session:
        assert waiting.of_job(Fleet(), jobs.get(session, job.id)) == "it has just come into the queue"
