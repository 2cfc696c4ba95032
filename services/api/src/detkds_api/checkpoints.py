"""What a checkpoint says of itself, read from the header of a safetensors file: no tensor is touched and nothing can run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from detkds_api.paths import absent, inside
from detkds_core.catalogue import builtin_checkpoint

HEADER_LIMIT = 16 << 20  # bytes; a detector of 1,000 tensors has a header of about 100 KiB


class Checkpoint(NamedTuple):
    """A weights file. classes: of the detector, in order, None when the header does not say; detector: its catalogue name, likewise."""

    path: Path
    classes: tuple[str, ...] | None
    detector: str | None


def find(text: str, roots: Sequence[Path], seen: Callable[[Path], bool]) -> Checkpoint:
    """The checkpoint of a built-in name or of an absolute path below `roots`. Raises ValueError that says what would be right.

    seen: whether a resolved path is there for who asks; one that is not does not exist.
    """
    if (path := builtin_checkpoint(text)) is not None:
        return read_header(path)
    if "/" not in text and "\\" not in text:
        raise ValueError(f"{text!r} is not a checkpoint that ships with the project, and not an absolute path")
    path = inside(text, roots)
    if not seen(path):
        raise ValueError(absent(text))
    return read_header(path)


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
    return Checkpoint(path, class_names(metadata.get("classes"), path), detector if isinstance(detector, str) else None)


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
