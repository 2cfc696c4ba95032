"""The client's tests run against the same service as the API's."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Test folders are no packages (--import-mode=importlib), so the API's fixtures are loaded by their place.
_spec = importlib.util.spec_from_file_location("running_service", Path(__file__).parents[1] / "api" / "conftest.py")
_running = importlib.util.module_from_spec(_spec)
sys.modules["running_service"] = _running
_spec.loader.exec_module(_running)
service = _running.service
wanted = _running.wanted
own_detectors = _running.own_detectors

Detkds = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def detkds(service, tmp_path) -> Detkds:
    """Run the `detkds` command as a process against the service."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "DETKDS_URL": service.url, "DETKDS_HOME": str(tmp_path / "home"), **environment}
        env = {name: value for name, value in env.items() if value}
        return subprocess.run(
            [sys.executable, "-m", "detkds_client.cli", *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture
def own_service(own_detectors, tmp_path) -> Iterator[str]:
    """The URL of a service that knows the detector `mine`, a process of its own."""
    with _running.started(tmp_path, own_detectors) as http:
        yield str(http.base_url).rstrip("/")


@pytest.fixture
def pairing(wanted) -> list[str]:
    """The command line's spelling of `wanted`."""
    teacher = f"{wanted['teacher']['detector']}:{wanted['teacher']['checkpoint']}"
    recipe = [part for name, value in wanted["recipe"].items() for part in ("--recipe", f"{name}={json.dumps(value)}")]
    return ["--dataset", "shapes", "--teacher", teacher, "--student", wanted["student"]["detector"], *recipe]
