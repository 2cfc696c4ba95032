"""The operator's own detectors in a service that is started with them: a process of its own, for the catalogue is read when one starts."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from detkds_core.catalogue import BUILT_IN
from detkds_core.catalogue.own import write_file

from .conftest import CLASSES, checked, free_port, write_checkpoint, write_coco

TEACHER = "gfl_r18w32_fpn32"


def environment(home: Path, detectors: Path, port: int = 0) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DETKDS_")}
    return inherited | {
        "DETKDS_HOME": str(home),
        "DETKDS_PORT": str(port),
        "DETKDS_DATA_ROOTS": str(home / "roots"),
        "DETKDS_DETECTORS": str(detectors),
    }


@contextmanager
def started(home: Path, detectors: Path) -> Iterator[httpx2.Client]:
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
def detectors(tmp_path: Path) -> Path:
    """A folder with `mine`, a GFL."""
    folder = tmp_path / "detectors"
    folder.mkdir()
    config = json.loads(json.dumps(BUILT_IN["gfl_r18w8_fpn32"].config))
    write_file(replace(BUILT_IN["gfl_r18w8_fpn32"], name="mine", title="a GFL of mine", config=config, own=True), folder)
    return folder


def test_it_is_listed_and_named_like_any_other_and_what_is_unknown_is_refused(tmp_path: Path, detectors: Path) -> None:
    roots = tmp_path / "roots"
    roots.mkdir()
    with started(tmp_path, detectors) as http:
        listed = {one["name"]: one for one in http.get("/detectors").json()["detectors"]}
        assert (listed["mine"]["title"], listed["mine"]["own"], listed[TEACHER]["own"]) == ("a GFL of mine", True, False)
        assert len(listed) == len(BUILT_IN) + 1
        body = {"name": "shapes", "train": write_coco(roots / "train", 6), "val": write_coco(roots / "val", 4, shade=100)}
        assert checked(http, body)["state"] == "READY"
        teacher = {"detector": TEACHER, "checkpoint": str(write_checkpoint(roots / "teacher.safetensors", CLASSES))}
        recipe = {"iterations": 2, "batch": 2, "image_size": 64}
        wanted = {"dataset": "shapes", "teacher": teacher, "student": {"detector": "mine"}, "policy": "pkd", "recipe": recipe}
        answer = http.post("/distill", json=wanted)
        assert answer.status_code == 202, answer.text
        assert answer.json()["spec"]["student"] == {"detector": "mine", "checkpoint": None}
        (warning,) = answer.json()["spec"]["warnings"]
        assert warning.startswith("how mine is trained is not known, so its recipe has the defaults for small detectors on small images")
        answer = http.post("/distill", json={**wanted, "student": {"detector": "yours"}})
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["pointer"] == "/student/detector"
        assert error["message"].startswith("'yours' is not a known detector; one of gfl_r18w8_fpn32, ")
        assert error["message"].endswith(", mine")


@pytest.mark.parametrize("module", ["detkds_api", "detkds_worker"])
def test_a_process_says_what_is_wrong_with_a_file_and_does_not_start(tmp_path: Path, detectors: Path, module: str) -> None:
    data = json.loads((detectors / "mine.json").read_text())
    (detectors / "mine.json").write_text(json.dumps({**data, "strides": [8, 4], "config": {**data["config"], "_base_": "evil.py"}}))
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env=environment(tmp_path, detectors), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2  # as `detkds serve` and its users know it: it would say the same again
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{module}: {detectors}/mine.json: strides: [8, 4] is not a list of growing whole numbers")
    assert second.startswith(f"{module}: {detectors}/mine.json: config._base_: is not allowed")
