"""Pages of other sites, other names for this machine, and listening where everybody listens in."""

import os
import re
import subprocess
import sys

import httpx2
import pytest

NOBODY = "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"
ELSEWHERE = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://127.0.0.1.evil.example:8350"},
    {"Origin": "http://[x"},
    {"Origin": "http://evil.example:99999999"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "anything"},
]
HOSTS = ["evil.example", "evil.example:8350", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "[::1"]
HOSTS += ["0.0.0.0", "127.1", "2130706433"]  # what this machine answers to all the same


def unsafe(http: httpx2.Client) -> list[tuple[str, str]]:
    """(method, address) of every operation of the description that changes something."""
    document = http.get("/openapi.json").json()
    return [
        (method, re.sub(r"\{\w+\}", NOBODY, path)) for path, methods in document["paths"].items() for method in methods if method != "get"
    ]


@pytest.mark.parametrize("headers", ELSEWHERE, ids=str)
def test_a_page_of_another_site_changes_nothing_by_any_operation(service, refused, headers) -> None:
    walked = unsafe(service.http)
    assert {method for method, _ in walked} >= {"post", "delete"}
    for method, path in walked:
        refused(service.http.request(method, path, headers=headers), 403)
    for method in ("PUT", "PATCH", "DELETE", "BREW"):
        refused(service.http.request(method, "/searches", headers=headers), 403)


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_was_rebound_to_this_machine_is_not_answered(service, refused, host) -> None:
    """Such a page has the same origin as the service; only the name gives it away."""
    own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for method, path in [*unsafe(service.http), ("get", "/searches"), ("get", "/metrics"), ("get", "/openapi.json")]:
        refused(service.http.request(method, path, headers=own), 403)


def test_behind_a_key_a_page_of_another_site_is_refused_too(guarded, operator, refused) -> None:
    for method, path in unsafe(operator):
        refused(operator.request(method, path, headers={"Origin": "https://evil.example"}), 403)


def test_no_answer_lets_another_site_read_it(service) -> None:
    for path in ("/searches", "/openapi.json", "/health"):
        answer = service.http.get(path, headers={"Origin": "https://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    preflight = service.http.options("/searches", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"})
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "192.0.2.7", "some-host", "127.0.0.2", "*"])
def test_no_process_listens_beyond_loopback_without_a_key(tmp_path, host) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
    environment |= {"DETKDS_HOME": str(tmp_path), "DETKDS_HOST": host, "DETKDS_PORT": "0"}
    done = subprocess.run([sys.executable, "-m", "detkds_api"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"detkds_api: DETKDS_HOST={host} would open this service to the network without a key")
