"""A teacher's own towers through the rest of its own head give its own outputs."""

from itertools import product

import pytest
import torch

from detkds_core.catalogue import DETECTORS
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.cross_head import head_tail
from detkds_core.detectors.pair import Student, Teacher
from detkds_core.detectors.tap import tower_place

CLASSES = ("a", "b", "c")
SMALL = tuple(f"{family}_r18w8_fpn32" for family in ("gfl", "retinanet", "fcos", "atss"))
# four convolutions with and without normalised boxes, whose outputs differ between training and prediction
LARGE = ("fcos_tricks_r50_fpn", "fcos_r50_fpn", "retinanet_r50_fpn")
LAYERS = (1, 2, 3, 9)  # the last is as far as any head goes
WANTED = frozenset({"logits", "boxes", "edges", *(f"towers_{layer}" for layer in LAYERS)})


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
    assert list(said.towers) == list(LAYERS)
    for level, layer in product(range(len(levels)), LAYERS):
        classes, boxes = said.towers[layer][level]
        before = classes.clone(), boxes.clone()
        scores, outputs = tail(classes, boxes, level, layer)
        torch.testing.assert_close(scores, said.logits[level])
        torch.testing.assert_close(outputs, (said.edges if entry.reg_max else said.boxes)[level])
        assert torch.equal(classes, before[0])  # the features are somebody's
        assert torch.equal(boxes, before[1])


@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_reaches_whoever_gave_the_features_and_nobody_else(name, ground_truth):
    levels = range(len(DETECTORS[name].strides))
    teacher = teacher_of(name, levels)
    student = Student(build_detector(name, CLASSES).train(), levels)
    _, signals = student.losses(torch.randn(2, 3, 64, 96), ground_truth(2), frozenset({"towers_3"}))
    tail = head_tail(teacher.model.bbox_head, levels)
    total = sum(
        scores.square().mean() + boxes.square().mean()
        for scores, boxes in (tail(*tower, i, 3) for i, tower in enumerate(signals.towers[3]))
    )
    total.backward()
    head = student.model.bbox_head
    assert bool(head.cls_convs[0].conv.weight.grad.any())
    assert bool(head.reg_convs[0].conv.weight.grad.any())
    assert all(p.grad is None for p in teacher.model.parameters())


def test_a_layer_is_the_convolution_that_it_counts_and_the_last_stays_with_its_head():
    convs = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    assert [tower_place(convs, layer) for layer in (1, 2, 3, 4, 100)] == [0, 1, 2, 2, 2]
    assert [tower_place(convs[:2], layer) for layer in (1, 2, 3)] == [0, 0, 0]
    assert tower_place(convs[:1], 3) == 0


@pytest.mark.parametrize("name", ["rtmdet_tiny", "reppoints_r18w8_fpn32"])
def test_heads_that_cannot_be_cut_lend_nothing(name):
    assert head_tail(build_detector(name, CLASSES).bbox_head, (0,)) is None
