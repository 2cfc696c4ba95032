"""A teacher's own towers through the rest of its own head give its own outputs."""

import pytest
import torch

from detkds_core.catalogue import DETECTORS
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.cross_head import head_tail
from detkds_core.detectors.pair import Student, Teacher

CLASSES = ("a", "b", "c")
SMALL = tuple(f"{family}_r18w8_fpn32" for family in ("gfl", "retinanet", "fcos", "atss"))
# four convolutions with and without normalised boxes, whose outputs differ between training and prediction
LARGE = ("fcos_tricks_r50_fpn", "fcos_r50_fpn", "retinanet_r50_fpn")
WANTED = frozenset({"logits", "boxes", "edges", "towers"})


def kept(entry):
    return WANTED - ({"edges"} if entry.reg_max is None else set())


def teacher_of(name, levels):
    model = build_detector(name, CLASSES)
    for module in model.bbox_head.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # as it begins, its outputs hardly depend on its features
    for scale in getattr(model.bbox_head, "scales", ()):
        torch.nn.init.uniform_(scale.scale, 0.5, 1.5)  # so that a level taken for another is seen
    return Teacher(model, levels)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_own_towers_give_own_outputs(name):
    entry, levels = DETECTORS[name], (1, 2)
    teacher = teacher_of(name, levels)
    said = teacher.signals(torch.randn(2, 3, 64, 96), kept(entry))
    tail = head_tail(teacher.model.bbox_head, levels)
    for level, (classes, boxes) in enumerate(said.towers):
        before = classes.clone(), boxes.clone()
        scores, outputs = tail(classes, boxes, level)
        torch.testing.assert_close(scores, said.logits[level])
        torch.testing.assert_close(outputs, (said.edges if entry.reg_max else said.boxes)[level])
        assert torch.equal(classes, before[0])  # the features are somebody's
        assert torch.equal(boxes, before[1])


@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_reaches_whoever_gave_the_features_and_nobody_else(name, ground_truth):
    levels = range(len(DETECTORS[name].strides))
    teacher = teacher_of(name, levels)
    student = Student(build_detector(name, CLASSES).train(), levels)
    _, signals = student.losses(torch.randn(2, 3, 64, 96), ground_truth(2), frozenset({"towers"}))
    tail = head_tail(teacher.model.bbox_head, levels)
    total = sum(
        scores.square().mean() + boxes.square().mean() for scores, boxes in (tail(*tower, i) for i, tower in enumerate(signals.towers))
    )
    total.backward()
    head = student.model.bbox_head
    assert bool(head.cls_convs[0].conv.weight.grad.any())
    assert bool(head.reg_convs[0].conv.weight.grad.any())
    assert all(p.grad is None for p in teacher.model.parameters())


@pytest.mark.parametrize("name", ["rtmdet_tiny", "reppoints_r18w8_fpn32"])
def test_heads_that_cannot_be_cut_lend_nothing(name):
    assert head_tail(build_detector(name, CLASSES).bbox_head, (0,)) is None
