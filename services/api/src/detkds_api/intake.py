"""`python -m detkds_api.intake SOURCE TARGET`: a stranger's weights, read as tensors only and written anew as safetensors.

A process of its own, with bounded memory, so that whatever a file does to its reader costs that file alone. What it is asked comes as JSON
on the command line (`classes`, `detector`: what the sender says of the file; `memory`: bytes), what it found, or why it refuses, on stdout.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from detkds_api.checkpoints import HEADER_LIMIT, read_header
from detkds_core import processes

SECONDS = 900.0  # that reading one file may take
MEMORY = 3 << 30  # bytes that the reader may have beside four times the file: libraries take most of it
PASSED_ON = ("PATH", "PYTHONPATH", "HOME", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR")  # no secret is


class IntakeError(ValueError):
    """Why a file cannot be taken in, and what would be right."""


class Taken(NamedTuple):
    """A file as it was written anew. sha256, bytes: of the new file; classes, detector: by its header."""

    sha256: str
    bytes: int
    classes: tuple[str, ...]
    detector: str | None


def take_in(
    source: Path, target: Path, *, classes: Sequence[str] | None = None, detector: str | None = None, memory: int | None = None
) -> Taken:
    """Read `source` in a process of its own and write its tensors to `target` (.safetensors), with class names in its header.

    classes, detector: what the sender says; needed where the file does not say. memory: bytes that the reader may have.
    Raises IntakeError.
    """
    memory = memory or MEMORY + 4 * source.stat().st_size
    asked = {"classes": list(classes) if classes is not None else None, "detector": detector, "memory": memory}
    command = [sys.executable, "-m", "detkds_api.intake", str(source), str(target), json.dumps(asked)]
    environment = {name: value for name, value in os.environ.items() if name in PASSED_ON}
    environment |= {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "OMP_NUM_THREADS": "1"}
    reader = processes.start_bound(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        said, _ = reader.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise IntakeError(f"reading it took more than {SECONDS:.0f} s") from None
    finally:
        processes.stop_group(reader, grace=0)
    try:
        answer = json.loads(said)
    except ValueError:
        raise IntakeError(f"its reader ended with exit code {reader.returncode} (it may have {memory >> 20} MiB of memory)") from None
    if "refused" in answer:
        raise IntakeError(answer["refused"])
    return Taken(answer["sha256"], answer["bytes"], tuple(answer["classes"]), answer["detector"])


def main(arguments: list[str]) -> None:
    source, target, asked = Path(arguments[0]), Path(arguments[1]), json.loads(arguments[2])
    resource.setrlimit(resource.RLIMIT_DATA, (asked["memory"], asked["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = taken(source, target, asked["classes"], asked["detector"])
    except (IntakeError, SafetensorError) as error:
        answer = {"refused": str(error)}
    except (MemoryError, RuntimeError) as error:  # torch's allocator raises the second
        answer = {"refused": f"it cannot be read within {asked['memory'] >> 20} MiB of memory ({type(error).__name__})"}
    print(json.dumps(answer))


def taken(source: Path, target: Path, classes: list[str] | None, detector: str | None) -> dict[str, Any]:
    """Write `target` and say what it is. Raises IntakeError, SafetensorError."""
    plain = source
    if not is_safetensors(source):
        plain = target.with_suffix(".plain")
        write_plain(source, plain)
    rewrite(plain, target, {"classes": json.dumps(classes) if classes is not None else None, "detector": detector})
    try:
        found = read_header(target)
    except ValueError as error:
        raise IntakeError(str(error).replace(target.name, "the file")) from None
    if found.classes is None:
        raise IntakeError("it does not say which classes it knows; give them in the order of training (--classes 'car,person,...')")
    if classes is not None and list(found.classes) != classes:
        raise IntakeError(f"its header names the classes {list(found.classes)[:5]}, the request {classes[:5]}")
    if detector is not None and found.detector != detector:
        raise IntakeError(f"its header says that it holds weights of {found.detector}, the request says {detector}")
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": target.stat().st_size, "classes": found.classes, "detector": found.detector}


def is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def write_plain(source: Path, target: Path) -> None:
    """Tensors and class names of a PyTorch file as safetensors, by the project's one reader of pickles. Raises IntakeError."""
    try:
        from safetensors.torch import save_file

        from detkds_core.detectors.checkpoints import CheckpointError, read_checkpoint
    except ImportError:
        raise IntakeError(
            "it is no safetensors file, and this service has no torch to read another; convert it where there is: "
            "detkds convert teacher.pth teacher.safetensors"
        ) from None
    try:
        weights, metadata = read_checkpoint(source)
    except CheckpointError as error:
        raise IntakeError(str(error).replace(str(source), "the file")) from None
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, target, metadata=metadata)


def rewrite(source: Path, target: Path, said: dict[str, str | None]) -> None:
    """Copy a safetensors file with a header in key order, and in it what the sender said where the file says nothing.

    safetensors itself checks, before and after, that the tensors fill the file without gap or overlap. Raises IntakeError, SafetensorError.
    """
    with safe_open(source, framework="numpy") as file:
        if not file.keys():
            raise IntakeError("it holds no tensor")
    with source.open("rb") as given, target.open("wb") as made:
        length = int.from_bytes(given.read(8), "little")
        if length > HEADER_LIMIT:
            raise IntakeError(f"its header has {length} bytes; at most {HEADER_LIMIT} are read")
        header = json.loads(given.read(length))
        header["__metadata__"] = {name: value for name, value in said.items() if value is not None} | header.get("__metadata__", {})
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors stay aligned
        made.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(given, made, 1 << 20)
    with safe_open(target, framework="numpy"):
        return


if __name__ == "__main__":
    main(sys.argv[1:])
