"""Shared proposals: what the teacher says of them, against what MMDetection's own RoI heads predict."""

import copy
from dataclasses import replace

import pytest
import torch

from detkds_core.catalogue import DETECTORS
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.pair import Student, Teacher
from detkds_core.detectors.rois import inside, likeliest, of_class
from detkds_core.losses.signals import Rois

CLASSES = ("a", "b", "c")
HEIGHT, WIDTH = 64, 96
ROIS = frozenset({"rois", "roi_scores", "roi_boxes"})
FAMILIES = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
# image, then xyxy; the last reaches to the corner
PROPOSALS = torch.tensor([[0, 4.0, 6, 40, 44], [0, 30.0, 2, 90, 60], [1, 10.0, 10, 30, 62], [1, 50.0, 30, 96, 64]])


def sharp(name):
    """A detector whose RoI head has an opinion, and whose normalisation does not depend on the batch."""
    model = build_detector(name, CLASSES)
    heads = model.roi_head.bbox_head if isinstance(model.roi_head.bbox_head, torch.nn.ModuleList) else [model.roi_head.bbox_head]
    for head in heads:
        torch.nn.init.normal_(head.fc_cls.weight, std=0.5)
        torch.nn.init.normal_(head.fc_reg.weight, std=0.2)
    return model


def still(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def noise():
    return torch.randn(2, 3, HEIGHT, WIDTH)


def mask_needs(entry):
    return ROIS | ({"roi_masks"} if entry.masks else set())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_says_of_its_own_proposals_what_it_said(family, ground_truth):
    name = f"{family}_r18w8_fpn32"
    entry, model = DETECTORS[name], sharp(name)
    needs = mask_needs(entry)
    student = Student(still(copy.deepcopy(model).train()), range(3))
    teacher = Teacher(model, range(3))
    inputs = noise()
    with torch.no_grad():
        _, ours = student.losses(inputs, ground_truth(2, masks=entry.masks), needs)
    teacher.signals(inputs, frozenset({"features", *needs}))
    said = teacher.regard(ours.rois, needs)
    assert torch.equal(said.regions, ours.rois.regions)
    if "cascade" in family:  # a cascade answers with all of its stages, and a learning one is heard at its first
        assert not torch.allclose(said.scores, ours.rois.scores, atol=1e-3)
        assert said.scores.shape == ours.rois.scores.shape
        return
    torch.testing.assert_close(said.scores, ours.rois.scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said.boxes, ours.rois.boxes, atol=1e-2, rtol=1e-4)
    if entry.masks:
        torch.testing.assert_close(said.masks, ours.rois.masks, atol=1e-4, rtol=1e-4)
        assert torch.equal(said.labels, ours.rois.labels)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_boxes_are_those_that_mmdetection_predicts(family):
    from mmengine.structures import InstanceData

    teacher = Teacher(sharp(f"{family}_r18w8_fpn32"), range(3))
    inputs = noise()
    teacher.signals(inputs, frozenset({"features"}))
    said = teacher.regard(Rois(PROPOSALS), ROIS)
    meta = {"img_shape": (HEIGHT, WIDTH), "ori_shape": (HEIGHT, WIDTH), "scale_factor": (1.0, 1.0)}
    proposals = [InstanceData(bboxes=PROPOSALS[PROPOSALS[:, 0] == image, 1:]) for image in (0, 1)]
    with torch.no_grad():  # no configuration of a test: neither threshold nor suppression
        predicted = teacher.model.roi_head.predict_bbox(teacher.pyramid, [meta, meta], proposals, None)
    torch.testing.assert_close(said.scores.softmax(1), torch.cat([one.scores for one in predicted]))
    decoded = inside(said.boxes.reshape(-1, 4), (HEIGHT, WIDTH)).reshape(len(PROPOSALS), 3, 4)
    theirs = torch.cat([one.bboxes for one in predicted]).reshape(len(PROPOSALS), -1, 4)
    assert theirs.shape[1] == (1 if "cascade" in family else 3)  # a cascade's boxes are the same for all classes
    torch.testing.assert_close(decoded, theirs.expand(-1, 3, -1), atol=1e-3, rtol=1e-4)
    assert float((said.boxes[:, 0] - PROPOSALS[:, 1:]).abs().mean()) > 1  # the head moved them


@pytest.mark.parametrize("family", ["mask_rcnn", "cascade_mask_rcnn"])
def test_masks_are_those_that_mmdetection_predicts(family):
    teacher = Teacher(sharp(f"{family}_r18w8_fpn32"), range(3))
    teacher.signals(noise(), frozenset({"features"}))
    labels = torch.tensor([0, 2, 1, 1])
    said = teacher.regard(Rois(PROPOSALS, positive=PROPOSALS, labels=labels), frozenset({"roi_masks"}))
    assert said.scores is None
    roi_head = teacher.model.roi_head
    stages = range(3) if family == "cascade_mask_rcnn" else (None,)
    with torch.no_grad():
        raw = [roi_head._mask_forward(*([] if stage is None else [stage]), teacher.pyramid, PROPOSALS)["mask_preds"] for stage in stages]
    mean = sum(one.sigmoid() for one in raw) / len(raw)  # (4, 3, 28, 28)
    for place, label in enumerate(labels.tolist()):
        torch.testing.assert_close(said.masks[place, 0].sigmoid(), mean[place, label])


def test_a_learning_students_boxes_are_what_its_coder_decodes(ground_truth):
    name = "faster_rcnn_r18w8_fpn32"
    student = Student(sharp(name).train(), range(3))
    caught = {}
    student.model.roi_head.bbox_head.register_forward_hook(lambda _module, _inputs, output: caught.update(said=output))
    _, signals = student.losses(noise(), ground_truth(2), ROIS)
    scores, deltas = caught["said"]
    torch.testing.assert_close(signals.rois.scores, scores)
    coder = student.model.roi_head.bbox_head.bbox_coder
    for k in range(3):
        expected = coder.decode(signals.rois.regions[:, 1:], deltas[:, 4 * k : 4 * k + 4])
        torch.testing.assert_close(signals.rois.boxes[:, k], expected)


def test_a_one_stage_teacher_gives_the_regions_alone():
    teacher = Teacher(build_detector("gfl_r18w8_fpn32", CLASSES), range(3))
    teacher.signals(noise(), frozenset({"features"}))
    said = teacher.regard(Rois(PROPOSALS), ROIS)
    assert torch.equal(said.regions, PROPOSALS)
    assert (said.scores, said.boxes, said.masks) == (None, None, None)


def test_a_teacher_without_masks_gives_none():
    teacher = Teacher(build_detector("faster_rcnn_r18w8_fpn32", CLASSES), range(3))
    teacher.signals(noise(), frozenset({"features"}))
    said = teacher.regard(Rois(PROPOSALS, positive=PROPOSALS, labels=torch.zeros(4, dtype=torch.long)), ROIS | {"roi_masks"})
    assert said.masks is None
    assert said.scores.shape == (4, 4)


def test_masks_take_the_students_size():
    teacher = Teacher(build_detector("mask_rcnn_r18w8_fpn32", CLASSES), range(3))
    teacher.signals(noise(), frozenset({"features"}))
    asked = Rois(PROPOSALS, positive=PROPOSALS, labels=torch.zeros(4, dtype=torch.long))
    needs = frozenset({"rois", "roi_masks"})
    own = teacher.regard(asked, needs).masks
    found = teacher.regard(replace(asked, masks=torch.zeros(4, 1, 14, 14)), needs).masks
    torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(own, 2))  # the middle of four
    assert torch.equal(teacher.regard(replace(asked, masks=torch.zeros(4, 1, 28, 28)), needs).masks, own)
    nothing = Rois(PROPOSALS[:0], positive=PROPOSALS[:0], labels=asked.labels[:0], masks=torch.zeros(0, 1, 14, 14))
    assert teacher.regard(nothing, needs).masks.shape == (0, 1, 14, 14)


def test_no_proposal_is_no_answer_and_no_error():
    for family in FAMILIES:
        name = f"{family}_r18w8_fpn32"
        teacher = Teacher(build_detector(name, CLASSES), range(3))
        teacher.signals(noise(), frozenset({"features"}))
        nothing = PROPOSALS[:0]
        said = teacher.regard(Rois(nothing, positive=nothing, labels=torch.zeros(0, dtype=torch.long)), mask_needs(DETECTORS[name]))
        assert said.scores.shape == (0, 4)
        assert said.boxes.shape[0] == 0
        assert said.masks is None or said.masks.shape[:2] == (0, 1)


def test_half_precision_keeps_boxes_in_pixels():
    teacher = Teacher(sharp("cascade_rcnn_r18w8_fpn32"), range(3))
    inputs = noise()
    boxes = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            teacher.signals(inputs, frozenset({"features"}))
            boxes.append(teacher.regard(Rois(PROPOSALS + torch.tensor([0, 0.3, 0.3, 0.3, 0.3])), ROIS).boxes)
    assert boxes[1].dtype == torch.float32
    assert float((boxes[0] - boxes[1]).abs().mean()) < 1


def test_the_likeliest_box_leaves_the_background_out():
    boxes = torch.arange(24.0).reshape(2, 3, 4)
    scores = torch.tensor([[0.1, 0.9, 0.2, 5.0], [0.3, 0.2, 0.1, 0.0]])
    assert likeliest(boxes, scores).tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]]
    assert likeliest(boxes[:, :1], scores).tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]


def test_each_mask_is_its_class_s_own():
    masks = torch.arange(6.0).reshape(2, 3, 1, 1)
    assert of_class(masks, torch.tensor([2, 0])).flatten().tolist() == [2, 3]
    assert of_class(masks[:, :1], torch.tensor([2, 0])).flatten().tolist() == [0, 3]


def test_boxes_are_cut_at_the_image():
    assert inside(torch.tensor([[-3.0, 5, 99, 70]]), (64, 96)).tolist() == [[0, 5, 96, 64]]
