"""What every request passes before it reaches an endpoint: request id, host and origin, key, and the size of its body.

Written as plain ASGI, because a body must be refused before anything has read it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from urllib.parse import urlsplit

from anyio import BrokenResourceError
from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detkds_api.caller import OPERATOR, Callers, Pace
from detkds_api.problems import BodyTimeout, BodyTooLarge, Forbidden, NotJson, Problem, answer
from detkds_core import logs
from detkds_core.store.ids import is_id

BODY_LIMIT = 1 << 20  # bytes; a search with every option and 50 policies is below 40 KiB
PART_BYTES = 4 << 20  # of a checkpoint's part, the one body that is no JSON: large against a request's cost, and there within BODY_SECONDS
PART = re.compile(r"/checkpoints/[0-9a-f-]{36}/parts/[0-9]{1,6}")
DRAIN_LIMIT = 64 << 20  # bytes read and thrown away, so that a client that sends first and reads later still sees its 413
BODY_SECONDS = 30.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OPEN_PATHS = ("/", "/docs", "/health", "/ready", "/favicon.ico")  # what shows no data: the page asks for the key itself
READING = ("/searches/preview",)  # what is asked by POST and changes nothing
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")

Note = Callable[[str, str, int, float], None]
log = logging.getLogger("detkds.api")

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """ASGI middleware. It leaves the caller in the request's state: safe methods need scope `read`, the others `run`.

    note: is told of every request (method, route, status, seconds until its answer began).
    allowed_hosts: names that a Host header may carry, without port; "*" for any. Loopback names always pass on loopback, and nothing
    else does, so that a web page cannot reach the service under its own name (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: Iterable[str], callers: Callers, pace: Pace, note: Note) -> None:
        self.app = app
        self.allowed_hosts = frozenset(name.lower() for name in allowed_hosts)
        self.callers = callers
        self.pace = pace
        self.note = note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = wanted_request_id(headers) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.monotonic(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.answered(scope, status, time.monotonic() - began)
            await send(message)

        with logs.bound(request_id=request_id):
            try:
                await self.let_in(scope, headers, receive, with_headers(noted, request_id), request_id)
            except Exception as error:
                if status and only_gone(error):
                    return
                if not status:  # what failed is answered outside of here
                    self.answered(scope, 500, time.monotonic() - began)
                raise

    async def let_in(self, scope: Scope, headers: Headers, receive: Receive, send: Send, request_id: str) -> None:
        body: bytes | None = None
        try:
            self.check_origin(scope, headers)
            await self.identify(scope, headers)
            if scope["method"] not in SAFE_METHODS:
                part = scope["method"] == "PUT" and PART.fullmatch(scope["path"]) is not None
                body = await bounded_body(headers, receive, PART_BYTES if part else BODY_LIMIT)
                check_media_type(headers, body, "application/octet-stream" if part else "application/json")
        except Problem as problem:
            response = answer(problem, instance=scope["path"], request_id=request_id)
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        await self.app(scope, receive if body is None else replay(body, receive), send)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request, and write down those that changed something or were refused: progress is polled several times a second."""
        method, route = scope["method"], route_of(scope)
        self.note(method, route, status, seconds)
        if method in SAFE_METHODS and status < 400:
            return
        named = {name: text for name, text in (scope.get("path_params") or {}).items() if is_id(text)}
        caller = scope["state"].get("caller", OPERATOR)
        fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4), "key_id": caller.key}
        log.log(logging.ERROR if status >= 500 else logging.INFO, "request", extra=fields | named)

    def check_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse a Host that is not ours, and unsafe methods from another site's page.

        Raises Forbidden.
        """
        host = headers.get("host", "")
        name = host_name(host)
        if "*" not in self.allowed_hosts and name not in self.allowed_hosts:
            known = ", ".join(sorted(self.allowed_hosts))
            raise Forbidden(f"this service does not answer for host {name!r}; it does for {known} (DETKDS_ALLOWED_HOSTS adds names)")
        if scope["method"] in SAFE_METHODS:
            return
        origin = headers.get("origin")
        if origin is not None and site(origin) != host.lower():
            raise Forbidden(f"a page of {origin} may not change anything here; use the service's own page, the client or the command line")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Forbidden("a page of another site may not change anything here")

    async def identify(self, scope: Scope, headers: Headers) -> None:
        """Find the caller, and count the request. Raises KeyMissing, Forbidden, TooMany."""
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith("/pages/"):
            return
        caller = await run_sync(self.callers.of, headers.get("authorization", ""))  # it may ask the database
        scope["state"]["caller"] = caller
        if caller is not OPERATOR:
            self.pace.take(caller.key or "")
        caller.must("read" if scope["method"] in SAFE_METHODS or path in READING else "run")


def only_gone(error: Exception) -> bool:
    """Whether all that failed is that a client left before its stream of events ended: FastAPI tells it as an error of the service."""
    return isinstance(error, ExceptionGroup) and error.split(BrokenResourceError)[1] is None


def route_of(scope: Scope) -> str:
    """The address as the documentation writes it, ids as `{...}`: there are only so many of them."""
    if (route := getattr(scope.get("route"), "path_format", None)) is not None:
        return str(route)
    return "/pages" if scope["path"].startswith("/pages/") else "none"


def wanted_request_id(headers: Headers) -> str | None:
    """The client's own X-Request-ID when it is harmless in a log."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else None


def site(origin: str) -> str:
    """Host and port of an Origin header; empty for what is none, such as `null`."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def host_name(host: str) -> str:
    """Host header without its port: `[::1]:80` is `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def bounded_body(headers: Headers, receive: Receive, limit: int = BODY_LIMIT) -> bytes:
    """The whole body, at most `limit` bytes of it ever in memory.

    A longer body is read on and thrown away up to DRAIN_LIMIT before the refusal: a client that sends all before it reads would see a
    reset connection otherwise. Clients that wait for "100 Continue", or announce more than that, are refused at once.
    Raises BodyTooLarge, BodyTimeout.
    """
    announced = headers.get("content-length", "")
    length = int(announced) if announced.isdigit() else 0
    refuse_at_once = length > DRAIN_LIMIT or (length > limit and "100-continue" in headers.get("expect", "").lower())
    too_large = BodyTooLarge(
        f"the body {f'has {length} bytes' if length else 'is longer'}; at most {limit} bytes are accepted. "
        "Data sets are named by path or name, never sent; checkpoints are sent in parts (detkds checkpoints upload)"
    )
    if refuse_at_once:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    break
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > DRAIN_LIMIT:
                    raise too_large
                if size > limit or length > limit:
                    chunks.clear()
                else:
                    chunks.append(chunk)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    if size > limit:
        raise too_large
    return b"".join(chunks)


def check_media_type(headers: Headers, body: bytes, wanted: str) -> None:
    """Raises NotJson for a body of another kind than is wanted. Forms are refused with it, which pages of other sites could send."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and media_type != wanted:
        raise NotJson(f"the body's Content-Type is {media_type or 'missing'}; send {wanted}")


def replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A receive that gives the body once and then whatever the connection says (a disconnect)."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def with_headers(send: Send, request_id: str) -> Send:
    """A send that adds the security headers and the request id to every answer."""
    added = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name for name, _ in message.get("headers", [])}
            extra = [*added, (b"x-request-id", request_id.encode())]
            message = {**message, "headers": [*message.get("headers", []), *(pair for pair in extra if pair[0] not in present)]}
        await send(message)

    return send_with_headers
