"""The trainer process: `python -m detkds_worker.trainer SPEC OUT_DIR`, one job, progress as JSON lines on stdout.

A recipe of several devices makes it the parent of one such process a device; the first of them speaks and writes for all.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detkds_core.catalogue import Recipe, UnknownDetectorError
from detkds_core.catalogue.own import FOLDER
from detkds_core.catalogue.recipe import smaller_batch_warning
from detkds_core.policy import from_json, images_needed
from detkds_core.training.launch import RANK, run_together

PROGRESS_SECONDS = 0.5


class Reporter:
    """Prints progress at most twice a second; the last line of a phase is always printed.

    `step_seconds`: what a step took since the line before, what is done between steps included; null in the first line of a phase.
    """

    def __init__(self) -> None:
        self.printed = 0.0
        self.best_ap: float | None = None
        self.phase, self.done = "", 0  # of the line before

    def __call__(self, done: int, total: int, message: str, best_ap: float | None = None) -> None:
        self.best_ap = best_ap if best_ap is not None else self.best_ap
        now = time.monotonic()
        if now - self.printed < PROGRESS_SECONDS and done < total and best_ap is None:
            return
        steps = done - self.done if message == self.phase else 0
        step_seconds = round((now - self.printed) / steps, 6) if steps > 0 else None
        self.printed, self.phase, self.done = now, message, done
        line = {
            "event": "progress",
            "done": done,
            "total": total,
            "message": message,
            "best_ap": self.best_ap,
            "step_seconds": step_seconds,
        }
        print(json.dumps(line), flush=True)


def main(arguments: list[str]) -> int:
    spec_path, folder = Path(arguments[0]), Path(arguments[1])
    spec = json.loads(spec_path.read_text())
    if RANK not in os.environ and spec["recipe"].get("devices", 1) > 1:
        return run_on_devices(spec, folder, [sys.executable, "-m", "detkds_worker.trainer"])
    try:
        result = run(spec, folder)
    except Exception as error:
        traceback.print_exc()
        _write(failure_file(folder), failure_of(error))
        return 1
    if os.environ.get(RANK, "0") == "0":
        _write(folder / "result.json", result)
    return 0


def run(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    from detkds_core.detectors.runtime import prepare_mmdet

    prepare_mmdet()
    repeatable()
    from detkds_core.training.distillation import distill
    from detkds_core.training.jobs import measure_candidates
    from detkds_core.training.parallel import joined

    report: Callable[..., None] = Reporter() if os.environ.get(RANK, "0") == "0" else lambda *_: None
    with joined():
        if spec["kind"] == "distill":
            return distill(spec, folder, report)
        return measure_candidates(spec, report)


def run_on_devices(spec: dict[str, Any], folder: Path, command: list[str]) -> int:
    """Run a job as one process a device; a distillation whose batch does not fit on one of them starts again with a smaller one."""
    while True:
        path = folder / "spec.devices.json"
        _write(path, spec)
        for old in folder.glob("failure.*.json"):
            old.unlink()
        code = run_together([*command, str(path), str(folder)], spec["recipe"]["devices"])
        if code == 0:
            return 0
        failures = sorted(folder.glob("failure.*.json"), key=lambda file: file.stat().st_mtime_ns)
        if not failures:
            if code < 0:  # killed from outside: so ends this process, that it is read so
                signal.signal(-code, signal.SIG_DFL)
                os.kill(os.getpid(), -code)
            return 1
        failure = json.loads(failures[0].read_text())  # the first: the others' are what it caused
        before = Recipe.from_json(spec["recipe"])
        after = before.with_smaller_batch(images_needed(from_json(spec["policy"]).terms) if spec["kind"] == "distill" else 1)
        if spec["kind"] != "distill" or not failure.pop("does_not_fit", False) or after is None:
            _write(folder / "failure.json", failure)
            return 1
        warning = smaller_batch_warning(before, after, failure["detail"])
        spec = {**spec, "recipe": after.to_json(), "warnings": [*spec.get("warnings", []), warning]}
        if (saved := folder.parent / "resume.pt").is_file():  # what has been learnt stays learnt
            spec["resume_from"] = str(saved)


def failure_file(folder: Path) -> Path:
    return folder / (f"failure.{os.environ[RANK]}.json" if RANK in os.environ else "failure.json")


def failure_of(error: Exception) -> dict[str, Any]:
    from torch import OutOfMemoryError

    from detkds_core.training.group import DoesNotFitError

    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, UnknownDetectorError):  # the API knew it
        folder = os.environ.get(FOLDER)
        where = f"{FOLDER} of this worker is {folder}" if folder else f"{FOLDER} of this worker is not set"
        detail += f". A detector of one's own needs its file on every machine, and {where}"
    failure: dict[str, Any] = {"kind": failure_kind(error), "detail": detail[:4000]}
    return failure | ({"does_not_fit": True} if isinstance(error, DoesNotFitError | OutOfMemoryError) and RANK in os.environ else {})


def repeatable() -> None:
    """Let a GPU give the same figures run after run, where its kernels can; a CPU does anyway, and would only be slowed down."""
    import torch

    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def failure_kind(error: Exception) -> str:
    """The failure kind decides what happens to the job: see docs/architecture.md."""
    from torch import OutOfMemoryError

    from detkds_core.datasets import DatasetError
    from detkds_core.detectors.checkpoints import CheckpointError
    from detkds_core.detectors.pair import PairError
    from detkds_core.policy import PolicyError
    from detkds_core.training.group import DoesNotFitError
    from detkds_core.training.jobs import TrainingError

    if isinstance(error, TrainingError):
        return error.kind
    if isinstance(error, OutOfMemoryError | MemoryError | DoesNotFitError):
        return "out_of_memory"
    of_the_data = CheckpointError | DatasetError | PairError | PolicyError | UnknownDetectorError | FileNotFoundError | json.JSONDecodeError
    if isinstance(error, of_the_data):
        return "bad_data"
    return "bug"


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    if RANK in os.environ:  # what a failure left between the processes could wait for ever when it is torn down
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
