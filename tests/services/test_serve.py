"""`detkds serve`: three processes that start again and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from detkds_client.serve import ServeError, serve

from . import harness
from .harness import Api, until
from .test_kill import SERVE, start_serve, stop

SERVE_ON = "import sys; from pathlib import Path; from detkds_client.serve import serve; serve(Path(sys.argv[1]), port=int(sys.argv[2]))"


def test_what_runs_can_be_found_and_a_second_one_is_refused(tmp_path: Path) -> None:
    process, api = start_serve(tmp_path)
    try:
        told = json.loads((tmp_path / "serve.json").read_text())
        assert told == {"url": api.url, "pid": process.pid, "home": str(tmp_path)}
        assert api.url.startswith("http://127.0.0.1:")
        assert api.get("/health")["status"] == "ok"
        second = subprocess.run(
            [sys.executable, "-c", SERVE, str(tmp_path)], env=harness.environment(tmp_path), capture_output=True, text=True, timeout=30
        )
        assert second.returncode != 0
        assert f"DetKDS already runs on {tmp_path} (process {process.pid})" in second.stderr
        assert json.loads((tmp_path / "serve.json").read_text()) == told
        assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["api.log", "evolver.log", "worker.log"]
    finally:
        stop(process)
    assert harness.processes_of(tmp_path) == {}
    assert not (tmp_path / "serve.json").exists()


def test_ctrl_c_ends_everything_and_the_same_home_serves_again(tmp_path: Path) -> None:
    for _ in range(2):
        process, _ = start_serve(tmp_path)
        try:
            until(lambda: harness.pids(tmp_path, "-m detkds_worker"), 10, "a worker")
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        assert harness.processes_of(tmp_path) == {}


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(ServeError, match=f"port {listener.getsockname()[1]} on 127.0.0.1 is taken"),
    ):
        serve(tmp_path, port=listener.getsockname()[1])
    assert harness.processes_of(tmp_path) == {}


def test_a_given_port_is_used(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE_ON, str(tmp_path), str(port)], env=harness.environment(tmp_path), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().decode() == f"DetKDS listens on http://127.0.0.1:{port}\n"
        assert Api(f"http://127.0.0.1:{port}").get("/health")["status"] == "ok"
    finally:
        assert process.stdout is not None
        process.stdout.close()
        stop(process)


def test_a_service_that_cannot_start_is_an_error_with_its_reason(tmp_path: Path) -> None:
    """The API refuses to listen on the network without a key: starting it again would not help."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
    with pytest.raises(ServeError, match=r"(?s)the api does not start.*DETKDS_API_KEY"):
        serve(tmp_path, host="0.0.0.0", environment=environment)
    assert harness.processes_of(tmp_path) == {}
    assert not (tmp_path / "serve.json").exists()
