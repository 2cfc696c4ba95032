"""What happens, as server-sent events: all of it in order, from where a connection broke, until the end."""

import json
import logging
import time

import pytest

from detkds_core.store import events, jobs


def read(stream) -> list[dict]:
    """The events of a stream until it ends."""
    found, one = [], {}
    for line in stream.iter_lines():
        name, _, value = line.partition(": ")
        if line == "" and "event" in one:
            found.append({"id": int(one["id"]), "kind": one["event"], "data": json.loads(one["data"])})
        one = {} if line == "" else {**one, name: value}
    return found


def watched(service, path, **headers) -> list[dict]:
    with service.http.stream("GET", path, headers=headers, timeout=20) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        return read(stream)


def test_a_distillation_is_watched_to_its_end_and_from_the_middle(service, wanted):
    training = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe", "seed")}
    one = service.http.post("/distill", json={**training, "policy": "pkd"}).json()["id"]
    with service.store.begin() as session:
        claim = jobs.claim(session, worker="w", lease_seconds=60, job_id=jobs.of_distillation(session, one).id)
        assert jobs.renew(session, claim, lease_seconds=60, progress={"done": 2, "total": 5})
    assert service.http.post(f"/distill/{one}/cancel").status_code == 200
    found = watched(service, f"/distill/{one}/events")
    assert [event["kind"] for event in found] == ["queued", "running", "progress", "cancelled"]
    assert [event["id"] for event in found] == sorted(event["id"] for event in found)
    assert (found[2]["data"]["done"], found[2]["data"]["job"]) == (2, claim.job_id)
    later = watched(service, f"/distill/{one}/events", **{"Last-Event-ID": str(found[1]["id"])})
    assert later == found[2:]
    assert watched(service, f"/distill/{one}/events", **{"Last-Event-ID": str(found[-1]["id"])}) == []


def test_an_event_comes_while_somebody_watches(service, wanted):
    one = service.http.post("/searches", json=wanted).json()["id"]
    with service.http.stream("GET", f"/searches/{one}/events", timeout=20) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: queued"
        with service.store.begin() as session:
            events.append(session, "search", one, "measured", {"index": 6, "ap": 27.4})
        assert next(line for line in lines if line.startswith("event: ")) == "event: measured"
        service.http.post(f"/searches/{one}/cancel")
        assert next(line for line in lines if line.startswith("event: ")) == "event: cancelled"
        assert [line for line in lines if line.startswith("event: ")] == []


def test_what_is_not_there_is_not_found_before_the_stream_begins(service):
    for path in ("/searches", "/distill"):
        answer = service.http.get(f"{path}/0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa/events")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_client_that_leaves_before_the_end_is_no_error(service, wanted, caplog: pytest.LogCaptureFixture):
    """More events than fit between the two: some are on their way when it leaves."""
    one = service.http.post("/searches", json=wanted).json()["id"]
    with service.store.begin() as session:
        for index in range(20_000):
            events.append(session, "search", one, "measured", {"index": index, "ap": 27.4})
    with caplog.at_level(logging.ERROR), service.http.stream("GET", f"/searches/{one}/events", timeout=20) as stream:
        assert next(stream.iter_lines()) == "event: queued"
    time.sleep(1)
    assert caplog.records == []
