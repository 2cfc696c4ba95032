"""Who a worker is: its name, the same after a restart, and the device that it trains on."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
from itertools import count
from pathlib import Path
from typing import IO
from urllib.parse import quote

from detkds_core.store.queue import CPU, Device

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


def own_device() -> Device:
    """The GPU that this worker may use, by nvidia-smi, or all of them; a CPU without one. GiB are rounded: a card of 24 reports 23.99."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return CPU
    command = [program, "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    cards = [line.split(",") for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode != 0 or not cards:
        return CPU
    uuids, mebibytes = zip(*((card[0].strip(), card[-1].strip()) for card in cards), strict=True)
    memory = min(round(int(size) / 1024) if size.isdigit() else 0 for size in mebibytes)
    return Device("+".join(uuids), len(uuids), memory)
