"""`detkds serve`: processes that start again and end together."""

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

SERVE_ON = """
import sys
from pathlib import Path
from detkds_client.serve import serve
serve(Path(sys.argv[1]), port=int(sys.argv[2]), workers=2)
"""


def test_one_service_a_home_found_by_its_file_ended_by_ctrl_c(tmp_path: Path) -> None:
    port = harness.free_port()
    (tmp_path / "serve.json").write_text('{"url": "http://127.0.0.1:1", "pid": 1}')  # of one that was killed
    command = [sys.executable, "-c", SERVE_ON, str(tmp_path), str(port)]
    process = subprocess.Popen(command, env=harness.environment(tmp_path), stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        url = f"http://127.0.0.1:{port}"
        assert process.stdout.readline().decode() == f"DetKDS listens on {url}\n"
        told = {"url": url, "pid": process.pid, "home": str(tmp_path)}
        assert json.loads((tmp_path / "serve.json").read_text()) == told
        assert Api(url).get("/health")["status"] == "ok"
        second = subprocess.run(command, env=harness.environment(tmp_path), capture_output=True, text=True, timeout=30, check=False)
        assert second.returncode != 0
        assert f"DetKDS already runs on {tmp_path} (process {process.pid})" in second.stderr
        assert json.loads((tmp_path / "serve.json").read_text()) == told
        until(lambda: len(harness.pids(tmp_path, "-m detkds_worker")) == 2, 10, "two workers")
        logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
        assert logs == ["api.log", "evolver.log", "worker-2.log", "worker.log"]
    finally:
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        assert process.wait(20) == 0
    assert harness.processes_of(tmp_path) == {}
    assert not (tmp_path / "serve.json").exists()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} on 127.0.0.1 is taken"):
            serve(tmp_path, port=port)
    assert harness.processes_of(tmp_path) == {}


def test_a_service_that_cannot_start_is_an_error_with_its_reason(tmp_path: Path) -> None:
    """The API refuses to listen on the network without a key: starting it again would not help."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
    with pytest.raises(ServeError, match=r"(?s)the api does not start.*DETKDS_API_KEY"):
        serve(tmp_path, host="0.0.0.0", environment=environment)
    assert harness.processes_of(tmp_path) == {}
    assert not (tmp_path / "serve.json").exists()
