"""Lease tokens that are forged, stale, or of something else: no write goes through, and no token is ever told."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from detkds_core.store import Store, distillations, jobs
from detkds_core.store.clock import db_time
from detkds_core.store.ids import new_id
from detkds_core.store.models import Job

WRITES: dict[str, Callable[[Any, jobs.Claim], bool]] = {
    "renew": lambda session, claim: jobs.renew(session, claim, lease_seconds=9999, progress={"done": 1}),
    "finish": lambda session, claim: jobs.finish(session, claim, {"ap": 99.9}),
    "fail": lambda session, claim: jobs.fail(session, claim, kind="bad_data", detail="forged"),
    "release": lambda session, claim: jobs.release(session, claim),
}


def claimed(store: Store) -> jobs.Claim:
    with store.begin() as session:
        job = jobs.enqueue(session, kind="evaluate", spec={}).id
    with store.begin() as session:
        claim = jobs.claim(session, worker="honest", lease_seconds=60, job_id=job)
    assert claim is not None
    return claim


def row(store: Store, job_id: str) -> dict[str, Any]:
    with store.read() as session:
        job = jobs.get(session, job_id)
        return {column.name: getattr(job, column.name) for column in Job.__table__.columns}


FORGERIES: dict[str, Callable[[jobs.Claim, jobs.Claim], jobs.Claim]] = {
    "a token made up": lambda mine, _: replace(mine, token=new_id()),
    "no token": lambda mine, _: replace(mine, token=""),
    "a token that is SQL": lambda mine, _: replace(mine, token="' OR '1'='1"),
    "a token of another job": lambda mine, other: replace(mine, token=other.token),
    "a job of another token": lambda mine, other: replace(other, token=mine.token),
    "an attempt before": lambda mine, _: replace(mine, attempt=mine.attempt - 1),
    "an attempt to come": lambda mine, _: replace(mine, attempt=mine.attempt + 1),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_token_writes_nothing(store: Store, kind: str, write: str) -> None:
    mine, other = claimed(store), claimed(store)
    before = [row(store, one.job_id) for one in (mine, other)]
    with store.begin() as session:
        assert not WRITES[write](session, FORGERIES[kind](mine, other))
    assert [row(store, one.job_id) for one in (mine, other)] == before


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("how", ["reaped", "reaped and claimed again", "cancelled", "paused", "released", "finished"])
def test_a_stale_token_writes_nothing(store: Store, how: str, write: str) -> None:
    mine = claimed(store)
    with store.begin() as session:
        if how.startswith("reaped"):
            session.execute(update(Job).where(Job.id == mine.job_id).values(lease_expires_at=db_time(-1)))
            assert jobs.reap(session) == [mine.job_id]
        else:
            {
                "cancelled": lambda: jobs.cancel(session, mine.job_id),
                "paused": lambda: jobs.pause(session, Job.id == mine.job_id),
                "released": lambda: jobs.release(session, mine),
                "finished": lambda: jobs.finish(session, mine, {"ap": 1.0}),
            }[how]()
    if how == "reaped and claimed again":
        with store.begin() as session:
            assert jobs.claim(session, worker="another", lease_seconds=60, job_id=mine.job_id) is not None
    before = row(store, mine.job_id)
    with store.begin() as session:
        assert not WRITES[write](session, mine)
    assert row(store, mine.job_id) == before


def test_no_answer_and_no_event_tells_a_token(service, wanted) -> None:
    asked = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")} | {"policy": "pkd"}
    one = service.http.post("/distill", json=asked).json()["id"]
    with service.store.begin() as session:
        job = jobs.of_distillation(session, one).id
        claim = jobs.claim(session, worker="w", lease_seconds=60, job_id=job)
        jobs.renew(session, claim, lease_seconds=60, progress={"done": 1, "total": 2})
    answers = [service.http.get(path) for path in (f"/jobs/{job}", "/jobs", f"/distill/{one}", "/distill", "/metrics")]
    with service.store.begin() as session:
        jobs.finish(session, claim, {})
        distillations.fail(session, one, "that its events end")
    answers.append(service.http.get(f"/distill/{one}/events"))
    for answer in answers:
        assert answer.status_code == 200
        assert claim.token not in answer.text
        assert "lease" not in answer.text
