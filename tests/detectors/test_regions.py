"""Terms at every region on real detectors: each gives the student a gradient."""

from dataclasses import replace

import pytest
import torch

from detkds_core.catalogue import DETECTORS
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.pair import Student, Teacher, check_policy, match_levels
from detkds_core.losses import needs, policy_losses
from detkds_core.losses.signals import Scene
from detkds_core.policy import parse_formula

CLASSES = ("a", "b", "c")
ON_CELLS = (
    "l2[region=teacher_score](global) + l2[region=teacher_score](logits) + l2[region=foreground](logits)"
    " + l1[region=assigned](logits) + l1[region=foreground](localization) + giou[region=assigned](localization)"
)
AT_PROPOSALS = (
    "l2[region=proposals](instance) + kl[region=proposals](softmax_C(logits))"
    " + l1[region=proposals](localization) + deltas[region=proposals](localization)"
)


@pytest.mark.parametrize(
    ("teacher", "student", "formula"),
    [
        ("gfl", "fcos", ON_CELLS),
        ("atss", "gfl", ON_CELLS),
        ("reppoints", "reppoints", f"{ON_CELLS} + points(localization)"),
        ("gfl", "gfl", f"{ON_CELLS} + kl_edges[region=valuable](localization) + kl_sigmoid[region=valuable](logits)"),
        ("retinanet", "faster_rcnn", "l2[region=proposals](instance) + l2[region=teacher_score](global)"),
        ("faster_rcnn", "faster_rcnn", f"{ON_CELLS} + {AT_PROPOSALS}"),
        ("cascade_rcnn", "mask_rcnn", AT_PROPOSALS),
        ("cascade_mask_rcnn", "mask_rcnn", f"{AT_PROPOSALS} + l2[region=masks](logits)"),
        ("mask_rcnn", "cascade_mask_rcnn", "kl[region=proposals](softmax_C(logits)) + l2[region=masks](logits)"),
    ],
)
def test_every_term_moves_the_student(teacher, student, formula, ground_truth):
    entries = [DETECTORS[f"{family}_r18w8_fpn32"] for family in (teacher, student)]
    policy, levels = parse_formula(formula), match_levels(*entries)
    check_policy(policy, *entries)
    frozen = Teacher(build_detector(entries[0].name, CLASSES), levels.teacher)
    learning = Student(build_detector(entries[1].name, CLASSES).train(), levels.student)
    inputs, samples, wanted = torch.randn(2, 3, 64, 96), ground_truth(2, masks=entries[1].masks), needs(policy)
    said = frozen.signals(inputs, wanted)
    _, signals = learning.losses(inputs, samples, wanted)
    if signals.rois is not None:
        said = replace(said, rois=frozen.regard(signals.rois, wanted))
    scene = Scene(boxes=tuple(sample.gt_instances.bboxes for sample in samples), batch_shape=(64, 96))
    losses = policy_losses(policy, signals, said, scene)
    assert len(losses) == len(policy.terms)
    weight = learning.model.backbone.conv1.weight
    for name, loss in losses.items():
        assert float(loss.detach()) > 0, name
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert bool(gradient.isfinite().all()), name
        assert bool(gradient.any()), name
