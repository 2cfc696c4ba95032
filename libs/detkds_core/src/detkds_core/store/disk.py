"""Whether there is room for more artifacts: a trainer that fills the disk fails, and takes the database and every other trainer along."""

from __future__ import annotations

import shutil
from pathlib import Path

GIB = 2**30


def free_bytes(folder: Path) -> int:
    """What is free on the file system of `folder`, or of where it will be made."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    return shutil.disk_usage(place).free


def shortage(folder: Path, least_gib: float) -> str | None:
    """Why no new work should begin: the file system of `folder` has less than `least_gib` free.

    None: there is room, or `least_gib` is 0, which asks for none.
    """
    if not least_gib:
        return None
    free = free_bytes(folder) / GIB
    if free >= least_gib:
        return None
    return f"{free:.1f} GiB are free where jobs leave files ({folder}), {least_gib:g} are needed (DETKDS_DISK_FREE_GIB); free some space"
