"""`detkds doctor`: what this machine has, what it lacks, and what to do about it. Works without a running service.

Whatever needs torch runs in a process of its own, so that a broken installation is a finding and not a crash.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from rich.text import Text

from detkds_client.client import Client
from detkds_client.connection import ProblemError, ServiceUnreachable, find_url
from detkds_client.show import console, put, table
from detkds_core.catalogue import BUILT_IN
from detkds_core.catalogue.own import FOLDER, read_folder
from detkds_core.roots import ROOTS, read_roots

PROBE_SECONDS = 180  # a cold import of torch and MMDetection on a slow disk takes tens of seconds
DISK_WARN, DISK_FAIL = 10, 2  # GB free; an attempt of a distillation keeps about three copies of its student
GPU_WARN = 6  # GB of memory; below that a ResNet-50 teacher and student of 800 px do not fit together

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One line of the report. advice: what to do, empty when nothing is."""

    level: Level
    subject: str
    found: str
    advice: str = ""


PROBE = """
import json, sys
found = {}
def look(name, action):
    try:
        found[name] = {"ok": True, **action()}
    except BaseException as error:
        found[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
def torch_():
    import torch
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {"version": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.version.cuda,
            "gpus": [[d.name, d.total_memory] for d in devices]}
def torchvision_():
    import torch, torchvision
    kept = torchvision.ops.nms(torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 3.9], [8., 8., 9., 9.]]), torch.tensor([.9, .8, .7]), .5)
    assert kept.tolist() == [0, 2], kept
    return {"version": torchvision.__version__}
def mmdet_():
    from detkds_core.detectors.runtime import prepare_mmdet
    prepare_mmdet()
    import mmcv, mmdet, torch
    from mmcv.ops import nms
    boxes, kept = nms(torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 3.9], [8., 8., 9., 9.]]), torch.tensor([.9, .8, .7]), .5)
    assert kept.tolist() == [0, 2], kept
    return {"mmdet": mmdet.__version__, "mmcv": mmcv.__version__}
look("torch", torch_); look("torchvision", torchvision_); look("mmdet", mmdet_)
print("\\n" + json.dumps(found))
"""


def examine(environment: Mapping[str, str] = os.environ, url: str | None = None) -> list[Finding]:
    """All findings, in the order in which they are worth reading. url: of the service, else as everywhere."""
    home = Path(environment.get("DETKDS_HOME", "~/.detkds")).expanduser()
    probe = run_probe(environment)
    return [
        python(),
        *packages(probe),
        threads(environment),
        gpu(probe),
        detectors(environment),
        data_roots(environment),
        disk(home),
        database(environment.get("DETKDS_DATABASE_URL"), home),
        broker(environment.get("DETKDS_BROKER_URL")),
        service(home, url or environment.get("DETKDS_URL")),
    ]


def python() -> Finding:
    version = platform.python_version()
    if sys.platform != "linux":
        return Finding("fail", "Python", f"{version} on {platform.system()}", "the services need Linux (a container or WSL will do)")
    return Finding("ok", "Python", f"{version} on {platform.system()} {platform.machine()}")


def run_probe(environment: Mapping[str, str]) -> dict[str, Any]:
    """What a fresh process finds of torch, torchvision and MMDetection: `{"torch": {"ok": bool, ...}, ...}`."""
    env = {**environment, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=PROBE_SECONDS)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return found if isinstance(found, dict) else {}
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        # A crash of native code leaves no JSON: the same for all three.
        broken = {"ok": False, "error": f"the probe did not end well ({type(error).__name__})"}
        return {"torch": broken, "torchvision": broken, "mmdet": broken}


def packages(probe: Mapping[str, Any]) -> list[Finding]:
    """torch, torchvision and MMDetection with its operations."""
    advice = "install it with: pip install 'detkds_core[torch]' -c constraints.txt (or: make setup)"
    found = []
    for name, subject in (("torch", "torch"), ("torchvision", "torchvision")):
        seen = probe[name]
        found.append(Finding("ok", subject, seen["version"]) if seen["ok"] else Finding("fail", subject, seen["error"], advice))
    seen = probe["mmdet"]
    if seen["ok"]:
        found.append(Finding("ok", "MMDetection", f"mmdet {seen['mmdet']}, mmcv {seen['mmcv']}, its operations answer (nms tried)"))
    else:
        found.append(Finding("fail", "MMDetection", seen["error"], advice))
    return found


def threads(environment: Mapping[str, str]) -> Finding:
    """Cores, OpenMP settings and whether somebody else is busy here."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    wanted = environment.get("OMP_NUM_THREADS")
    found = f"{cores} cores, OMP_NUM_THREADS {wanted or 'not set'}, load {load:.1f}; trainers get OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0"
    if wanted is not None and (not wanted.isdigit() or not 1 <= int(wanted) <= cores):
        return Finding("warn", "threads", found, f"set OMP_NUM_THREADS to a number from 1 to {cores}, or leave it unset")
    if load > cores + 0.5:
        return Finding("warn", "threads", found, "other processes keep the cores busy; training takes longer beside them")
    return Finding("ok", "threads", found)


def gpu(probe: Mapping[str, Any]) -> Finding:
    gpus = probe["torch"].get("gpus", [])
    if not gpus:
        cuda = probe["torch"].get("cuda")
        why = f"torch is built for CUDA {cuda} but sees no device: check nvidia-smi" if cuda else "this torch is built without CUDA"
        return Finding("warn", "GPU", "none", f"trainers use the CPU, enough for the built-in datasets ({why})")
    found = ", ".join(f"{name} {memory / 1e9:.0f} GB" for name, memory in gpus)
    if min(memory for _, memory in gpus) < GPU_WARN * 1e9:
        return Finding("warn", "GPU", found, "use small detectors, a small batch or small images")
    return Finding("ok", "GPU", found)


def detectors(environment: Mapping[str, str]) -> Finding:
    """The operator's own, as services that are started with this environment would read them."""
    folder = environment.get(FOLDER)
    if not folder:
        return Finding("ok", "detectors", f"{len(BUILT_IN)} built in; {FOLDER}, the folder of your own, is not set")
    own, faults = read_folder(folder, BUILT_IN)
    if faults:
        return Finding("fail", "detectors", "\n".join(faults), f"mend or remove what is named; services with this {FOLDER} do not start")
    return Finding("ok", "detectors", f"{len(BUILT_IN)} built in, {len(own)} in {folder}: {', '.join(own) or 'none'}")


def data_roots(environment: Mapping[str, str]) -> Finding:
    """The folders that a service that is started with this environment may read."""
    roots, faults = read_roots(environment.get(ROOTS, ""))
    if faults:
        return Finding("fail", "data folders", "\n".join(faults), f"a service with this {ROOTS} does not start")
    if not roots:
        return Finding("ok", "data folders", f"{ROOTS} is not set: only the built-in datasets, and checkpoints that are uploaded")
    return Finding("ok", "data folders", ", ".join(map(str, roots)))


def disk(home: Path) -> Finding:
    """Free space where everything is remembered, or where that folder will be made."""
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    found = f"{free:.0f} GB free for {home}"
    if not os.access(place, os.W_OK):
        return Finding("fail", "disk", f"{place} cannot be written", "set DETKDS_HOME to a folder that can")
    if free < DISK_FAIL:
        return Finding("fail", "disk", found, "free some space, or set DETKDS_HOME to a folder on another disk")
    if free < DISK_WARN:
        return Finding("warn", "disk", found, "enough for the built-in datasets; a larger search needs more")
    return Finding("ok", "disk", found)


def database(url: str | None, home: Path) -> Finding:
    """Whether the database answers. SQLite's file is only opened, never made, here."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    from detkds_core.store import Store

    if url is None:
        file = home / "detkds.sqlite"
        if not file.exists():
            return Finding("ok", "database", f"SQLite, will be made at {file}")
        url = f"sqlite:///{file}"
    try:
        store = Store(url)  # as the services would open it: what they take, they take here
        with store.read() as session:
            version = session.scalar(text("SELECT version_num FROM alembic_version"))
        store.close()
    except SQLAlchemyError as error:
        first_line = str(getattr(error, "orig", None) or error).splitlines()[0]
        if "alembic_version" in first_line:
            return Finding("warn", "database", f"{redacted(url)} answers, but has no tables yet", "start the service once: detkds serve")
        return Finding("fail", "database", f"{redacted(url)}: {first_line}", "check that it runs, and DETKDS_DATABASE_URL")
    except (ImportError, ValueError) as error:
        return Finding(
            "fail", "database", f"{redacted(url)}: {error}", "DETKDS_DATABASE_URL looks like postgresql+psycopg://user:key@host/name"
        )
    return Finding("ok", "database", f"{redacted(url)}, revision {version}")


def broker(url: str | None) -> Finding:
    if url is None:
        return Finding("ok", "broker", "none set: the worker asks the database itself")
    try:
        import redis
    except ImportError:
        return Finding("fail", "broker", "the redis package is missing", "pip install 'celery[redis]'")
    try:
        connection = redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3)
        connection.ping()
        eviction = dict(connection.config_get("maxmemory-policy")).get("maxmemory-policy")
    except redis.exceptions.NoPermissionError:
        return Finding("ok", "broker", f"{redacted(url)} answers")
    except (redis.exceptions.RedisError, ValueError, OSError) as error:
        return Finding("fail", "broker", f"{redacted(url)}: {error}", "check that it runs, and DETKDS_BROKER_URL")
    if eviction not in (None, "noeviction"):
        return Finding("warn", "broker", f"{redacted(url)} answers, maxmemory-policy {eviction}", "set maxmemory-policy noeviction")
    return Finding("ok", "broker", f"{redacted(url)} answers")


def service(home: Path, url: str | None) -> Finding:
    """Whether a service runs and answers."""
    try:
        address = url or find_url(home)
    except ServiceUnreachable:
        return Finding("warn", "service", "none is running on this home", "start one: detkds serve")
    try:
        with Client(address, timeout=5, retries=0) as client:
            health = client.health()
    except (ServiceUnreachable, ProblemError) as error:
        return Finding("warn", "service", str(error), "start one: detkds serve")
    return Finding("ok", "service", f"{address}, version {health.get('version', 'unknown')}")


def redacted(url: str) -> str:
    """A URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    place = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    return parts._replace(netloc=f"{parts.username or ''}:***@{place}").geturl()


def report(findings: list[Finding]) -> None:
    """Print one line a finding, and what to do under it."""
    style = {"ok": "green", "warn": "yellow", "fail": "red"}
    rows: list[tuple[str | Text, ...]] = []
    for finding in findings:
        rows.append((Text(finding.level, style=style[finding.level]), finding.subject, finding.found))
        if finding.advice:
            rows.append(("", "", Text(f"→ {finding.advice}", style=style[finding.level])))
    put(table([("", ""), ("what", ""), ("found", "")], rows, console().width))
