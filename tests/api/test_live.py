"""What happens, as server-sent events: all of it in order, from where a connection broke, until the end."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from detkds_api.caller import KNOWN_SECONDS
from detkds_api.live import followed
from detkds_api.service import Running
from detkds_core.store import events, jobs
from detkds_core.store.models import Search
from detkds_core.store.waiting import Fleets

from .conftest import KEY, Service, serving

LASTING = 2.0  # seconds of a stream of the service `brief`


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


@pytest.fixture(scope="module")
def brief(tmp_path_factory) -> Iterator[Service]:
    """One whose streams end soon, and of which an owner may have two."""
    with serving(tmp_path_factory, api_key=KEY, stream_seconds=LASTING, quota_streams=2) as one:
        yield one


def client(service, owner: str) -> tuple[httpx2.Client, str]:
    """A client with a new key of an owner, and the key's id."""
    key = service.http.post("/keys", json={"name": "k", "owner": owner}).json()
    headers = {"Authorization": f"Bearer {key['secret']}"}
    return httpx2.Client(base_url=service.url, headers=headers, timeout=20, trust_env=False), key["id"]


def test_a_stream_that_ended_by_itself_is_resumed_without_losing_or_repeating_anything(brief):
    """As a browser's EventSource does: it comes again with the last id, until the event that ends the subject."""
    one = brief.http.post("/searches", json=brief.search()).json()["id"]

    def happen() -> None:
        for index in range(60):
            with brief.store.begin() as session:
                events.append(session, "search", one, "measured", {"index": index})
            time.sleep(0.08)
        brief.http.post(f"/searches/{one}/cancel")

    writer = threading.Thread(target=happen)
    writer.start()
    found, connections = [], 0
    while not found or found[-1]["kind"] != "cancelled":
        assert connections < 40
        found += watched(brief, f"/searches/{one}/events", **({"Last-Event-ID": str(found[-1]["id"])} if found else {}))
        connections += 1
    writer.join()
    assert connections > 1
    with brief.store.read() as session:
        assert [event["id"] for event in found] == [event.id for event in events.after(session, one)]
    assert [event["data"]["index"] for event in found if event["kind"] == "measured"] == list(range(60))


def test_the_stream_of_what_is_paused_ends_too(brief):
    one = brief.http.post("/searches", json=brief.search()).json()["id"]
    assert brief.http.post(f"/searches/{one}/pause").status_code == 200
    began = time.monotonic()
    assert [event["kind"] for event in watched(brief, f"/searches/{one}/events")] == ["queued", "paused"]
    assert time.monotonic() - began >= LASTING, "what may come is waited for"


def test_a_stream_ends_in_the_midst_of_what_there_is_and_each_has_one_event_at_least(brief):
    """Its client may read slowly. Here all time is over at once."""
    one = brief.http.post("/searches", json=brief.search()).json()["id"]
    brief.http.post(f"/searches/{one}/cancel")
    running = Running(brief.store, brief.settings.model_copy(update={"stream_seconds": 1e-9}), Fleets())

    async def sent(last: str | None) -> list[tuple[str, str]]:
        return [(event.id, event.event) async for event in followed(running, Search, one, last)]

    last, kinds = None, []
    for _ in range(2):
        ((last, kind),) = asyncio.run(sent(last))
        kinds.append(kind)
    assert kinds == ["queued", "cancelled"]
    assert asyncio.run(sent(last)) == []


def test_an_owner_has_so_many_streams_open_and_the_place_of_one_that_ends_is_free(brief):
    http, _ = client(brief, "watchful")
    other, _ = client(brief, "somebody else")
    with http, other:
        one = http.post("/searches", json=brief.search()).json()["id"]
        theirs = other.post("/searches", json=brief.search()).json()["id"]
        path = f"/searches/{one}/events"
        with http.stream("GET", path) as ends, ExitStack() as rest:
            second = rest.enter_context(http.stream("GET", path))
            assert (ends.status_code, second.status_code) == (200, 200)
            refused = http.get(path)
            assert (refused.status_code, refused.headers["content-type"]) == (429, "application/problem+json")
            assert int(refused.headers["retry-after"]) > 0
            full = "2 streams of events of 'watchful' are open; 2 may be at once (DETKDS_QUOTA_STREAMS). "
            assert refused.json()["detail"].startswith(full)
            assert other.get(f"/searches/{theirs}/events").status_code == 200
            assert brief.http.get(path).status_code == 200, "the operator has no quota"
            assert [event["kind"] for event in read(ends)] == ["queued"]
        for _ in range(5):  # by those whose client leaves, and those that are not found
            assert http.get("/searches/none/events").status_code == 404
            until = time.monotonic() + LASTING / 2  # before any has ended by itself
            while (status := begun(http, path)) == 429:
                assert time.monotonic() < until
            assert status == 200


def begun(http: httpx2.Client, path: str) -> int:
    """The status of a stream whose client leaves once it has begun."""
    with http.stream("GET", path) as stream:
        assert stream.status_code != 200 or next(stream.iter_lines()) == "event: queued"
        return stream.status_code


def test_a_key_that_is_revoked_ends_its_streams(brief):
    http, key = client(brief, "dismissed")
    with http:
        one = http.post("/searches", json=brief.search()).json()["id"]
        path = f"/searches/{one}/events"
        with http.stream("GET", path) as stream:
            assert brief.http.delete(f"/keys/{key}").status_code == 200
            assert [event["kind"] for event in read(stream)] == ["queued"]
        until = time.monotonic() + KNOWN_SECONDS + 2 * LASTING
        while (answer := http.get(path)).status_code == 200:
            assert time.monotonic() < until
        assert answer.status_code == 401


@pytest.mark.parametrize("given", ["9" * 18, "9" * 30, "9" * 5000, b"\xb2", "-1", "x"])
def test_any_last_id_is_taken(service, wanted, given):
    one = service.http.post("/searches", json=wanted).json()["id"]
    service.http.post(f"/searches/{one}/cancel")
    found = watched(service, f"/searches/{one}/events", **{"Last-Event-ID": given})
    assert [event["kind"] for event in found] == ([] if given == "9" * 18 else ["queued", "cancelled"])
