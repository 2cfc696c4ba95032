"""`/checkpoints`: weights that people bring, in parts over HTTP, from a registered folder of this machine or from an allowed host."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, cast

from fastapi import APIRouter, Response
from fastapi import Body as FromBody
from fastapi import Path as InPath
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from detkds_api.checkpoints import none_there, weights_name
from detkds_api.fetching import FetchError, allowed, fetch
from detkds_api.fields import Body, Name, PathText
from detkds_api.gate import PART_BYTES
from detkds_api.intake import IntakeError, take_in
from detkds_api.lists import Cursor, Limit, Page, page_of
from detkds_api.pairing import seen as readable
from detkds_api.paths import absent, inside
from detkds_api.problems import Conflict, FieldError, InvalidInput, NoRoom, NotFound, TooMany, Unavailable, answers, invalid
from detkds_api.service import Id, Running, Service, example
from detkds_api.slots import Slots
from detkds_core.catalogue import detector as detector_entry
from detkds_core.store import checkpoints as stored
from detkds_core.store import disk, owners
from detkds_core.store.artifacts import ArtifactError, Artifacts, LostError, UnreachableError, file_sha256
from detkds_core.store.ids import is_id
from detkds_core.store.models import Checkpoint, Distillation, Search
from detkds_core.store.vocabulary import CheckpointState

router = APIRouter(tags=["checkpoints"])
log = logging.getLogger("detkds.api")

LARGEST = 8 << 30  # bytes of a file; a detector of 500 M parameters in float32 has 2 GiB
UNFINISHED = 8  # uploads that one owner may have begun
INCOMING = "incoming"  # below the home: a folder for each file that is fetched or checked just now
LEFT_SECONDS = 86_400.0  # after which such a folder is nobody's: fetching, reading and storing a file take less than two hours
fetching = Slots(2, "files are being fetched")
reading = Slots(4, "files are being read and checked")  # besides those that are fetched
checking: set[str] = set()  # ids whose files this process reads just now
checking_lock = threading.Lock()


class CheckpointRequest(Body):
    """A checkpoint to bring: a file that will be sent in parts (`size` and `sha256`), one of this machine (`path`), or one that lies
    on a host that the operator allows (`url` and `sha256`).
    """

    name: Name = Field(description="to find it again by, such as the file's name")
    size: int | None = Field(default=None, ge=1, le=LARGEST, description="bytes of the file")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="of the file, hexadecimal")
    path: PathText | None = Field(default=None, description="an absolute path below a data root, in place of size and sha256")
    url: PathText | None = Field(
        default=None, description="an https address at one of the hosts in DETKDS_CHECKPOINT_HOSTS, in place of size; with sha256"
    )
    classes: Annotated[list[Name], Field(min_length=1, max_length=10_000)] | None = Field(
        default=None, description="in the order of training; needed where the file does not name them"
    )
    detector: Name | None = Field(default=None, description="of `GET /detectors`, whose weights they are")


class CheckpointView(BaseModel):
    """A checkpoint. UPLOADING: its parts are awaited; READY: `id` may stand for `checkpoint`; REFUSED: `reason` says why.

    size, sha256: of the file as it is sent; digest, bytes: of the safetensors file that was made of it. Parts are numbered from 0 and have
    `part_bytes` bytes, but for the last one. received: the parts that are there, null in lists and once it is decided.
    """

    id: str
    name: str
    state: CheckpointState
    reason: str | None
    created_at: datetime
    updated_at: datetime
    size: int
    sha256: str
    part_bytes: int
    parts: int
    received: list[int] | None
    classes: list[str] | None
    detector: str | None
    digest: str | None
    bytes: int | None


class PartView(BaseModel):
    """A part that is there."""

    number: int
    bytes: int
    sha256: str


EXAMPLE = {
    "id": "0198a3e0-77aa-7b11-8d2f-0c6c2c7e9f10",
    "name": "gfl_r101.pth",
    "state": "UPLOADING",
    "reason": None,
    "created_at": "2026-05-04T10:26:31Z",
    "updated_at": "2026-05-04T10:26:31Z",
    "size": 9_000_000,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "part_bytes": PART_BYTES,
    "parts": 3,
    "received": [0, 1],
    "classes": None,
    "detector": "gfl_r101_fpn",
    "digest": None,
    "bytes": None,
}
READY = {
    **EXAMPLE,
    "state": "READY",
    "received": None,
    "classes": ["nucleus", "membrane"],
    "digest": "5f0c0d0e81884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a",
    "bytes": 8_999_000,
}
REQUEST_EXAMPLE = {"name": "gfl_r101.pth", "size": 9_000_000, "sha256": EXAMPLE["sha256"], "detector": "gfl_r101_fpn"}
Number = Annotated[int, InPath(ge=0, le=999_999, examples=[0])]
Bytes = Annotated[
    bytes, FromBody(media_type="application/octet-stream", description="`part_bytes` bytes of the file, from number·part_bytes on.")
]


@router.post(
    "/checkpoints",
    status_code=201,
    responses={
        201: example(EXAMPLE),
        200: {**example(EXAMPLE), "description": "It was there already", "model": CheckpointView},
        **answers(Conflict, NoRoom, Unavailable),
    },
    openapi_extra=example(REQUEST_EXAMPLE, request=True),
)
def create_checkpoint(wanted: CheckpointRequest, service: Service, response: Response) -> CheckpointView:
    """Announce a file that will be sent, or take one of this machine.

    The same file under the same name again answers 200 with what is there, so that an upload that broke off goes on: `received` says which
    parts need not be sent. A `path` is checked at once, and READY when the answer comes; so is a `url`, once it is fetched.
    """
    path = wanted_file(wanted, service)
    if path is not None:
        with reading.one():
            return announced(wanted, service, response, path)
    if wanted.url is None:
        return announced(wanted, service, response, None)
    with service.store.read() as session:
        known = same(session, wanted, service, wanted.sha256)
    if known is not None and known.state == "READY":
        response.status_code = 200
        return seen(service, known.id)
    with fetched(wanted.url, wanted.sha256, service) as file:
        return announced(wanted, service, response, file)


def same(session: Session, wanted: CheckpointRequest, service: Running, sha256: str | None) -> Checkpoint | None:
    """The checkpoint that a request has announced before."""
    assert sha256 is not None
    said = {"name": wanted.name, "sha256": sha256, "detector": wanted.detector, "classes": wanted.classes}
    return stored.same(session, owner=service.caller.owner, **said)  # type: ignore[arg-type]


@contextmanager
def fetched(url: str, sha256: str | None, service: Running) -> Iterator[Path]:
    """The file of an address, gone afterwards. Raises InvalidInput, Unavailable, NoRoom."""
    with fetching.one(), room(service, 0) as folder:
        file = folder / "fetched"
        most = min(LARGEST, shutil.disk_usage(folder).free - (1 << 30))
        try:
            fetch(url, file, hosts=service.settings.checkpoint_hosts, most=most)
        except FetchError as error:
            raise invalid([FieldError("/url", str(error))]) from None
        if (found := file_sha256(file)) != sha256:
            raise invalid([FieldError("/sha256", f"expected {sha256}; what {url!r} has now is {found}")])
        yield file


def announced(wanted: CheckpointRequest, service: Running, response: Response, path: Path | None) -> CheckpointView:
    """Store what is said of a checkpoint, and decide it where its file is there. Raises NoRoom, TooMany, InvalidInput, Conflict."""
    size, sha256 = (path.stat().st_size, file_sha256(path)) if path is not None else (wanted.size, wanted.sha256)
    assert size is not None
    assert sha256 is not None
    said = {"name": wanted.name, "sha256": sha256, "detector": wanted.detector, "classes": wanted.classes}
    with service.store.begin() as session:
        owners.hold(session, service.caller.owner)
        one = same(session, wanted, service, sha256)
        if one is None:
            with_room(service)
            begun = stored.count_unfinished(session, service.caller.owner)
            if service.caller.sees is not None and begun >= UNFINISHED:
                raise TooMany(
                    f"{begun} uploads of {service.caller.owner!r} are not finished; complete one, or wait until they are given up"
                )
            one = stored.create(session, owner=service.caller.owner, size=size, **said)  # type: ignore[arg-type]
        else:
            response.status_code = 200
    if path is not None and one.state == "UPLOADING":
        check_file(service, one, path)
    return seen(service, one.id)


def wanted_file(wanted: CheckpointRequest, service: Running) -> Path | None:
    """The file of a `path`; None where one will be sent. Raises InvalidInput."""
    errors: list[FieldError] = []
    path = None
    if wanted.path is not None:
        if wanted.size is not None or wanted.sha256 is not None or wanted.url is not None:
            errors.append(
                FieldError("/path", "is a file of the service's machine; url, size and sha256 are of another: give one or the other")
            )
        try:
            path = inside(wanted.path, service.settings.data_roots)
            with service.store.read() as session:
                if not readable(session, service, path):
                    raise ValueError(absent(wanted.path))
            if not path.is_file() or path.stat().st_size > LARGEST:
                raise ValueError(f"{wanted.path!r} is no file of at most {LARGEST} bytes")
        except ValueError as error:
            errors.append(FieldError("/path", str(error)))
    elif wanted.url is not None:
        if wanted.size is not None:
            errors.append(FieldError("/url", "is fetched; size is of a file that is sent: give one or the other"))
        if wanted.sha256 is None:
            errors.append(FieldError("/sha256", "is required for a file that is fetched: what it shall be"))
        try:
            allowed(wanted.url, service.settings.checkpoint_hosts)
        except FetchError as error:
            errors.append(FieldError("/url", str(error)))
    else:
        errors += [
            FieldError(f"/{name}", "is required for a file that is sent (or give its path on the service's machine, or its url)")
            for name in ("size", "sha256")
            if getattr(wanted, name) is None
        ]
    if wanted.detector is not None:
        try:
            detector_entry(wanted.detector)
        except ValueError as error:
            errors.append(FieldError("/detector", str(error)))
    if errors:
        raise invalid(errors)
    return path


@router.get("/checkpoints", responses={200: example({"items": [READY | {"received": None}], "next_cursor": None})})
def list_checkpoints(service: Service, limit: Limit = 50, cursor: Cursor = None) -> Page[CheckpointView]:
    """The newest checkpoints first."""
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, limit=limit, cursor=cursor, owner=service.caller.sees))
        return Page(items=[view(one, None) for one in found], next_cursor=after)


@router.get("/checkpoints/{checkpoint_id}", responses={200: example(EXAMPLE), **answers(Unavailable)})
def get_checkpoint(checkpoint_id: Id, service: Service) -> CheckpointView:
    """One checkpoint, and which of its parts are there."""
    return seen(service, checkpoint_id)


@router.put(
    "/checkpoints/{checkpoint_id}/parts/{number}",
    responses={200: example({"number": 0, "bytes": PART_BYTES, "sha256": EXAMPLE["sha256"]}), **answers(Conflict, NoRoom, Unavailable)},
)
def put_part(checkpoint_id: Id, number: Number, content: Bytes, service: Service) -> PartView:
    """Send one part, in any order; sending it again replaces it."""
    with service.store.read() as session:
        one = awaited(session, service, checkpoint_id)
    if number >= parts_of(one.size):
        raise NotFound(f"{one.name} has {parts_of(one.size)} parts, from 0 on; there is no part {number}")
    due = min(PART_BYTES, one.size - number * PART_BYTES)
    if len(content) != due:
        raise invalid([FieldError("", f"part {number} of {one.name} has {due} bytes, {len(content)} came")])
    with_room(service)
    with reaching():
        part = service.artifacts.put(part_name(one.id, number), content)
    with service.store.begin() as session:
        stored.touch(session, one.id)
    return PartView(number=number, bytes=part.bytes, sha256=part.sha256)


@router.post(
    "/checkpoints/{checkpoint_id}/complete", responses={200: example(READY), **answers(Conflict, InvalidInput, NoRoom, Unavailable)}
)
def complete_checkpoint(checkpoint_id: Id, service: Service) -> CheckpointView:
    """Check the whole file: size, SHA-256, and that it holds tensors and class names; then it is READY, or REFUSED for good.

    Completing one that is READY changes nothing.
    """
    with service.store.read() as session:
        one = existing(session, service, checkpoint_id)
        if one.state == "READY":
            return view(one, None)
        awaited(session, service, checkpoint_id)
    with reaching():
        lacking = sorted(set(range(parts_of(one.size))) - set(received(service.artifacts, one.id)))
    if lacking:
        listed = ", ".join(map(str, lacking[:10])) + (f" and {len(lacking) - 10} more" if len(lacking) > 10 else "")
        raise Conflict(f"{len(lacking)} of {parts_of(one.size)} parts of {one.name} are missing: {listed}")
    with reading.one(), room(service, one.size) as folder:
        whole = folder / "whole"
        try:
            with reaching(), whole.open("wb") as file:
                for number in range(parts_of(one.size)):
                    for piece in service.artifacts.read(part_name(one.id, number)):
                        file.write(piece)
        except LostError as error:
            raise Conflict(f"a part of {one.name} is missing: {error}") from None
        check_file(service, one, whole)
    remove_files(service, one, "uploads")
    return seen(service, one.id)


@router.delete("/checkpoints/{checkpoint_id}", responses={200: example(READY), **answers(Conflict)})
def delete_checkpoint(checkpoint_id: Id, service: Service) -> CheckpointView:
    """Remove a checkpoint and its files, or give an upload up; the answer is what it was.

    Refused (409) while a search or a distillation that has not ended uses it, and for good where one has SUCCEEDED with it: a result rests
    on it.
    """
    with service.store.read() as session:
        one = existing(session, service, checkpoint_id)
    with alone(one), service.store.begin() as session:
        if users := stored.users(session, checkpoint_id):
            told = [usage(service, user) for user in users[:3]] + ([f"{len(users) - 3} more"] if len(users) > 3 else [])
            raise Conflict(f"{one.name} is in use: {', '.join(told)}; cancel what has not ended, what a result rests on is kept")
        if not stored.delete(session, checkpoint_id):
            raise missing(checkpoint_id)
    # After the row: files without one are removed by the evolver, a row without files would be a checkpoint that cannot be read.
    remove_files(service, one, "checkpoints", "uploads")
    return view(one, None)


def remove_files(service: Running, one: Checkpoint, *folders: str) -> None:
    """Remove what no row needs any more. What cannot be reached now changes nothing of what is decided: the evolver removes it later."""
    try:
        for folder in folders:
            service.artifacts.remove(f"{folder}/{one.id}")
    except UnreachableError as error:
        log.warning("files that no checkpoint needs stay for now", extra={"checkpoint_id": one.id, "reason": str(error)})


def usage(service: Running, user: Search | Distillation) -> str:
    """Who needs a checkpoint, for people."""
    kind = "search" if isinstance(user, Search) else "distillation"
    mine = service.caller.sees in (None, user.owner)
    return f"{f'{kind} {user.id}' if mine else f'a {kind} of somebody else'} {'has' if user.state == 'SUCCEEDED' else 'is'} {user.state}"


def check_file(service: Running, one: Checkpoint, path: Path) -> None:
    """Decide a checkpoint by its file: READY, with the weights stored anew, or REFUSED. Raises InvalidInput that says why, Conflict."""
    with alone(one), room(service, 2 * one.size) as folder:
        target = folder / "weights.safetensors"
        try:
            there, found = path.stat().st_size, file_sha256(path)
            if (there, found) != (one.size, one.sha256):
                expected = f"expected {one.size} bytes with SHA-256 {one.sha256}"
                raise IntakeError(f"{expected}, found {there} bytes with SHA-256 {found}; send it again")
            taken = take_in(path, target, classes=one.wanted_classes, detector=one.detector)
        except IntakeError as error:
            with service.store.begin() as session:
                stored.refuse(session, one.id, str(error))
            remove_files(service, one, "uploads")
            raise invalid([FieldError("", f"{one.name} is refused: {error}")]) from None
        with reaching():
            service.artifacts.publish(target, weights_name(one.id), sha256=taken.sha256)
        with service.store.begin() as session:
            stored.ready(session, one.id, digest=taken.sha256, size=taken.bytes, classes=taken.classes, detector=taken.detector)


@contextmanager
def alone(one: Checkpoint) -> Iterator[None]:
    """Raises Conflict while another request checks the same file."""
    with checking_lock:
        if one.id in checking:
            raise Conflict(f"{one.name} is being checked already; look at it again in a while")
        checking.add(one.id)
    try:
        yield
    finally:
        with checking_lock:
            checking.discard(one.id)


def with_room(service: Running) -> None:
    """Raises NoRoom while files of jobs would lack it."""
    if short := disk.shortage(service.settings.filled_folder, service.settings.disk_free_gib):
        raise NoRoom(f"no file is taken: {short}")


@contextmanager
def room(service: Running, size: int) -> Iterator[Path]:
    """A folder with room for so many bytes, gone afterwards. Raises NoRoom."""
    home = service.settings.home
    remove_left(home)
    free = shutil.disk_usage(home).free
    if free < size + (1 << 30):
        raise NoRoom(f"the service's disk has {free >> 20} MiB left; this needs {(size >> 20) + 1024}")
    (home / INCOMING).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home / INCOMING) as folder:
        yield Path(folder)


def remove_left(home: Path) -> None:
    """Remove the folders of `room` that a killed process left. One that is young may be in use: processes may share a home."""
    for folder in (home / INCOMING).glob("*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def reaching() -> Iterator[None]:
    """Artifacts that cannot be reached are not the sender's fault. Raises Unavailable."""
    try:
        yield
    except LostError:
        raise
    except (UnreachableError, ArtifactError) as error:
        raise Unavailable(f"the artifacts cannot be written or read now: {error}", headers={"Retry-After": "10"}) from None


def parts_of(size: int) -> int:
    return -(-size // PART_BYTES)


def part_name(identity: str, number: int) -> str:
    return f"uploads/{identity}/{number:06}"


def received(artifacts: Artifacts, identity: str) -> list[int]:
    """Numbers of the parts that are there."""
    return sorted(int(name.rpartition("/")[2]) for name in artifacts.names(f"uploads/{identity}"))


def seen(service: Running, identity: str) -> CheckpointView:
    with service.store.read() as session:
        one = existing(session, service, identity)
    if one.state != "UPLOADING":
        return view(one, None)
    with reaching():
        return view(one, received(service.artifacts, one.id))


def view(one: Checkpoint, parts: list[int] | None) -> CheckpointView:
    return CheckpointView(
        id=one.id,
        name=one.name,
        state=cast(CheckpointState, one.state),
        reason=one.reason,
        created_at=one.created_at,
        updated_at=one.updated_at,
        size=one.size,
        sha256=one.sha256,
        part_bytes=PART_BYTES,
        parts=parts_of(one.size),
        received=parts,
        classes=one.classes or one.wanted_classes,
        detector=one.detector,
        digest=one.digest,
        bytes=one.bytes,
    )


def existing(session: Session, service: Running, identity: str) -> Checkpoint:
    """Raises NotFound, also for what is somebody else's."""
    one = stored.get(session, identity, owner=service.caller.sees) if is_id(identity) else None
    if one is None:
        raise missing(identity)
    return one


def missing(identity: str) -> NotFound:
    return NotFound(none_there(identity))


def awaited(session: Session, service: Running, identity: str) -> Checkpoint:
    """Raises NotFound, Conflict."""
    one = existing(session, service, identity)
    if one.state != "UPLOADING":
        raise Conflict(f"{one.name} is {one.state}{f': {one.reason}' if one.reason else ''}; no part is awaited")
    return one
