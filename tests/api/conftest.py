"""The service as it runs: uvicorn on a free port, a real SQLite store, data below a registered folder."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from PIL import Image
from pydantic import SecretStr
from safetensors.numpy import save_file

from detkds_api.app import create_app
from detkds_api.settings import Settings
from detkds_core.catalogue import BUILT_IN
from detkds_core.catalogue.own import write_file
from detkds_core.store import Store, distillations, results, searches

CLASSES = ("circle", "square")
POLICY = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0}]}
SPEC = {
    "teacher": {"detector": "big"},
    "student": {"detector": "small"},
    "policy": POLICY,
    "recipe": {"iterations": 10},
    "budget": 80,
    "rungs": [10],
    "confirmation": {"finalists": 1, "seeds": 3, "iterations": 10, "distillers": []},
}
KEY = SecretStr("0123456789abcdef0123456789abcdef")


@dataclass
class Service:
    """A running service, a plain HTTP client of it, and what it stands on."""

    url: str
    http: httpx2.Client
    store: Store
    settings: Settings
    roots: Path

    def search(self) -> dict[str, Any]:
        """A search that is possible."""
        return {
            "dataset": "shapes",
            "teacher": {"detector": "gfl_r18w32_fpn32", "checkpoint": str(self.roots / "teacher.safetensors")},
            "student": {"detector": "gfl_r18w8_fpn32"},
            "candidates": 12,
            "seed": 3,
            "recipe": {"iterations": 2, "batch": 2, "image_size": 64},
        }


def write_coco(folder: Path, images: int, *, classes: tuple[str, ...] = CLASSES, shade: int = 0) -> dict[str, str]:
    """A COCO split of grey images of 64 px, one box each: `{"annotations", "images"}`. shade tells the pictures of splits apart."""
    (folder / "images").mkdir(parents=True)
    records, boxes = [], []
    for number in range(1, images + 1):
        name = f"{number:03d}.png"
        Image.fromarray(np.full((64, 64, 3), (shade + number) % 256, dtype=np.uint8)).save(folder / "images" / name)
        records.append({"id": number, "file_name": name, "width": 64, "height": 64})
        category = 1 + number % len(classes)
        boxes.append({"id": number, "image_id": number, "category_id": category, "bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0})
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]
    (folder / "coco.json").write_text(json.dumps({"images": records, "annotations": boxes, "categories": categories}))
    return {"annotations": str(folder / "coco.json"), "images": str(folder / "images")}


def write_checkpoint(path: Path, classes: tuple[str, ...] | None) -> Path:
    """A safetensors file with one weight and class names in its header."""
    metadata = {"classes": json.dumps(list(classes))} if classes is not None else None
    save_file({"backbone.weight": np.zeros((2, 2), dtype=np.float32)}, path, metadata=metadata)
    return path


def checked(http: httpx2.Client, body: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset that is asked for, once its check has ended."""
    answer = http.post("/datasets", json=body)
    assert answer.status_code in (200, 202), answer.text
    deadline = time.monotonic() + 60
    while (found := http.get(f"/datasets/{body['name']}").json())["state"] == "CHECKING":
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """The app of these settings behind uvicorn, in a thread; its URL."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host="127.0.0.1", port=settings.port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service ended while it started"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{settings.port}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@contextmanager
def serving(tmp_path_factory: pytest.TempPathFactory, **settings: Any) -> Iterator[Service]:
    """A service with the dataset `shapes` registered and two teachers of it below the root. settings: further ones."""
    home = tmp_path_factory.mktemp("home")
    roots = tmp_path_factory.mktemp("roots").resolve()
    known = Settings(home=home, port=free_port(), data_roots=(roots,), **{"cache": home / "cache", **settings})
    headers = {"Authorization": f"Bearer {known.api_key.get_secret_value()}"} if known.api_key else {}
    write_checkpoint(roots / "teacher.safetensors", CLASSES)
    write_checkpoint(roots / "other.safetensors", ("cat", "dog", "cow"))
    with running(known) as url, httpx2.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
        body = {"name": "shapes", "train": write_coco(roots / "train", 6), "val": write_coco(roots / "val", 4, shade=100)}
        assert checked(http, body)["state"] == "READY"
        yield Service(url, http, Store(known.url), known, roots)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service a test module."""
    with serving(tmp_path_factory) as one:
        yield one


@pytest.fixture
def s3_service(tmp_path_factory: pytest.TempPathFactory, s3_place: str) -> Iterator[Service]:
    """One whose artifacts lie in S3."""
    with serving(tmp_path_factory, artifacts=s3_place) as one:
        yield one


@pytest.fixture(scope="module", params=[None, KEY], ids=["open", "locked"])
def whole_service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that asks for no key, and then one that asks for the operator's, both with the built-in datasets of this machine."""
    with serving(tmp_path_factory, api_key=request.param, cache=None) as one:
        yield one


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service that asks for the key `KEY`."""
    with running(Settings(home=tmp_path_factory.mktemp("locked"), port=free_port(), api_key=KEY)) as url:
        yield url


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Settings]]:
    """The URL and the settings of a service with the operator's key `KEY` and small quotas."""
    home = tmp_path_factory.mktemp("guarded")
    settings = Settings(home=home, port=free_port(), api_key=KEY, quota_active=2, quota_iterations=1000, requests_a_minute=200)
    with running(settings) as url:
        yield url, settings


@pytest.fixture
def wanted(service: Service) -> dict[str, Any]:
    """A search that is possible; tests change one thing of it."""
    return service.search()


@pytest.fixture
def of_search(service: Service) -> Callable[..., str]:
    """Make a result of a search as the evolver writes it: `of_search(digest, images)`; its id. Further evidence by name."""

    def make(
        digest: str = "d" * 20, images: int = 300, name: str = "shapes", *, title: str = "found", policy: Any = POLICY, **evidence: Any
    ) -> str:
        with service.store.begin() as session:
            search = searches.create(session, name=title, spec=SPEC, dataset={"name": name, "digest": digest})
            result = results.create(
                session,
                search,
                policy=policy,
                ap=30.25,
                metrics={"interval": [28.5, 32.0]},
                evidence={
                    "images": {"selection": 200, "report": images},
                    "seeds": {"search": 0, "confirmation": [1, 2, 3]},
                    "cost": {"seconds": 90.5, "iterations": 4000, "trunk_seconds": 5.5, "trunk_iterations": 120, "search_seconds": 60.0},
                    "versions": {"detkds_core": "0.1.0", "detkds_evolver": "0.2.0"},
                    **evidence,
                },
                artifacts={},
                environment={"torch": "2.14.1", "device": "cpu"},
            )
            return result.id

    return make


@pytest.fixture
def of_distillation(service: Service) -> Callable[..., str]:
    """The same of a distillation, without an interval."""

    def make(digest: str = "d" * 20, images: int = 300) -> str:
        with service.store.begin() as session:
            one = distillations.create(session, name="trained", spec=SPEC, dataset={"name": "shapes", "digest": digest})
            evidence = {"seed": 4, "images": {"report": images}, "cost": {"seconds": None, "iterations": 300}}
            return results.create(
                session, one, policy={"terms": []}, ap=21.0, metrics={}, evidence=evidence, artifacts={}, environment={"torch": "2.13.0"}
            ).id

    return make


def environment(home: Path, detectors: Path, port: int = 0) -> dict[str, str]:
    """That of a service with detectors of its own, in a process of its own."""
    (home / "roots").mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
    return inherited | {
        "DETKDS_HOME": str(home),
        "DETKDS_PORT": str(port),
        "DETKDS_DATA_ROOTS": str(home / "roots"),
        "DETKDS_DETECTORS": str(detectors),
    }


@contextmanager
def started(home: Path, detectors: Path) -> Iterator[httpx2.Client]:
    """Such a service, and a client of it."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "detkds_api"], env=environment(home, detectors, port), stderr=subprocess.DEVNULL)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            deadline = time.monotonic() + 60
            while True:
                try:
                    http.get("/health")
                    break
                except httpx2.TransportError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            yield http
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def own_detectors(tmp_path: Path) -> Path:
    """A folder with `mine`, a GFL."""
    folder = tmp_path / "detectors"
    folder.mkdir()
    config = json.loads(json.dumps(BUILT_IN["gfl_r18w8_fpn32"].config))
    write_file(replace(BUILT_IN["gfl_r18w8_fpn32"], name="mine", title="a GFL of mine", config=config, own=True), folder)
    return folder
