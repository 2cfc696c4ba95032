"""Children that cannot outlive their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from detkds_core import processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def test_a_child_dies_with_a_parent_that_was_killed() -> None:
    script = f"import sys, time; from detkds_core import processes;print(processes.start_bound({SLEEP!r}).pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert until(lambda: not alive(child))


def test_stopping_reaches_what_the_child_started(tmp_path: Path) -> None:
    script = f"import subprocess, time; p = subprocess.Popen({SLEEP!r}); print(p.pid, flush=True); time.sleep(60)"
    process = processes.start_bound([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    process.stdout.close()
    assert processes.stop_group(process, grace=5) == -signal.SIGTERM
    assert until(lambda: not alive(grandchild))


def test_what_an_ended_child_left_is_ended_and_its_code_kept() -> None:
    script = f"import subprocess, sys; p = subprocess.Popen({SLEEP!r}); print(p.pid, flush=True); sys.exit(7)"
    process = processes.start_bound([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    process.stdout.close()
    assert until(lambda: processes.has_exited(process))
    assert alive(grandchild)
    assert processes.stop_group(process, grace=5) == 7
    assert until(lambda: not alive(grandchild))
    assert processes.has_exited(process)


def test_who_does_not_listen_is_killed_after_the_grace() -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    process = processes.start_bound([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"deaf\n"
    process.stdout.close()
    started = time.monotonic()
    assert processes.stop_group(process, grace=0.3) == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - started < 3


def test_a_running_child_leads_its_own_session() -> None:
    process = processes.start_bound(SLEEP)
    assert not processes.has_exited(process)
    assert os.getsid(process.pid) == process.pid
    processes.stop_group(process, grace=5)
