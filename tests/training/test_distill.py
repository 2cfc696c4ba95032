"""The whole training of one student: resumed it ends the same, and what it leaves is plain MMDetection."""

import json
from pathlib import Path

import pytest
import torch

from detkds_core.policy import named_policies, to_json
from detkds_core.training import distillation
from detkds_core.training.distillation import distill


class Killed(Exception):
    pass


def run(spec, folder: Path, stop_at: int | None = None):
    folder.mkdir(parents=True)

    def report(done, total, message, best_ap=None):
        if stop_at is not None and done == stop_at:
            raise Killed

    return distill(spec, folder, report)


def test_a_killed_distillation_resumes_to_the_same_weights(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "RESUME_SECONDS", 0.0)
    job = spec(kind="distill", policy=to_json(named_policies()["pkd"].policy), recipe={"iterations": 6})
    undisturbed = run(job, tmp_path / "a" / "1")
    with pytest.raises(Killed):
        run(job, tmp_path / "b" / "1", stop_at=4)
    kept = tmp_path / "b" / "resume.pt"
    assert kept.exists()
    resumed = run({**job, "resume_from": str(kept)}, tmp_path / "b" / "2")
    assert resumed["sha256"] == undisturbed["sha256"]
    assert [point["iteration"] for point in resumed["curve"]] == [point["iteration"] for point in undisturbed["curve"]]
    assert not kept.exists()


def test_the_student_is_plain_mmdetection_with_the_same_ap(spec, tmp_path, teacher_file):
    """MMDetection's own runner, configuration and COCO metric on the exported files, in the report images."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    from detkds_core.datasets import Dataset, report_ids

    # a student that has the teacher's architecture and starts from its weights detects something after no training to speak of
    job = spec(
        kind="distill",
        policy=to_json(named_policies()["pkd"].policy),
        student={"detector": "gfl_r18w16_fpn32", "checkpoint": str(teacher_file)},
        recipe={"iterations": 25, "lr": 2e-3, "augment": "none"},
    )
    result = run(job, tmp_path / "job" / "1")
    folder = tmp_path / "job" / "1"
    detections = json.loads((folder / "detections.json").read_text())["student"]
    assert detections
    dataset = Dataset.from_json(job["dataset"])
    content = dataset.val.load()
    ids = set(report_ids(dataset))
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    annotations = tmp_path / "report.json"
    annotations.write_text(json.dumps(content))
    config = Config.fromfile(folder / "student_config.py")
    config.test_dataloader.dataset.ann_file = config.test_evaluator.ann_file = str(annotations)
    config.work_dir = str(tmp_path / "work")
    config.load_from = str(folder / "student.pth")
    config.log_level = "ERROR"
    config.default_hooks = {"logger": None}
    metrics = Runner.from_cfg(config).test()
    assert 100 * metrics["coco/bbox_mAP"] == pytest.approx(result["student"]["ap"], abs=0.11)  # MMDetection rounds to 0.1
    assert 100 * metrics["coco/bbox_mAP_50"] == pytest.approx(result["student"]["ap50"], abs=0.11)
    assert result["student"]["ap50"] > 0


def test_the_checkpoint_holds_the_student_alone(spec, tmp_path):
    from safetensors import safe_open

    job = spec(
        kind="distill",
        policy=to_json(named_policies()["pkd"].policy),
        student={"detector": "gfl_r18w8_fpn16"},
        inherit=False,
        recipe={"iterations": 1},
    )
    result = run(job, tmp_path / "job" / "1")
    with safe_open(tmp_path / "job" / "1" / result["checkpoint"], framework="pt") as file:
        names = set(file.keys())
        assert json.loads(file.metadata()["classes"]) == job["dataset"]["classes"]
    assert not [name for name in names if "adapter" in name or "teacher" in name]
    weights = torch.load(tmp_path / "job" / "1" / result["checkpoint_pth"], weights_only=True)["state_dict"]
    assert set(weights) == names
