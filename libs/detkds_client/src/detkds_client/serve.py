"""`detkds serve`: api, evolver and workers on this machine, supervised as processes.

Whoever ends is started again; whatever ends the supervisor, `kill -9` included, ends all of them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT, Popen

from detkds_core import processes
from detkds_core.store import Store

SERVICES: Mapping[str, tuple[str, ...]] = {
    "api": (sys.executable, "-m", "detkds_api"),
    "evolver": (sys.executable, "-m", "detkds_evolver"),
    "worker": (sys.executable, "-m", "detkds_worker"),
}
TICK = 0.1  # seconds between two looks at the services
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a service that ended is started again; doubles each time
REFUSED = 2  # exit code of a service whose settings are wrong: it would say the same again
STEADY = 60.0  # seconds of life after which an end counts as the first one again
START_TRIES = 3  # ends of one service before the API has answered once: it cannot work here, a restart will not help
STOP_GRACE = 15.0  # seconds from SIGTERM to SIGKILL: the worker first ends its trainer (5 s) and gives its job back
LARGEST_LOG = 10 << 20  # bytes; a larger log is set aside as *.log.1 when its service starts

log = logging.getLogger("detkds.serve")


class ServeError(Exception):
    """Why the services cannot run here, and what to do."""


@dataclass
class Service:
    """One supervised process and its history."""

    name: str
    command: tuple[str, ...]
    log: Path
    process: Popen[bytes] | None = None
    started: float = 0.0  # time.monotonic()
    refused: bool = False  # its first life ended because of its settings
    log_start: int = 0  # bytes of the log that are of earlier lives
    ends: int = 0  # in a row, without a steady life between them
    start_at: float = 0.0  # time.monotonic(); not before


def serve(
    home: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
    on_ready: Callable[[str], None] = lambda url: print(f"DetKDS listens on {url}", flush=True),
) -> None:
    """Run api, evolver and workers until SIGTERM or SIGINT; port 0 takes a free one, known from `on_ready` and `<home>/serve.json`.

    `environment` is what the services see (default: this process's). Call it from the main thread: the services live as long as it does.
    Raises ServeError when another one runs on this home, the port is taken, or a service cannot start.
    """
    home = home.expanduser().resolve()
    try:
        (home / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServeError(f"{home} cannot hold what the service remembers ({error.strerror}); choose another folder with --home") from error
    stopped_by: list[int] = []
    with only_one(home), signals_noted(stopped_by):
        told = home / "serve.json"
        told.unlink(missing_ok=True)  # left by a supervisor that was killed; its URL is nobody's now
        port = listening_port(host, port)
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        env = {**(os.environ if environment is None else environment)}
        env |= {"DETKDS_HOME": str(home), "DETKDS_HOST": host, "DETKDS_PORT": str(port)}
        Store(env.get("DETKDS_DATABASE_URL") or f"sqlite:///{home / 'detkds.sqlite'}").migrate()
        wanted = {**SERVICES, **{f"worker-{number}": SERVICES["worker"] for number in range(2, workers + 1)}}
        services = [Service(name, command, home / "logs" / f"{name}.log") for name, command in wanted.items()]
        try:
            ready = False
            while not stopped_by:
                for service in services:
                    keep_running(service, env)
                    if not ready and (service.ends >= START_TRIES or service.refused):
                        said = last_lines(service.log, service.log_start)
                        raise ServeError(f"the {service.name} does not start; the end of {service.log}:\n{said}")
                if not ready and answers(url):
                    ready = True
                    write_whole(told, json.dumps({"url": url, "pid": os.getpid(), "home": str(home)}) + "\n")
                    on_ready(url)
                time.sleep(TICK)
        finally:
            told.unlink(missing_ok=True)
            stop_all(services)


def keep_running(service: Service, env: Mapping[str, str]) -> None:
    """Start the service when it is due; notice when it has ended, and tidy up what it left."""
    now = time.monotonic()
    if service.process is None:
        if now >= service.start_at:
            if service.log.exists() and service.log.stat().st_size > LARGEST_LOG:
                service.log.replace(service.log.with_suffix(".log.1"))
            with service.log.open("ab") as output:
                service.log_start = output.tell()
                service.process = processes.start_bound(service.command, env=env, stdout=output, stderr=STDOUT)
            service.started = now
    elif processes.has_exited(service.process):
        code = processes.stop_group(service.process, grace=0)
        service.refused = code == REFUSED and service.ends == 0
        service.process = None
        service.ends = 1 if now - service.started > STEADY else service.ends + 1
        wait = min(FIRST_WAIT * 2 ** (service.ends - 1), LONGEST_WAIT)
        service.start_at = now + wait
        if not service.refused:
            log.warning("the %s ended with exit code %d; it starts again in %g s", service.name, code, wait)


def stop_all(services: list[Service]) -> None:
    """End all services at once, so that the slowest alone decides how long it takes."""
    running = [service.process for service in services if service.process is not None]
    for process in running:
        if not processes.has_exited(process):
            os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_GRACE
    while time.monotonic() < deadline and not all(processes.has_exited(process) for process in running):
        time.sleep(0.02)
    for process in running:
        processes.stop_group(process, grace=0)


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home for this process; the kernel lets go of the lock when the process ends, however it ends."""
    with (home / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ServeError(
                f"DetKDS already runs on {home} (process {lock.read().strip() or 'unknown'}); "
                "use it, stop it, or set DETKDS_HOME to another folder"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextmanager
def signals_noted(received: list[int]) -> Iterator[None]:
    """Note SIGTERM and SIGINT in `received` instead of ending; a handler may do no more than that safely."""
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listening_port(host: str, port: int) -> int:
    """The port if nobody listens on it, or a free one for 0. Another process may take it before the API does; then its start fails.

    Raises ServeError.
    """
    try:
        with socket.create_server((host, port)) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServeError(f"port {port} on {host} is taken; choose another with --port, or 0 for a free one") from error
        reason = str(error.strerror).partition(" (")[0]  # behind it, Python repeats the address
        raise ServeError(f"cannot listen on {host}, port {port}: {reason}; choose others with --host and --port") from error


def answers(url: str) -> bool:
    """Whether the API answers; a proxy of the environment is never asked for it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500  # it lives, whatever it refuses
    except OSError:
        return False


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, never a part."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def last_lines(path: Path, start: int = 0, count: int = 20) -> str:
    """The last lines of a log, none of those before byte `start`."""
    return "\n".join(path.read_bytes()[start:].decode(errors="replace").splitlines()[-count:])
