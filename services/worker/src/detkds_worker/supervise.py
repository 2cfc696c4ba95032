"""One claimed job, from its spec to its result: a trainer process, its lease, its log.

The trainer trains; this process only watches it, so that a crash, a hang or a cancel on one side never takes the other with it.
Every write to the database carries the claim's token. When a write is refused the job is somebody else's, and the trainer stops at once.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from detkds_core import logs, processes
from detkds_core.store import UNREACHABLE, Store, jobs
from detkds_core.store.artifacts import SECRETS, ArtifactError, Artifacts, UnreachableError, artifacts_at
from detkds_worker import publishing
from detkds_worker.settings import Settings

Done = TypeVar("Done")
Outcome = Literal["succeeded", "failed", "released", "lost"]
Claim = jobs.Claim

log = logging.getLogger("detkds.worker")

TICK = 0.1  # seconds between two looks at the trainer: small against a lease, large against the cost of looking
PUBLISH_SECONDS = 1800.0  # so long a finished training waits for artifacts that cannot be reached, before its attempt counts as lost
AGAIN_SECONDS = 5.0
PROGRESS_EVERY = 2.0  # seconds; a person watches the progress, a lease alone could be renewed less often
LOG_LINES = 40  # of the log that go into a failure's detail
LONGEST_LINE = 1 << 20  # bytes of one line of stdout; more is no progress report
FAILURE_KINDS = ("out_of_memory", "not_finite", "bad_data", "bug")  # what a trainer may say of itself


def run_claim(store: Store, claim: Claim, settings: Settings, *, draining: Callable[[], bool] = lambda: False) -> Outcome:
    """Train one claimed job to its end and write what came out under the claim's token.

    "succeeded" and "failed": written. "released": `draining()` turned true, the trainer is stopped and the job is back in the queue.
    "lost": cancelled, or the lease went to somebody else (or could not be renewed in time); nothing is written.
    Whatever happens, the trainer and all it started have ended when this returns. Before a job succeeds its files are published.
    """
    ids = {"job_id": claim.job_id, "attempt": claim.attempt, "search_id": claim.search_id, "distillation_id": claim.distillation_id}
    with logs.bound(**ids):
        return supervise(store, claim, settings, draining)


def supervise(store: Store, claim: Claim, settings: Settings, draining: Callable[[], bool]) -> Outcome:
    assert settings.artifacts is not None
    artifacts = artifacts_at(settings.artifacts)
    try:
        folder, spec = holding(store, claim, settings, lambda: prepared(store, artifacts, claim, settings))
    except NotOursError:
        return "lost"
    except UnreachableError as error:
        return write_outcome(store, claim, settings, ("lost", str(error)))
    except ArtifactError as error:
        return write_outcome(store, claim, settings, ("bad_data", f"a checkpoint of this job cannot be used: {error}"))
    except publishing.DatasetNotHereError as error:
        return write_outcome(store, claim, settings, ("bad_data", str(error)))
    resume = publishing.ResumeKeeper(artifacts, claim, folder)
    with (folder / "trainer.log").open("ab", buffering=0) as trainer_log:
        trainer = processes.start_bound(
            [*settings.trainer, str(spec), str(folder)], env=trainer_environment(settings), stdout=subprocess.PIPE, stderr=trainer_log
        )
        log.info("trainer started", extra={"kind": claim.kind, "pid": trainer.pid})
        try:
            ending = watch(store, claim, settings, trainer, Stdout(trainer, trainer_log), draining)
        finally:
            code = processes.stop_group(trainer, grace=settings.stop_grace_seconds)
            assert trainer.stdout is not None
            trainer.stdout.close()
            resume.end()
    log.info("trainer ended", extra={"ending": ending, "exit_code": code})
    outcome: dict[str, Any] | tuple[str, str] | None = None
    if ending == "exited":
        outcome = read_outcome(folder, code)
    elif ending == "timeout":
        detail = f"no end within {deadline_of(claim, settings):g} s, or no word for {settings.silence_seconds:g} s"
        outcome = "timeout", f"{detail}\n{tail(folder / 'trainer.log')}"
    try:
        if isinstance(outcome, dict):
            return publish(store, claim, settings, artifacts, folder, outcome, resume, draining)
        told = partial(publishing.publish_told, artifacts, claim, folder, resume)
        told() if ending == "lost" else holding(store, claim, settings, told)
    except NotOursError:
        return "lost"
    if ending == "lost":
        return "lost"
    if outcome is None:
        return "released" if persist(lambda: release(store, claim), settings) else "lost"
    return write_outcome(store, claim, settings, outcome)


def prepared(store: Store, artifacts: Artifacts, claim: Claim, settings: Settings) -> tuple[Path, Path]:
    """The attempt's scratch folder and the specification in it, with what the job needs of the artifacts on this machine."""
    scratch = publishing.scratch_of(settings, claim.job_id)
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        publishing.sweep_scratch(store, settings, claim)
    except UNREACHABLE as error:
        log.warning("the database cannot be reached", extra={"reason": first_line(error)})
    publishing.sweep_kept(settings)
    if claim.kind == "distill":
        publishing.fetch_resume(artifacts, claim, scratch)
    folder = attempt_folder(settings, claim)
    spec = publishing.with_local_checkpoints(artifacts, publishing.with_local_dataset(claim.spec), settings)
    return folder, write_spec(folder, claim, spec)


def publish(
    store: Store,
    claim: Claim,
    settings: Settings,
    artifacts: Artifacts,
    folder: Path,
    result: dict[str, Any],
    resume: publishing.ResumeKeeper,
    draining: Callable[[], bool],
) -> Outcome:
    """Bring what a trainer left among the artifacts, then let the job succeed with what they are. Raises NotOursError."""
    given_up = threading.Event()

    def everything() -> dict[str, dict[str, Any]]:
        deadline = time.monotonic() + PUBLISH_SECONDS
        resume.wait()
        while True:
            try:
                return publishing.publish_all(artifacts, claim, folder, result)
            except UnreachableError as error:
                if draining() or given_up.is_set() or time.monotonic() > deadline:
                    raise
                log.warning("the files of the attempt cannot be published", extra={"reason": str(error)})
                given_up.wait(AGAIN_SECONDS)

    try:
        files = holding(store, claim, settings, everything)
    except UnreachableError as error:
        return write_outcome(store, claim, settings, ("lost", f"the files of this attempt could not be published: {error}"))
    except ArtifactError as error:
        return write_outcome(store, claim, settings, ("bug", f"a file of this attempt is not what the trainer wrote: {error}"))
    finally:
        given_up.set()
    ended = write_outcome(store, claim, settings, {**result, "files": files} if claim.kind == "distill" else result)
    if ended == "succeeded":
        if claim.kind == "distill":
            publishing.forget_resume(artifacts, claim)
        shutil.rmtree(folder.parent, ignore_errors=True)
    return ended


class NotOursError(Exception):
    """The job is cancelled, or somebody else's by now."""


def holding(store: Store, claim: Claim, settings: Settings, work: Callable[[], Done]) -> Done:
    """Do work that may take long while the lease is renewed; what it gives. Raises what it raises, NotOursError when the lease is lost."""
    done: Future[Done] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    context = copy_context()  # what is bound for the log
    threading.Thread(target=context.run, args=(run,), name="artifacts", daemon=True).start()  # what hangs shall not hold this process up
    held_since = time.monotonic()
    while not wait([done], settings.lease_seconds / 3).done:
        now = time.monotonic()
        try:
            with store.begin() as session:
                mine = jobs.renew(session, claim, lease_seconds=settings.lease_seconds)
        except UNREACHABLE as error:
            log.warning("the database cannot be reached", extra={"reason": first_line(error)})
            mine = now - held_since < settings.lease_seconds
        else:
            held_since = now
        if not mine:
            log.warning("the job is cancelled or not ours any more")
            raise NotOursError
    return done.result()


def watch(
    store: Store, claim: Claim, settings: Settings, trainer: subprocess.Popen[bytes], stdout: Stdout, draining: Callable[[], bool]
) -> Literal["exited", "lost", "draining", "timeout"]:
    """Relay progress and renew the lease until the trainer ends or has to be ended; says which.

    The lease is counted on this process's own clock from before the last renewal that succeeded: so it ends here no later than in the
    database, and a worker that cannot reach the database stops before its job can be given to another one.
    """
    started = heard = held_since = renewed = time.monotonic()
    told: dict[str, Any] | None = None
    while True:
        ended = processes.has_exited(trainer)  # asked before reading, so that what was written last is read too
        if stdout.read():
            heard = time.monotonic()
        if ended:
            stdout.log.write(stdout.rest)
            return "exited"
        now = time.monotonic()
        if draining():
            return "draining"
        if now - started > deadline_of(claim, settings) or now - heard > settings.silence_seconds:
            return "timeout"
        if now - held_since > settings.lease_seconds:
            log.warning("the lease could not be renewed in time")
            return "lost"
        news = stdout.progress is not told
        if now - renewed > (min(PROGRESS_EVERY, settings.lease_seconds / 3) if news else settings.lease_seconds / 3):
            renewed = now
            progress = stdout.progress
            try:
                with store.begin() as session:
                    mine = jobs.renew(session, claim, lease_seconds=settings.lease_seconds, progress=progress if news else None)
            except UNREACHABLE as error:
                log.warning("the database cannot be reached", extra={"reason": first_line(error)})
            else:
                if not mine:
                    log.warning("the job is cancelled or not ours any more")
                    return "lost"
                held_since, told = now, progress
        stdout.wait(TICK)


class Stdout:
    """A trainer's stdout, read without waiting: every line goes into the log, the newest progress report is kept."""

    def __init__(self, trainer: subprocess.Popen[bytes], trainer_log: Any) -> None:
        assert trainer.stdout is not None
        self.fd = trainer.stdout.fileno()
        os.set_blocking(self.fd, False)
        self.log = trainer_log
        self.open = True
        self.rest = b""
        self.progress: dict[str, Any] | None = None

    def wait(self, seconds: float) -> None:
        """Wait, at most so long, for something to read: a pipe holds 64 KiB, a talkative trainer must not wait for the next look."""
        if self.open:
            select.select([self.fd], [], [], seconds)
        else:
            time.sleep(seconds)

    def read(self) -> bool:
        """Take what is there; whether there was anything."""
        heard = False
        while True:
            try:
                chunk = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return heard
            if not chunk:
                self.open = False
                return heard
            heard = True
            *lines, self.rest = (self.rest + chunk).split(b"\n")
            for line in lines:
                self.log.write(line + b"\n")  # whole lines only: the trainer's stderr goes into the same file
                self.progress = progress_of(line) or self.progress
            if len(self.rest) > LONGEST_LINE:
                self.log.write(self.rest)
                self.rest = b""


def progress_of(line: bytes) -> dict[str, Any] | None:
    """The progress that a line of stdout reports; None for any other line (a library's print, half a line after a kill)."""
    try:
        event = json.loads(line, parse_constant=refuse_constant)
    except ValueError:
        return None
    if not isinstance(event, dict) or event.get("event") != "progress":
        return None
    return {key: event.get(key) for key in ("done", "total", "message", "best_ap", "step_seconds")}


def attempt_folder(settings: Settings, claim: Claim) -> Path:
    """`<scratch>/<job>/<attempt>`."""
    folder = publishing.scratch_of(settings, claim.job_id) / str(claim.attempt)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_spec(folder: Path, claim: Claim, spec: dict[str, Any]) -> Path:
    """Write the job's spec, whole or not at all; a distillation tried before goes on where `resume.pt` beside the attempts left it."""
    spec = dict(spec)
    spec.setdefault("kind", claim.kind)
    resume = folder.parent / "resume.pt"
    if claim.kind == "distill" and not spec.get("resume_from"):
        spec["resume_from"] = str(resume) if resume.exists() else None
    path = folder / "spec.json"
    unfinished = folder / "spec.json.part"
    unfinished.write_text(json.dumps(spec, indent=1, sort_keys=True, allow_nan=False))
    unfinished.replace(path)
    return path


def trainer_environment(settings: Settings) -> dict[str, str]:
    """The trainer's environment: no password that it does not need, and threads that do not spin.

    Spinning at barriers makes torch 7 to 10 times slower beside any other busy process (measured: 11 ms a step became 74 ms).
    Weights are loaded as tensors only, even where a library asks for pickles.
    """
    secrets = ("DETKDS_DATABASE_URL", "DETKDS_BROKER_URL", "DETKDS_API_KEY", *SECRETS)
    environment = {name: value for name, value in os.environ.items() if name not in secrets}
    threads = str(settings.threads)
    return environment | {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    }


def read_outcome(folder: Path, code: int) -> dict[str, Any] | tuple[str, str]:
    """What an ended trainer left: its result, or (failure kind, detail).

    Killed by a signal from outside is `lost` (worth another try); an end without a readable result or failure is a `bug`.
    """
    what = f"the trainer ended with exit code {code}"
    try:
        if code == 0:
            return read_object(folder / "result.json")
        if code > 0 and (folder / "failure.json").exists():
            failure = read_object(folder / "failure.json")
            if failure.get("kind") in FAILURE_KINDS:
                return str(failure["kind"]), str(failure.get("detail", ""))
            what = f"failure.json has the kind {failure.get('kind')!r}; one of {', '.join(FAILURE_KINDS)}"
    except FileNotFoundError:
        what = "the trainer ended with exit code 0 but left no result.json"
    except ValueError as error:
        what = f"the trainer left what is no JSON object: {error}"
    if code < 0:
        return "lost", f"the trainer was ended by {signal.Signals(-code).name}\n{tail(folder / 'trainer.log')}"
    return "bug", f"{what}\n{tail(folder / 'trainer.log')}"


def write_outcome(store: Store, claim: Claim, settings: Settings, outcome: dict[str, Any] | tuple[str, str]) -> Outcome:
    def write() -> bool:
        with store.begin() as session:
            if isinstance(outcome, dict):
                return jobs.finish(session, claim, outcome)
            kind, detail = outcome
            return jobs.fail(session, claim, kind=kind, detail=detail)

    if not persist(write, settings):
        log.warning("the outcome came too late and is dropped")
        return "lost"
    return "succeeded" if isinstance(outcome, dict) else "failed"


def release(store: Store, claim: Claim) -> bool:
    with store.begin() as session:
        return jobs.release(session, claim)


def persist(write: Callable[[], bool], settings: Settings) -> bool:
    """Write, again and again while the database cannot be reached; False when it was refused or a lease's time has passed."""
    deadline = time.monotonic() + settings.lease_seconds
    while True:
        try:
            return write()
        except UNREACHABLE as error:
            if time.monotonic() > deadline:
                return False
            log.warning("the database cannot be reached", extra={"reason": first_line(error)})
            time.sleep(0.5)


def deadline_of(claim: Claim, settings: Settings) -> float:
    """Seconds that one attempt may take."""
    return min(float(claim.spec.get("deadline_seconds") or settings.deadline_seconds), settings.deadline_seconds)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ValueError for anything else, NaN and Infinity included: no database takes them."""
    value = json.loads(path.read_text(), parse_constant=refuse_constant)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds a {type(value).__name__}, not an object")
    return value


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def tail(path: Path) -> str:
    """The last lines of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        return "\n".join(file.read().decode(errors="replace").replace("\0", "").splitlines()[-LOG_LINES:])


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
