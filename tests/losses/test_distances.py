"""Each distance on numbers small enough to check by hand."""

from math import log, sqrt

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkds_core.losses.distances import DISTANCES, kl_divergence


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
