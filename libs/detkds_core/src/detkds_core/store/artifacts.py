"""What is kept as files: `<job>/<attempt>/student.safetensors` and the like, by name, in a folder or in a bucket of S3.

A file appears under its name whole or not at all: it is written under another name, read back, compared by SHA-256 with what was to be
written, and renamed. Who reads one with the digest that the database has finds out about every change since.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec

from .ids import new_id

SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # variables of the environment that no trainer gets
UNFINISHED = "unfinished"  # where files lie while they are written
REFERENCE = "artifact:"  # before name and digest, where a job's specification may also have a path
CHUNK = 1 << 20  # bytes
KNOWN_FILES = 10_000  # whose digest was computed; more are forgotten and computed again
DAY = 86_400.0
CONNECT_SECONDS = 5  # of one try to reach S3, of which there are five


class Stored(NamedTuple):
    """A file that was written. sha256: hexadecimal, of its content; bytes: its length."""

    sha256: str
    bytes: int


class ArtifactError(Exception):
    """A file that cannot be had, and why."""


class LostError(ArtifactError):
    """There is no file where one was stored."""


class DamagedError(ArtifactError):
    """A file has other content than was stored."""


class UnreachableError(ArtifactError):
    """The place of the artifacts does not answer, or refuses: worth another try, it says nothing of the file."""


def place_of(text: str | None, home: Path) -> str:
    """Where artifacts lie, by a setting: `s3://bucket/prefix` as it is, else an absolute folder (None or empty: home/artifacts).

    Raises ValueError for another kind of URL.
    """
    if text and text.startswith("s3://"):
        if not text.removeprefix("s3://").strip("/"):
            raise ValueError(f"DETKDS_ARTIFACTS={text} names no bucket; write it as s3://bucket/prefix")
        return text.rstrip("/")
    if text and "://" in text:
        raise ValueError(f"DETKDS_ARTIFACTS={text} is neither a folder nor s3://bucket/prefix")
    return str((Path(text) if text else home / "artifacts").expanduser().resolve())


def filled_folder(place: str, home: Path) -> Path:
    """The folder of this machine that fills as jobs run: that of the artifacts, or with S3 the scratch folder, in which trainers write."""
    return scratch_folder(home) if place.startswith("s3://") else Path(place)


def scratch_folder(home: Path) -> Path:
    """Where trainers of this machine write, below `<job>/<attempt>/`, until their files are published."""
    return home / "scratch"


def secrets() -> list[str]:
    """What of this process's environment opens the artifacts, for its log to hide."""
    return [os.environ[name] for name in SECRETS if os.environ.get(name)]


def reference(name: str, sha256: str) -> str:
    """`artifact:NAME#SHA256`, as specifications name a file among the artifacts."""
    return f"{REFERENCE}{name}#{sha256}"


def referred(text: object) -> tuple[str, str] | None:
    """Name and SHA-256 of a reference; None for any other text."""
    if not isinstance(text, str) or not text.startswith(REFERENCE):
        return None
    name, _, sha256 = text.removeprefix(REFERENCE).partition("#")
    return name, sha256


def file_sha256(path: Path) -> str:
    """The SHA-256 of a local file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def artifacts_at(place: str) -> Artifacts:
    """The artifacts of a place, one object a process: it remembers which files it has read."""
    return Artifacts(place)


class Artifacts:
    """The files below a place of `place_of`. Making one connects to nothing; threads may share it.

    Names are relative, with `/` between their parts, whatever the place is. Raises ValueError for a name that would lead out of it.
    """

    def __init__(self, place: str) -> None:
        self.folder = None if place.startswith("s3://") else Path(place)
        self.root = str(self.folder or place.removeprefix("s3://").rstrip("/"))
        if self.folder is not None:
            self.files: Any = fsspec.filesystem("file", auto_mkdir=True)
        else:
            try:
                # Listings are not cached: other processes write here too.
                self.files = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs={"connect_timeout": CONNECT_SECONDS})
            except ImportError as error:
                raise ValueError(f"{place} needs the package s3fs: pip install 'detkds_core[s3]'") from error
        self.lock = threading.Lock()
        self.digests: dict[str, tuple[Any, str]] = {}  # name -> what the place says of the file's version, its SHA-256

    # Writing

    def publish(self, source: Path, name: str, *, sha256: str | None = None) -> Stored:
        """Copy a local file to a name. sha256: what it must have. Raises DamagedError, UnreachableError."""
        with source.open("rb") as file:
            return self._write(name, iter(lambda: file.read(CHUNK), b""), sha256)

    def put(self, name: str, content: bytes) -> Stored:
        """Write a small file. Raises DamagedError, UnreachableError."""
        return self._write(name, iter([content]), None)

    def remove(self, name: str) -> None:
        """Remove a file, or all below a name; nothing where there is none. Raises UnreachableError."""
        path = self._path(name)
        with self._reaching(name):
            try:
                self.files.rm(path, recursive=True)
            except FileNotFoundError:
                return

    def probe(self) -> None:
        """Raises UnreachableError where no file could be written."""
        path = self._path(f"{UNFINISHED}/{new_id()}")
        with self._reaching("a new file"):
            try:
                with self.files.open(path, "wb") as file:
                    file.write(b"0")
            except FileNotFoundError as error:
                raise UnreachableError(f"the place of the artifacts is not there: {error}") from error
            self._forget(path)

    def sweep(self, *, days: float = 1.0) -> int:
        """Remove what writers that were killed have left unfinished, once it is so old; how many files. Raises UnreachableError."""
        removed = 0
        for name in self.names(UNFINISHED):
            with self._reaching(name):
                try:
                    old = time.time() - self.files.modified(self._path(name)).timestamp() > days * DAY
                except FileNotFoundError:
                    continue
            if old:
                self.remove(name)
                removed += 1
        return removed

    # Reading

    def names(self, below: str) -> list[str]:
        """The names of all files below one, sorted. Raises UnreachableError."""
        path = self._path(below)
        with self._reaching(below):
            try:
                found = self.files.find(path)
            except FileNotFoundError:
                return []
        return sorted(str(one)[len(self.root) + 1 :] for one in found)

    def size(self, name: str) -> int:
        """The bytes of a file. Raises LostError, UnreachableError."""
        path = self._path(name)
        with self._reaching(name):
            return int(self.files.info(path)["size"])

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, which is read once for each of its versions. Raises LostError, UnreachableError."""
        path = self._path(name)
        with self._reaching(name):
            version = self.files.checksum(path)
            with self.lock:
                known = self.digests.get(name)
            if known is not None and known[0] == version:
                return known[1]
            found = self._hashed(path)
        with self.lock:
            if len(self.digests) >= KNOWN_FILES:
                self.digests.clear()
            self.digests[name] = (version, found)
        return found

    def check(self, name: str, sha256: str) -> None:
        """Raises LostError or DamagedError, naming what was expected and what is there, for a file without this SHA-256."""
        try:
            found = self.sha256(name)
        except LostError:
            raise LostError(f"{name}: expected a file with SHA-256 {sha256}, found none") from None
        if found != sha256:
            raise DamagedError(f"{name}: expected SHA-256 {sha256}, found {found}")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` to before `stop` (None: the end), in pieces. Raises LostError, UnreachableError."""
        path = self._path(name)
        with self._reaching(name), self.files.open(path, "rb") as file:
            file.seek(start)
            left = None if stop is None else stop - start
            while left is None or left > 0:
                piece = file.read(CHUNK if left is None else min(CHUNK, left))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    def fetch(self, name: str, target: Path, sha256: str | None = None) -> None:
        """Copy a file to a local path, whole or not at all. Raises LostError, DamagedError, UnreachableError."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{new_id()}.part")
        digest = hashlib.sha256()
        try:
            with part.open("wb") as file:
                for piece in self.read(name):
                    digest.update(piece)
                    file.write(piece)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise DamagedError(f"{name}: expected SHA-256 {sha256}, found {digest.hexdigest()}")
            part.replace(target)
        except LostError:
            raise LostError(f"{name}: expected a file with SHA-256 {sha256}, found none" if sha256 else f"{name}: no such file") from None
        finally:
            part.unlink(missing_ok=True)

    # The place

    def _write(self, name: str, pieces: Iterator[bytes], expected: str | None) -> Stored:
        path, unfinished = self._path(name), self._path(f"{UNFINISHED}/{new_id()}")
        digest, size = hashlib.sha256(), 0
        with self._reaching(name):
            try:
                with self.files.open(unfinished, "wb") as file:
                    for piece in pieces:
                        digest.update(piece)
                        size += len(piece)
                        file.write(piece)
                self._settle(unfinished)
                stored, found = digest.hexdigest(), self._hashed(unfinished)
                if expected is not None and stored != expected:
                    raise DamagedError(f"{name}: expected SHA-256 {expected}, found {stored} where it was written first")
                if found != stored:
                    raise DamagedError(f"{name}: expected SHA-256 {stored}, found {found} where it was copied to")
                self.files.mv(unfinished, path)
            except BaseException:
                self._forget(unfinished)
                raise
        return Stored(stored, size)

    def _settle(self, path: str) -> None:
        """A renamed file must not be empty after a power cut; S3 answers only for what it has."""
        if self.folder is not None:
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def _forget(self, path: str) -> None:
        try:
            self.files.rm_file(path)
        except Exception:
            return  # `sweep` comes later

    def _hashed(self, path: str) -> str:
        digest = hashlib.sha256()
        file: IO[bytes]
        with self.files.open(path, "rb") as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
        return digest.hexdigest()

    def _path(self, name: str) -> str:
        if not name or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"{name!r} is not the name of a file among the artifacts")
        path = f"{self.root}/{name}"
        if self.folder is not None and not Path(path).resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{name!r} leads out of the artifacts")
        return path

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """Say what goes wrong in three words: no such file, damaged, or the place cannot be reached."""
        try:
            yield
        except (ArtifactError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except FileNotFoundError as error:
            raise LostError(f"{name}: no such file") from error
        except Exception as error:  # of the file system or of whatever speaks to S3, each with its own classes
            raise UnreachableError(f"{name}: {type(error).__name__}: {error}") from error
