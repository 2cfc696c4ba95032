"""An operator's own detector from its configuration to a student of a job, each step in the process that takes it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkds_core.policy import parse_formula, to_json

CONFIG = """
open("RUNS", "a").write("run ")
_base_ = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"
model = dict(
    backbone=dict(base_channels=16, stem_channels=16, out_indices=(1, 2, 3), frozen_stages=-1, norm_eval=False),
    neck=dict(in_channels=[32, 64, 128], out_channels=32, start_level=0, add_extra_convs=False, num_outs=3),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, anchor_generator=dict(strides=[8, 16, 32])),
)
"""
BUILD = """
import sys
from detkds_core.catalogue import detector
from detkds_core.detectors.build import build_detector
entry = detector("my_retinanet")
model = build_detector(entry.name, ("a", "b"))
print(entry.own, model.bbox_head.cls_out_channels, model.backbone.base_channels, model.dataset_meta["classes"])
"""


def run(*arguments: str, detectors: Path | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "DETKDS_DETECTORS"}
    if detectors is not None:
        environment["DETKDS_DETECTORS"] = str(detectors)
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `detkds detectors add` has put `my_retinanet`."""
    home = tmp_path_factory.mktemp("operator")
    (home / "narrow.py").write_text(CONFIG.replace("RUNS", str(home / "runs.txt")))
    add = ("-m", "detkds_client.cli", "detectors", "add", str(home / "narrow.py"), "--name", "my_retinanet", "--gpus", "4")
    done = run(*add, detectors=home / "detectors")
    assert done.returncode == 0, done.stderr
    assert (home / "runs.txt").read_text() == "run ", "the configuration is a program, which runs once"
    said = " ".join(done.stdout.split())
    assert "retinanet, one stage" in said
    assert "strides 8 16 32, 32 channels each" in said
    assert "9 a cell, a score a class; anchor boxes of scales 4, 5.03968, 6.3496 and ratios 0.5, 1, 2" in said
    assert "training 12 epochs of 8 images at 1333 x 800 px, sgd at lr 0.01, steps" in said
    kept = json.loads((home / "detectors/my_retinanet.json").read_text())["training"]
    assert (kept["image_size"], kept["milestones"], kept["base_batch"], kept["auto_scale_lr"]) == (1333, [8, 11], 8, True)
    assert f"{home}/detectors/my_retinanet.json: services and workers" in done.stdout
    return home / "detectors"


def test_what_is_added_is_built_as_any_other(folder: Path) -> None:
    done = run("-c", BUILD, detectors=folder)
    assert done.stdout == "True 2 16 ('a', 'b')\n", done.stderr


def test_a_name_is_given_once(folder: Path) -> None:
    for name, reason in (
        ("my_retinanet", "my_retinanet.json is there already"),
        ("retinanet_r50_fpn", "--name: 'retinanet_r50_fpn' is a built-in detector; choose another name"),
        ("My", "--name: 'My' is not a name; use 1 to 64 of a-z"),
    ):
        done = run("-m", "detkds_client.cli", "detectors", "add", "gone.py", "--name", name, detectors=folder)
        assert done.returncode == 1
        assert reason in done.stderr
    done = run("-m", "detkds_client.cli", "detectors", "add", "gone.py", "--name", "mine")
    assert "--folder is missing, and DETKDS_DETECTORS is not set" in done.stderr


def test_a_trainer_distils_it_and_one_that_lacks_it_says_so(folder: Path, spec: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The job of a worker, as its own process; the student's configuration that it leaves needs nothing of the folder."""
    job = spec(
        kind="distill",
        policy=to_json(parse_formula("2·l2(standardize(global))")),
        student={"detector": "my_retinanet", "checkpoint": None},
        recipe={"iterations": 2},
    )
    (tmp_path / "spec.json").write_text(json.dumps(job))
    for place, detectors in (("has", folder), ("lacks", None)):
        (tmp_path / place).mkdir()
        done = run("-m", "detkds_worker.trainer", str(tmp_path / "spec.json"), str(tmp_path / place), detectors=detectors)
        assert done.returncode == (0 if detectors else 1), done.stderr[-2000:]
    result = json.loads((tmp_path / "has/result.json").read_text())
    assert result["curve"][-1]["distill/0_global"] > 0
    left = (tmp_path / "has/student_config.py").read_text()
    assert "'RetinaNet'" in left
    assert f"'num_classes': {len(job['dataset']['classes'])}" in left
    failure = json.loads((tmp_path / "lacks/failure.json").read_text())
    assert failure["kind"] == "bad_data"
    assert "'my_retinanet' is not a known detector; did you mean retinanet_r50_fpn" in failure["detail"]
    assert failure["detail"].endswith("needs its file on every machine, and DETKDS_DETECTORS of this worker is not set")
