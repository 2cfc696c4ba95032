"""The operator's own detectors in a service that is started with them: a process of its own, for the catalogue is read when one starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from detkds_core.catalogue import BUILT_IN

from .conftest import CLASSES, checked, environment, started, write_checkpoint, write_coco

TEACHER = "gfl_r18w32_fpn32"


def test_it_is_listed_and_named_like_any_other_and_what_is_unknown_is_refused(tmp_path: Path, own_detectors: Path) -> None:
    roots = tmp_path / "roots"
    roots.mkdir()
    with started(tmp_path, own_detectors) as http:
        listed = {one["name"]: one for one in http.get("/detectors").json()["detectors"]}
        assert (listed["mine"]["title"], listed["mine"]["own"], listed[TEACHER]["own"]) == ("a GFL of mine", True, False)
        assert len(listed) == len(BUILT_IN) + 1
        built_in = listed["gfl_r18w8_fpn32"]
        assert listed["mine"] == {**built_in, "name": "mine", "title": "a GFL of mine", "own": True}
        assert (built_in["anchors"], built_in["scores"], built_in["reg_max"], built_in["masks"]) == (1, "classes", 8, False)
        assert built_in["inputs"] == {
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "rgb": True,
            "pad": 32,
            "fill": 0.0,
        }
        body = {"name": "shapes", "train": write_coco(roots / "train", 6), "val": write_coco(roots / "val", 4, shade=100)}
        assert checked(http, body)["state"] == "READY"
        teacher = {"detector": TEACHER, "checkpoint": str(write_checkpoint(roots / "teacher.safetensors", CLASSES))}
        recipe = {"iterations": 2, "batch": 2, "image_size": 64}
        wanted = {"dataset": "shapes", "teacher": teacher, "student": {"detector": "mine"}, "policy": "pkd", "recipe": recipe}
        answer = http.post("/distill", json=wanted)
        assert answer.status_code == 202, answer.text
        assert answer.json()["spec"]["student"] == {"detector": "mine", "checkpoint": None}
        (warning,) = answer.json()["spec"]["warnings"]
        assert warning.startswith(
            "how mine is trained is not known: what you do not give of its recipe has the defaults for small detectors on small images"
        )
        whole = http.post("/distill", json={**wanted, "recipe": answer.json()["spec"]["recipe"]})
        assert whole.status_code == 202, whole.text
        assert "warnings" not in whole.json()["spec"], "nothing is left to the defaults"
        answer = http.post("/distill", json={**wanted, "student": {"detector": "yours"}})
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["pointer"] == "/student/detector"
        assert error["message"].startswith("'yours' is not a known detector; one of gfl_r18w8_fpn32, ")
        assert error["message"].endswith(", mine")


@pytest.mark.parametrize("module", ["detkds_api", "detkds_worker"])
def test_a_process_says_what_is_wrong_with_a_file_and_does_not_start(tmp_path: Path, own_detectors: Path, module: str) -> None:
    data = json.loads((own_detectors / "mine.json").read_text())
    (own_detectors / "mine.json").write_text(json.dumps({**data, "strides": [8, 4], "config": {**data["config"], "_base_": "evil.py"}}))
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env=environment(tmp_path, own_detectors), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2  # as `detkds serve` and its users know it: it would say the same again
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{module}: {own_detectors}/mine.json: strides: [8, 4] is not a list of growing whole numbers")
    assert second.startswith(f"{module}: {own_detectors}/mine.json: config._base_: is not allowed")
