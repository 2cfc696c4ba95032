"""`python -m detkds_api.check ASKED`: one dataset is checked, in a process of its own.

What an annotation file or an image does to its reader costs that process alone, whose memory is bounded. What it is asked comes as JSON on
the command line (`name`, `train`, `val`, `roots`, `memory`: bytes). It says lines of JSON on stdout: `{"progress"}` now and then, and at
last `{"dataset"}` or `{"problems"}`.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from pathlib import Path

from detkds_api.problems import MOST_ERRORS, FieldError, pointer
from detkds_core.datasets import DatasetError, register

PROGRESS_SECONDS = 0.5


def main(arguments: list[str]) -> None:
    asked = json.loads(arguments[0])
    resource.setrlimit(resource.RLIMIT_DATA, (asked["memory"], asked["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    paths = {f"{split}_{kind}": Path(asked[split][kind]) for split in ("train", "val") for kind in ("annotations", "images")}
    try:
        dataset = register(asked["name"], **paths, roots=[Path(root) for root in asked["roots"]], report=Reporter())
    except DatasetError as error:
        say(problems=[dataset_error(problem)._asdict() for problem in error.problems[:MOST_ERRORS]])
    except MemoryError:
        message = f"checking it needs more than {asked['memory'] >> 20} MiB of memory; remove segmentations, only boxes are read"
        say(problems=[FieldError("", message)._asdict()])
    else:
        say(dataset=dataset.to_json())


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
    return FieldError(pointer(found[2], found[1]), problem[found.end() :]) if found else FieldError("", problem)


if __name__ == "__main__":
    main(sys.argv[1:])
