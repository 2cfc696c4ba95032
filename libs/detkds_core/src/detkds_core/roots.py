"""The folders that the operator lets the service read data sets and checkpoints from."""

import os
from pathlib import Path

ROOTS = "DETKDS_DATA_ROOTS"  # environment variable


def read_roots(text: str) -> tuple[tuple[Path, ...], list[str]]:
    """The resolved folders of a setting, separated as in PATH, and what is wrong with them, a sentence each."""
    named = [Path(part) for part in text.split(os.pathsep) if part]
    faults = [
        f"{ROOTS}: {one} is no folder; make it, or name folders that are there, /data[{os.pathsep}/more]"
        for one in named
        if not os.path.isdir(one.expanduser())
    ]
    return tuple(one.expanduser().resolve() for one in named), faults
