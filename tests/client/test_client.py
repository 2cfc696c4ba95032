"""The Python client over real HTTP."""

import http.server
import json
import threading
import time

import pytest

from detkds_client import Client, ProblemError, ServiceUnreachable, find_url
from detkds_client.types import Candidate
from detkds_core.store import jobs
from detkds_core.store import searches as stored


@pytest.fixture
def client(service):
    with Client(service.url) as client:
        yield client


def test_a_search_can_be_started_found_and_cancelled(client, wanted):
    one = client.search(**wanted, name="by client")
    assert one["state"] == "QUEUED"
    assert client.get_search(one["id"]) == one
    assert one["id"] in [each["id"] for each in client.searches()]
    assert client.candidates(one["id"]) == []
    assert client.cancel_search(one["id"])["state"] == "CANCELLED"


def test_a_search_has_a_budget_an_algorithm_and_rungs(client, wanted):
    del wanted["candidates"]
    one = client.search(**wanted, iterations=4000, algorithm="random_halving", rungs=[1], weights="published", mode="logged")
    spec = one["spec"]
    assert (spec["budget"], spec["candidates"], spec["algorithm"], spec["rungs"]) == (4000, None, "random_halving", [1, 2])
    assert (spec["space"]["balanced"], spec["mode"]) == (False, "logged")
    with pytest.raises(ProblemError, match="candidates: is required"):
        client.search(**wanted)


def test_a_preview_has_the_specification_that_the_search_would_have(client, wanted):
    before = [one["id"] for one in client.searches(limit=1)]
    bought = client.preview_search(**wanted, name=None)
    assert [one["id"] for one in client.searches(limit=1)] == before
    assert bought["spec"] == client.search(**wanted)["spec"]
    assert bought["proposed"] == 12
    with pytest.raises(ProblemError, match="hours: no iteration of this pair"):
        client.preview_search(**{**wanted, "hours": 1.0})


def test_candidates_have_their_rung_and_their_verdict(client, service, wanted):
    one = client.search(**wanted)
    with service.store.begin() as session:
        policies = [{"terms": []}, {"terms": [{"knowledge": "global", "transforms": ["none"] * 3, "distance": "l2", "weight": 1.0}]}]
        common = {"stage": "stage1", "island": "global", "operator": "seed", "parents": []}
        proposals = [{**common, "index": index, "policy": policy} for index, policy in enumerate(policies)]
        stored.propose(session, one["id"], proposals, ["a", "b"])
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=one["id"])
        stored.try_out(session, one["id"], 0, [0, 1], rung=1, replicate=0, seed=1, job_id=job.id)
        stored.measure(session, one["id"], 0, 0, {"ap": 12.0, "iterations": 1})
        stored.measure(session, one["id"], 0, 1, {"rejected": {"gate": "finite", "detail": "loss is inf"}, "iterations": 1})
    measured, refused = client.candidates(one["id"])
    assert set(measured) == set(Candidate.__annotations__), "the type says what the service gives"
    assert (measured["rung"], measured["ap"], measured["rejected"]) == (1, 12.0, None)
    assert (refused["state"], refused["ap"], refused["rejected"]) == ("REJECTED", None, {"gate": "finite", "detail": "loss is inf"})


def test_a_refusal_is_an_exception_with_a_readable_text(client, wanted):
    with pytest.raises(ProblemError, match=r"student\.detector: 'yolo' is not a known detector; did you mean") as caught:
        client.search(**{**wanted, "student": {"detector": "yolo"}})
    assert caught.value.status == 422
    assert caught.value.errors[0]["pointer"] == "/student/detector"


def test_lists_go_on_over_pages(client, wanted):
    mine = [client.search(**wanted)["id"] for _ in range(3)]
    found = [one["id"] for one in client.items("/searches", None)]
    assert set(mine) <= set(found)
    assert [one["id"] for one in client.items("/searches", 2)] == found[:2]


def test_waiting_ends_with_the_search_and_tells_progress(client, wanted):
    one = client.search(**wanted)
    seen = []

    def on_progress(document):
        seen.append(document["state"])
        if len(seen) == 2:
            client.cancel_search(one["id"])

    assert client.wait_search(one["id"], on_progress, poll=0.01)["state"] == "CANCELLED"
    assert seen[:2] == ["QUEUED", "QUEUED"]
    assert seen[-1] == "CANCELLED"


def test_waiting_can_have_an_end(client, wanted):
    one = client.search(**wanted)
    with pytest.raises(TimeoutError, match="still QUEUED"):
        client.wait_search(one["id"], poll=0.01, timeout=0.05)


def test_the_same_key_gives_the_same_search(client, wanted):
    first = client.search(**wanted, idempotency_key="client-1")
    assert client.search(**wanted, idempotency_key="client-1")["id"] == first["id"]


def test_nobody_there_is_told_with_the_address():
    with Client("http://127.0.0.1:9", retries=0) as client, pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.1:9.*detkds serve"):
        client.health()


def test_a_service_that_starts_late_is_reached():
    """The first tries find nobody on the port; a request that may be repeated is."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({"status": "ok"}).encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
    server.server_bind()  # the port is taken, but nobody listens yet

    def listen():
        time.sleep(0.2)
        server.server_activate()
        server.serve_forever(poll_interval=0.02)

    thread = threading.Thread(target=listen)
    thread.start()
    with Client(f"http://127.0.0.1:{server.server_address[1]}") as client:
        assert client.health() == {"status": "ok"}
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_no_detkds_service_is_told(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with (
        Client(f"http://127.0.0.1:{server.server_address[1]}") as client,
        pytest.raises(ProblemError, match="not as a DetKDS service does"),
    ):
        client.health()
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_address_comes_from_the_environment_then_from_serve_json(tmp_path, monkeypatch):
    monkeypatch.delenv("DETKDS_URL", raising=False)
    monkeypatch.setenv("DETKDS_HOME", str(tmp_path))
    with pytest.raises(ServiceUnreachable, match=r"serve\.json"):
        find_url()
    (tmp_path / "serve.json").write_text(json.dumps({"url": "http://127.0.0.1:8123"}))
    assert find_url() == "http://127.0.0.1:8123"
    monkeypatch.setenv("DETKDS_URL", "http://gpu-host:8350")
    assert find_url() == "http://gpu-host:8350"


def test_a_search_that_failed_says_why(client, service, wanted):
    one = client.search(**wanted)
    with service.store.begin() as session:
        stored.fail(session, one["id"], "the trainer ran out of memory")
    ended = client.wait_search(one["id"], poll=0.01)
    assert (ended["state"], ended["reason"]) == ("FAILED", "the trainer ran out of memory")
