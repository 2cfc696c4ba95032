"""How the client speaks to a service: requests that are repeated where that is safe, lists over their pages, waiting, and errors."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED", "DEAD")  # of searches and distillations
DECIDED_STATES = ("READY", "REFUSED")  # of datasets and checkpoints
PATIENCE = 90.0  # seconds that waiting outlives an unreachable service: its restart, or a database's
PASSING = (429, 502, 503, 504)  # statuses of a service, or of something before it, that will answer again


def dotted(pointer: str) -> str:
    """A JSON pointer as people write it: `/policy/terms/1/weight` is `policy.terms[1].weight`; `?limit` stays."""
    if not pointer.startswith("/"):
        return pointer or "body"
    parts = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).lstrip(".")


class ProblemError(Exception):
    """The service refused. Its text is readable as it is; `problem` is the RFC 9457 document, `status` the HTTP status."""

    def __init__(self, problem: Mapping[str, Any], status: int) -> None:
        self.problem = problem
        self.status = status
        self.errors: list[dict[str, str]] = list(problem.get("errors", []))
        text = str(problem.get("detail") or problem.get("title") or f"the service answered {status}")
        # The detail stops after some fields; whoever repairs a file wants to see all that is wrong with it.
        super().__init__(told(self.errors) if len(self.errors) > 1 else text)


def told(errors: Iterable[Mapping[str, Any]]) -> str:
    """What is wrong with fields, a line each."""
    return "\n".join(f"{dotted(one['pointer'])}: {one['message']}" for one in errors)


class DigestError(Exception):
    """What arrived is not what was sent."""


class ServiceUnreachable(Exception):
    """Nobody answers at the service's address."""


def find_url(home: Path | None = None) -> str:
    """Where the service is: `DETKDS_URL`, else what `detkds serve` left in `$DETKDS_HOME/serve.json`.

    Raises ServiceUnreachable when neither says.
    """
    if url := os.environ.get("DETKDS_URL"):
        return url
    folder = home or Path(os.environ.get("DETKDS_HOME", "~/.detkds")).expanduser()
    try:
        return str(json.loads((folder / "serve.json").read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ServiceUnreachable(
            f"no service is known: {folder / 'serve.json'} is not there. "
            "Start one with 'detkds serve', or name one with --url or DETKDS_URL"
        ) from None


class Connection:
    """A connection to one service. Use it as a context manager, or close it.

    url None: `find_url` looks for one; key None: `DETKDS_API_KEY`. Requests that are safe to repeat are repeated when the connection
    fails: reading, cancelling, and creating too, since every creation carries an Idempotency-Key.
    """

    def __init__(self, url: str | None = None, key: str | None = None, *, timeout: float = 60.0, retries: int = 4) -> None:
        self.url = (url or find_url()).rstrip("/")
        self.retries = retries
        key = key or os.environ.get("DETKDS_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Proxies of the environment are for the internet; the service is on this machine or in this network.
        self.http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.http.close()

    def get(self, path: str, **parameters: Any) -> Any:
        return self.request("GET", path, params=given(**parameters))

    def post(self, path: str, body: Mapping[str, Any] | None = None, idempotency_key: str | None = None) -> Any:
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self.request("POST", path, json=body, headers=headers) if body is not None else self.request("POST", path, headers=headers)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        return self.request("PATCH", path, json=body)

    def items(self, path: str, limit: int | None, **parameters: Any) -> Iterator[Any]:
        """The items of a list over its pages, at most `limit`."""
        left = limit
        cursor: str | None = None
        while left is None or left > 0:
            page = self.get(path, limit=100 if left is None else min(left, 100), cursor=cursor, **parameters)
            yield from page["items"]
            cursor = page["next_cursor"]
            left = None if left is None else left - len(page["items"])
            if cursor is None:
                return

    def wait(self, path: str, on_progress: Callable[[Any], None] | None, poll: float, timeout: float | None) -> Any:
        """Ask again and again until the state is final. A service that restarts in between is waited for."""
        started = reached = time.monotonic()
        while True:
            try:
                document = self.get(path)
                reached = time.monotonic()
            except (ServiceUnreachable, ProblemError) as error:
                passing = isinstance(error, ServiceUnreachable) or error.status in PASSING
                if not passing or time.monotonic() - reached > PATIENCE:
                    raise
                time.sleep(max(poll, 1.0) if isinstance(error, ProblemError) else poll)
                continue
            if on_progress is not None:
                on_progress(document)
            if document["state"] in (*FINAL_STATES, *DECIDED_STATES):
                return document
            if timeout is not None and time.monotonic() - started > timeout:
                raise TimeoutError(f"{path} is still {document['state']} after {timeout:.0f} s")
            time.sleep(poll)

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """The JSON of one exchange. Raises ProblemError, ServiceUnreachable."""
        return self.exchange(method, path, **arguments).json()

    def exchange(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """One exchange, repeated when the connection fails. Raises ProblemError, ServiceUnreachable."""
        for attempt in range(self.retries + 1):
            try:
                response = self.http.request(method, path, **arguments)
            except (httpx2.ConnectError, httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError) as error:
                if attempt == self.retries:
                    raise self.unreachable(error) from error
                time.sleep(min(0.1 * 2**attempt, 2.0))
                continue
            except httpx2.TransportError as error:
                raise self.unreachable(error) from error
            if response.is_success:
                return response
            raise problem_of(response)
        raise AssertionError("the loop above returns or raises")

    def unreachable(self, error: Exception) -> ServiceUnreachable:
        return ServiceUnreachable(f"no answer from {self.url} ({error or type(error).__name__}); is 'detkds serve' running there?")


def problem_of(response: httpx2.Response) -> ProblemError:
    """The answer's problem document, or one made of whatever something between here and the service answered instead."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": f"{response.url} answered {response.status_code}, and not as a DetKDS service does"}
    return ProblemError(problem, response.status_code)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
