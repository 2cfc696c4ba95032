"""CrossKD worked out by hand on small heads, and what it promises."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detkds_core.distillers.crosskd import CrossKD, best_score, box_log_iou, quality_focal, restyle
from detkds_core.losses import Scene, Signals

SCENE = Scene((torch.zeros(0, 4),), (8, 8))


def as_boxes(class_features: Tensor, box_features: Tensor, level: int, layer: int) -> tuple[Tensor, Tensor]:
    """A head whose class scores are its class features, and whose boxes begin at 0 and end where its box features say. One anchor."""
    B, _, H, W = box_features.shape
    corner = box_features.permute(0, 2, 3, 1).reshape(B, H * W, 2)
    return class_features, torch.cat([torch.zeros_like(corner), corner], 2)


def as_edges(class_features: Tensor, box_features: Tensor, level: int, layer: int) -> tuple[Tensor, Tensor]:
    return class_features, box_features


def signals(classes: Tensor, boxes: Tensor, objects: int = 1, layer: int = 3) -> Signals:
    B, _, H, W = classes.shape
    assigned = torch.arange(H * W).expand(B, -1) < objects
    return Signals((), towers={layer: ((classes, boxes),)}, assigned=(assigned,))


def test_features_take_the_teachers_mean_and_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator) * scale + scale for scale in (1, 7))
    styled = restyle(student, teacher)
    assert_close(styled.mean((0, 2, 3)), teacher.mean((0, 2, 3)))
    assert_close(styled.std((0, 2, 3)), teacher.std((0, 2, 3)))
    # Values 0, 2 have mean 1 and spread sqrt 2; 3, 7 have 5 and 2 sqrt 2.
    assert_close(restyle(torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[7.0, 3.0]]]])), torch.tensor([[[[3.0, 7.0]]]]))


def test_a_channel_of_one_value_becomes_the_teachers_value() -> None:
    student, teacher = torch.tensor([[[[4.0]], [[-1.0]]]], requires_grad=True), torch.tensor([[[[7.0]], [[3.0]]]])
    styled = restyle(student, teacher)
    assert_close(styled, teacher)
    styled.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_quality_focal_by_hand() -> None:
    student, teacher = torch.tensor(0.5).logit(), torch.tensor(0.9).logit()
    assert quality_focal(student, teacher).item() == pytest.approx(0.4 * math.log(2), rel=1e-5)
    assert quality_focal(teacher, teacher).item() == 0


def test_best_score_is_of_each_cell_and_anchor() -> None:
    # Two anchors of two classes on one row of two cells: channels are anchor-major, predictions cell-major.
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.1], [0.5, 0.6], [0.4, 0.7]]).logit().view(1, 4, 1, 2)
    assert_close(best_score(scores, 2), torch.tensor([[0.3, 0.5, 0.2, 0.7]]))


def test_boxes_by_hand() -> None:
    # Two cells, whose order the student has the wrong way round. Its style is the teacher's already, so it passes unchanged.
    scores = torch.tensor([0.9, 0.5]).logit().view(1, 1, 1, 2)
    corners = torch.tensor([[4.0, 2.0], [4.0, 2.0]]).view(1, 2, 1, 2)  # boxes of 4 x 4 and 2 x 2 pixels
    teacher, student = signals(scores, corners), signals(scores.flip(3), corners.flip(3), objects=2)
    losses = CrossKD(as_boxes, boxes=3.0)(student, teacher, SCENE)
    # Scores 0.5 for 0.9 and 0.9 for 0.5, each 0.4 off; IoU is 4 / 16 in both cells, and GIoU the same.
    cross = -(0.9 * math.log(0.5) + 0.1 * math.log(0.5)) - (0.5 * math.log(0.9) + 0.5 * math.log(0.1))
    assert losses["distill/crosskd_classes"].item() == pytest.approx(0.4 * cross / 2, rel=1e-4)
    assert losses["distill/crosskd_boxes"].item() == pytest.approx(3 * (0.9 + 0.5) * 0.75 / 2, rel=1e-4)


def test_without_giou_boxes_are_compared_by_the_logarithm_of_their_overlap() -> None:
    # The boxes of the test above, of which an IoU is 1/4; and boxes that do not touch, which count as an IoU of a millionth.
    scores = torch.tensor([0.9, 0.5]).logit().view(1, 1, 1, 2)
    corners = torch.tensor([[4.0, 2.0], [4.0, 2.0]]).view(1, 2, 1, 2)
    sides = signals(scores.flip(3), corners.flip(3), objects=2, layer=2), signals(scores, corners, layer=2)
    losses = CrossKD(as_boxes, boxes=0.75, giou=False, layer=2)(*sides, SCENE)
    assert losses["distill/crosskd_boxes"].item() == pytest.approx(0.75 * (0.9 + 0.5) * math.log(4) / 2, rel=1e-4)
    assert box_log_iou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([2.0, 0, 3, 1])).item() == pytest.approx(6 * math.log(10), rel=1e-5)


def test_features_of_its_own_layer_go_through_what_follows_it() -> None:
    asked = []

    def tail(classes: Tensor, boxes: Tensor, level: int, layer: int) -> tuple[Tensor, Tensor]:
        asked.append(layer)
        return as_boxes(classes, boxes, level, layer)

    generator = torch.Generator().manual_seed(1)
    classes, boxes = torch.randn(1, 3, 4, 4, generator=generator), torch.rand(1, 2, 4, 4, generator=generator) + 1
    far = signals(classes + 1, boxes + 1, layer=3)
    student, teacher = signals(classes, boxes, layer=2), signals(classes, boxes, layer=2)
    both = [replace(side, towers={**side.towers, **far.towers}) for side in (student, teacher)]
    losses = CrossKD(tail, layer=2)(both[0], both[1], SCENE)
    assert asked == [2, 2]
    assert losses["distill/crosskd_classes"].item() == pytest.approx(0, abs=1e-4)
    with pytest.raises(ValueError, match="features of both heads after layer 1, got 0 and 0 levels"):
        CrossKD(tail, layer=1)(both[0], both[1], SCENE)


def test_edges_by_hand() -> None:
    # Two bins on each of four sides, of odds 3 : 1 in one cell and 1 : 3 in the other; the student has them the wrong way round.
    odds = torch.tensor([math.log(3), -math.log(3)])
    sides = torch.stack([odds / 2, -odds / 2]).repeat(4, 1).view(1, 8, 1, 2)
    scores = torch.tensor([0.9, 0.5]).logit().view(1, 1, 1, 2)
    losses = CrossKD(as_edges, boxes=4.0)(signals(scores, sides.flip(3)), signals(scores, sides), SCENE)
    # Each side's KL is 0.75 ln 3 - 0.25 ln 3, whatever the weights, which are divided away.
    assert losses["distill/crosskd_boxes"].item() == pytest.approx(4 * 0.5 * math.log(3), rel=1e-4)
    assert losses["distill/crosskd_classes"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_student_learns_through_the_teachers_head_which_does_not(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = nn.ModuleList([nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)]).requires_grad_(False)

    def tail(classes: Tensor, boxes: Tensor, level: int, layer: int) -> tuple[Tensor, Tensor]:
        return head[0](classes.relu()), as_boxes(classes, head[1](boxes.relu()).exp(), level, layer)[1]

    distiller = CrossKD(tail, tower_channels=(3, 4))
    student = signals(*(torch.randn(2, 3, 4, 4, dtype=dtype).requires_grad_() for _ in range(2)))
    teacher = signals(*(torch.randn(2, 4, 4, 4, dtype=dtype).requires_grad_() for _ in range(2)))
    loss = torch.stack(list(distiller(student, teacher, SCENE).values())).sum()
    loss.backward()
    assert loss.dtype == torch.float32
    for tensor in (*student.towers[3][0], *distiller.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in (*teacher.towers[3][0], *head.parameters()))
    assert len(list(CrossKD(tail, tower_channels=(4, 4)).parameters())) == 0


def test_agreement_costs_nothing_and_no_objects_are_no_division_by_zero() -> None:
    generator = torch.Generator().manual_seed(1)
    classes, boxes = torch.randn(1, 3, 4, 4, generator=generator), torch.rand(1, 2, 4, 4, generator=generator) + 1
    losses = CrossKD(as_boxes)(signals(classes, boxes, objects=0), signals(classes, boxes), SCENE)
    assert all(loss.item() == pytest.approx(0, abs=1e-4) for loss in losses.values())


def test_what_is_missing_is_named() -> None:
    full = signals(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2))
    with pytest.raises(ValueError, match="features of both heads after layer 3, got 0 and 1 levels"):
        CrossKD(as_boxes)(Signals(()), full, SCENE)
    with pytest.raises(ValueError, match="takes for objects, and got none"):
        CrossKD(as_boxes)(Signals((), towers=full.towers), full, SCENE)
