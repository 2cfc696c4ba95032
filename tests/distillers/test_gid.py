"""GID worked out by hand on a few predictions, and what it promises."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkds_core.distillers.gid import GID, cut, relation
from detkds_core.losses import Scene, Signals

IMAGE = (80, 80)
NOWHERE = Scene((torch.zeros(0, 4),), IMAGE)


def logit(*scores: float) -> Tensor:
    """Raw scores of one image, one class and a row of cells: (1, 1, 1, n)."""
    return torch.tensor(scores).logit().view(1, 1, 1, -1)


def row(*boxes: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor([boxes], dtype=torch.float32)


# Four cells. The teacher is surer in the first two, which overlap; the student in the third; they agree in the fourth.
BOXES = row((0, 0, 40, 40), (0, 0, 40, 36), (40, 40, 80, 80), (50, 0, 70, 20))
TEACHER, STUDENT = (0.9, 0.6, 0.2, 0.5), (0.1, 0.1, 0.5, 0.5)


def signals(scores: tuple[float, ...], boxes: Tensor, feat: Tensor | None = None) -> Signals:
    return Signals((torch.zeros(1, 1, 10, 10) if feat is None else feat,), (logit(*scores),), (boxes,))


def test_instances_are_where_the_two_differ_most() -> None:
    gid = GID([1], [1])
    differences = torch.tensor([0.8, 0.5, 0.3, 0.0])
    # Overlap of the first two is 0.9, so the second goes; the fourth tells nothing.
    assert_close(gid.select(BOXES[0], differences, IMAGE), BOXES[0, [0, 2]])
    assert_close(GID([1], [1], instances=1).select(BOXES[0], differences, IMAGE), BOXES[0, :1])
    assert_close(GID([1], [1], iou=0.95).select(BOXES[0], differences, IMAGE), BOXES[0, :3])
    # Slivers, below 1/80 of the image, are none.
    assert len(gid.select(torch.tensor([[0.0, 0.0, 0.5, 40.0]]), torch.tensor([1.0]), IMAGE)) == 0


def test_responses_by_hand() -> None:
    moved = BOXES.clone()
    moved[0, 0] += torch.tensor([4.0, 0.0, 4.0, 0.0])  # a tenth of the width, in both x
    losses = GID([1], [1])(signals(STUDENT, moved), signals(TEACHER, BOXES), NOWHERE)
    # Instances: the first and the third box. Predictions whose own box overlaps one by half: the first three.
    cross = sum(t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s)) for t, s in zip(TEACHER[:3], STUDENT[:3], strict=True))
    assert losses["distill/gid_classes"].item() == pytest.approx(0.1 * cross / 3, rel=1e-5)
    assert losses["distill/gid_boxes"].item() == pytest.approx(1.0 * (0.1 + 0.1) / 3, rel=1e-5)


def test_features_by_hand() -> None:
    gid = GID([1], [1], feature=2.0)
    with torch.no_grad():
        gid.adapt[0].weight.zero_()
        gid.adapt[0].bias.fill_(1.0)
    # The adapted student is 1 everywhere, the teacher 4: squared difference 9 at each position of each instance.
    losses = gid(signals(STUDENT, BOXES), signals(TEACHER, BOXES, torch.full((1, 1, 10, 10), 4.0)), NOWHERE)
    assert losses["distill/gid_feature"].item() == pytest.approx(2 * 9)
    assert losses["distill/gid_relation"].item() == 0  # two instances


def test_relation_by_hand() -> None:
    # Points on a line: distances 3, 4, 1 and 1, 2, 1, in units of their means 8/3 and 4/3.
    teacher, student = torch.tensor([[0.0], [3.0], [4.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    differences = [9 / 8 - 3 / 4, 12 / 8 - 6 / 4, 3 / 8 - 3 / 4]
    assert relation(student, teacher).item() == pytest.approx(2 * sum(d**2 / 2 for d in differences) / 6, rel=1e-5)
    assert relation(5 * teacher, teacher).item() == pytest.approx(0, abs=1e-10)


def test_an_instance_is_cut_from_the_level_of_its_size() -> None:
    maps = [torch.full((1, 1, 448 // s, 448 // s), float(s)) for s in (8, 16, 32)]
    boxes = [torch.tensor([[0.0, 0, 20, 20], [0, 0, 120, 120], [0, 0, 224, 224], [0, 0, 440, 440], [0, 0, 448, 448]])]
    assert cut(maps, boxes, (448, 448)).mean((1, 2, 3)).tolist() == [8, 8, 16, 16, 32]


def test_the_student_learns_and_agreement_or_an_empty_image_costs_nothing() -> None:
    torch.manual_seed(0)
    gid = GID([3], [2])
    feat = torch.randn(1, 3, 10, 10, requires_grad=True)
    scores, boxes = logit(*STUDENT).requires_grad_(), (BOXES + 1).requires_grad_()
    teacher = Signals((torch.randn(1, 2, 10, 10),), (logit(*TEACHER),), (BOXES,))
    torch.stack(list(gid(Signals((feat,), (scores,), (boxes,)), teacher, NOWHERE).values())).sum().backward()
    for tensor in (feat, scores, boxes, *gid.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
    agreed = gid(Signals((feat,), teacher.logits, teacher.boxes), teacher, NOWHERE)
    assert all(loss.item() == 0 for loss in agreed.values())


def test_heads_that_do_not_fit_are_named() -> None:
    other = Signals((torch.zeros(1, 1, 10, 10),), (torch.zeros(1, 2, 1, 4),), (BOXES,))
    with pytest.raises(ValueError, match=r"\(1, 4, 2\) at the student and \(1, 4, 1\) at the teacher"):
        GID([1], [1])(other, signals(TEACHER, BOXES), NOWHERE)
    with pytest.raises(ValueError, match="class scores and boxes a level, got 0 and 0"):
        GID([1], [1])(Signals(other.features), signals(TEACHER, BOXES), NOWHERE)
