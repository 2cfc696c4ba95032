"""Which waiting job is next: priorities, fair shares of owners and of their searches, what a device suits, and that nobody starves."""

import tempfile
import threading
from collections import Counter, deque
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from detkds_core.store import Store, distillations, events, jobs, queue, searches, workers
from detkds_core.store.jobs import Claim
from detkds_core.store.models import Distillation, Job, Search
from detkds_core.store.queue import Device

DATASET = {"name": "shapes", "digest": "d1"}
SMALL, LARGE, PAIR = Device("GPU-a", 1, 12), Device("GPU-b", 1, 80), Device("GPU-a+GPU-b", 2, 12)


def new_search(store: Store, owner: str, **changes: object) -> str:
    with store.begin() as session:
        return searches.create(session, name=f"of {owner}", spec={}, dataset=DATASET, owner=owner, **changes).id


def enqueue(store: Store, search: str, owner: str, **changes: object) -> str:
    with store.begin() as session:
        return jobs.enqueue(session, **{"kind": "evaluate", "spec": {}, "search_id": search, "owner": owner, **changes}).id


def claim(store: Store, worker: str = "w", **changes: object) -> Claim | None:
    with store.begin() as session:
        return jobs.claim(session, worker=worker, lease_seconds=60, **changes)


def finish(store: Store, held: Claim) -> None:
    with store.begin() as session:
        assert jobs.finish(session, held, {})


def waiting(store: Store) -> list[str]:
    with store.read() as session:
        return jobs.waiting(session)


@pytest.mark.parametrize("kind", ["search", "distillation"])
def test_a_new_priority_orders_the_waiting_jobs_at_once_and_those_to_come(store: Store, kind: str) -> None:
    """Of two owners, the first one's jobs would come first; the second one is made more urgent, then less."""
    first = enqueue(store, new_search(store, "a"), "a")
    with store.begin() as session:
        create = searches.create if kind == "search" else distillations.create
        subject = create(session, name="b", spec={}, dataset=DATASET, owner="b", priority=-1).id
        if kind == "search":
            jobs.enqueue(session, kind="evaluate", spec={}, search_id=subject, owner="b", priority=-1)
    table = Search if kind == "search" else Distillation
    mine = Job.search_id == subject if kind == "search" else Job.distillation_id == subject
    with store.read() as session:
        (job,) = session.scalars(select(Job.id).where(mine))
    for priority, order in ((5, [job, first]), (-5, [first, job]), (1, [job, first])):
        with store.begin() as session:
            assert jobs.prioritise(session, session.get(table, subject), priority)
            assert session.get(table, subject).priority == priority
        assert waiting(store) == order
        with store.read() as session:
            assert [(one.kind, one.data) for one in events.after(session, subject, 0)][-1] == ("prioritised", {"priority": priority})
    held = claim(store)
    assert held.job_id == job
    with store.begin() as session:  # what comes back to the queue comes back as urgent as it is by then
        assert jobs.prioritise(session, session.get(table, subject), -1)
        assert jobs.release(session, held)
    assert waiting(store) == [first, job]
    with store.begin() as session:
        assert (searches if kind == "search" else distillations).cancel(session, subject)
        assert not jobs.prioritise(session, session.get(table, subject), 9)
        assert session.get(table, subject).priority == -1


def test_owners_take_turns_and_so_do_the_searches_of_one(store: Store) -> None:
    """Owner a has search x with three jobs and y with one, b has one job; nothing runs. By turns: x1 (a's first), b1 (b's first; b is the
    younger), y1 (a's second: x would run one already), x2, x3."""
    x, y, z = new_search(store, "a"), new_search(store, "a"), new_search(store, "b")
    x1, x2, x3 = (enqueue(store, x, "a") for _ in range(3))
    y1 = enqueue(store, y, "a")
    b1 = enqueue(store, z, "b")
    wanted = [x1, b1, y1, x2, x3]
    assert waiting(store) == wanted
    assert [claim(store).job_id for _ in range(5)] == wanted, "one by one it comes to the same"
    assert claim(store) is None


def test_who_runs_less_is_next_whoever_waits_longer(store: Store) -> None:
    a, b = new_search(store, "a"), new_search(store, "b")
    for _ in range(4):
        enqueue(store, a, "a")
    held = [claim(store), claim(store)]
    late = [enqueue(store, b, "b") for _ in range(3)]
    assert [claim(store).job_id for _ in range(2)] == late[:2]
    finish(store, held[0])
    assert claim(store).search_id == a, "a runs one, b two"


def test_a_higher_priority_goes_first_whoever_runs_more(store: Store) -> None:
    a, b = new_search(store, "a"), new_search(store, "b")
    low = enqueue(store, b, "b", priority=-1)
    plain = enqueue(store, b, "b")
    urgent = [enqueue(store, a, "a", priority=3) for _ in range(3)]
    assert waiting(store) == [*urgent, plain, low]


def test_distillations_and_searches_of_an_owner_take_turns(store: Store) -> None:
    search = new_search(store, "a")
    first, second = (enqueue(store, search, "a") for _ in range(2))
    with store.begin() as session:
        one = distillations.create(session, name="d", spec={}, dataset=DATASET, owner="a", priority=0)
        job = jobs.of_distillation(session, one.id)
        assert (job.owner, job.priority) == ("a", 0)
    assert waiting(store) == [first, job.id, second]


def put(session: Session, search: str, owner: str) -> None:
    jobs.enqueue(session, kind="evaluate", spec={}, search_id=search, owner=owner)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_owners_with_ten_searches_and_with_one_get_equal_shares(store: Store, number: int) -> None:
    """Each search has always two jobs waiting, and so many workers take 24 jobs, each of which ends as the oldest of those that run."""
    owners = {new_search(store, owner): owner for owner in [*"aaaaaaaaaa", "b"]}
    begun: Counter[str] = Counter()
    running: deque[Claim] = deque()
    with store.begin() as session:
        for search, owner in owners.items():
            put(session, search, owner)
            put(session, search, owner)
        for _ in range(24):
            if len(running) == number:
                done = running.popleft()
                jobs.finish(session, done, {})
                put(session, str(done.search_id), owners[done.search_id])
            running.append(jobs.claim(session, worker="w", lease_seconds=60))
            begun[owners[running[-1].search_id]] += 1
    assert begun == {"a": 12, "b": 12}


def test_workers_that_ask_at_once_share_as_those_that_ask_one_by_one(store: Store) -> None:
    """Six threads, one claim each: none waits for another one's commit, and three jobs of each owner are taken."""
    for owner in "ab":
        search = new_search(store, owner)
        for _ in range(6 if owner == "a" else 3):
            enqueue(store, search, owner)
    barrier = threading.Barrier(6)
    found: list[str] = []

    def take() -> None:
        with store.begin() as session:
            if not store.sqlite:
                session.execute(text("SELECT 1"))  # connected
            barrier.wait() if not store.sqlite else None
            held = jobs.claim(session, worker="w", lease_seconds=60)
            if not store.sqlite:
                barrier.wait()  # nobody commits before all have chosen
        found.append(held.job_id)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as session:
        assert len(set(found)) == 6
        assert Counter(jobs.get(session, job).owner for job in found) == {"a": 3, "b": 3}


def test_an_owner_runs_no_more_at_once_than_allowed(store: Store) -> None:
    a, b = new_search(store, "a"), new_search(store, "b")
    for _ in range(3):
        enqueue(store, a, "a")
    held = [claim(store, most_running=2) for _ in range(3)]
    assert [one is not None for one in held] == [True, True, False]
    enqueue(store, b, "b")
    assert claim(store, most_running=2).search_id == b
    finish(store, held[0])
    assert claim(store, most_running=2).search_id == a
    own = new_search(store, "")
    for _ in range(3):
        enqueue(store, own, "")
    assert [claim(store, most_running=2).search_id for _ in range(3)] == [own] * 3, "the operator has no bound"


def test_a_worker_takes_what_suits_its_device(store: Store) -> None:
    search = new_search(store, "a")
    huge = enqueue(store, search, "a", device_memory_gib=81)
    big = enqueue(store, search, "a", device_memory_gib=13)
    double = enqueue(store, search, "a", spec={"recipe": {"devices": 2}})
    plain = enqueue(store, search, "a", spec={"recipe": {"iterations": 5}})
    assert claim(store, device=SMALL).job_id == plain
    assert claim(store, device=SMALL) is None
    assert claim(store, device=PAIR).job_id == double
    assert claim(store, device=LARGE).job_id == big
    assert claim(store) is None, "a CPU has no memory of a GPU"
    with store.read() as session:
        assert [jobs.get(session, job).device for job in (plain, double, big, huge)] == ["GPU-a", "GPU-a+GPU-b", "GPU-b", None]
        assert jobs.get(session, double).devices == 2
    on_cpu = enqueue(store, search, "a", spec={"recipe": {"devices": 2}})
    assert claim(store).job_id == on_cpu, "its processes share the CPU"


@pytest.mark.parametrize(("devices", "memory"), [(1, None), (2, None), (1, 12), (1, 13), (2, 12), (1, 80), (3, 1)])
@pytest.mark.parametrize("device", [Device(), SMALL, LARGE, PAIR])
def test_what_a_device_is_said_to_suit_is_what_it_takes(sqlite_database: str, device: Device, devices: int, memory: int | None) -> None:
    store = Store(sqlite_database)
    store.migrate()
    enqueue(store, new_search(store, "a"), "a", spec={"recipe": {"devices": devices}}, device_memory_gib=memory)
    assert (claim(store, device=device) is not None) == device.suits(devices, memory)
    store.close()


def test_a_worker_that_drains_ends_what_it_has_and_takes_nothing_new(store: Store) -> None:
    search = new_search(store, "a")
    for _ in range(2):
        enqueue(store, search, "a")

    def standing() -> dict[str, tuple[str, bool]]:
        with store.read() as session:
            return {one.worker.name: (one.state, one.present) for one in workers.standings(session)}

    def say(name: str) -> bool:
        with store.begin() as session:
            return workers.present(session, name, seconds=60, device=SMALL)

    assert not say("w")
    assert not say("v")
    assert standing() == {"w": ("idle", True), "v": ("idle", True)}
    held = claim(store, "w")
    with store.begin() as session:
        identity = next(one.worker.id for one in workers.standings(session) if one.worker.name == "w")
        assert workers.drain(session, identity, draining=True)
        assert not workers.drain(session, "no-such-worker", draining=True)
        assert workers.alive(session) == 1
    assert say("w"), "it is told"
    assert standing()["w"] == ("draining", True)
    assert claim(store, "w") is None
    finish(store, held)
    assert standing()["w"] == ("drained", True)
    with store.begin() as session:
        workers.leave(session, "w")
        workers.leave(session, "v")
    assert standing() == {"w": ("drained", False)}
    assert say("w"), "started anew under its name"
    assert claim(store, "w") is None
    assert claim(store, "v") is not None
    with store.begin() as session:
        assert workers.drain(session, identity, draining=False)
    assert not say("w")
    assert standing()["w"] == ("idle", True)


def test_what_each_device_holds_is_known_also_of_a_worker_that_is_lost(store: Store) -> None:
    search = new_search(store, "a")
    enqueue(store, search, "a")
    with store.begin() as session:
        workers.present(session, "w", seconds=-1, device=SMALL)
    held = claim(store, "w", device=SMALL)
    with store.read() as session:
        (one,) = workers.standings(session)
    assert one.state == "lost"
    assert one.held == workers.Held("w", "GPU-a", held.job_id, "a", search, None, "of a")


def test_the_next_job_is_found_through_indexes(store: Store) -> None:
    """Among 20,000 jobs that have ended and 50 that wait, no step of the plan reads the whole table."""
    owners = [f"o{number}" for number in range(10)]
    found = [new_search(store, owner) for owner in owners]
    with store.begin() as session:
        for search, owner in zip(found, owners, strict=True):
            common = {"kind": "evaluate", "spec": {}, "search_id": search, "owner": owner}
            rows = [{**common, "state": "QUEUED" if n < 5 else "CANCELLED"} for n in range(2005)]
            session.execute(insert(Job), rows)
        if not store.sqlite:
            session.execute(text("ANALYZE"))  # Postgres does it by itself, SQLite never does
    query = queue.next_job(worker="w", device=SMALL, most_running=2)
    dialect = sqlite.dialect() if store.sqlite else postgresql.dialect()
    statement = str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    with store.engine.connect() as connection:
        if store.sqlite:
            plan = [row[-1] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {statement}"))]
            assert not [line for line in plan if line.startswith(("SCAN jobs", "SCAN waiting_job", "SCAN earlier"))], plan
        else:
            plan = [row[0] for row in connection.execute(text(f"EXPLAIN {statement}"))]
            assert not [line for line in plan if "Seq Scan on jobs" in line], plan


owners_and_searches = st.lists(st.integers(1, 4), min_size=1, max_size=4)  # searches of each owner


@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(shape=owners_and_searches, number=st.integers(1, 4), data=st.data())
def test_nobody_starves_within_a_priority(shape: list[int], number: int, data: st.DataObject) -> None:
    """Every search has always a job waiting, workers end theirs in any order but none lasts longer than LONGEST claims.

    Each claim takes from an owner that runs least, and of it from a search that runs least. A search of which nothing runs is begun within
    (number + 1) * (searches of its owner) * (LONGEST + owners) claims: its owner gets a turn at the latest when what it runs has ended and
    every other owner had one turn, and each turn goes to an older job.
    """
    longest = 4
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'detkds.sqlite'}")
        store.migrate()
        owner_of = {new_search(store, f"o{place}"): f"o{place}" for place, count in enumerate(shape) for _ in range(count)}
        running: list[tuple[int, Claim]] = []
        idle_since = dict.fromkeys(owner_of, 0)
        with store.begin() as session:
            for search, owner in owner_of.items():
                for _ in range(number + 1):
                    put(session, search, owner)
            for step in range(40):
                while len(running) >= number or (running and step - running[0][0] >= longest):
                    overdue = step - running[0][0] >= longest
                    done = running.pop(0 if overdue else data.draw(st.integers(0, len(running) - 1)))[1]
                    assert jobs.finish(session, done, {})
                    put(session, str(done.search_id), owner_of[done.search_id])
                    if all(held.search_id != done.search_id for _, held in running):
                        idle_since[done.search_id] = step
                by_owner = Counter(owner_of[held.search_id] for _, held in running)
                by_search = Counter(held.search_id for _, held in running)
                taken = jobs.claim(session, worker="w", lease_seconds=60)
                assert taken is not None
                owner = owner_of[taken.search_id]
                assert by_owner[owner] == min(by_owner[one] for one in owner_of.values())
                assert by_search[taken.search_id] == min(by_search[one] for one, its in owner_of.items() if its == owner)
                running.append((step, taken))
                for search, its in owner_of.items():
                    if all(held.search_id != search for _, held in running):
                        bound = (number + 1) * list(owner_of.values()).count(its) * (longest + len(shape))
                        assert step - idle_since[search] <= bound, f"a search of {its} waits since claim {idle_since[search]}"
        store.close()
