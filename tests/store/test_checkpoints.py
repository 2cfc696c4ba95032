"""Who needs a checkpoint, and that nobody comes to need one while it is deleted."""

import threading

import pytest

from detkds_core.store import Store, checkpoints, distillations, jobs, searches
from detkds_core.store.artifacts import reference
from detkds_core.store.models import Checkpoint

DATASET = {"name": "shapes", "digest": "d1"}


@pytest.fixture
def brought(store: Store) -> str:
    """The id of a checkpoint."""
    with store.begin() as session:
        return checkpoints.create(session, name="c", size=3, sha256="0" * 64).id


def spec(teacher: str | None, student: str | None = None) -> dict:
    """A specification with these checkpoints."""
    named = [reference(f"checkpoints/{one}/weights.safetensors", "0" * 64) if one else None for one in (teacher, student)]
    return {role: {"detector": "d", "checkpoint": place} for role, place in zip(("teacher", "student"), named, strict=True)}


def users(store: Store, checkpoint: str) -> list[str]:
    with store.begin() as session:
        return [one.id for one in checkpoints.users(session, checkpoint)]


def test_what_has_not_ended_and_what_has_succeeded_needs_its_checkpoints(store: Store, brought: str) -> None:
    other = "0198a3e0-77aa-7b11-8d2f-0c6c2c7e9f10"
    with store.begin() as session:
        search = searches.create(session, name="s", spec=spec(brought), dataset=DATASET)
        one = distillations.create(session, name="d", spec=spec(None, brought), dataset=DATASET)
        for teacher, student in ((None, None), (other, None), (None, other)):
            distillations.create(session, name="of others", spec=spec(teacher, student), dataset=DATASET)
    assert users(store, brought) == [search.id, one.id]
    with store.begin() as session:
        assert searches.pause(session, search.id)
    assert users(store, brought) == [search.id, one.id]
    with store.begin() as session:
        assert searches.cancel(session, search.id)
        jobs.finish(session, jobs.claim(session, worker="w", lease_seconds=60, job_id=jobs.of_distillation(session, one.id).id), {})
        assert distillations.succeed(session, one.id)
    assert users(store, brought) == [one.id]
    with store.begin() as session:
        assert checkpoints.deleted(session, [brought, other]) == []
        assert checkpoints.delete(session, brought)
        assert checkpoints.deleted(session, [brought, other]) == [brought], "the other one was never there"
        assert not checkpoints.delete(session, brought)
        assert not checkpoints.hold(session, brought)
        assert session.get(Checkpoint, brought) is None


def test_who_deletes_waits_for_who_is_about_to_use(postgres_database: str) -> None:
    """A search that is not committed holds the checkpoint; on SQLite there is one writer."""
    store = Store(postgres_database)
    store.migrate()
    with store.begin() as session:
        one = checkpoints.create(session, name="c", size=3, sha256="0" * 64).id
    found: list[list[str]] = []
    looking = threading.Thread(target=lambda: found.append(users(store, one)))
    with store.begin() as session:
        assert checkpoints.hold(session, one)
        search = searches.create(session, name="s", spec=spec(one), dataset=DATASET).id
        looking.start()
        looking.join(0.5)
        assert looking.is_alive()
    looking.join(20)
    assert found == [[search]]
    store.close()
