"""Students of every family learn from teachers of their own and of other families, at all that a pair exchanges."""

from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from detkds_core.catalogue import DETECTORS, exchange, pair_facts
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.pair import Student, Teacher, check_policy, make_adapters, match_levels
from detkds_core.detectors.tap import dense_head
from detkds_core.losses import needs, policy_losses
from detkds_core.losses.signals import Scene
from detkds_core.policy import parse_formula
from detkds_core.policy.named import cannot_run

CLASSES = ("a", "b", "c")
SHAPE = (64, 96)
BOXES = torch.tensor([[8.0, 8.0, 40.0, 48.0], [20.0, 4.0, 90.0, 60.0]])
SMALL = {
    family: f"{family}_r18w8_fpn32"
    for family in ("retinanet", "fcos", "gfl", "atss", "reppoints", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
}


TERMS = {  # a term for each signal
    "features": "l2(global)",
    "logits": "l2(logits)",
    "boxes": "giou[region=foreground](localization)",
    "edges": "kl_edges(localization)",
    "points": "points(localization)",
    "assigned": "l1[region=assigned](localization)",
    "assigned and logits": "giou[region=assigned_score](localization)",
    "valuable": "giou[region=valuable](localization)",
    "instance": "l2[region=proposals](instance)",
    "roi_scores": "kl[region=proposals](softmax_C(logits))",
    "roi_boxes": "deltas[region=proposals](localization)",
    "roi_masks": "l2[region=masks](logits)",
}


def runnable(teacher: str, student: str, resize: bool = False):
    """All of the terms above that the pair can exchange, as one policy."""
    offer = exchange(DETECTORS[teacher], DETECTORS[student], resize)
    facts = pair_facts(offer, DETECTORS[student], len(CLASSES), 2)
    chosen = {name: text for name, text in TERMS.items() if not cannot_run(parse_formula(text), offer, facts)}
    return set(chosen), parse_formula(" + ".join(chosen.values()))


CELLS = {"features", "logits", "boxes", "assigned", "assigned and logits"}
ANCHORS = CELLS | {"valuable"}
PROPOSALS = ANCHORS | {"instance", "roi_scores", "roi_boxes"}
GIVES = {  # teacher, student, signals that pass
    "retinanet": (SMALL["retinanet"], "retinanet_r18w16_fpn32", ANCHORS),
    "fcos": (SMALL["fcos"], "fcos_r18w16_fpn32", CELLS),
    "gfl": (SMALL["gfl"], "gfl_r18w16_fpn32", ANCHORS | {"edges"}),
    "atss": (SMALL["atss"], "atss_r18w16_fpn32", ANCHORS),
    "reppoints": (SMALL["reppoints"], "reppoints_r18w16_fpn32", CELLS | {"points"}),
    "rtmdet": ("rtmdet_tiny", "rtmdet_tiny", CELLS),
    "yolox": ("yolox_tiny", "yolox_tiny", CELLS),
    "faster_rcnn": (SMALL["faster_rcnn"], "faster_rcnn_r18w16_fpn32", PROPOSALS),
    "mask_rcnn": (SMALL["mask_rcnn"], "mask_rcnn_r18w16_fpn32", PROPOSALS | {"roi_masks"}),
    "cascade_rcnn": (SMALL["cascade_rcnn"], "cascade_rcnn_r18w16_fpn32", PROPOSALS),
    "cascade_mask_rcnn": (SMALL["cascade_mask_rcnn"], "cascade_mask_rcnn_r18w16_fpn32", PROPOSALS | {"roi_masks"}),
    "cascade with masks to two stages": (SMALL["cascade_mask_rcnn"], "mask_rcnn_r18w16_fpn32", PROPOSALS | {"roi_masks"}),
    "one stage to two": (SMALL["gfl"], "faster_rcnn_r18w16_fpn32", {"features", "instance"}),
    "two stages to one": (SMALL["faster_rcnn"], "gfl_r18w16_fpn32", {"features"}),
    "a box a cell to a point": (SMALL["gfl"], "fcos_r18w16_fpn32", CELLS),
    "classes to class times objectness": (SMALL["gfl"], "yolox_tiny", CELLS),
    "to a DETR": (SMALL["atss"], "detr_r18", {"features"}),
}


@pytest.mark.parametrize("case", GIVES)
def test_a_student_learns_from_all_that_the_pair_exchanges(case, ground_truth):
    teacher_name, student_name, expected = GIVES[case]
    found, policy = runnable(teacher_name, student_name)
    assert found == expected
    teacher_entry, student_entry = DETECTORS[teacher_name], DETECTORS[student_name]
    check_policy(policy, teacher_entry, student_entry)
    levels = match_levels(teacher_entry, student_entry)
    teacher = Teacher(build_detector(teacher_name, CLASSES), levels.teacher, levels.strides)
    for conv in getattr(dense_head(teacher.model), "rtm_reg", ()):
        torch.nn.init.ones_(conv.bias)  # untaught, RTMDet predicts boxes without area, which teach nothing
    adapters = make_adapters(teacher_entry, student_entry, len(levels.student))
    student = Student(build_detector(student_name, CLASSES).train(), levels.student, adapters)
    inputs, wanted = torch.randn(2, 3, *SHAPE), needs(policy)
    said = teacher.signals(inputs, wanted)
    losses, signals = student.losses(inputs, ground_truth(2, SHAPE, student_entry.masks), wanted)
    if signals.rois is not None:
        said = replace(said, rois=teacher.regard(signals.rois, wanted))
    compared = policy_losses(policy, signals, said, Scene((BOXES, BOXES), SHAPE))
    assert len(compared) == len(expected)
    assert all(float(loss.detach()) > 0 and loss.isfinite() for loss in compared.values()), compared
    sum(compared.values()).backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.model.backbone.parameters())
    assert any("loss" in name for name in losses)


def test_levels_of_other_strides_are_resized_to_the_students_size():
    rcnn = DETECTORS["faster_rcnn_r18w8_fpn32"]
    teacher = Teacher(build_detector("mask_rcnn_r18w8_fpn32", CLASSES), (0, 1), (8, 16))  # its strides there are 4 and 8
    said = teacher.signals(torch.randn(2, 3, *SHAPE), frozenset({"features"}))
    assert rcnn.strides[:2] == (8, 16)
    assert [tuple(level.shape[-2:]) for level in said.features] == [(8, 12), (4, 6)]
    whole = Teacher(teacher.model, (0,)).signals(torch.ones(1, 3, *SHAPE), frozenset({"features"})).features[0]
    halved = teacher.signals(torch.ones(1, 3, *SHAPE), frozenset({"features"})).features[0]
    torch.testing.assert_close(halved, torch.nn.functional.avg_pool2d(whole, 2))  # bilinear to half a size is the mean of four


def learned(name, samples, wanted):
    """A student and its signals from its own loss on two images."""
    student = Student(build_detector(name, CLASSES).train(), range(len(DETECTORS[name].strides)))
    return student, student.losses(torch.randn(2, 3, *SHAPE), samples, frozenset(wanted))[1]


def test_assigned_are_the_anchors_that_overlap_an_object_or_are_its_best(ground_truth):
    student, signals = learned(SMALL["retinanet"], ground_truth(2), {"assigned"})
    priors = student.tap.head.prior_generator.grid_priors([(8, 12), (4, 6), (2, 3)], device="cpu")
    overlap = box_iou(torch.cat(priors), BOXES)
    expected = (overlap.amax(1) >= 0.5) | (overlap == overlap.amax(0)).any(1)
    assert [tuple(level.shape) for level in signals.assigned] == [(2, 8 * 12 * 3), (2, 4 * 6 * 3), (2, 2 * 3 * 3)]
    for image in range(2):
        assert torch.equal(torch.cat([level[image] for level in signals.assigned]), expected)
    assert 2 <= int(expected.sum()) < 40


def test_fcos_assigns_the_cells_around_an_objects_centre(ground_truth):
    _, signals = learned(SMALL["fcos"], ground_truth(2), {"assigned"})
    # boxes of 32 and 42 pixels reach at most 32 from a point, so both belong to the finest level; a radius of 1.5 strides is 12 pixels
    points = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(8), indexing="xy"), -1).view(-1, 2) * 8 + 4.0
    centers = (BOXES[:, :2] + BOXES[:, 2:]) / 2
    reach = torch.cat([points[:, None] - BOXES[:, :2], BOXES[:, 2:] - points[:, None]], -1).amax(-1)  # (cells, boxes)
    near = ((points[:, None] - centers).abs() < 12).all(-1) & ((points[:, None] > BOXES[:, :2]) & (points[:, None] < BOXES[:, 2:])).all(-1)
    expected = (near & (reach <= 32)).any(1)
    assert torch.equal(signals.assigned[0][0], expected)
    assert int(expected.sum()) > 4


def test_yolox_scores_are_class_times_objectness():
    model = build_detector("yolox_tiny", CLASSES).eval()
    with torch.no_grad():
        for conv in (*model.bbox_head.multi_level_conv_cls, *model.bbox_head.multi_level_conv_obj):
            conv.weight.normal_(std=0.3)
        teacher = Teacher(model, (0, 1, 2))
        said = teacher.signals(torch.randn(1, 3, *SHAPE), frozenset({"features", "logits"}))
        classes, _, objectness = model.bbox_head(said.features)
    for logits, of_class, of_object in zip(said.logits, classes, objectness, strict=True):
        torch.testing.assert_close(logits.sigmoid(), of_class.sigmoid() * of_object.sigmoid())
