"""Box distances and their weights on one or two cells."""

from math import log

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkds_core.losses.localization import (
    box_certainty,
    box_diou,
    box_giou,
    box_iou,
    box_l1,
    delta_l1,
    edge_divergence,
    hulls,
    likeliest_boxes,
    point_l1,
)


def box(*corners: float) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32)


def test_l1_is_relative_to_the_teachers_box() -> None:
    assert box_l1(box(0, 0, 2, 2), box(0, 0, 4, 2)).item() == pytest.approx((2 / 4) / 4)
    assert box_l1(box(1, 0, 4, 3), box(0, 0, 4, 2)).item() == pytest.approx((1 / 4 + 1 / 2) / 4)
    assert box_l1(box(0, 0, 8, 8), box(0, 0, 0, 0), least=8).item() == pytest.approx(2 / 4)  # a sliver counts as a cell


def test_iou_and_giou() -> None:
    teacher = box(0, 0, 4, 2)
    assert box_iou(box(0, 0, 2, 2), teacher).item() == pytest.approx(0.5)
    assert box_giou(box(0, 0, 2, 2), teacher).item() == pytest.approx(0.5)  # the hull is the union
    assert box_iou(box(2, 0, 6, 2), teacher).item() == pytest.approx(1 - 4 / 12)
    assert box_giou(box(8, 0, 12, 2), teacher).item() == pytest.approx(1 + 8 / 24)  # apart: hull 24, union 16
    for distance in (box_iou, box_giou):
        assert distance(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_giou_pulls_boxes_that_do_not_touch() -> None:
    student = box(8, 0, 12, 2).requires_grad_()
    box_giou(student, box(0, 0, 4, 2)).backward()
    assert student.grad is not None
    assert student.grad[0] > 0  # the left side must go left


def test_edges_compare_the_distribution_of_each_side() -> None:
    # Two bins. Left side: teacher (3/4, 1/4), student (1/2, 1/2); the other three are equal.
    student = torch.zeros(1, 8, 1, 1)
    teacher = student.clone()
    teacher[0, 0] = log(3)
    kl = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert edge_divergence(student, teacher).item() == pytest.approx(kl / 4)
    assert edge_divergence(student, 2 * teacher, temperature=2.0).item() == pytest.approx(4 * kl / 4)
    with pytest.raises(ValueError, match="got 6"):
        edge_divergence(torch.zeros(1, 6, 1, 1), torch.zeros(1, 6, 1, 1))


def test_certainty_is_the_best_class_of_each_anchor_in_the_order_of_the_boxes() -> None:
    # 1 x 2 cells, 2 anchors, 2 classes: channels are (anchor, class), boxes (cell, anchor).
    scores = torch.tensor([[[0.1, 0.2], [0.3, 0.1]], [[0.5, 0.6], [0.4, 0.8]]])  # (A, K, W)
    boxes = torch.tensor([0.0, 0, 4, 4]).expand(1, 4, 4)
    certainty = box_certainty(scores.logit().view(1, 4, 1, 2), boxes)
    assert_close(certainty, torch.tensor([[0.3, 0.5, 0.2, 0.8]]))


def test_a_teachers_box_without_area_is_no_candidate() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [4, 4, 4, 8]]])
    assert_close(box_certainty(torch.zeros(1, 3, 1, 2), boxes), torch.tensor([[0.5, 0.0]]))


def test_boxes_and_scores_that_fit_no_number_of_anchors() -> None:
    with pytest.raises(ValueError, match="5 boxes and 4 class scores on a map of 1 x 2 cells"):
        box_certainty(torch.zeros(1, 4, 1, 2), torch.zeros(1, 5, 4))


def test_diou_also_pulls_the_centres_together() -> None:
    teacher = box(0, 0, 4, 2)
    assert box_diou(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    # Centres 2 apart, hull 6 x 2: 4 / 40 beside 1 - 4/12.
    assert box_diou(box(2, 0, 6, 2), teacher).item() == pytest.approx(1 - 4 / 12 + 4 / 40)
    student = box(8, 0, 12, 2).requires_grad_()
    box_diou(student, teacher).backward()
    assert student.grad is not None
    assert student.grad[0] > 0  # boxes that do not touch are pulled


def test_points_are_relative_to_the_box_around_the_teachers() -> None:
    teacher = torch.tensor([[0.0, 0], [4, 2]])  # a box of 4 x 2
    student = torch.tensor([[1.0, 0], [4, 3]])
    assert point_l1(student, teacher).item() == pytest.approx((1 / 4 + 0 + 0 + 1 / 2) / 4)
    assert point_l1(student, teacher, least=8).item() == pytest.approx((1 / 8 + 1 / 8) / 4)
    assert hulls(teacher).tolist() == [0, 0, 4, 2]


def test_deltas_are_relative_to_the_proposal() -> None:
    proposal = box(0, 0, 10, 20)
    # Centres 1 and 2 apart, the student twice as wide.
    student, teacher = box(-1, 2, 7, 12), box(0, 0, 4, 10)
    assert delta_l1(student, teacher, proposal).item() == pytest.approx((1 / 10 + 2 / 20 + log(2) + 0) / 4)


def test_the_box_of_the_likeliest_foreground_class() -> None:
    # Two classes and background; the background is likeliest in the second proposal.
    scores = torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.1, 0.6]]).log()
    boxes = torch.arange(16.0).view(2, 2, 4)
    certainty, chosen, shared = likeliest_boxes(scores, boxes, boxes[:, :1])
    assert_close(certainty, torch.tensor([0.7, 0.3]))
    assert_close(chosen, torch.stack([boxes[0, 1], boxes[1, 0]]))
    assert_close(shared, boxes[:, 0])
