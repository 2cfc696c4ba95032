"""Each distance on numbers small enough to check by hand."""

from math import log, sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from detkds_core.losses.distances import DISTANCES, VALUES, divergences, kl_divergence, kl_sigmoid


@pytest.mark.parametrize(("name", "value"), [("l1", 4.5 / 4), ("l2", 7.25 / 4), ("smooth_l1", 3 / 4)])
def test_elementwise_distances(name: str, value: float) -> None:
    student, teacher = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[1.0, 1.0], [5.0, 2.5]]]])
    assert DISTANCES[name](student, teacher).item() == pytest.approx(value)  # differences 0, 1, 2, 1.5


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def test_pearson_is_one_minus_the_correlation_over_channels() -> None:
    # Centred: (-1, 0, 1) and (-1, 1, 0), correlation 1/2; opposed: -1.
    assert DISTANCES["pear"](column(1, 2, 3), column(1, 3, 2)).item() == pytest.approx(0.5)
    assert DISTANCES["pear"](column(1, 2, 3), column(3, 2, 1)).item() == pytest.approx(2)
    assert DISTANCES["pear"](column(1, 2, 3), column(11, 13, 15)).item() == pytest.approx(0, abs=1e-6)


def test_cosine_is_one_minus_the_similarity_over_channels() -> None:
    assert DISTANCES["cos"](column(1, 0), column(1, 1)).item() == pytest.approx(1 - 1 / sqrt(2))
    assert DISTANCES["cos"](column(1, 2), column(2, 4)).item() == pytest.approx(0, abs=1e-6)
    assert DISTANCES["cos"](column(1, 2), column(-1, -2)).item() == pytest.approx(2)


@pytest.mark.parametrize("name", ["pear", "cos"])
def test_vectors_without_a_direction(name: str) -> None:
    flat, other = column(0.0, 0.0, 0.0).requires_grad_(), column(1.0, 2.0, 4.0)
    assert DISTANCES[name](flat, column(0, 0, 0)).item() == 0
    apart = DISTANCES[name](flat, other)
    assert apart.item() == 1
    apart.backward()
    assert flat.grad is not None
    assert flat.grad.abs().max() == 0  # not 1e8


def test_a_constant_vector_has_no_correlation_whatever_its_rounding() -> None:
    constant = torch.full((1, 7, 1, 1), 0.1)
    assert DISTANCES["pear"](constant, 3 * constant).item() == 0
    assert DISTANCES["pear"](constant, column(1, 2, 3, 4, 5, 6, 8)).item() == 1


KL = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)  # of (3/4, 1/4) from (1/2, 1/2)


def test_kl_has_the_log_on_the_student() -> None:
    student, teacher = column(5.0, 5.0), column(log(3), 0.0)
    assert kl_divergence(student, teacher, dims=(1,)).item() == pytest.approx(KL)
    other_way = 0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25)
    assert kl_divergence(teacher, student, dims=(1,)).item() == pytest.approx(other_way)


def test_kl_divides_scores_by_the_temperature_and_multiplies_its_square() -> None:
    student, teacher = column(0.0, 0.0), column(3 * log(3), 0.0)
    assert kl_divergence(student, teacher, dims=(1,), temperature=3.0).item() == pytest.approx(9 * KL)


def test_kl_sums_over_its_axis_and_averages_over_the_rest() -> None:
    # Two channels: one as above over its two positions, one equal.
    teacher = torch.tensor([[[[log(3), 0.0]], [[1.0, 2.0]]]])
    student = torch.tensor([[[[0.0, 0.0]], [[1.0, 2.0]]]])
    assert kl_divergence(student, teacher, dims=(2, 3)).item() == pytest.approx(KL / 2)
    assert kl_divergence(student.movedim(3, 0), teacher.movedim(3, 0), dims=(0,)).item() == pytest.approx(KL / 2)


def test_kl_reads_height_and_width_as_one_axis() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 5, generator=generator)
    expected = kl_divergence(student.flatten(2), teacher.flatten(2), dims=(2,))
    assert_close(kl_divergence(student, teacher, dims=(2, 3)), expected)


def test_pearson_over_positions_and_over_images() -> None:
    student, teacher = torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 3, 2])  # correlation 1/2
    assert DISTANCES["pear_HW"](student.view(1, 1, 1, 3), teacher.view(1, 1, 1, 3)).item() == pytest.approx(0.5)
    assert DISTANCES["pear_HW"](student.view(1, 1, 3), teacher.view(1, 1, 3)).item() == pytest.approx(0.5)
    assert DISTANCES["pear_N"](student.view(3, 1, 1, 1), teacher.view(3, 1, 1, 1)).item() == pytest.approx(0.5)
    two = torch.stack([student, -student], dim=1), torch.stack([teacher, teacher], dim=1)  # another element, of correlation -1/2
    assert DISTANCES["pear_N"](*two).item() == pytest.approx((0.5 + 1.5) / 2)


def test_correlation_is_the_square_of_one_minus_it() -> None:
    student, teacher = torch.tensor([[1.0, 1], [2, 2], [3, 3]]), torch.tensor([[1.0, 3], [3, 2], [2, 1]])  # 1/2 and -1
    assert DISTANCES["cor"](student, teacher).item() == pytest.approx((0.5**2 + 2**2) / 2)
    assert DISTANCES["cor"](student, student).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["pear_N", "cor"])
def test_a_correlation_over_two_images_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' correlates over a batch; over 2"):
        DISTANCES[name](torch.ones(2, 3), torch.ones(2, 3))


def test_ssim_of_one_window() -> None:
    # A map of 1 x 2 cells is one window. Means 1 and 2, spreads 1 and 4, covariance 2, range 4.
    student, teacher = torch.tensor([0.0, 2]).view(1, 1, 1, 2), torch.tensor([0.0, 4]).view(1, 1, 1, 2)
    c1, c2 = 0.04**2, 0.12**2
    expected = (2 * 1 * 2 + c1) / (1 + 4 + c1) * (2 * 2 + c2) / (1 + 4 + c2)
    assert DISTANCES["ssim"](student, teacher).item() == pytest.approx(1 - expected)


def test_ssim_is_the_mean_over_windows_channels_and_images() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 9, 10, generator=generator)
    total, windows = 0.0, 0
    for s_image, t_image in zip(student, teacher, strict=True):
        span = (t_image.max() - t_image.min()).item()
        c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
        for s, t in zip(s_image, t_image, strict=True):
            for row in range(9 - 6):
                for column in range(10 - 6):
                    a, b = (x[row : row + 7, column : column + 7] for x in (s, t))
                    both = ((a - a.mean()) * (b - b.mean())).mean()
                    structure = (2 * both + c2) / (a.var(correction=0) + b.var(correction=0) + c2)
                    total += ((2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1) * structure).item()
                    windows += 1
    assert DISTANCES["ssim"](student, teacher).item() == pytest.approx(1 - total / windows, rel=1e-4)
    assert DISTANCES["ssim"](teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_ssim_of_constant_maps() -> None:
    for level in (0.0, 3.0, -1e6):
        flat = torch.full((1, 2, 8, 8), level)
        assert DISTANCES["ssim"](flat, flat).item() == 0
        other = (flat + 1).requires_grad_()
        loss = DISTANCES["ssim"](other, flat)
        loss.backward()
        assert loss.item() >= 0
        assert other.grad is not None
        assert other.grad.isfinite().all()


def test_kl_of_sigmoids_sums_over_classes() -> None:
    # Teacher 3/4 and 1/2, student 1/2 and 1/2.
    student, teacher = column(0.0, 0.0), column(log(3), 0.0)
    assert kl_sigmoid(student, teacher).item() == pytest.approx(KL)
    assert kl_sigmoid(teacher, teacher).item() == 0
    far = kl_sigmoid(column(-1e6, 1e6), column(1e6, 1e6))
    assert far.item() == pytest.approx(1e6)


@pytest.mark.parametrize("name", ["l1", "l2", "smooth_l1"])
def test_slopes_of_elementwise_distances(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(2, 2, 3, 4, 5, generator=generator)).requires_grad_().unbind()
    theirs = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[name]
    weights = torch.randn(2, 4, 5, generator=generator)
    pairs = [
        (DISTANCES[name](student, teacher), theirs(student, teacher)),
        ((weights * VALUES[name](student, teacher)).sum(), (weights * theirs(student, teacher, reduction="none").mean(1)).sum()),
    ]
    for pair in pairs:
        for one, other in zip(*(torch.autograd.grad(loss, (student, teacher), retain_graph=True) for loss in pair), strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("name", VALUES)
def test_values_at_positions_have_the_distance_as_their_mean(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 5, generator=generator)
    values = VALUES[name](student, teacher)
    assert values.shape == (2, 4, 5)
    mean = kl_sigmoid(student, teacher) if name == "kl_sigmoid" else DISTANCES[name](student, teacher)
    assert_close(values.mean(), mean)
    assert_close(divergences(student, teacher, (1,), 2.0).mean(), kl_divergence(student, teacher, (1,), 2.0))
