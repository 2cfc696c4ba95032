"""Who a worker is: its name, the same after a restart."""

from __future__ import annotations

import fcntl
import socket
from itertools import count
from pathlib import Path
from typing import IO
from urllib.parse import quote

from detkds_core.store.queue import Device

LONGEST_NAME = 180  # characters; the column has 200


class Name:
    """The name of a worker for as long as this object lives: that a person gave it, or host and device, so that the machine is found.

    A worker that starts anew has its old name again and with it what was said of it, such as that it drains. Of several workers that would
    be called the same, the later ones get "#2", "#3", ... The kernel lets go of a name when its process ends, however it ends.
    """

    def __init__(self, home: Path, given: str | None, device: Device) -> None:
        folder = home / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        wanted = (given or f"{socket.gethostname()}/{device.name}")[:LONGEST_NAME]
        for number in count(1):
            self.text = wanted if number == 1 else f"{wanted}#{number}"
            if (lock := locked(folder / f"{quote(self.text, safe='')[:240]}.lock")) is not None:
                self.lock = lock
                return

    def __str__(self) -> str:
        return self.text


def locked(path: Path) -> IO[str] | None:
    """The file, held by this process alone; None: another one has it. Without locks (some network file systems), it is held by nobody."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        pass
    return file
