"""`GET /health`: whether the process lives. `GET /ready`: whether it can work, and what it lacks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from detkds_api.problems import FieldError, Unavailable, answers
from detkds_api.service import example
from detkds_api.settings import Settings
from detkds_core.store import Store
from detkds_core.store.artifacts import UnreachableError, artifacts_at

router = APIRouter(tags=["health"])
log = logging.getLogger("detkds.api")

KNOWN_SECONDS = 1.0  # anybody may ask: however often, the database and the broker are asked once in this time
BROKER_SECONDS = 2.0


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"]
    version: str
    database: str


class Ready(BaseModel):
    """What the service stands on: all of it is there."""

    status: Literal["ready"]
    checked: list[str]


@router.get("/health", responses={200: example({"status": "ok", "version": "0.1.0", "database": "sqlite"})})
def health(request: Request) -> Health:
    """Whether the process lives; it asks nobody else. Restart it when this does not answer."""
    store: Store = request.app.state.store
    return Health(status="ok", version=version("detkds_api"), database=store.url.get_backend_name())


@router.get("/ready", responses={200: example({"status": "ready", "checked": ["database", "artifacts", "broker"]}), **answers(Unavailable)})
def ready(request: Request) -> Ready:
    """Whether the service can work: 503 names what is missing of database and schema, artifacts, and broker (where there is one)."""
    readiness: Readiness = request.app.state.readiness
    if missing := readiness.missing():
        raise Unavailable("; ".join(f"{one.pointer}: {one.message}" for one in missing), missing, headers={"Retry-After": "5"})
    return Ready(status="ready", checked=readiness.checked)


class Readiness:
    """What the service stands on, looked at once in a while."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self.checked = ["database", "artifacts", *(["broker"] if settings.broker_url else [])]
        self.lock = threading.Lock()
        self.until = 0.0  # time.monotonic()
        self.found: tuple[FieldError, ...] = ()

    def missing(self) -> tuple[FieldError, ...]:
        with self.lock:
            if time.monotonic() >= self.until:
                self.found = tuple(self.look())
                self.until = time.monotonic() + KNOWN_SECONDS
            return self.found

    def look(self) -> Iterator[FieldError]:
        """What is missing. Reasons that tell of machines and paths go to the log: anybody may read the answer."""
        try:
            revision = self.store.revision()
        except SQLAlchemyError as error:
            log.warning("the database does not answer", extra={"reason": str(getattr(error, "orig", error))})
            yield FieldError("database", "does not answer")
        else:
            if revision != head():
                yield FieldError("database", f"has the schema {revision or '-'}, this code needs {head()}: python -m detkds_core.store")
        try:
            artifacts = artifacts_at(self.settings.artifacts_place)
            artifacts.probe()
        except UnreachableError as error:
            log.warning("the artifacts cannot be written", extra={"reason": str(error)})
            # The reason of a folder names no path, that of S3 may name its address.
            why = f" ({error.__cause__.strerror})" if artifacts.folder and isinstance(error.__cause__, OSError) else ""
            yield FieldError("artifacts", f"cannot be written{why}")
        if self.settings.broker_url is not None and (reason := silent(self.settings.broker_url.get_secret_value())):
            log.warning("the broker does not answer", extra={"reason": reason})
            yield FieldError("broker", "does not answer")


def silent(url: str) -> str:
    """Why a broker does not answer; empty: it does."""
    import redis  # most installations have no broker

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=BROKER_SECONDS, socket_timeout=BROKER_SECONDS) as broker:
            broker.ping()
    except (redis.exceptions.RedisError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@cache
def head() -> str:
    """The schema that this code works with."""
    from detkds_core.store import migrations

    return migrations.head()
