"""Between a trainer's scratch folder and the artifacts: what a job needs is fetched before, what an attempt leaves is published after.

A trainer writes into `<home>/scratch/<job>/<attempt>/` on this machine; what others shall see is published under `<job>/<attempt>/`.
The state that a distillation resumes from is published while it trains, so that another machine can go on with it.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Mapping
from contextvars import copy_context
from pathlib import Path
from typing import Any

from detkds_core.store import Store, jobs
from detkds_core.store.artifacts import ArtifactError, Artifacts, file_sha256, referred, scratch_folder
from detkds_worker.settings import Settings

log = logging.getLogger("detkds.worker")

RESUME_SECONDS = 120.0  # between two looks for a newer state: what the loss of a machine, not of a process, costs at most
COPIES = "checkpoints"  # folder beside those of the jobs
RESUMED = ("teacher.json", "resume.pt")  # beside the attempts; in this order, for who has the second needs the first
TOLD = ("spec.json", "trainer.log", "failure.json")  # what tells why an attempt failed


def scratch_of(settings: Settings, job_id: str) -> Path:
    return scratch_folder(settings.home) / job_id


def publish_all(artifacts: Artifacts, claim: jobs.Claim, folder: Path, result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Publish every file of an attempt; their SHA-256 and bytes by name.

    Raises DamagedError when the checkpoint is not the one whose SHA-256 the trainer told, UnreachableError.
    """
    told = {result["checkpoint"]: result["sha256"]} if isinstance(result.get("checkpoint"), str) and result.get("sha256") else {}
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.is_symlink() and path.suffix not in (".part", ".partial"):
            stored = artifacts.publish(path, f"{claim.job_id}/{claim.attempt}/{path.name}", sha256=told.get(path.name))
            found[path.name] = stored._asdict()
    return found


def publish_told(artifacts: Artifacts, claim: jobs.Claim, folder: Path, resume: ResumeKeeper) -> None:
    """Publish what tells why an attempt ended without a result, and what a next one goes on from. Artifacts away: said, and left."""
    resume.wait()
    try:
        for name in TOLD:
            if (folder / name).is_file():
                artifacts.publish(folder / name, f"{claim.job_id}/{claim.attempt}/{name}")
        publish_resume(artifacts, claim, folder)
    except (ArtifactError, OSError) as error:
        log.warning("what the attempt left stays in its folder", extra={"folder": str(folder), "reason": str(error)})


def publish_resume(artifacts: Artifacts, claim: jobs.Claim, folder: Path) -> None:
    """Under the attempt, so that a worker that lost its lease replaces nobody's state."""
    if claim.kind == "distill" and (folder.parent / "resume.pt").exists():
        for name in RESUMED:
            if (folder.parent / name).exists():
                artifacts.publish(folder.parent / name, f"{claim.job_id}/{claim.attempt}/{name}")


def forget_resume(artifacts: Artifacts, claim: jobs.Claim) -> None:
    """Remove the states that the attempts of a job were resumed from: it has its result."""
    try:
        for name in artifacts.names(claim.job_id):
            if name.rpartition("/")[2] in RESUMED:
                artifacts.remove(name)
    except ArtifactError as error:
        log.warning("states to resume from stay among the artifacts", extra={"reason": str(error)})


class ResumeKeeper:
    """Publishes the state of a distillation whenever there is a newer one, from a thread, until it is ended."""

    def __init__(self, artifacts: Artifacts, claim: jobs.Claim, folder: Path) -> None:
        self.artifacts, self.claim, self.folder = artifacts, claim, folder
        self.ending = threading.Event()
        self.thread = threading.Thread(target=copy_context().run, args=(self.keep,), name="resume", daemon=True)
        if claim.kind == "distill":
            self.thread.start()

    def end(self) -> None:
        """Publish no further state; returns at once."""
        self.ending.set()

    def wait(self) -> None:
        """Until a state that is being published has arrived, or failed to."""
        if self.claim.kind == "distill":
            self.thread.join()

    def keep(self) -> None:
        path, published = self.folder.parent / "resume.pt", self.changed()
        while not self.ending.wait(RESUME_SECONDS):
            newest = self.changed()
            if newest == published or not path.exists():
                continue
            try:
                publish_resume(self.artifacts, self.claim, self.folder)
                published = newest
            except (ArtifactError, OSError) as error:
                log.warning("the state to resume from is not published", extra={"reason": str(error)})

    def changed(self) -> int | None:
        """When the state was written, in nanoseconds; None: there is none."""
        try:
            return (self.folder.parent / "resume.pt").stat().st_mtime_ns
        except FileNotFoundError:
            return None


def fetch_resume(artifacts: Artifacts, claim: jobs.Claim, scratch: Path) -> None:
    """Put the newest published state beside the attempts, unless this machine made the last attempt itself.

    Artifacts away: said, and the training begins anew or where this machine left it.
    """
    own = max((int(path.name) for path in scratch.iterdir() if path.name.isdigit() and int(path.name) <= claim.attempt), default=0)
    own = own if (scratch / "resume.pt").exists() else 0
    try:
        names = artifacts.names(claim.job_id)
        newest = max((int(attempt) for _, attempt, name in (one.split("/", 2) for one in names) if name == "resume.pt"), default=0)
        if newest > own:
            for name in RESUMED:
                if f"{claim.job_id}/{newest}/{name}" in names:
                    artifacts.fetch(f"{claim.job_id}/{newest}/{name}", scratch / name)
    except ArtifactError as error:
        log.warning("no state to resume from can be fetched", extra={"reason": str(error)})


class DatasetNotHereError(Exception):
    """The dataset of a job cannot be had on this machine, and why."""


def with_local_dataset(spec: dict[str, Any]) -> dict[str, Any]:
    """The specification with this machine's files of a built-in dataset, which the API made where this machine may not see it.

    Raises DatasetNotHereError; also for a registered dataset whose annotations are not those that were checked: figures of both would meet.
    """
    asked: dict[str, Any] = spec.get("dataset") or {}
    if not asked:
        return spec
    # Here and not above: that room brings numpy and Pillow, which a start need not wait for.
    from detkds_core.datasets import BUILT_IN, DatasetError, default_cache, on_this_machine

    if asked.get("name") not in BUILT_IN:
        for split in ("train", "val"):
            same_annotations(asked, split)
        return spec
    try:
        found = on_this_machine(asked, default_cache())
    except DatasetError as error:
        raise DatasetNotHereError(str(error)) from error
    return {**spec, "dataset": {**asked, "train": found.train.to_json(), "val": found.val.to_json()}}


def same_annotations(dataset: dict[str, Any], split: str) -> None:
    """Raises DatasetNotHereError where a registered split's annotations are missing or have changed."""
    sha256, path = dataset[split].get("sha256"), Path(dataset[split]["annotations"])
    if sha256 is None:  # registered before it was kept
        return
    what = f"the annotations of {split} of dataset {dataset['name']!r} ({path})"
    try:
        found = file_sha256(path)
    except OSError as error:
        raise DatasetNotHereError(
            f"{what} cannot be read on this machine ({error.strerror}); mount its folder here as on the API's"
        ) from None
    if found != sha256:
        raise DatasetNotHereError(
            f"{what} have changed since they were checked (SHA-256 {sha256[:12]}…, now {found[:12]}…); register them under another name"
        )


def with_local_checkpoints(artifacts: Artifacts, spec: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The specification with paths of this machine in place of references to artifacts.

    Raises LostError and DamagedError, naming the digest expected and what was found, and UnreachableError.
    """
    for role in ("teacher", "student"):
        choice: dict[str, Any] = spec.get(role) or {}
        found = referred(choice.get("checkpoint"))
        if found is not None:
            spec = {**spec, role: {**choice, "checkpoint": str(local_checkpoint(artifacts, *found, settings))}}
    return spec


def local_checkpoint(artifacts: Artifacts, name: str, sha256: str, settings: Settings) -> Path:
    """A checkpoint's path on this machine: its own in a folder, else of a copy that is kept, since every job of a search needs it."""
    if artifacts.folder is not None:
        artifacts.check(name, sha256)
        return artifacts.folder / name
    from detkds_core.datasets.kept import take

    path = scratch_folder(settings.home) / COPIES / f"{sha256}.safetensors"
    if not take(path) or file_sha256(path) != sha256:
        artifacts.fetch(name, path, sha256)
    return path


def sweep_scratch(store: Store, settings: Settings, claim: jobs.Claim) -> None:
    """Remove the scratch folders of jobs that have ended, however and wherever they did."""
    folder = scratch_folder(settings.home)
    others = {path.name for path in folder.iterdir() if path.is_dir() and path.name not in (claim.job_id, COPIES)}
    with store.read() as session:
        ended = jobs.ended(session, sorted(others))
    for name in ended:
        shutil.rmtree(folder / name, ignore_errors=True)


def sweep_kept(settings: Settings) -> None:
    """Remove what this machine keeps for later jobs and none has used for `keep_cache_days`."""
    if settings.keep_cache_days == 0:
        return
    from detkds_core.datasets import default_cache, kept

    for folder in (default_cache() / kept.FORKS, default_cache() / kept.TOKENS, scratch_folder(settings.home) / COPIES):
        if removed := kept.sweep(folder, settings.keep_cache_days):
            log.info("kept files that no job used are removed", extra={"folder": str(folder), "files": removed})
