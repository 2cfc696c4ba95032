"""A stored file as an answer: whole or a range of it, under its SHA-256, and never other content than was stored."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from detkds_api.problems import BadRange, Damaged, NotFound, Unavailable, answers
from detkds_core.store.artifacts import Artifacts, DamagedError, LostError, UnreachableError

RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)
ETAG = {
    "ETag": {"description": "Its SHA-256.", "required": True, "schema": {"type": "string", "pattern": '^"[0-9a-f]{64}"$'}},
    "Repr-Digest": {"description": "Its SHA-256 (RFC 9530).", "required": True, "schema": {"type": "string", "pattern": "^sha-256=:.+:$"}},
}


def downloads(content: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The answers of an OpenAPI operation that is a download. content: OpenAPI's, of the file."""
    part = {media: {"schema": {"type": "string", "format": "binary"}} for media in content}
    return {
        200: {"content": dict(content), "headers": ETAG},
        206: {"description": "The wanted range", "content": part, "headers": ETAG},
        304: {"description": "The client has it already", "headers": ETAG},
        **answers(BadRange, Damaged, Unavailable),
    }


def download(
    request: Request, artifacts: Artifacts, name: str, title: str, *, sha256: str | None, media_type: str, filename: str | None = None
) -> Response:
    """The file of a name, with `ETag` and `Repr-Digest` (RFC 9530) of its SHA-256; `Range`, `If-Range`, `If-None-Match` are honoured.

    title: what the file is, for people. sha256: what it must have; None: nothing is known, for it was stored before digests were kept.
    Raises NotFound for a name that leads astray, Damaged for a file that is lost or has other content, Unavailable, BadRange.
    """
    with told(title):
        if sha256 is not None:
            artifacts.check(name, sha256)
        found = sha256 or artifacts.sha256(name)
        size = artifacts.size(name)
    etag = f'"{found}"'
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(found)).decode()}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
    }
    if filename is not None:
        headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    if etag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    part = wanted_part(request.headers, etag, size)
    if part is None:
        headers["Content-Length"] = str(size)
        return StreamingResponse(artifacts.read(name), headers=headers, media_type=media_type)
    start, stop = part
    headers |= {"Content-Length": str(stop - start), "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return StreamingResponse(artifacts.read(name, start, stop), status_code=206, headers=headers, media_type=media_type)


def text_of(artifacts: Artifacts, name: str, title: str, *, sha256: str | None) -> str:
    """The text (UTF-8) of a small file. title, sha256: as of `download`. Raises NotFound, Damaged, Unavailable."""
    with told(title):
        if sha256 is not None:
            artifacts.check(name, sha256)
        return b"".join(artifacts.read(name)).decode("utf-8", "replace")


@contextmanager
def told(title: str) -> Iterator[None]:
    """Say of a file, by its title, why it cannot be had: NotFound, Damaged or Unavailable."""
    try:
        yield
    except ValueError:
        raise NotFound(f"the {title} is not among the artifacts") from None
    except (LostError, DamagedError) as error:
        raise Damaged(f"the {title} is not as it was stored: {error}; restore it from a backup of the artifacts") from None
    except UnreachableError as error:
        raise Unavailable(f"the {title} cannot be read now: {error}", headers={"Retry-After": "10"}) from None


def wanted_part(headers: Mapping[str, str], etag: str, size: int) -> tuple[int, int] | None:
    """Where the wanted bytes start and stop; None: all of them, also for what is no single range, as RFC 9110 allows.

    Raises BadRange for one that begins behind the end.
    """
    wanted = RANGE.fullmatch(headers.get("range", "").strip())
    if wanted is None or headers.get("if-range", etag) != etag:
        return None
    first, last = wanted.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    elif last:
        start, stop = max(0, size - int(last)), size
    else:
        return None
    if start >= stop:
        raise BadRange(f"the file has {size} bytes, there are none from {start} on", headers={"Content-Range": f"bytes */{size}"})
    return start, stop
