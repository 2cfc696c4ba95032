"""`python -m detkds_api.check ASKED`: one dataset is checked, in a process of its own.

What an annotation file or an image does to its reader costs that process alone, whose memory is bounded. What it is asked comes as JSON on
the command line (`name`, `train`, `val`, `roots`, `memory`: bytes). It says lines of JSON on stdout: `{"progress"}` now and then, and at
last `{"dataset"}` or `{"problems"}`; `{"crash"}` where it fails.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from detkds_api.problems import MOST_ERRORS, FieldError, pointer
from detkds_core.datasets import DatasetError, register
from detkds_core.store.artifacts import file_sha256

PROGRESS_SECONDS = 0.5


def main(arguments: list[str]) -> None:
    asked = json.loads(arguments[0])
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process goes first and not the service
    resource.setrlimit(resource.RLIMIT_DATA, (asked["memory"], asked["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        say(dataset=checked(asked))
    except DatasetError as error:
        say(problems=[dataset_error(problem)._asdict() for problem in error.problems[:MOST_ERRORS]])
    except MemoryError:
        message = f"checking it needs more than {asked['memory'] >> 20} MiB of memory; without masks to learn, remove segmentations"
        say(problems=[FieldError("", message)._asdict()])
    except Exception:  # for the service's log: who asked is told that there was no answer
        say(crash=traceback.format_exc())


def checked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a dataset with which nothing is wrong. Raises DatasetError."""
    paths = {f"{split}_{kind}": Path(asked[split][kind]) for split in ("train", "val") for kind in ("annotations", "images")}
    data = register(asked["name"], **paths, roots=[Path(root) for root in asked["roots"]], report=Reporter()).to_json()
    for split in ("train", "val"):  # whoever reads it later sees whether it is still the same
        data[split]["sha256"] = file_sha256(Path(data[split]["annotations"]))
    return data


class Reporter:
    """Says at most twice a second how far a check is, and always what it begins with."""

    def __init__(self) -> None:
        self.said, self.message = 0.0, ""

    def __call__(self, done: int, total: int, message: str) -> None:
        now = time.monotonic()
        if message != self.message or now - self.said >= PROGRESS_SECONDS:
            self.said, self.message = now, message
            say(progress={"done": done, "total": total, "message": message})


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def dataset_error(problem: str) -> FieldError:
    """`annotations.train: annotations[17].bbox ...` points at `/train/annotations`; the text is then about the place inside the file."""
    found = re.match(r"(annotations|images)\.(train|val)\b(?:: )?", problem)
    problem = problem.encode("utf-8", "backslashreplace").decode()  # file names are bytes, and may be no text
    return FieldError(pointer(found[2], found[1]), problem[found.end() :]) if found else FieldError("", problem)


if __name__ == "__main__":
    main(sys.argv[1:])
