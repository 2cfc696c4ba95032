"""What every request passes: host, origin, key, size and kind of the body."""

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MIB = 1 << 20
KEY = "0123456789abcdef0123456789abcdef"  # of the `locked` service


def problem(answer: httpx2.Response, status: int) -> dict:
    """The answer's problem document, once it is sure that it is a whole one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert {"type", "title", "status", "detail", "instance", "request_id"} <= document.keys()
    assert document["status"] == status
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return document


def chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"x" * MIB


def test_a_body_of_50_mb_is_refused_and_the_service_goes_on(service):
    answer = service.http.post("/searches", content=b"x" * (50 * MIB), headers={"Content-Type": "application/json"})
    assert "at most 1048576 bytes" in problem(answer, 413)["detail"]
    assert service.http.get("/health").status_code == 200


def test_a_chunked_body_of_50_mb_is_refused_without_being_kept(service):
    before = psutil.Process().memory_info().rss
    answer = service.http.post("/searches", content=chunks(50), headers={"Content-Type": "application/json"})
    problem(answer, 413)
    assert psutil.Process().memory_info().rss - before < 25 * MIB  # the service runs in this process, the client's chunks included


def test_an_announced_body_beyond_all_bounds_is_refused_before_it_is_sent(service):
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=5) as raw:
        raw.sendall(b"POST /searches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 999999999999\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_asks_before_it_sends_is_spared_the_sending(service):
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=5) as raw:
        head = b"POST /searches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2000000\r\n"
        raw.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_exactly_the_limit_is_read(service):
    body = b'{"name": "' + b"x" * (MIB - 12) + b'"}'
    assert len(body) == MIB
    problem(service.http.post("/searches", content=body, headers={"Content-Type": "application/json"}), 422)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_a_body_that_does_not_call_itself_json_is_refused(service, kind):
    answer = service.http.post("/searches", content=b'{"candidates": 4}', headers={"Content-Type": kind})
    assert "application/json" in problem(answer, 415)["detail"]


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"seed": 1' + b"0" * 5000 + b"}"], ids=["open", "binary", "deep", "long number"]
)
def test_a_body_that_cannot_be_read_is_a_bad_request(service, body):
    problem(service.http.post("/searches", content=body, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "localhost@evil.example"])
def test_another_host_name_is_refused(service, host):
    problem(service.http.get("/searches", headers={"Host": host}), 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:9", "[::1]:80"])
def test_loopback_names_are_answered(service, host):
    assert service.http.get("/searches", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_of_another_site_may_not_change_anything(service, wanted, headers):
    problem(service.http.post("/searches", json=wanted, headers=headers), 403)


def test_the_own_page_may(service, wanted):
    answer = service.http.post(
        "/searches", json={**wanted, "name": "own page"}, headers={"Origin": service.url, "Sec-Fetch-Site": "same-origin"}
    )
    assert answer.status_code == 202


def test_request_ids_are_given_back_when_harmless(service):
    assert service.http.get("/health", headers={"X-Request-ID": "build-42-a"}).headers["x-request-id"] == "build-42-a"
    assert service.http.get("/health", headers={"X-Request-ID": "two words"}).headers["x-request-id"] != "two words"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("DELETE", "/searches", 405), ("GET", "/searches/%00", 404)]
)
def test_what_is_not_there_is_a_problem_too(service, method, path, status):
    problem(service.http.request(method, path), status)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", "/searches", "GET, POST"), ("PUT", "/searches/preview", "POST"), ("PUT", "/keys/1", "DELETE"), ("PUT", "/docs", "GET")],
)
def test_what_an_address_does_not_do_comes_with_what_it_does(service, method, path, allowed):
    answer = service.http.request(method, path)
    assert (answer.status_code, ", ".join(sorted(answer.headers["allow"].split(", ")))) == (405, allowed)


def test_the_page_has_no_inline_script_and_a_policy_that_forbids_it(service):
    page = service.http.get("/")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "<script>" not in page.text
    assert "onclick=" not in page.text
    assert "style=" not in page.text
    for asset in ("dashboard.js", "dashboard.css", "icon.svg"):
        assert f"/pages/{asset}" in page.text
        assert service.http.get(f"/pages/{asset}").status_code == 200


def test_pages_serves_nothing_else(service):
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=5) as raw:
        raw.sendall(b"GET /pages/../app.py HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        time.sleep(0.1)
        assert b" 404 " in raw.recv(64)


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {KEY}0"}, {"Authorization": f"Basic {KEY}"}]
)
def test_without_the_key_nothing_is_told(locked, headers):
    answer = httpx2.get(f"{locked}/searches", headers=headers, trust_env=False)
    assert "DETKDS_API_KEY" in problem(answer, 401)["detail"]
    assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx2.post(f"{locked}/distill", json={"policy": "none"}, headers=headers, trust_env=False).status_code == 401
    assert httpx2.get(f"{locked}/openapi.json", headers=headers, trust_env=False).status_code == 401


def test_with_the_key_the_service_answers(locked):
    assert httpx2.get(f"{locked}/searches", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False).json()["items"] == []


def test_whether_it_lives_and_the_empty_page_are_told_to_anybody(locked):
    for path in ("/health", "/", "/pages/dashboard.js"):
        assert httpx2.get(f"{locked}{path}", trust_env=False).status_code == 200


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
FIELDS = [
    "name",
    "pair",
    "dataset",
    "teacher",
    "student",
    "policy",
    "candidates",
    "seed",
    "knowledge",
    "references",
    "recipe",
    "train",
    "val",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["/searches", "/distill", "/datasets"]), body=ANYTHING | st.dictionaries(st.sampled_from(FIELDS), ANYTHING))
def test_whatever_is_sent_is_answered_by_a_problem_of_the_senders(service, path, body):
    answer = service.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
