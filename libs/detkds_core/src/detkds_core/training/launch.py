"""Start the processes that train one student together. No torch: who starts them holds no memory of a GPU."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from detkds_core import processes

RANK, DEVICES, MEETING = "DETKDS_RANK", "DETKDS_DEVICES", "DETKDS_MEETING"  # environment of a process among several


def run_together(command: Sequence[str], count: int) -> int:
    """Run a command as `count` processes that `parallel.joined` brings together, and wait. Returns 0, or the first failed one's exit code.

    The first process speaks on this process's stdout, the others on its stderr. When one fails the others are ended: they would wait
    for it for ever. When this process dies the kernel ends all of them.
    """
    with tempfile.TemporaryDirectory(prefix="detkds-") as folder:
        children: list[subprocess.Popen[bytes]] = []
        failed = 0
        try:
            for number in range(count):
                own = {RANK: str(number), DEVICES: str(count), MEETING: str(Path(folder) / "meeting")}
                stdout = None if number == 0 else sys.stderr.fileno()
                children.append(processes.start_bound(command, env={**os.environ, **own}, stdout=stdout))
            while failed == 0 and not all(map(processes.has_exited, children)):
                time.sleep(0.05)
                failed = next((code for code in map(_exit_code, children) if code), 0)
        finally:
            codes = [processes.stop_group(child, grace=1.0) for child in children]
    return failed or next((code for code in codes if code), 0)


def _exit_code(child: subprocess.Popen[bytes]) -> int | None:
    """The code of a process that has ended, or minus its signal; it stays a zombie until `stop_group`. None while it runs."""
    found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
