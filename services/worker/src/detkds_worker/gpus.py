"""The GPUs that this worker may use, as nvidia-smi sees them: the driver brings it, and it needs neither torch nor a context on the GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from detkds_core.store.queue import CPU, Device

MIB, GIB = 1 << 20, 1 << 30
START_SECONDS = 30.0  # a driver that nobody has used yet loads first
ASK_SECONDS = 5.0  # of a driver that hangs, a worker must not wait for longer than its presence lasts


def own_device() -> Device:
    """The GPU that this worker may use, or all of them; a CPU without one. GiB are rounded: a card of 24 reports 23.99."""
    cards = ask("uuid,memory.total", seconds=START_SECONDS)
    if not cards:
        return CPU
    memory = min(round((mib(total) or 0) / GIB) for _, total in cards)
    return Device("+".join(uuid for uuid, _ in cards), len(cards), memory)


def measured() -> list[dict[str, Any]]:
    """Memory in bytes and use (0 to 1; None where the driver does not tell, as of a part of a GPU) of each GPU now."""
    rows = ask("uuid,name,memory.total,memory.used,utilization.gpu", seconds=ASK_SECONDS)
    return [
        {
            "uuid": uuid,
            "name": name,
            "memory_bytes": mib(total),
            "memory_used_bytes": mib(used),
            "use": int(use) / 100 if use.isdigit() else None,
        }
        for uuid, name, total, used, use in rows
    ]


def mib(text: str) -> int | None:
    return int(text) * MIB if text.isdigit() else None


def ask(columns: str, *, seconds: float) -> list[list[str]]:
    """A row of texts a GPU, its UUID first; none where there is no GPU, or its driver does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={columns}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
    return [row for row in rows if len(row) == columns.count(",") + 1 and row[0].startswith("GPU-")]  # else it is a complaint
