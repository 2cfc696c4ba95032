"""What each family gives to compare: assignments, point sets, proposals, head features; every pair of a family learns from them."""

from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from detkds_core.catalogue import DETECTORS, exchange, pair_facts
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.cross_head import head_tail
from detkds_core.detectors.pair import Student, Teacher, check_policy, make_adapters, match_levels
from detkds_core.detectors.tap import dense_head
from detkds_core.losses.policy import needs, policy_losses
from detkds_core.losses.signals import Rois, Scene
from detkds_core.policy import parse_formula
from detkds_core.policy.named import cannot_run

CLASSES = ("a", "b", "c")
SHAPE = (64, 96)
BOXES = torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 62.0]])
SMALL = {
    family: f"{family}_r18w8_fpn32"
    for family in ("retinanet", "fcos", "gfl", "atss", "reppoints", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
}
DENSE = {
    **{family: SMALL[family] for family in ("retinanet", "fcos", "gfl", "atss", "reppoints")},
    "rtmdet": "rtmdet_tiny",
    "yolox": "yolox_tiny",
}
TWO_STAGE = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")


def learned(name, truth, wanted):
    """A student, its losses, and its signals from the same forward on two images."""
    student = Student(build_detector(name, CLASSES).train(), range(len(DETECTORS[name].strides)))
    losses, signals = student.losses(torch.randn(2, 3, *SHAPE), truth(2, SHAPE, DETECTORS[name].masks), frozenset(wanted))
    return student, losses, signals


TERMS = {  # a term for each signal
    "features": "l2(global)",
    "logits": "l2(logits)",
    "boxes": "giou[region=foreground](localization)",
    "edges": "kl_edges(localization)",
    "points": "points(localization)",
    "assigned": "l1[region=assigned](localization)",
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


CELLS = {"features", "logits", "boxes", "assigned"}
PROPOSALS = CELLS | {"instance", "roi_scores", "roi_boxes"}
GIVES = {  # teacher, student, signals that pass
    "retinanet": (SMALL["retinanet"], "retinanet_r18w16_fpn32", CELLS),
    "fcos": (SMALL["fcos"], "fcos_r18w16_fpn32", CELLS),
    "gfl": (SMALL["gfl"], "gfl_r18w16_fpn32", CELLS | {"edges"}),
    "atss": (SMALL["atss"], "atss_r18w16_fpn32", CELLS),
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
def test_a_student_learns_from_all_that_the_pair_exchanges(case, truth):
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
    losses, signals = student.losses(inputs, truth(2, SHAPE, student_entry.masks), wanted)
    if signals.rois is not None:
        said = replace(said, rois=teacher.regard(signals.rois, wanted))
    compared = policy_losses(policy, signals, said, Scene((BOXES, BOXES), SHAPE))
    assert len(compared) == len(expected)
    assert all(float(loss.detach()) > 0 and loss.isfinite() for loss in compared.values()), compared
    sum(compared.values()).backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.model.backbone.parameters())
    assert any("loss" in name for name in losses)


def test_levels_of_other_strides_are_resized_to_the_students_size(truth):
    rcnn = DETECTORS["faster_rcnn_r18w8_fpn32"]
    teacher = Teacher(build_detector("mask_rcnn_r18w8_fpn32", CLASSES), (0, 1), (8, 16))  # its strides there are 4 and 8
    said = teacher.signals(torch.randn(2, 3, *SHAPE), frozenset({"features"}))
    assert rcnn.strides[:2] == (8, 16)
    assert [tuple(level.shape[-2:]) for level in said.features] == [(8, 12), (4, 6)]
    whole = Teacher(teacher.model, (0,)).signals(torch.ones(1, 3, *SHAPE), frozenset({"features"})).features[0]
    halved = teacher.signals(torch.ones(1, 3, *SHAPE), frozenset({"features"})).features[0]
    torch.testing.assert_close(halved, torch.nn.functional.avg_pool2d(whole, 2))  # bilinear to half a size is the mean of four


def test_assigned_are_the_anchors_that_overlap_an_object_or_are_its_best(truth):
    student, _, signals = learned(SMALL["retinanet"], truth, {"assigned"})
    priors = student.tap.head.prior_generator.grid_priors([(8, 12), (4, 6), (2, 3)], device="cpu")
    overlap = box_iou(torch.cat(priors), BOXES)
    expected = (overlap.amax(1) >= 0.5) | (overlap == overlap.amax(0)).any(1)
    assert [tuple(level.shape) for level in signals.assigned] == [(2, 8 * 12 * 3), (2, 4 * 6 * 3), (2, 2 * 3 * 3)]
    for image in range(2):
        assert torch.equal(torch.cat([level[image] for level in signals.assigned]), expected)
    assert 2 <= int(expected.sum()) < 40


@pytest.mark.parametrize("family", [*DENSE, "faster_rcnn"])
def test_assigned_cells_lie_in_objects(family, truth):
    entry = DETECTORS[DENSE.get(family, SMALL.get(family))]
    _, _, signals = learned(entry.name, truth, {"features", "assigned"})
    found = 0
    for level, feature, stride in zip(signals.assigned, signals.features, entry.strides, strict=True):
        H, W = feature.shape[-2:]
        assert level.dtype == torch.bool
        assert level.shape == (2, H * W * entry.anchors)
        rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
        centers = (torch.stack([columns, rows], -1).view(-1, 1, 2).expand(-1, entry.anchors, 2).reshape(-1, 2) + 0.25) * stride
        for image in range(2):
            at = centers[level[image]]
            found += len(at)
            slack = 2.5 * stride  # SimOTA's radius around an object's centre; a best anchor may lie beside its object
            inside = (at[:, None] >= BOXES[:, :2] - slack) & (at[:, None] <= BOXES[:, 2:] + slack)
            assert inside.all(-1).any(1).all()
    assert found >= 2


def test_fcos_assigns_the_cells_around_an_objects_centre(truth):
    _, _, signals = learned(SMALL["fcos"], truth, {"assigned"})
    # boxes of 32 and 42 pixels reach at most 32 from a point, so both belong to the finest level; a radius of 1.5 strides is 12 pixels
    points = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(8), indexing="xy"), -1).view(-1, 2) * 8 + 4.0
    centers = (BOXES[:, :2] + BOXES[:, 2:]) / 2
    reach = torch.cat([points[:, None] - BOXES[:, :2], BOXES[:, 2:] - points[:, None]], -1).amax(-1)  # (cells, boxes)
    near = ((points[:, None] - centers).abs() < 12).all(-1) & ((points[:, None] > BOXES[:, :2]) & (points[:, None] < BOXES[:, 2:])).all(-1)
    expected = (near & (reach <= 32)).any(1)
    assert torch.equal(signals.assigned[0][0], expected)
    assert int(expected.sum()) > 4


@pytest.mark.parametrize("training", [True, False])
def test_reppoints_boxes_are_the_moments_of_its_point_sets(training):
    model = build_detector(SMALL["reppoints"], CLASSES).train(training)
    head = model.bbox_head
    with torch.no_grad():
        head.moment_transfer.copy_(torch.tensor([0.1, -0.2]))
        student = Student(model, range(5))
        student.tap.wanted = frozenset({"points", "boxes"})
        head([torch.randn(2, 32, size, size) for size in (8, 4, 2, 1, 1)])
        student.tap.features = tuple(torch.zeros(2, 32, 1, 1) for _ in range(5))  # the neck did not run
        found = student.tap.signals(frozenset({"points", "boxes"}), range(5))
    for points, boxes in zip(found.points, found.boxes, strict=True):
        assert points.shape[2:] == (9, 2)
        mean, spread = points.mean(2), points.std(2) * torch.tensor([0.1, -0.2]).exp()
        torch.testing.assert_close(boxes, torch.cat([mean - spread, mean + spread], -1))


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "atss"])
def test_the_rest_of_a_head_continues_its_own_branches(family):
    teacher = Teacher(build_detector(SMALL[family], CLASSES), (0, 2))
    inputs = torch.randn(2, 3, *SHAPE)
    said = teacher.signals(inputs, frozenset({"towers", "logits", "boxes", "edges"} if family == "gfl" else {"towers", "logits", "boxes"}))
    tail = head_tail(teacher.model.bbox_head, teacher.levels)
    assert tail is not None
    for level, (of_class, of_box) in enumerate(said.towers):
        assert float(of_class.min()) < 0  # before the activation
        kept = of_class.clone(), of_box.clone()
        of_class.requires_grad_()
        scores, boxes = tail(of_class, of_box, level)
        torch.testing.assert_close(scores, said.logits[level])
        torch.testing.assert_close(boxes, said.edges[level] if family == "gfl" else said.boxes[level])
        scores.sum().backward()
        assert of_class.grad.abs().sum() > 0
        assert torch.equal(of_class, kept[0])
        assert torch.equal(of_box, kept[1])
    assert all(p.grad is None for p in teacher.model.parameters())


def test_heads_whose_branches_cannot_be_cut_have_no_rest():
    assert head_tail(build_detector("rtmdet_tiny", CLASSES).bbox_head, (0, 1, 2)) is None


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


@pytest.mark.parametrize("family", TWO_STAGE)
def test_a_teacher_regards_proposals_as_mmdetection_predicts_on_them(family):
    from mmengine.structures import InstanceData

    teacher = Teacher(build_detector(SMALL[family], CLASSES), (0, 1))
    for name, weight in teacher.model.roi_head.named_parameters():
        if name.endswith(("fc_reg.weight", "fc_cls.weight")):
            torch.nn.init.normal_(weight, std=0.05)  # else a cascade refines next to nothing
    proposals = [torch.tensor([[4.0, 4, 40, 30], [50, 10, 96, 60], [0, 0, 20, 64]]), torch.tensor([[10.0, 12, 30, 50]])]
    regions = torch.cat([torch.cat([torch.full((len(boxes), 1), float(image)), boxes], 1) for image, boxes in enumerate(proposals)])
    teacher.signals(torch.randn(2, 3, *SHAPE), frozenset({"features"}))
    said = teacher.regard(Rois(regions), frozenset({"roi_scores", "roi_boxes"}))
    metas = [{"img_shape": SHAPE, "ori_shape": SHAPE, "scale_factor": (1.0, 1.0)}] * 2
    with torch.no_grad():
        theirs = teacher.model.roi_head.predict_bbox(teacher.pyramid, metas, [InstanceData(bboxes=boxes) for boxes in proposals], None)
    torch.testing.assert_close(said.scores.softmax(1), torch.cat([one.scores for one in theirs]))
    limits = torch.tensor([96.0, 64.0, 96.0, 64.0])
    expected = torch.cat([one.bboxes for one in theirs]).view(4, -1, 4).expand(-1, len(CLASSES), 4)
    torch.testing.assert_close(torch.minimum(said.boxes.clamp_min(0), limits), expected)


@pytest.mark.parametrize("family", ["faster_rcnn", "mask_rcnn"])
def test_a_teacher_with_the_students_weights_says_what_the_student_said(family, truth):
    model = build_detector(SMALL[family], CLASSES).eval()  # no statistics of the batch
    teacher = Teacher(build_detector(SMALL[family], CLASSES), (0, 1, 2))
    teacher.model.load_state_dict(model.state_dict())
    wanted = frozenset({"features", "rois", "roi_scores", "roi_boxes", "roi_masks"})
    inputs = torch.randn(2, 3, *SHAPE)
    teacher.signals(inputs, wanted)
    _, signals = Student(model, (0, 1, 2)).losses(inputs, truth(2, SHAPE, family == "mask_rcnn"), wanted)
    ours, theirs = signals.rois, teacher.regard(signals.rois, wanted)
    assert ours.regions.shape[1] == 5
    assert len(ours.regions) == len(ours.scores) == len(ours.boxes) > 10
    assert (ours.scores.shape[1], ours.boxes.shape[1:]) == (len(CLASSES) + 1, (len(CLASSES), 4))
    torch.testing.assert_close(theirs.scores, ours.scores)
    torch.testing.assert_close(theirs.boxes, ours.boxes)
    if family == "mask_rcnn":
        assert ours.masks.shape == (len(ours.labels), 1, 28, 28)
        assert set(ours.labels.tolist()) <= {1, 2}
        torch.testing.assert_close(theirs.masks, ours.masks)
    assert theirs.scores.grad_fn is None


@pytest.mark.parametrize("family", [*DENSE, "faster_rcnn"])
def test_under_autocast_boxes_keep_their_pixels(family, truth):
    name = DENSE.get(family, SMALL.get(family))
    model = build_detector(name, CLASSES).eval()
    teacher = Teacher(model, range(len(DETECTORS[name].strides)))
    inputs, wanted = torch.randn(2, 3, *SHAPE), frozenset({"features", "boxes", "logits"})
    exact = teacher.signals(inputs, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        said = teacher.signals(inputs, wanted)
    for level, reference, stride in zip(said.boxes, exact.boxes, DETECTORS[name].strides, strict=True):
        assert level.dtype == torch.float32
        size = (reference[..., 2:] - reference[..., :2]).clamp_min(stride)
        assert float(((level - reference).abs() / torch.cat([size, size], -1)).max()) < 0.1
