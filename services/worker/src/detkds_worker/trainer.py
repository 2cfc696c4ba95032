"""The trainer process: `python -m detkds_worker.trainer SPEC OUT_DIR`, one job, progress as JSON lines on stdout."""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PROGRESS_SECONDS = 0.5


class Reporter:
    """Prints progress at most twice a second; the last line of a phase is always printed."""

    def __init__(self) -> None:
        self.printed = 0.0
        self.best_ap: float | None = None

    def __call__(self, done: int, total: int, message: str, best_ap: float | None = None) -> None:
        self.best_ap = best_ap if best_ap is not None else self.best_ap
        now = time.monotonic()
        if now - self.printed < PROGRESS_SECONDS and done < total and best_ap is None:
            return
        self.printed = now
        line = {"event": "progress", "done": done, "total": total, "message": message, "best_ap": self.best_ap}
        print(json.dumps(line), flush=True)


def main(arguments: list[str]) -> int:
    spec_path, folder = Path(arguments[0]), Path(arguments[1])
    spec = json.loads(spec_path.read_text())
    try:
        result = run(spec, folder)
    except Exception as error:
        traceback.print_exc()
        _write(folder / "failure.json", {"kind": failure_kind(error), "detail": f"{type(error).__name__}: {error}"[:4000]})
        return 1
    _write(folder / "result.json", result)
    return 0


def run(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    from detkds_core.detectors.runtime import prepare_mmdet

    prepare_mmdet()
    repeatable()
    from detkds_core.training.distillation import distill
    from detkds_core.training.jobs import measure_candidates

    if spec["kind"] == "distill":
        return distill(spec, folder, Reporter())
    return measure_candidates(spec, Reporter())


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
    from detkds_core.detectors.build import CheckpointError
    from detkds_core.detectors.pair import PairError
    from detkds_core.policy import PolicyError
    from detkds_core.training.jobs import TrainingError

    if isinstance(error, TrainingError):
        return error.kind
    if isinstance(error, OutOfMemoryError | MemoryError):
        return "out_of_memory"
    if isinstance(error, CheckpointError | DatasetError | PairError | PolicyError | FileNotFoundError | json.JSONDecodeError):
        return "bad_data"
    return "bug"


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
