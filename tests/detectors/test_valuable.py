"""Anchors that nearly became an object's: worked out by hand on a line of boxes, and by brute force on the heads that can tell."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from detkds_core.catalogue import DETECTORS
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.pair import Student
from detkds_core.detectors.tap import dense_head
from detkds_core.detectors.valuable import ALPHA, adaptive_thresholds, overlaps, valuable

OBJECT = torch.tensor([[0.0, 0, 8, 8]])
SHAPE, SIZES = (64, 96), [(8, 12), (4, 6), (2, 3)]


def shifted(*pixels: float) -> torch.Tensor:
    """The object, so many pixels to the right. By 2: IoU 3/5; by 4: 1/3; by 6: 1/7; by 8: 0."""
    return torch.stack([OBJECT[0] + torch.tensor([x, 0.0, x, 0.0]) for x in pixels])


def test_an_anchor_is_valuable_between_a_quarter_of_the_threshold_and_the_threshold() -> None:
    # Distance-IoU: 3/5 - 4/164 = 0.576, 1/3 - 16/208 = 0.256, 1/7 - 36/260 = 0.004, 0 - 64/320.
    anchors = shifted(0, 2, 4, 6, 8)
    assert_close(valuable(anchors, OBJECT, torch.tensor([0.5])), torch.tensor([0, 0, 1 / 3, 0, 0]))
    assert_close(valuable(anchors, OBJECT, torch.tensor([0.58])), torch.tensor([0, 3 / 5, 1 / 3, 0, 0]))  # whose IoU alone is above 0.58
    assert_close(valuable(anchors, OBJECT, torch.tensor([0.01])), torch.tensor([0, 0, 0, 1 / 7, 0]))


def test_of_several_objects_the_one_that_overlaps_most_counts_and_none_is_nothing() -> None:
    objects = torch.cat([OBJECT, OBJECT + torch.tensor([6.0, 0, 6, 0])])
    # To the right of the first by 4 and of the second by -2, which is too near to it at 0.5.
    assert_close(valuable(shifted(4), objects, torch.tensor([0.5, 0.5])), torch.tensor([1 / 3]))
    assert_close(valuable(shifted(4), objects, torch.tensor([0.5, 0.6])), torch.tensor([3 / 5]))
    assert valuable(shifted(0, 4), OBJECT[:0], torch.zeros(0)).tolist() == [0, 0]


def test_adaptive_thresholds_are_mean_and_deviation_of_the_nearest_of_each_level() -> None:
    # The two nearest of the first level overlap by 1 and 1/3, the only one of the second by 3/5: deviations from 29/45 are 16, -14, -2.
    levels, everything = [shifted(0, 8, 4), shifted(2)], [torch.ones(3, dtype=torch.bool), torch.ones(1, dtype=torch.bool)]
    expected = 29 / 45 + ((16**2 + 14**2 + 2**2) / 45**2 / 2) ** 0.5
    assert_close(adaptive_thresholds(levels, everything, OBJECT, 2), torch.tensor([expected]))
    # Without the second of them: the next one, which does not touch it, is a candidate: 1, 0 and 3/5.
    expected = 8 / 15 + ((7**2 + 8**2 + 1) / 15**2 / 2) ** 0.5
    assert_close(adaptive_thresholds(levels, [torch.tensor([True, True, False]), everything[1]], OBJECT, 2), torch.tensor([expected]))
    # A single candidate has no deviation, so nothing is above or below.
    alone = adaptive_thresholds(levels[1:], everything[1:], OBJECT, 2)
    assert alone.isnan().all()
    assert valuable(shifted(4), OBJECT, alone).tolist() == [0]


def test_an_assigner_that_compares_no_anchors_is_refused() -> None:
    truth = SimpleNamespace(bboxes=OBJECT)
    with pytest.raises(ValueError, match="SimpleNamespace assigns no object to anchors by their overlap"):
        overlaps(SimpleNamespace(), [[shifted(0)]], [[torch.tensor([True])]], [truth])


def share(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and distance-IoU of two boxes, number by number."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inner = max(0.0, width) * max(0.0, height)
    iou = inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)
    apart = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    return iou, iou - apart / ((max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2)


def by_brute_force(levels: list[list[list[float]]], objects: list[list[float]], least: list[float], assigned: list[bool]) -> list[float]:
    found = []
    for anchor, taken in zip((anchor for level in levels for anchor in level), assigned, strict=True):
        shares = [(share(anchor, one), threshold) for one, threshold in zip(objects, least, strict=True)]
        near = [iou for (iou, distance_iou), threshold in shares if ALPHA * threshold <= distance_iou < threshold]
        found.append(0.0 if taken else max(near, default=0.0))
    return found


def thresholds(assigner: object, levels: list[list[list[float]]], objects: list[list[float]]) -> list[float]:
    if hasattr(assigner, "pos_iou_thr"):
        return [assigner.pos_iou_thr] * len(objects)
    found = []
    for one in objects:

        def apart(anchor: list[float], one: list[float] = one) -> float:
            return (anchor[0] + anchor[2] - one[0] - one[2]) ** 2 + (anchor[1] + anchor[3] - one[1] - one[3]) ** 2

        shares = [share(anchor, one)[0] for level in levels for anchor in sorted(level, key=apart)[: assigner.topk]]
        mean = sum(shares) / len(shares)
        found.append(mean + (sum((x - mean) ** 2 for x in shares) / (len(shares) - 1)) ** 0.5)
    return found


@pytest.mark.parametrize("family", ["gfl", "retinanet", "faster_rcnn"])
def test_a_head_tells_its_valuable_anchors(family: str, ground_truth) -> None:
    # Objects whose candidates are all at different distances, else which of them counts is the sort's to say.
    objects = torch.tensor([[9.0, 7.0, 42.0, 46.0], [21.0, 3.0, 89.0, 61.0], [61.0, 42.5, 74.0, 54.0]])
    samples = ground_truth(2)
    samples[0].gt_instances = samples[0].gt_instances[[0, 1, 0]]
    samples[0].gt_instances.bboxes = objects.clone()
    samples[1].gt_instances = samples[1].gt_instances[:0]
    name = f"{family}_r18w8_fpn32"
    model = build_detector(name, ("a", "b", "c")).train()
    student = Student(model, (0, 1, 2))
    _, signals = student.losses(torch.randn(2, 3, *SHAPE), samples, frozenset({"assigned", "valuable"}))
    head = dense_head(model)
    levels = [level.tolist() for level in head.prior_generator.grid_priors(SIZES, device="cpu")]
    assigned = torch.cat([level[0] for level in signals.assigned]).tolist()
    expected = by_brute_force(levels, objects.tolist(), thresholds(head.assigner, levels, objects.tolist()), assigned)
    found = torch.cat([level[0] for level in signals.valuable])
    assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert int((found > 0).sum()) > sum(assigned) > 0
    assert not any(level[1].any() for level in signals.valuable), "the second image has no objects"
    assert [level.shape for level in signals.valuable] == [level.shape for level in signals.assigned]
    assert len(DETECTORS[name].anchor_scales) > 0


def test_levels_that_a_pair_leaves_out_are_left_out(ground_truth) -> None:
    torch.manual_seed(3)
    model = build_detector("atss_r18w8_fpn32", ("a", "b", "c")).train()
    wanted = frozenset({"valuable"})
    inputs = torch.randn(2, 3, *SHAPE)
    _, everything = Student(model, range(5)).losses(inputs, ground_truth(2), wanted)
    _, some = Student(model, (1, 2)).losses(inputs, ground_truth(2), wanted)
    assert [torch.equal(a, b) for a, b in zip(some.valuable, everything.valuable[1:3], strict=True)] == [True, True]
    assert sum(float(level.sum()) for level in some.valuable) > 0
