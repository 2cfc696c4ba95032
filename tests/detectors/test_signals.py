"""Every family of the catalogue learns, predicts and says all that the catalogue claims it can say to one of its own."""

import copy
import math

import pytest
import torch

from detkds_core.catalogue import DETECTORS, exchange
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.pair import Student, Teacher
from detkds_core.detectors.tap import dense_head
from detkds_core.training.learner import lose_in_fp32
from detkds_core.training.steps import total_loss

CLASSES = ("a", "b", "c")
K = len(CLASSES)
B, HEIGHT, WIDTH = 2, 64, 96
SMALL = (
    *(f"{family}_r18w8_fpn32" for family in ("gfl", "retinanet", "fcos", "faster_rcnn", "atss", "reppoints")),
    *(f"{family}_r18w8_fpn32" for family in ("mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")),
    "rtmdet_tiny",
    "yolox_tiny",
    "detr_r18",
)
LARGE = ("deformable_detr_r50", "retinanet_swin_t_fpn", "retinanet_pvtv2_b0_fpn", "fcos_tricks_r50_fpn")
SIGNALS_OF = {"edges": "has_edges", "points": "has_points"}


def claimed(entry):
    """What a detector must be able to say, as `exchange` of it with itself tells."""
    offer = exchange(entry, entry)
    needs = {"features", *("logits", "boxes") * ("localization" in offer.knowledge)}
    needs |= {signal for signal, fact in SIGNALS_OF.items() if getattr(offer, fact)}
    needs |= {signal for signal in ("assigned", "valuable") if signal not in offer.lacking}
    needs |= {"towers_3"} if "towers" not in offer.lacking else set()
    if "instance.proposals" not in offer.lacking:
        needs |= {"rois", "roi_scores", "roi_boxes"}
    return frozenset(needs | ({"roi_masks"} if "logits.masks" not in offer.lacking else set()))


def student_of(name):
    return Student(build_detector(name, CLASSES).train(), range(len(DETECTORS[name].strides)))


def noise(images=B):
    return torch.randn(images, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def said(name, ground_truth):
    student, entry = student_of(name), DETECTORS[name]
    losses, signals = student.losses(noise(), ground_truth(B, masks=entry.masks), claimed(entry))
    return student, losses, signals


def assert_shapes(entry, signals):
    sizes = [(math.ceil(HEIGHT / stride), math.ceil(WIDTH / stride)) for stride in entry.strides]
    scored = K if entry.scores == "classes" else 1
    needs = claimed(entry)
    expected = {
        "features": [(B, entry.channels, *size) for size in sizes],
        "logits": [(B, entry.anchors * scored, *size) for size in sizes],
        "boxes": [(B, h * w * entry.anchors, 4) for h, w in sizes],
        "edges": [(B, 4 * ((entry.reg_max or 0) + 1), *size) for size in sizes],
        "points": [(B, h * w, 9, 2) for h, w in sizes],
        "assigned": [(B, h * w * entry.anchors) for h, w in sizes],
        "valuable": [(B, h * w * entry.anchors) for h, w in sizes],
    }
    for signal, shapes in expected.items():
        assert [tuple(level.shape) for level in getattr(signals, signal)] == (shapes if signal in needs else []), signal
    if "towers_3" in needs:
        for level, size in zip(signals.towers[3], sizes, strict=True):
            assert [tower.shape[0] for tower in level] == [B, B]
            assert [tuple(tower.shape[2:]) for tower in level] == [size, size]
    assert (signals.rois is not None) == (entry.stages == 2)
    if signals.rois is not None:
        rois, R = signals.rois, len(signals.rois.regions)
        assert rois.regions.shape == (R, 5)
        assert set(rois.regions[:, 0].tolist()) == {0.0, 1.0}
        assert rois.scores.shape == (R, K + 1)
        assert rois.boxes.shape == (R, K, 4)
        if entry.masks:
            P = len(rois.positive)
            assert 4 <= P <= R  # ground truth is proposed too: two boxes an image at least
            assert rois.masks.shape == (P, 1, 28, 28)
            assert rois.labels.shape == (P,)
            assert set(rois.labels.tolist()) == {0, 2}
            assert {tuple(region) for region in rois.positive.tolist()} <= {tuple(region) for region in rois.regions.tolist()}


def learning_signals(signals):
    """Those that a gradient comes back from."""
    for name in ("features", "logits", "boxes", "edges", "points"):
        if getattr(signals, name):
            yield name, sum(level.float().square().sum() for level in getattr(signals, name))
    if signals.towers:
        yield "towers", sum(tower.square().sum() for level in signals.towers[3] for tower in level)
    if signals.rois is not None:
        for name in ("scores", "boxes", "masks"):
            if getattr(signals.rois, name) is not None:
                yield f"rois.{name}", getattr(signals.rois, name).square().sum()


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_a_detector_says_what_the_catalogue_claims_learns_and_predicts(name, ground_truth):
    student, losses, signals = said(name, ground_truth)
    entry = DETECTORS[name]
    assert_shapes(entry, signals)
    weights = [p for p in student.model.backbone.parameters() if p.requires_grad]
    for signal, value in learning_signals(signals):
        reached = [g for g in torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True) if g is not None]
        assert any(bool(g.any()) for g in reached), signal
        assert all(bool(g.isfinite().all()) for g in reached), signal

    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in weights]
    for step in range(2):
        if step:
            losses, _ = student.losses(noise(), ground_truth(B, masks=entry.masks), frozenset({"features"}))
        total = total_loss(losses)
        assert math.isfinite(float(total.detach()))
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, weights, strict=True))

    student.model.eval()
    part = getattr(student.model, "roi_head", None) or student.model.bbox_head
    if entry.scores != "queries":
        part.test_cfg.update(score_thr=0.0, min_bbox_size=-1)  # random weights are sure of nothing, and draw boxes inside out
    with torch.no_grad():
        predicted = student.model.predict(noise(), ground_truth(B, masks=entry.masks))
    for result in predicted:
        assert 0 < len(result.pred_instances) <= 300
        assert result.pred_instances.bboxes.isfinite().all()
        assert ("masks" in result.pred_instances) == entry.masks


@pytest.mark.parametrize("name", SMALL)
def test_signals_under_bf16_hold_boxes_in_float32(name, ground_truth):
    student, entry = student_of(name), DETECTORS[name]
    lose_in_fp32(student.model)
    with torch.autocast("cpu", torch.bfloat16):
        losses, signals = student.losses(noise(), ground_truth(B, masks=entry.masks), claimed(entry))
    assert_shapes(entry, signals)
    assert math.isfinite(float(total_loss(losses).detach()))
    for boxes in (*signals.boxes, *signals.points, *([signals.rois.boxes] if signals.rois is not None else [])):
        assert boxes.dtype == torch.float32
        assert boxes.isfinite().all()


@pytest.mark.parametrize("name", [name for name in SMALL if DETECTORS[name].scores != "queries"])
def test_assigned_cells_are_those_whose_targets_are_objects(name, ground_truth):
    """The oracle: the loss of a cell's box has a gradient at its own output exactly where the cell is assigned."""
    student, entry = student_of(name), DETECTORS[name]
    head = dense_head(student.model)
    caught = {}
    head.register_forward_hook(lambda _module, _inputs, outputs: caught.update(outputs=outputs))
    losses, signals = student.losses(noise(), ground_truth(B, masks=entry.masks), frozenset({"assigned"}))
    of_boxes = losses["loss_pts_refine" if entry.family == "reppoints" else "loss_rpn_bbox" if entry.stages == 2 else "loss_bbox"]
    predictions = caught["outputs"][2 if entry.family == "reppoints" else 1]
    total = sum(value.sum() for value in of_boxes) if isinstance(of_boxes, list | tuple) else of_boxes.sum()
    gradients = torch.autograd.grad(total, predictions, allow_unused=True)
    per_cell = predictions[0].shape[1] // entry.anchors
    for assigned, prediction, gradient in zip(signals.assigned, predictions, gradients, strict=True):
        gradient = torch.zeros_like(prediction) if gradient is None else gradient
        moved = gradient.permute(0, 2, 3, 1).reshape(B, -1, per_cell).abs().sum(-1) > 0
        if entry.stages == 2:  # of the assigned anchors the loss draws a sample, 256 at most
            assert not bool((moved & ~assigned).any())
        else:
            assert torch.equal(moved, assigned)
    assert sum(int(level.sum()) for level in signals.assigned) > 0


def test_points_of_reppoints_are_the_same_in_training_and_in_prediction(ground_truth):
    name = "reppoints_r18w8_fpn32"
    model = build_detector(name, CLASSES)
    for module in model.bbox_head.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # as it begins, every point lies on the cell
    levels = range(5)
    student = Student(copy.deepcopy(model).train(), levels)
    for module in student.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # the statistics that the teacher has
    teacher = Teacher(model, levels)
    _, ours = student.losses(noise(), ground_truth(B), frozenset({"points", "boxes"}))
    theirs = teacher.signals(noise(), frozenset({"points", "boxes"}))
    for one, other in zip(ours.points, theirs.points, strict=True):
        torch.testing.assert_close(one.detach(), other, atol=1e-3, rtol=1e-4)
    for one, other in zip(ours.boxes, theirs.boxes, strict=True):
        torch.testing.assert_close(one.detach(), other, atol=1e-3, rtol=1e-4)
    assert float((theirs.points[0] - theirs.points[0].mean(2, keepdim=True)).abs().mean()) > 1  # pixels apart
    # the box is the points' mean, plus and minus a multiple of their spread, and x comes first
    scale = model.bbox_head.moment_transfer.exp()
    mean, spread = theirs.points[0].mean(2), theirs.points[0].std(2)
    torch.testing.assert_close(theirs.boxes[0], torch.cat([mean - spread * scale, mean + spread * scale], -1), atol=1e-3, rtol=1e-4)


def test_what_a_prediction_left_behind_is_not_taken_for_the_next_loss(ground_truth):
    student = student_of("mask_rcnn_r18w8_fpn32")
    student.model.eval()
    with torch.no_grad():
        student.model.predict(noise(), ground_truth(B))
    student.model.train()
    _, signals = student.losses(noise(), ground_truth(B, masks=True), claimed(DETECTORS["mask_rcnn_r18w8_fpn32"]))
    assert signals.rois.scores.requires_grad
    assert signals.rois.masks.requires_grad
