"""Secrets in logs: services that meet every trouble with passwords and keys in their settings, and not one of them in what they write."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

KEY = "operator-key-0123456789abcdef"
DATABASE_PASSWORD = "db-s3cret@/word"
BROKER_PASSWORD = "broker-s3cret-word"
DATABASE = "postgresql+psycopg://detkds:db-s3cret%40%2Fword@127.0.0.1:1/detkds"
BROKER = f"redis://:{BROKER_PASSWORD}@127.0.0.1:1/0"
S3_SECRET = "s3-s3cret-word"
SECRETS = (KEY, S3_SECRET, DATABASE_PASSWORD, "db-s3cret%40%2Fword", "db-s3cret", BROKER_PASSWORD)


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
    return kept | {"DETKDS_HOME": str(home), "DETKDS_API_KEY": KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET, **more}


def written(
    service: str, settings: dict[str, str], enough: Callable[[str], bool], path: Path, meanwhile: Callable[[], None] = lambda: None
) -> str:
    """All that a service writes until it is enough, or it ends."""
    with path.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", service], env=settings, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 90
        while not enough(path.read_text()) and process.poll() is None:
            assert time.monotonic() < deadline, path.read_text()[-2000:]
            time.sleep(0.2)
        meanwhile()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    return path.read_text()


def clean(text: str, *more: str) -> None:
    assert text
    for secret in (*SECRETS, *more):
        assert secret not in text, f"{secret} stands in: {text[-3000:]}"


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    settings = environment(tmp_path, DETKDS_DATABASE_URL=DATABASE)
    for service, words in (("detkds_api", "failed"), ("detkds_evolver", "cannot be reached"), ("detkds_worker", "cannot be reached")):
        text = written(service, settings, lambda log, words=words: words in log, tmp_path / f"{service}.log")
        assert "127.0.0.1" in text or "connection" in text, f"{service} does not say what is wrong: {text}"
        clean(text)


def test_a_broker_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    settings = environment(tmp_path, DETKDS_BROKER_URL=BROKER)
    subprocess.run([sys.executable, "-m", "detkds_core.store"], env=settings, check=True, capture_output=True, timeout=60)
    text = written("detkds_worker", settings, lambda log: "Cannot connect" in log or "Error 111" in log, tmp_path / "worker.log")
    assert "127.0.0.1:1" in text
    clean(text)


def test_keys_of_requests_are_not_written(tmp_path: Path) -> None:
    """In headers and where they do not belong, with requests that are refused, fail, and are no requests at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    made: list[str] = []

    def use() -> None:
        with httpx2.Client(base_url=url, trust_env=False, timeout=30) as http:
            operator = {"Authorization": f"Bearer {KEY}"}
            made.append(http.post("/keys", json={"name": "n", "owner": "o"}, headers=operator).json()["secret"])
            for key in (*made, KEY, S3_SECRET, "wrong-key-that-somebody-typed"):
                headers = {"Authorization": f"Bearer {key}"}
                http.post("/searches", json={"pair": key}, headers=headers)
                http.post(f"/searches?api_key={key}", json={"pair": "x"}, headers=headers)
                http.get(f"/searches/{key}", headers=headers)
                http.post(f"/searches/{key}/cancel", headers={**headers, "X-Request-ID": key})
                http.post("/searches", content=b"{", headers={**headers, "Content-Type": "application/json"})
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(f"NONSENSE {KEY}\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
            raw.recv(1000)

    settings = environment(tmp_path, DETKDS_PORT=str(port))
    text = written("detkds_api", settings, lambda log: "startup complete" in log, tmp_path / "api.log", use)
    assert text.count('"event": "request"') >= 10
    clean(text, *made)
    assert "wrong-key" not in text.replace('"request_id": "wrong-key-that-somebody-typed"', ""), "a request id is the client's to choose"
