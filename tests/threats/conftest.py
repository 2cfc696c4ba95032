"""Attacks on a service as it runs: the fixtures of the API's tests, and what would show that an attack came through."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

# Test folders are no packages (--import-mode=importlib), so the API's fixtures are loaded by their place.
_spec = importlib.util.spec_from_file_location("attacked_service", Path(__file__).parents[1] / "api" / "conftest.py")
_running = importlib.util.module_from_spec(_spec)
sys.modules["attacked_service"] = _running
_spec.loader.exec_module(_running)
service = _running.service
guarded = _running.guarded
wanted = _running.wanted

OPERATOR = {"Authorization": f"Bearer {_running.KEY.get_secret_value()}"}


@pytest.fixture
def written() -> Callable[..., dict[str, str]]:
    """Write a COCO split."""
    return _running.write_coco


@pytest.fixture
def checked() -> Callable[..., dict[str, Any]]:
    """Ask for a dataset and wait until its check has ended."""
    return _running.checked


@pytest.fixture
def refused() -> Callable[..., str]:
    """The detail of an answer that refuses, once it is sure that it is a whole problem and tells nothing of the inside."""

    def detail(answer: httpx2.Response, *statuses: int) -> str:
        assert answer.status_code in (statuses or (422,)), answer.text[:500]
        assert answer.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = answer.json()
        assert document["request_id"] == answer.headers["x-request-id"]
        assert "Traceback" not in answer.text
        return str(document["detail"])

    return detail


@pytest.fixture
def refused_dataset(refused) -> Callable[..., str]:
    """What is wrong with a dataset that is asked for: told at once, or by its check."""

    def detail(http: httpx2.Client, body: dict[str, Any]) -> str:
        answer = http.post("/datasets", json=body)
        if answer.status_code != 202:
            return str(refused(answer))
        found = _running.checked(http, body)
        assert found["state"] == "REFUSED", found
        told = "; ".join(problem["message"] for problem in found["problems"])
        assert "Traceback" not in told
        return told

    return detail


@pytest.fixture
def operator(guarded) -> Any:
    """A client of the guarded service with the operator's key."""
    with httpx2.Client(base_url=guarded[0], headers=OPERATOR, timeout=60, trust_env=False) as http:
        yield http


@pytest.fixture
def holder(guarded, operator) -> Any:
    """A client of the guarded service with a new key of an owner: `holder("somebody", scope="run")`."""
    made: list[httpx2.Client] = []

    def client(owner: str, scope: str = "run") -> httpx2.Client:
        secret = operator.post("/keys", json={"name": "attack", "owner": owner, "scope": scope}).json()["secret"]
        made.append(httpx2.Client(base_url=guarded[0], headers={"Authorization": f"Bearer {secret}"}, timeout=60, trust_env=False))
        return made[-1]

    yield client
    for one in made:
        one.close()
