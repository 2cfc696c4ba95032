"""What a checkpoint says of itself, read from the header of a safetensors file: no tensor is touched and nothing can run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from detkds_api.paths import OutsideError, absent, inside
from detkds_api.problems import FieldError, invalid, pointer
from detkds_core.catalogue import builtin_checkpoint
from detkds_core.store import checkpoints as stored
from detkds_core.store.artifacts import reference, referred
from detkds_core.store.ids import is_id

HEADER_LIMIT = 16 << 20  # bytes; a detector of 1,000 tensors has a header of about 100 KiB


class Checkpoint(NamedTuple):
    """A weights file. place: its path, or its reference among the artifacts, as a job's specification has it; name: for people.

    classes: of the detector, in order, None when the header does not say; detector: its catalogue name, likewise. backbone: whether it is
    of a backbone alone, which knows no classes.
    """

    place: str
    name: str
    classes: tuple[str, ...] | None
    detector: str | None
    backbone: bool = False


def find(
    session: Session, text: str, roots: Sequence[Path], own: Sequence[Path] = (), *, owner: str | None, seen: Callable[[Path], bool]
) -> Checkpoint:
    """The checkpoint of a built-in name, of an id that the owner (None: anybody) brought, or of an absolute path below `roots` or `own`.

    seen: whether a resolved path is there for who asks; one that is not does not exist. Raises ValueError that says what would be right.
    """
    if (path := builtin_checkpoint(text)) is not None:
        return read_header(path)
    found = referred(text)  # as the specification of a search has it, whose winner is trained
    identity = found[0].split("/")[1] if found is not None and found[0].count("/") == 2 else text
    if is_id(identity):
        return brought(session, identity, owner)
    if "/" not in text and "\\" not in text:
        raise ValueError(
            f"{text!r} is not a checkpoint that ships with the project, not the id of one that was uploaded, and not an absolute path"
        )
    try:
        path = inside(text, roots, own)
    except OutsideError as error:
        raise ValueError(f"{error}; or send the file: detkds checkpoints upload {Path(text).name}") from None
    if not seen(path):
        raise ValueError(absent(text))
    return read_header(path)


def brought(session: Session, identity: str, owner: str | None) -> Checkpoint:
    """A checkpoint of `POST /checkpoints`. Raises ValueError for one that is not there, or not READY."""
    one = stored.get(session, identity, owner=owner)
    if one is None:
        raise ValueError(none_there(identity))
    if one.state != "READY" or one.digest is None:
        why = f": {one.reason}" if one.reason else "; complete its upload first (detkds checkpoints upload)"
        raise ValueError(f"checkpoint {identity} is {one.state}{why}")
    return Checkpoint(reference(weights_name(one.id), one.digest), one.name, tuple(one.classes or ()), one.detector)


def none_there(identity: str) -> str:
    return f"there is no checkpoint {identity}; GET /checkpoints lists them"


def hold(session: Session, spec: Mapping[str, Any]) -> None:
    """Keep the checkpoints of a specification from being deleted until it is stored. Raises InvalidInput for one that just was."""
    for role in ("teacher", "student"):
        found = referred(spec[role]["checkpoint"])
        if found is not None and not stored.hold(session, identity := found[0].split("/")[1]):
            raise invalid([FieldError(pointer(role, "checkpoint"), none_there(identity))])


def file_bytes(session: Session, place: str) -> int:
    """Bytes of the file of a checkpoint that was found, by its place."""
    found = referred(place)
    if found is None:
        return Path(place).stat().st_size
    one = stored.get(session, found[0].split("/")[1])
    assert one is not None
    assert one.bytes is not None
    return one.bytes


def weights_name(identity: str) -> str:
    """Where the weights of a checkpoint lie among the artifacts."""
    return f"checkpoints/{identity}/weights.safetensors"


def read_header(path: Path) -> Checkpoint:
    """Read the metadata of a safetensors file (8 bytes of length, then JSON). Raises ValueError when it is not one."""
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path.name} is not a .safetensors file, and other formats can run code when they are read; "
            f"convert it: detkds convert {path.name} {path.stem}.safetensors"
        )
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 2 <= length <= HEADER_LIMIT else None
    except (OSError, ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or len(header) < 2:
        raise ValueError(f"{path.name} is not a safetensors file with weights in it")
    metadata = header.get("__metadata__")
    metadata = metadata if isinstance(metadata, dict) else {}
    detector = metadata.get("detector")
    classes, of_backbone = class_names(metadata.get("classes"), path), metadata.get("part") == "backbone"
    return Checkpoint(str(path), path.name, classes, detector if isinstance(detector, str) else None, of_backbone)


def class_names(text: object, path: Path) -> tuple[str, ...] | None:
    """The header's class names (a JSON list of text). Raises ValueError when there is something else."""
    if text is None:
        return None
    try:
        names = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path.name}: the header's 'classes' is not a JSON list of names")
    return tuple(names)


def differing(classes: Sequence[str], wanted: Sequence[str]) -> str:
    """In which way two lists of class names differ, for people."""

    def listed(names: Sequence[str]) -> str:
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    if sorted(classes) == sorted(wanted):
        return f"the same {len(classes)} classes in another order ({listed(classes)}; the dataset has {listed(wanted)})"
    missing = [name for name in wanted if name not in classes]
    foreign = [name for name in classes if name not in wanted]
    parts = [f"{len(classes)} classes where the dataset has {len(wanted)}"]
    if missing:
        parts.append(f"it does not know {listed(missing)}")
    if foreign:
        parts.append(f"the dataset does not have {listed(foreign)}")
    return "; ".join(parts)
