"""One forward each, a teacher that nothing can touch, and clear words where a pair cannot be distilled."""

from dataclasses import replace

import pytest
import torch

from detkds_core.catalogue import DETECTORS, exchange
from detkds_core.detectors.build import CheckpointError, build_detector, inherit, load_weights, save_weights
from detkds_core.detectors.pair import PairError, Student, Teacher, check_policy, make_adapters, match_levels
from detkds_core.detectors.runtime import prepare_mmdet
from detkds_core.policy import Policy, Term, named_policies

CLASSES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _ready():
    prepare_mmdet()
    torch.manual_seed(0)


def samples(count, size):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    found = []
    for _ in range(count):
        shape = {"img_shape": (size, size), "ori_shape": (size, size), "batch_input_shape": (size, size), "pad_shape": (size, size)}
        sample = DetDataSample(metainfo={**shape, "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([1]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        found.append(sample)
    return found


def counted(module, calls, name):
    module.register_forward_hook(lambda *_: calls.append(name))


@pytest.mark.parametrize(("needs", "heads"), [({"features"}, 0), ({"features", "logits", "boxes"}, 1)])
def test_one_forward_each_and_no_head_that_nobody_asked_for(needs, heads):
    teacher = Teacher(build_detector("gfl_r18w16_fpn32", CLASSES), (0, 1, 2))
    student = Student(build_detector("gfl_r18w8_fpn32", CLASSES).train(), (0, 1, 2))
    calls = []
    counted(teacher.model.backbone, calls, "teacher body")
    counted(teacher.model.bbox_head, calls, "teacher head")
    counted(student.model.backbone, calls, "student body")
    counted(student.model.bbox_head, calls, "student head")
    inputs = torch.randn(2, 3, 64, 64)
    said = teacher.signals(inputs, frozenset(needs))
    losses, signals = student.losses(inputs, samples(2, 64), frozenset(needs))
    assert calls == ["teacher body"] + ["teacher head"] * heads + ["student body", "student head"]
    assert len(said.features) == len(signals.features) == 3
    assert "loss_cls" in losses
    assert signals.features[0].requires_grad
    assert not said.features[0].requires_grad


def test_nothing_asked_of_the_teacher_is_nothing_computed():
    teacher = Teacher(build_detector("gfl_r18w8_fpn32", CLASSES), (0, 1, 2))
    calls = []
    counted(teacher.model.backbone, calls, "body")
    assert teacher.signals(torch.randn(1, 3, 64, 64), frozenset()).features == ()
    assert calls == []


def test_the_teacher_stays_frozen_and_in_evaluation_mode():
    teacher = Teacher(build_detector("gfl_r18w8_fpn32", CLASSES).train(), (0,))
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    teacher.signals(torch.randn(2, 3, 64, 64), frozenset({"features", "logits"}))
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())  # no batch statistics drift


def test_adapters_bring_the_student_to_the_teachers_channels():
    teacher, narrow = DETECTORS["gfl_r18w16_fpn32"], DETECTORS["gfl_r18w8_fpn16"]
    assert make_adapters(teacher, DETECTORS["gfl_r18w8_fpn32"], 3) is None
    adapters = make_adapters(teacher, narrow, 3)
    student = Student(build_detector(narrow.name, CLASSES).train(), (0, 1, 2), adapters)
    _, signals = student.losses(torch.randn(1, 3, 64, 64), samples(1, 64), frozenset({"features"}))
    assert [level.shape[1] for level in signals.features] == [32, 32, 32]
    own = sum(p.numel() for p in student.model.parameters())
    assert sum(p.numel() for p in student.parameters()) == own + 3 * (16 * 32 + 32)


def test_levels_are_matched_by_stride():
    fine = replace(DETECTORS["gfl_r18w16_fpn32"], strides=(4, 8, 16, 32))
    levels = match_levels(fine, DETECTORS["gfl_r18w8_fpn32"])
    assert (levels.teacher, levels.student) == ((1, 2, 3), (0, 1, 2))


def test_a_pair_without_a_common_level_is_refused_with_both_strides():
    odd = replace(DETECTORS["gfl_r18w16_fpn32"], strides=(6, 12))
    with pytest.raises(PairError, match=r"strides \[6, 12\].*strides \[8, 16, 32\].*no pyramid level"):
        match_levels(odd, DETECTORS["gfl_r18w8_fpn32"])


def test_knowledge_that_cannot_pass_is_refused_with_its_place():
    gfl, retinanet, two_stage = (DETECTORS[name] for name in ("gfl_r18w16_fpn32", "retinanet_r18w8_fpn32", "faster_rcnn_r18w8_fpn32"))
    logits = Policy((Term("global", ("none", "none", "none"), "l2", 1.0), Term("logits", ("none",), "l2", 1.0)))
    with pytest.raises(PairError, match=r"policy.terms\[1\].knowledge: 'logits'.*1 prediction a cell, the student 3"):
        check_policy(logits, gfl, retinanet)
    rpn = replace(two_stage, anchor_scales=retinanet.anchor_scales)
    with pytest.raises(PairError, match=r"scores classes, the student's objectness"):
        check_policy(logits, retinanet, rpn)
    check_policy(named_policies()["pkd"].policy, gfl, two_stage)
    assert exchange(gfl, retinanet).knowledge == ("global", "fgbg", "instance")


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "w16.safetensors"
    save_weights(build_detector("gfl_r18w16_fpn32", CLASSES), path, {"classes": '["a", "b", "c"]'})
    with pytest.raises(CheckpointError, match=r"of another shape \(backbone.conv1.weight: \(16, 3, 7, 7\) instead of \(8, 3, 7, 7\)"):
        load_weights(build_detector("gfl_r18w8_fpn32", CLASSES), path)
    with pytest.raises(CheckpointError, match=r"trained on the classes \['a', 'b', 'c'\], the dataset has \['a', 'b', 'x'\]"):
        load_weights(build_detector("gfl_r18w16_fpn32", ("a", "b", "x")), path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_weights(build_detector("gfl_r18w8_fpn32", CLASSES), tmp_path / "nowhere.pth")


def test_a_checkpoint_that_holds_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("this must not run",))

    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"x": Payload()}}, path)
    with pytest.raises(CheckpointError, match="tensors only"):
        load_weights(build_detector("gfl_r18w8_fpn32", CLASSES), path)


def test_inheriting_copies_neck_and_head_only():
    teacher, student = build_detector("gfl_r18w16_fpn32", CLASSES), build_detector("gfl_r18w8_fpn32", CLASSES)
    copied = inherit(student, teacher)
    assert {key.split(".")[0] for key in copied} == {"neck", "bbox_head"}
    assert torch.equal(student.bbox_head.gfl_reg.weight, teacher.bbox_head.gfl_reg.weight)
    assert not any("lateral_convs" in key and "weight" in key for key in copied)  # their inputs differ in width
