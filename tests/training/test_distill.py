"""The whole training of one student: resumed it ends the same, and what it leaves is plain MMDetection."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detkds_core.catalogue import Recipe
from detkds_core.catalogue.recipe import size_warning
from detkds_core.datasets import selection_ids
from detkds_core.detectors.build import build_detector, save_weights
from detkds_core.policy import named_policies, parse_formula, to_json
from detkds_core.training import distillation
from detkds_core.training.distillation import device_warnings, distill, teacher_warnings
from detkds_core.training.group import DoesNotFitError, TrainingError


class Killed(Exception):
    pass


def run(spec, folder: Path, stop_at: int | None = None):
    folder.mkdir(parents=True)

    def report(done, total, message, best_ap=None):
        if stop_at is not None and done == stop_at:
            raise Killed

    return distill(spec, folder, report)


# everything that a training carries from step to step: an average, a loss scale, parts of steps, distillers, found weights, the best
EVERYTHING = "fgd + 0.5·l1[auto](logits) + 1·l2[auto, warm_up=4](global) + 0.3·l1[balanced](fgbg)"


@pytest.mark.parametrize(
    ("formula", "recipe"),
    [
        ("6·l2(standardize(global))", {}),
        (EVERYTHING, {"precision": "fp16", "accumulate": 2, "batch": 2, "ema": 0.9, "eval_every": 2, "optimizer": "sgd", "lr": 0.01}),
    ],
    ids=["plain", "everything"],
)
def test_a_killed_distillation_resumes_to_the_same_weights(spec, tmp_path, monkeypatch, formula, recipe):
    monkeypatch.setattr(distillation, "RESUME_SECONDS", 0.0)
    job = spec(kind="distill", policy=to_json(parse_formula(formula)), recipe={"iterations": 6, **recipe})
    undisturbed = run(job, tmp_path / "a" / "1")
    with pytest.raises(Killed):
        run(job, tmp_path / "b" / "1", stop_at=4)
    kept = tmp_path / "b" / "resume.pt"
    assert kept.exists()
    resumed = run({**job, "resume_from": str(kept)}, tmp_path / "b" / "2")
    assert resumed["sha256"] == undisturbed["sha256"]
    same = ("curve", "evaluations", "scales", "student", "teacher", "warnings", "recipe")
    assert [resumed[key] for key in same] == [undisturbed[key] for key in same]
    assert (tmp_path / "a/1/student_last.safetensors").read_bytes() == (tmp_path / "b/2/student_last.safetensors").read_bytes()
    assert (tmp_path / "a/1/detections.json").read_bytes() == (tmp_path / "b/2/detections.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["1", "2", "resume.pt", "teacher.json"]
    if "auto" in formula:
        assert set(undisturbed["scales"]) == {"distill/0_logits", "distill/1_global", "distill/2_fgbg"}
        assert len(undisturbed["evaluations"]) == 3


def test_a_resumed_training_has_its_tokens_though_their_cache_is_gone(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "RESUME_SECONDS", 0.0)
    monkeypatch.setenv("DETKDS_CACHE", str(tmp_path / "cache"))
    job = spec(kind="distill", policy=to_json(parse_formula("l1(logits) + 0.1·maskd[steps=2]")), recipe={"iterations": 3, "batch": 2})
    undisturbed = run(job, tmp_path / "a" / "1")
    with pytest.raises(Killed):
        run(job, tmp_path / "b" / "1", stop_at=2)
    (tokens,) = (tmp_path / "cache").rglob("maskd_*.safetensors")
    tokens.unlink()
    resumed = run({**job, "resume_from": str(tmp_path / "b" / "resume.pt")}, tmp_path / "b" / "2")
    assert resumed["sha256"] == undisturbed["sha256"]
    assert not tokens.exists(), "the teacher has not learned them again"


def test_tokens_whose_batch_does_not_fit_are_learned_from_smaller_ones(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("DETKDS_CACHE", str(tmp_path / "cache"))
    job = spec(kind="distill", policy=to_json(parse_formula("0.1·maskd[steps=2]")), recipe={"iterations": 1, "batch": 8})
    with out_of_memory(lambda seen: seen[-1] > 4) as seen:
        result = run(job, tmp_path / "cut" / "1")
    assert seen == [8, 4, 4, 4, 4]  # two steps of the tokens, one of two parts of the student
    assert result["recipe"]["batch"] == 4


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


def test_the_best_weights_are_reported_and_the_last_are_beside_them(spec, tmp_path, teacher_file, monkeypatch):
    """The student starts as a teacher and unlearns at an absurd rate: the first measurement on the way is its best."""
    monkeypatch.setattr(distillation, "CURVE_POINTS", 1)
    seen = []
    measured = distillation.measure_together

    def noted(model, dataset, ids, recipe):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return measured(model, dataset, ids, recipe)

    monkeypatch.setattr(distillation, "measure_together", noted)
    start = {"detector": "gfl_r18w16_fpn32", "checkpoint": str(teacher_file)}
    job = spec(
        kind="distill", policy={"terms": []}, student=start, recipe={"iterations": 24, "lr": 2e-3, "eval_every": 8, "augment": "none"}
    )
    result = run(job, tmp_path / "1")
    found = [one["ap"] for one in result["evaluations"]]
    assert [one["iteration"] for one in result["evaluations"]] == [8, 16, 24]
    best = found.index(max(found))
    assert result["student"]["iteration"] == [8, 16, 24][best]
    after = seen[1:4]  # the teacher is measured first, the reported student last
    for name, value in load_file(tmp_path / "1" / result["checkpoint"]).items():
        assert torch.equal(value, after[best][name])
    for name, value in load_file(tmp_path / "1" / result["checkpoint_last"]).items():
        assert torch.equal(value, after[2][name])
    plain = torch.load(tmp_path / "1" / result["checkpoint_last_pth"], weights_only=True)
    assert plain["meta"]["dataset_meta"]["classes"] == tuple(job["dataset"]["classes"])
    assert set(plain["state_dict"]) == set(after[2])
    # measuring on the way disturbs nothing
    undisturbed = run({**job, "recipe": {**job["recipe"], "eval_every": None}}, tmp_path / "alone" / "1")
    assert (tmp_path / "alone/1" / undisturbed["checkpoint"]).exists()
    for name, value in load_file(tmp_path / "alone/1" / undisturbed["checkpoint"]).items():
        assert torch.equal(value, after[2][name])
    assert [point["iteration"] for point in result["curve"]] == [24]  # a point every 30 iterations, and the last


def test_the_average_is_what_is_measured_and_exported(spec, tmp_path):
    job = spec(kind="distill", policy={"terms": []}, recipe={"iterations": 3})
    own, averaged = run(job, tmp_path / "a" / "1"), run({**job, "recipe": {**job["recipe"], "ema": 0.5}}, tmp_path / "b" / "1")
    name = "bbox_head.gfl_cls.weight"
    last, mean = load_file(tmp_path / "a/1" / own["checkpoint"])[name], load_file(tmp_path / "b/1" / averaged["checkpoint"])[name]
    assert not torch.equal(last, mean)
    assert averaged["curve"] == own["curve"]  # the student learns with its own weights


def test_the_teacher_is_measured_first_and_one_that_knows_nothing_is_warned_of(spec, tmp_path):
    said = []
    job = spec(kind="distill", policy={"terms": []}, recipe={"iterations": 2})
    (tmp_path / "1").mkdir()
    result = distill(job, tmp_path / "1", lambda done, total, message, best_ap=None: said.append((done, message)))
    assert said[0] == (0, "measuring the teacher on 6 images")
    assert said[1] == (1, f"training the student; its teacher's AP is {result['teacher']['ap']:.1f}")
    assert result["teacher"]["ap"] < 1
    (warning,) = result["warnings"]
    assert "has not learnt this data set" in warning
    assert result["inherited"] == {"tensors": 29, "of": 32}
    assert teacher_warnings({"ap": 30.0, "images": 6}, 31.0) == ["the teacher's AP (30.00) is below the student's (31.00)"]
    assert teacher_warnings({"ap": 30.0, "images": 6}, 29.0) == []


def test_a_teacher_whose_boxes_are_not_finite_costs_a_warning(spec, small_digits, tmp_path):
    torch.manual_seed(0)
    teacher = build_detector("yolox_tiny", small_digits.classes)
    with torch.no_grad():
        for scores, boxes in zip(teacher.bbox_head.multi_level_conv_obj, teacher.bbox_head.multi_level_conv_reg, strict=True):
            scores.bias.fill_(10.0)
            boxes.bias[2:] = 100.0
    save_weights(teacher, tmp_path / "teacher.safetensors", {})
    sides = {"teacher": {"detector": "yolox_tiny", "checkpoint": str(tmp_path / "teacher.safetensors")}, "inherit": False}
    result = run(spec(kind="distill", policy={"terms": []}, recipe={"iterations": 1, "batch": 1}, **sides), tmp_path / "a" / "1")
    assert result["teacher"]["ap"] == 0
    no_knowledge, not_finite = result["warnings"]
    assert "has not learnt this data set" in no_knowledge
    count = result["teacher"]["not_finite"]
    assert not_finite.startswith(f"detections of the teacher whose box or score is not finite: {count} on 6 images")
    assert "not_finite" not in result["student"]


def test_what_was_changed_in_a_recipe_is_in_the_result(spec, tmp_path):
    recipe = {"epochs": 0.5, "batch": 4, "accumulate": 1, "auto_scale_lr": True, "lr": 4e-3, "precision": "bf16"}
    result = run(spec(kind="distill", policy={"terms": []}, recipe=recipe), tmp_path / "1")
    assert result["recipe"]["iterations"] == 3  # half of 24 images, 4 at a time
    assert result["recipe"]["lr"] == pytest.approx(1e-3)
    assert "the learning rate was scaled from 0.004 to 0.001" in result["warnings"][0]
    assert result["curve"][-1]["iteration"] == 3


def test_images_that_are_shown_far_larger_are_told_once(spec, tmp_path):
    """By the API where it knows how large they are, else by the trainer, which reads it off the annotations."""
    job = spec(kind="distill", policy={"terms": []}, recipe={"iterations": 1, "image_size": 160})
    assert job["dataset"]["train"]["sides"] == [64, 64]
    told = run({**job, "warnings": [size_warning(Recipe(image_size=160), (64, 64))]}, tmp_path / "a" / "1")["warnings"]
    job["dataset"]["train"].pop("sides")
    assert run(job, tmp_path / "b" / "1")["warnings"] == told
    assert sum("64 x 64 px" in one and "2.5 times larger" in one for one in told) == 1


@contextmanager
def out_of_memory(when):
    """A backbone that refuses images with the accelerator's own error: `when`, of how many it was shown each time. Gives that list."""
    seen: list[int] = []

    def refuse(module, inputs):
        if type(module).__name__ == "ResNet" and module.training:
            seen.append(len(inputs[0]))
            if when(seen):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield seen
    finally:
        handle.remove()


def test_a_batch_that_does_not_fit_is_cut_and_the_step_keeps_its_images(spec, tmp_path):
    job = spec(kind="distill", policy=to_json(parse_formula("1·l2(global)")), recipe={"iterations": 2, "batch": 8})
    with out_of_memory(lambda seen: seen[-1] > 2) as seen:
        result = run(job, tmp_path / "cut" / "1")
    assert seen == [8, 4, *[2] * 8]  # two steps of four parts
    assert (result["recipe"]["batch"], result["recipe"]["accumulate"]) == (2, 4)
    first, second = [one for one in result["warnings"] if "did not fit" in one]
    assert first.startswith("a batch of 8 images did not fit in memory: 4 at a time, 2 times a step, so that a step still learns from 8")
    assert second.startswith("a batch of 4 images did not fit in memory: 2 at a time, 4 times a step")
    assert second.endswith("(CUDA out of memory. Tried to allocate 20.00 MiB)")
    asked = run({**job, "recipe": {**job["recipe"], "batch": 2, "accumulate": 4}}, tmp_path / "asked" / "1")
    assert asked["sha256"] == result["sha256"]


@pytest.mark.parametrize("saved", [True, False], ids=["from its last state", "anew"])
def test_a_later_batch_that_does_not_fit_is_cut_too(spec, tmp_path, monkeypatch, saved):
    """Its images may be larger than the first one's. What was learnt since the last state was kept is learnt again."""
    job = spec(kind="distill", policy=to_json(parse_formula("1·l2(global)")), recipe={"iterations": 3, "batch": 8})
    monkeypatch.setattr(distillation, "RESUME_SECONDS", 0.0 if saved else 1e9)
    with out_of_memory(lambda seen: seen == [8, 8, 8]) as seen:
        result = run(job, tmp_path / "cut" / "1")
    assert seen == [8, 8, 8, *[4] * (2 if saved else 6)]
    assert result["recipe"]["batch"] == 4
    assert sum("did not fit" in one for one in result["warnings"]) == 1


def test_a_batch_is_not_cut_below_what_the_policy_needs(spec, tmp_path):
    job = spec(kind="distill", policy=to_json(parse_formula("10·l1(norm_N(global))")), recipe={"iterations": 2, "batch": 2})
    with out_of_memory(lambda _: True), pytest.raises(DoesNotFitError, match="CUDA out of memory"):
        run(job, tmp_path / "cut" / "1")


def test_a_share_of_a_batch_is_told_where_images_are_compared():
    recipe = Recipe(batch=16, devices=8)
    said = ["terms that compare the images of a batch with one another see the 2 of each of 8 devices, not all 16"]
    assert device_warnings(parse_formula("l1(logits) + 10·l1(norm_N(global))"), recipe, 8) == said
    assert device_warnings(parse_formula("l1(norm_C(global)) + fgd"), recipe, 8) == []
    assert device_warnings(parse_formula("l1(norm_N(global))"), recipe, 1) == []


def test_of_equal_students_the_one_that_learned_longer_is_kept(spec, tmp_path):
    none = to_json(parse_formula("none"))
    job = spec(kind="distill", policy=none, recipe={"iterations": 3, "batch": 2, "eval_every": 1, "lr": 1e-12})
    result = run(job, tmp_path / "equal" / "1")
    assert len({one["ap"] for one in result["evaluations"]}) == 1
    assert result["student"]["iteration"] == 3


def test_selection_images_without_a_box_are_told_before_anything_is_trained(spec, tmp_path, small_digits):
    content = small_digits.val.load()
    first = sorted(selection_ids(small_digits))[0]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != first]
    (tmp_path / "val.json").write_text(json.dumps(content))
    none = to_json(parse_formula("none"))
    job = spec(kind="distill", policy=none, recipe={"iterations": 2, "batch": 2, "eval_every": 1, "eval_images": 1})
    job["dataset"] = {**job["dataset"], "val": {**job["dataset"]["val"], "annotations": str(tmp_path / "val.json")}}
    with pytest.raises(TrainingError, match=r"recipe\.eval_images: the first 1 images of the selection half hold no box"):
        run(job, tmp_path / "blind" / "1")
