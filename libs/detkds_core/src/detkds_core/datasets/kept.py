"""What trainings keep in the cache for later ones, and for how long: trunks of forks, MasKD's tokens."""

import os
import time
from contextlib import suppress
from pathlib import Path

FORKS, TOKENS = "forks", "tokens"  # folders of the cache
DAY = 86_400.0  # seconds


def take(path: Path) -> bool:
    """Whether the file is there; if so, its days begin anew (`sweep`)."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's, who sweeps it
        return path.is_file()
    return True


def sweep(folder: Path, days: float) -> int:
    """Remove the folder's files that nobody took for so many days; how many they were. A folder that is missing has none."""
    before, removed = time.time() - days * DAY, 0
    for path in folder.glob("*"):
        with suppress(OSError):  # another worker was faster, or it is another user's
            if path.is_file() and path.stat().st_mtime < before:
                path.unlink()
                removed += 1
    return removed
