"""Requests that take long leave threads to the others, however many come at once."""

import hashlib
import json
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save

from detkds_api import slots, uploads

MANY = 44  # the service answers in 40 threads
WEIGHTS = save({"w": np.zeros(4)}, metadata={"classes": json.dumps(["circle", "square"])})


class Held:
    """Work that waits. inside: how much of it has begun."""

    def __init__(self) -> None:
        self.let_go, self.inside = threading.Event(), 0

    def slow(self, function):
        def waits(*given, **more):
            self.inside += 1
            assert self.let_go.wait(60)
            return function(*given, **more)

        return waits


@pytest.fixture
def held(monkeypatch):
    """Reading a file waits until the test lets go: of a large one it takes minutes."""
    one = Held()
    monkeypatch.setattr(uploads, "file_sha256", one.slow(uploads.file_sha256))
    yield one
    one.let_go.set()


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def refusals(answers: list["Future[httpx2.Response]"]) -> list[httpx2.Response]:
    """The answers that have come."""
    return [one.result() for one in answers if one.done()]


def test_others_are_answered_while_many_ask_for_what_takes_long(service, held):
    (service.roots / "large.safetensors").write_bytes(WEIGHTS)
    path = str(service.roots / "large.safetensors")
    bodies, most = [{"name": f"large{number}", "path": path} for number in range(MANY)], uploads.reading.count
    limits = httpx2.Limits(max_connections=MANY)
    with (
        httpx2.Client(base_url=service.url, timeout=90, trust_env=False, limits=limits) as http,
        ThreadPoolExecutor(MANY) as threads,
    ):
        answers = [threads.submit(http.post, "/checkpoints", json=body) for body in bodies]
        try:
            until(lambda: len(refusals(answers)) == MANY - most)
            assert service.http.get("/health", timeout=10).status_code == 200
            for answer in refusals(answers):
                assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
                assert answer.headers["retry-after"] == str(slots.RETRY_SECONDS)
                assert answer.json()["detail"].startswith(f"{most} ")
        finally:
            held.let_go.set()
        assert Counter(one.result().status_code for one in answers) == {201: most, 503: MANY - most}
        assert http.post("/checkpoints", json=bodies[-1]).status_code == 201, "there is room again"


def test_a_file_that_was_sent_waits_for_its_check_as_it_is(service, held):
    """503 decides nothing: completing it later does."""
    sent = {"name": "sent", "size": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    one = service.http.post("/checkpoints", json=sent).json()
    octets = {"Content-Type": "application/octet-stream"}
    assert service.http.put(f"/checkpoints/{one['id']}/parts/0", content=WEIGHTS, headers=octets).status_code == 200
    (service.roots / "others.safetensors").write_bytes(WEIGHTS)
    body = {"path": str(service.roots / "others.safetensors")}
    most = uploads.reading.count
    with ThreadPoolExecutor(most) as threads:
        others = [threads.submit(service.http.post, "/checkpoints", json=body | {"name": f"other{number}"}) for number in range(most)]
        try:
            until(lambda: held.inside == most)
            answer = service.http.post(f"/checkpoints/{one['id']}/complete", timeout=5)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, str(slots.RETRY_SECONDS))
            assert service.http.get(f"/checkpoints/{one['id']}").json()["received"] == [0]
        finally:
            held.let_go.set()
        assert [each.result().status_code for each in others] == [201] * most
    assert service.http.post(f"/checkpoints/{one['id']}/complete").json()["state"] == "READY"


def test_a_slot_is_free_again_after_a_failure():
    few = slots.Slots(1, "files are being read")
    for _ in range(3):
        with pytest.raises(KeyError), few.one():
            raise KeyError
    with few.one(), pytest.raises(slots.Unavailable, match="1 files are being read just now"), few.one():
        pass
