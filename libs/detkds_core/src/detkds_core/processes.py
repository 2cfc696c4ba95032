"""Child processes that cannot outlive who started them.

A trainer that survives its supervisor keeps the GPU, and nobody knows of it. So a child here leads a session of its own (one signal reaches
all that it started) and asks the kernel to kill it when its parent dies, whatever killed the parent. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be imported between fork and exec


def start_bound(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that the kernel kills it when this process dies.

    The kernel watches the thread that forked, not the process: call it from a thread that lives as long as the process, best the main one.
    """
    parent = os.getpid()

    def bind() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died between fork and prctl: no signal will ever come
            os._exit(1)

    return subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True, preexec_fn=bind
    )


def has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has ended; it stays a zombie, so that its group's number cannot go to somebody else before `stop_group`."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def stop_group(process: subprocess.Popen[bytes], *, grace: float) -> int:
    """End a process of `start_bound` and all that it left in its group: SIGTERM, `grace` seconds, SIGKILL. Returns its exit code.

    A process that has already ended is only tidied up: its code stays what it was, what it started dies.
    """
    if process.returncode is None:
        if not has_exited(process):
            os.killpg(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while not has_exited(process) and time.monotonic() < deadline:
                time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()
