"""Class scores of a cell that has several predictions, RetinaNet's nine: what looks along classes looks at one prediction's."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkds_core.losses import Scene, Signals, policy_losses
from detkds_core.losses.distances import DISTANCES
from detkds_core.losses.transforms import predictions_apart, predictions_together
from detkds_core.policy import parse_formula

IMAGES, A, K, H, W = 2, 3, 4, 5, 6
SCENE = Scene((torch.tensor([[2.0, 2.0, 20.0, 30.0]]), torch.zeros(0, 4)), (8 * H, 8 * W))
ALONG = [
    "kl[T=2](softmax_C(logits))",
    "pear(logits)",
    "cos(logits)",
    "l2(norm_C(logits))",
    "cos(logsoftmax_C(logits))",
    "pear(pow2(logits))",
]


def scores(seed: int, classes: int = K) -> Tensor:
    return 2 * torch.randn(IMAGES, A * classes, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(text: str, student: Tensor, teacher: Tensor, classes: int | None = K, **more: tuple[Tensor, ...]) -> Tensor:
    ours, theirs = (Signals((), logits=(maps,), classes=classes) for maps in (student, teacher))
    (found,) = policy_losses(parse_formula(text), replace(ours, **more), theirs, SCENE).values()
    return found


def test_predictions_lie_beside_one_another_and_come_back() -> None:
    cell = torch.arange(2.0 * 3).view(1, 6, 1, 1) + torch.tensor([0.0, 10.0])  # (1, A*K, 1, 2): two predictions of three classes
    apart = predictions_apart(cell, 3)
    assert_close(apart, torch.tensor([[[[0.0, 3, 10, 13]], [[1, 4, 11, 14]], [[2, 5, 12, 15]]]]))
    assert_close(predictions_together(apart, 2), cell)
    assert_close(predictions_apart(cell.flatten(2), 3), apart.flatten(2))
    last = scores(1).contiguous(memory_format=torch.channels_last)
    assert predictions_apart(last, K).data_ptr() == last.data_ptr(), "nothing is copied"
    assert_close(predictions_together(predictions_apart(last, K), A), last)


@pytest.mark.parametrize("text", ["kl(softmax_C(logits))", "kl[T=2](softmax_C(logits))"])
def test_a_distribution_is_that_of_one_prediction(text: str) -> None:
    """What all classes of a prediction have in common is no difference, also where it is another at the next prediction."""
    teacher = scores(1)
    common = torch.randn(IMAGES, A, 1, H, W, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    student = (teacher.view(IMAGES, A, K, H, W) + common).view_as(teacher)
    assert loss(text, student, teacher).item() == pytest.approx(0, abs=1e-12)
    assert loss(text, student, teacher, None).item() > 0.1, "all scores of a cell as one distribution"


@pytest.mark.parametrize("text", ALONG)
def test_along_classes_a_prediction_is_a_position(text: str) -> None:
    student, teacher = scores(1).requires_grad_(), scores(2)
    found = loss(text, student, teacher)
    expected = loss(text, predictions_apart(student, K), predictions_apart(teacher, K), None)
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(one, student)[0] for one in (found, expected)))


NORMS = {
    "norm_C": lambda one: one / one.norm(dim=2, keepdim=True),
    "softmax_C": lambda one: one.softmax(2),
    "logsoftmax_C": lambda one: one.log_softmax(2),
}


@pytest.mark.parametrize("distance", ["l1", "smooth_l1", "pear_HW", "ssim"])
@pytest.mark.parametrize("norm", NORMS)
def test_after_a_norm_over_classes_channels_are_where_they_were(distance: str, norm: str) -> None:
    student, teacher = scores(1), scores(2)
    sides = (NORMS[norm](one.sigmoid().view(IMAGES, A, K, H, W)).flatten(1, 2) for one in (student, teacher))
    assert_close(loss(f"{distance}({norm}(logits))", student, teacher), DISTANCES[distance](*sides))


@pytest.mark.parametrize("region", ["assigned", "assigned_score"])
@pytest.mark.parametrize("distance", ["l1", "kl_sigmoid", "pear"])
def test_a_cell_counts_for_the_prediction_that_was_assigned(distance: str, region: str) -> None:
    student, teacher = scores(1).requires_grad_(), scores(2)
    assigned = torch.zeros(IMAGES, H, W, A, dtype=torch.bool)
    assigned[1, 3, 2, 1] = True
    loss(f"{distance}[region={region}](logits)", student, teacher, assigned=(assigned.view(IMAGES, -1),)).backward()
    slope = student.grad.view(IMAGES, A, K, H, W).abs().sum(2)  # (B, A, H, W)
    assert slope[1, 1, 3, 2] > 0
    assert slope.sum() == slope[1, 1, 3, 2]


def test_of_predictions_with_one_score_each_those_of_a_cell_are_compared() -> None:
    """A region proposal network's, in DetKDS."""
    student, teacher = scores(1, 1).requires_grad_(), scores(2, 1)
    for text in ("pear(softmax_C(logits))", "kl(softmax_C(logits))", "pear[region=assigned](logits)"):
        cells = torch.arange(IMAGES * H * W * A).view(IMAGES, -1) % 7 == 0
        assert_close(*(loss(text, student, teacher, classes, assigned=(cells,)) for classes in (1, None)))
    assigned = torch.zeros(IMAGES, H, W, A, dtype=torch.bool)
    assigned[0, 1, 1, 2] = True
    loss("l2[region=assigned](logits)", student, teacher, 1, assigned=(assigned.view(IMAGES, -1),)).backward()
    assert student.grad.nonzero().tolist() == [[0, 2, 1, 1]]


@pytest.mark.parametrize("region", ["teacher_score", "foreground"])
def test_a_weighted_cell_is_the_mean_of_its_predictions(region: str) -> None:
    student, teacher = scores(1), scores(2)
    distances = 1 - torch.nn.functional.cosine_similarity(*(one.sigmoid().view(IMAGES, A, K, H, W) for one in (student, teacher)), dim=2)
    if region == "teacher_score":
        weights = teacher.amax(1).sigmoid()
    else:
        weights = torch.zeros(IMAGES, H, W, dtype=torch.float64)
        weights[0, :5, :4] = 1  # cells of 8 px from 2 to 20 and from 2 to 30, both ends included
    assert_close(loss(f"cos[region={region}](logits)", student, teacher), (distances.mean(1) * weights).sum() / weights.sum())
