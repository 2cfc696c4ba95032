"""Services as processes: who they are, what they answer, and a small data set to search on."""

import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

REAL_TRAINER = f"{sys.executable} -m detkds_worker.trainer"
STAND_IN = Path(__file__).with_name("stand_in_trainer.py")


def processes_of(home: Path) -> dict[int, str]:
    """Every process that serves this home, by the environment it was started with: pid -> command line. Zombies have neither."""
    wanted = f"DETKDS_HOME={home}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # ended while we looked
    return found


def pids(home: Path, part: str) -> list[int]:
    """The processes of this home whose command line has this part, oldest first."""
    return sorted(pid for pid, command in processes_of(home).items() if part in command)


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for a true value and return it. Raises AssertionError, naming what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def environment(home: Path, **more: str) -> dict[str, str]:
    """What the services of one home see: nothing of the caller's DETKDS_*, the stand-in trainer, short leases."""
    (home / "roots").mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
    return inherited | {
        "DETKDS_HOME": str(home),
        "DETKDS_TRAINER": f"{sys.executable} {STAND_IN}",
        "DETKDS_LEASE_SECONDS": "2",
        "DETKDS_REAP_SECONDS": "1",
        "DETKDS_EVOLVER_LEASE_SECONDS": "2",
        "DETKDS_DATA_ROOTS": str(home / "roots"),
        "STAND_IN_STARTS": str(home / "starts.txt"),
        "OMP_NUM_THREADS": "1",
        **more,
    }


class Api:
    """Just enough of a client: JSON in, JSON out, again when the API is being restarted."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self.headers, method=method)
        try:
            with self.opener.open(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from error

    def get(self, path: str, seconds: float = 60.0) -> Any:
        """GET, for as long as nobody listens."""

        def ask() -> tuple[Any] | None:
            try:
                return (self.call("GET", path),)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return None

        return until(ask, seconds, f"an answer to GET {path}")[0]

    def register(self, name: str, splits: Mapping[str, Any]) -> None:
        """Register a dataset and wait until it is READY."""
        self.call("POST", "/datasets", {"name": name, **splits})
        found = until(lambda: (one := self.get(f"/datasets/{name}"))["state"] != "CHECKING" and one, 60, f"the check of {name}")
        assert found["state"] == "READY", found

    def text(self, path: str) -> str:
        """GET of what is no JSON."""
        request = urllib.request.Request(self.url + path, headers=self.headers)
        with self.opener.open(request, timeout=30) as response:
            return str(response.read().decode())

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """Every item of a list, page by page."""
        cursor = ""
        while True:
            page = self.get(f"{path}?limit=100{cursor}")
            yield from page["items"]
            if not page.get("next_cursor"):
                return
            cursor = f"&cursor={page['next_cursor']}"


CLASSES = ["disc", "bar"]


def small_dataset(folder: Path) -> dict[str, dict[str, str]]:
    """Eight training and eight validation scenes of 64 px, one disc and one bar in each; the paths that registration asks for."""
    folder.mkdir(parents=True)
    paths: dict[str, dict[str, str]] = {}
    for split, offset in (("train", 0), ("val", 8)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (folder / split).mkdir()
        for n in range(8):
            x, y = 4 + 3 * n + offset // 4, 6 + 2 * n
            picture = Image.new("RGB", (64, 64), (30 + 9 * (n + offset), 90, 60))
            draw = ImageDraw.Draw(picture)
            draw.ellipse((x, y, x + 19, y + 19), fill=(230, 200, 40))
            draw.rectangle((30 - n, 44, 59 - n, 55), fill=(60, 60, 220))
            picture.save(folder / split / f"{n}.png")
            images.append({"id": n + 1, "file_name": f"{n}.png", "width": 64, "height": 64})
            for box in ([x, y, 20, 20], [30 - n, 44, 30, 12]):
                category = 1 if box[3] == 20 else 2
                number = len(annotations) + 1
                annotations.append(
                    {"id": number, "image_id": n + 1, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                )
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
        path = folder / f"{split}.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        paths[split] = {"annotations": str(path), "images": str(folder / split)}
    return paths


def named_checkpoint(path: Path) -> Path:
    """A file that says it is a detector of these classes; the stand-in trainer never opens it."""
    save_file({"weight": np.zeros(1, dtype=np.float32)}, path, metadata={"classes": json.dumps(CLASSES)})
    return path
