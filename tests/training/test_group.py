"""A candidate's numbers depend on its policy and the seed, not on its company, a kill, or a neighbour's failure."""

import pytest
import torch
from safetensors.torch import save_file

from detkds_core.catalogue import Recipe
from detkds_core.detectors.build import build_detector, save_weights
from detkds_core.detectors.checkpoints import CheckpointError, backbone_weights
from detkds_core.policy import Policy, named_policies, parse_formula, to_json
from detkds_core.training import jobs
from detkds_core.training.batches import Batches
from detkds_core.training.group import new_learner, prepare, start_warnings, train, weights_digest
from detkds_core.training.jobs import measure_candidates

SILENT = lambda *_: None  # noqa: E731 (a progress sink)


def policy(name):
    return named_policies()[name].policy


def trained(spec, names, seed=3):
    recipe = Recipe.from_json(spec["recipe"])
    start = prepare(spec, seed)
    learners = [new_learner(start, policy(name), recipe, seed) for name in names]
    train(learners, start, Batches(spec["dataset"]["train"], recipe, seed))
    return learners


def test_training_in_a_group_equals_training_alone_bit_for_bit(spec):
    together = trained(spec(), ["none", "pkd", "cwd", "fitnets"])
    for name, learner in zip(["none", "pkd", "cwd", "fitnets"], together, strict=True):
        (alone,) = trained(spec(), [name])
        assert weights_digest(alone.student.model) == weights_digest(learner.student.model)
    assert len({weights_digest(learner.student.model) for learner in together}) == 4


def test_students_that_ask_for_other_layers_and_places_keep_their_numbers_in_company(spec):
    names = ["crosskd_gfl", "crosskd_fcos", "ld"]
    together = trained(spec(recipe={"iterations": 2}), names)
    for name, learner in zip(names, together, strict=True):
        assert learner.failure is None
        (alone,) = trained(spec(recipe={"iterations": 2}), [name])
        assert weights_digest(alone.student.model) == weights_digest(learner.student.model)


def test_two_stage_students_draw_the_same_samples_in_company(spec, small_digits, tmp_path):
    from detkds_core.detectors.build import build_detector, save_weights

    torch.manual_seed(1)
    teacher = tmp_path / "teacher.safetensors"
    save_weights(build_detector("faster_rcnn_r18w8_fpn32", small_digits.classes), teacher, {})
    two_stage = spec(
        teacher={"detector": "faster_rcnn_r18w8_fpn32", "checkpoint": str(teacher)},
        student={"detector": "faster_rcnn_r18w8_fpn32"},
        inherit=False,
        recipe={"iterations": 2},
    )
    together = trained(two_stage, ["none", "pkd"])
    (alone,) = trained(two_stage, ["pkd"])
    assert weights_digest(alone.student.model) == weights_digest(together[1].student.model)


def test_a_candidate_that_is_not_finite_fails_alone(spec):
    recipe = Recipe.from_json(spec()["recipe"])
    start = prepare(spec(), 3)
    learners = [new_learner(start, policy("pkd"), recipe, 3) for _ in range(2)]
    with torch.no_grad():
        next(learners[0].student.model.backbone.parameters()).fill_(float("nan"))
    train(learners, start, Batches(spec()["dataset"]["train"], recipe, 3))
    assert learners[0].failure is not None
    assert learners[0].failure["kind"] == "not_finite"
    assert "iteration 0" in learners[0].failure["detail"]
    (alone,) = trained(spec(), ["pkd"])
    assert learners[1].failure is None
    assert weights_digest(learners[1].student.model) == weights_digest(alone.student.model)


def test_a_candidate_whose_boxes_are_not_finite_is_measured_and_its_row_counts_them(spec, monkeypatch):
    detect = jobs.detect

    def and_one_more(model, annotations, images, ids, **options):
        found = detect(model, annotations, images, ids, **options)
        category = annotations["categories"][0]["id"]
        wrong = {"image_id": ids[0], "category_id": category, "bbox": [0.0] * 4, "score": 0.9, "not_finite": True}
        return [*found, wrong]

    monkeypatch.setattr(jobs, "detect", and_one_more)
    candidates = [{"index": index, "policy": to_json(policy(name))} for index, name in enumerate(["none", "pkd"])]
    result = measure_candidates(spec(candidates=candidates, recipe={"iterations": 1}), SILENT)
    assert [(row["failure"], row["not_finite"], row["ap"] is None) for row in result["candidates"]] == [(None, 1, False)] * 2
    assert result["warnings"] == [], "what is of one candidate is in its row"


def test_all_candidates_start_from_the_same_inherited_weights(spec):
    start = prepare(spec(), 3)
    teacher = start.teacher.model.state_dict()
    assert torch.equal(start.weights["bbox_head.gfl_cls.weight"], teacher["bbox_head.gfl_cls.weight"])
    assert torch.equal(start.weights["neck.fpn_convs.0.conv.weight"], teacher["neck.fpn_convs.0.conv.weight"])
    assert start.weights["backbone.conv1.weight"].shape != teacher["backbone.conv1.weight"].shape
    apart = prepare(spec(inherit=False), 3)
    assert not torch.equal(apart.weights["bbox_head.gfl_cls.weight"], teacher["bbox_head.gfl_cls.weight"])


def test_what_a_student_inherits_is_counted_and_nothing_is_warned_of(spec, small_digits, tmp_path):
    assert prepare(spec(), 3).inherited == {"tensors": 29, "of": 32}  # all but what reads a backbone of another width
    assert prepare(spec(inherit=False), 3).inherited is None
    other = prepare(spec(student={"detector": "faster_rcnn_r18w8_fpn32", "checkpoint": None}), 3)
    assert other.inherited == {"tensors": 6, "of": 26}
    assert start_warnings(other) == [], "such a pair is shipped, and its few are meant"
    strange = prepare(spec(student={"detector": "detr_r18", "checkpoint": None}), 3)
    assert strange.inherited == {"tensors": 0, "of": 10}
    assert start_warnings(strange)[-1] == (
        "detr_r18 inherits nothing from gfl_r18w16_fpn32: none of the 10 tensors of its neck and head fits, and all of them begin at random"
    )
    unasked = prepare(spec(student={"detector": "detr_r18", "checkpoint": None}, inherit=False), 3)
    assert unasked.inherited is None
    assert not any("inherits" in one for one in start_warnings(unasked))


def test_a_student_begins_with_a_backbone_of_its_own_and_its_teachers_neck_and_head(spec, tmp_path):
    one = spec()
    name = one["student"]["detector"]
    given = backbone_weights(build_detector(name, ("a",)).state_dict())
    save_file({key: value.contiguous() for key, value in given.items()}, tmp_path / "backbone.safetensors", metadata={"part": "backbone"})
    start = prepare({**one, "student": {"detector": name, "checkpoint": str(tmp_path / "backbone.safetensors")}}, 3)
    teacher = start.teacher.model.state_dict()
    assert all(torch.equal(start.weights[key], value) for key, value in given.items())
    assert torch.equal(start.weights["bbox_head.gfl_cls.weight"], teacher["bbox_head.gfl_cls.weight"])
    assert start_warnings(start) == []
    classifier = {**given, "backbone.fc.weight": torch.ones(2)}
    save_file({key: value.contiguous() for key, value in classifier.items()}, tmp_path / "more.safetensors", metadata={"part": "backbone"})
    job = {**one, "student": {"detector": name, "checkpoint": str(tmp_path / "more.safetensors")}}
    (warning,) = start_warnings(prepare(job, 3))
    assert warning == "student.checkpoint: not used, since the student's backbone has nothing of that name: fc.weight"
    other = {"detector": "gfl_r18w16_fpn32" if name != "gfl_r18w16_fpn32" else "gfl_r18w8_fpn32"}
    told = rf"^student\.checkpoint: .*: does not fit the detector's backbone: .*; student\.detector says {other['detector']}"
    with pytest.raises(CheckpointError, match=told):
        prepare({**one, "student": {**other, "checkpoint": str(tmp_path / "backbone.safetensors")}}, 3)
    told = r"^teacher\.checkpoint: .*: does not fit the detector: .*; teacher\.detector says retinanet_r18w8_fpn32"
    with pytest.raises(CheckpointError, match=told):
        prepare({**one, "teacher": {**one["teacher"], "detector": "retinanet_r18w8_fpn32"}}, 3)


def test_a_backbone_of_random_weights_is_not_frozen(spec, small_digits, tmp_path):
    """MMDetection freezes the first stage and all normalisation of pretrained ones."""
    zoo = "retinanet_r50_fpn"
    torch.manual_seed(0)
    model = build_detector(zoo, small_digits.classes)
    assert not model.train().backbone.bn1.training
    save_weights(model, tmp_path / "teacher.safetensors", {})
    job = spec(teacher={"detector": zoo, "checkpoint": str(tmp_path / "teacher.safetensors")}, student={"detector": zoo})
    start = prepare(job, 3)
    (warning,) = start_warnings(start)
    assert warning.startswith("the backbone of retinanet_r50_fpn begins with random weights")
    backbone = new_learner(start, Policy(()), Recipe.from_json(job["recipe"]), 3).student.model.backbone
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.bn1.training
    whole = prepare({**job, "student": {"detector": zoo, "checkpoint": str(tmp_path / "teacher.safetensors")}}, 3)
    assert start_warnings(whole) == start_warnings(prepare(spec(), 3)) == []
    kept = new_learner(whole, Policy(()), Recipe.from_json(job["recipe"]), 3).student.model.backbone
    assert not kept.conv1.weight.requires_grad
    assert not kept.bn1.training


def test_a_job_measures_each_candidate_and_says_why_one_could_not_be(spec, small_digits):
    from detkds_core.policy import to_json

    retinanet = {"detector": "retinanet_r18w8_fpn32"}  # three anchors a cell: no logits from GFL's one
    names = ["none", "pkd", "dist"]
    candidates = [{"index": i, "policy": to_json(policy(name))} for i, name in enumerate(names)]
    result = measure_candidates(spec(candidates=candidates, student=retinanet, recipe={"iterations": 2}), SILENT)
    rows = result["candidates"]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert rows[0]["failure"] is None
    assert rows[0]["images"] == 6
    assert 0 <= rows[1]["ap"] <= 100
    assert rows[2]["ap"] is None
    assert rows[2]["failure"]["kind"] == "bad_data"
    assert "1 prediction a cell" in rows[2]["failure"]["detail"]
    assert result["environment"]["torch"] == torch.__version__.split("+")[0]


def test_confirmation_measures_on_the_report_images_and_on_draws_of_them(spec):
    from detkds_core.policy import to_json

    job = spec(kind="confirm", candidates=[{"index": 0, "policy": to_json(policy("none"))}], recipe={"iterations": 1})
    (row,) = measure_candidates(job, SILENT)["candidates"]
    assert row["images"] == 6
    assert len(row["resampled_ap"]) == 200
    known = [ap for ap in row["resampled_ap"] if ap is not None]
    assert min(known) <= row["ap"] <= max(known)


@pytest.mark.parametrize(
    "name",
    ["l2[stop=0.5](global)", "l2[stop=0.5](global) + 0.1·l2(logits)", "fgd[stop=0.5] + l2[stop=0.4](global)", "fgd[stop=0.5]"],
    ids=["all", "one of two", "a distiller too", "a distiller alone"],
)
def test_the_teacher_is_not_asked_any_more_once_all_has_stopped(spec, name, monkeypatch):
    def weights(ask_on):
        start, recipe = prepare(job, 3), Recipe.from_json(job["recipe"])
        learner = new_learner(start, parse_formula(name), recipe, 3)
        asked, signals = [], start.teacher.signals
        monkeypatch.setattr(start.teacher, "signals", lambda inputs, needs: (asked.append(needs), signals(inputs, needs))[1])
        if ask_on:
            monkeypatch.setattr(type(learner), "needs_at", lambda self, *_: self.needs)
        train([learner], start, Batches(job["dataset"]["train"], recipe, 3))
        named = learner.read_losses()
        assert sum(value for key, value in named.items() if key in ("distill/0_global", "distill/fgd_focal")) == 0
        return weights_digest(learner.student.model), len(asked)

    job = spec(recipe={"iterations": 6, "batch": 2})
    (digest, asked), (same, every) = weights(ask_on=False), weights(ask_on=True)
    assert digest == same
    assert (asked, every) == (6 if "logits" in name else 3, 6)
