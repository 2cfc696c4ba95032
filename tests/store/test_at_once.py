"""Two at once, on Postgres: neither misses what the other moves, and whoever watches misses no event."""

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.orm import Session

from detkds_core.store import Store, datasets, events, jobs, searches
from detkds_core.store.models import Job

DATASET = {"name": "shapes", "digest": "d1"}


@pytest.fixture
def store(postgres_database: str) -> Iterator[Store]:
    made = Store(postgres_database)
    made.migrate()
    yield made
    made.close()


def searched(store: Store) -> tuple[str, jobs.Claim]:
    """A search with a job that runs."""
    with store.begin() as session:
        search = searches.create(session, name="s", spec={"seed": 0}, dataset=DATASET).id
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search).id
        claim = jobs.claim(session, worker="w", lease_seconds=60, job_id=job)
    assert claim is not None
    return search, claim


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (lambda session, search: jobs.cancel_search(session, search), "CANCELLED"),
        (lambda session, search: jobs.pause(session, Job.search_id == search), "PAUSED"),
    ],
)
def test_a_job_that_its_worker_gives_back_meanwhile_is_not_missed(
    store: Store, taken: Callable[[Session, str], object], expected: str
) -> None:
    search, claim = searched(store)

    def take() -> None:
        with store.begin() as session:
            taken(session, search)

    with store.begin() as session:
        assert jobs.release(session, claim)
        session.flush()
        other = threading.Thread(target=take)
        other.start()
        other.join(0.5)
        assert other.is_alive(), "it waits for the worker's word"
    other.join(10)
    with store.read() as session:
        found = jobs.get(session, claim.job_id)
        assert found is not None
        assert found.state == expected


def test_no_event_of_a_search_becomes_visible_behind_a_later_one(store: Store) -> None:
    search, claim = searched(store)
    with store.begin() as session:
        assert searches.lock(session, search) is not None
        events.append(session, "search", search, "measured", {"count": 1})
        session.flush()
        with store.begin() as another:  # a worker, while the search is driven: it waits for nobody
            assert jobs.renew(another, claim, lease_seconds=60, progress={"done": 1})
        with store.read() as watching:
            last = max((one.id for one in events.after(watching, search)), default=0)
    with store.read() as watching:
        assert "measured" in [one.kind for one in events.after(watching, search, last)]
    with store.begin() as another:
        assert jobs.renew(another, claim, lease_seconds=60, progress={"done": 2})
    with store.read() as watching:
        (told,) = (one.data for one in events.after(watching, search) if one.kind == "progress")
    assert told["done"] == 2


def test_who_comes_to_a_check_that_was_decided_meanwhile_does_not_take_it(store: Store) -> None:
    """It saw the dataset CHECKING, and took the lease after another one had decided and left."""
    with store.begin() as session:
        datasets.ask(session, name="a", owner=None, asked={"old": {}})
    with store.begin() as late:
        assert [one.name for one in datasets.unheld(late)] == ["a"]
        with store.begin() as first:
            datasets.begin_check(first, "a", holder="first", seconds=30)
            datasets.refuse(first, "a", holder="first", problems=[{"pointer": "", "message": "m"}])
        assert datasets.begin_check(late, "a", holder="late", seconds=30) is None
    with store.begin() as session:
        datasets.ask(session, name="a", owner=None, asked={"new": {}})
        assert datasets.begin_check(session, "a", holder="next", seconds=30).asked == {"new": {}}
