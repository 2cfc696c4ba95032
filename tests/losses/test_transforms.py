"""Each transform on numbers small enough to check by hand."""

from math import exp, log, sqrt, tanh

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkds_core.losses.transforms import NORMALISATION, SCALE


def maps(*values: float, shape: tuple[int, int, int, int]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(shape)


def test_pooling_takes_the_largest_of_each_block() -> None:
    feat = torch.arange(1.0, 17).view(1, 1, 4, 4)
    assert_close(SCALE["scale_r2"](feat), maps(6, 8, 14, 16, shape=(1, 1, 2, 2)))
    assert SCALE["multi_scale_r4"](feat).item() == 16
    assert SCALE["scale_r1"](feat) is feat
    assert_close(SCALE["scale"](feat), (feat + 1) / 2)


def test_pooling_pads_odd_maps_with_zeros_that_take_part() -> None:
    feat = -torch.ones(1, 1, 3, 3)
    assert_close(SCALE["scale_r2"](feat), maps(-1, 0, 0, 0, shape=(1, 1, 2, 2)))
    assert SCALE["multi_scale_r4"](feat).shape == (1, 1, 1, 1)


def test_local_patches_become_channels() -> None:
    feat = torch.arange(1.0, 17).view(1, 1, 4, 4)
    patches = SCALE["local_s2"](feat)  # upper left, upper right, lower left, lower right
    assert_close(patches[0], torch.tensor([[[1.0, 2], [5, 6]], [[3, 4], [7, 8]], [[9, 10], [13, 14]], [[11, 12], [15, 16]]]))
    assert_close(SCALE["local_s1"](feat)[0, :, 0, 0], feat.flatten())
    assert_close(SCALE["local_s4"](feat), feat)
    padded = SCALE["local_s2"](torch.ones(2, 3, 3, 5))
    assert padded.shape == (2, 3 * 2 * 3, 2, 2)
    assert padded.sum() == 2 * 3 * 15


def test_norms_divide_by_the_length_along_their_axis() -> None:
    assert_close(NORMALISATION["norm_C"](maps(3, 4, shape=(1, 2, 1, 1))).flatten(), torch.tensor([0.6, 0.8]))
    assert_close(NORMALISATION["norm_N"](maps(3, 4, shape=(2, 1, 1, 1))).flatten(), torch.tensor([0.6, 0.8]))
    assert_close(NORMALISATION["norm_HW"](maps(1, 1, 1, 1, shape=(1, 1, 2, 2))).flatten(), torch.full((4,), 0.5))


@pytest.mark.parametrize("name", ["norm_C", "norm_N", "norm_HW"])
def test_a_zero_vector_stays_zero_and_gets_no_gradient(name: str) -> None:
    feat = torch.zeros(2, 3, 2, 2, requires_grad=True)
    out = NORMALISATION[name](feat)
    out.sum().backward()
    assert out.abs().max() == 0
    assert feat.grad is not None
    assert feat.grad.abs().max() == 0


def test_softmaxes_sum_to_one_along_their_axis() -> None:
    feat = maps(0.0, log(3), log(1), log(2), shape=(1, 2, 1, 2))
    assert_close(NORMALISATION["softmax_HW"](feat), torch.tensor([[[1 / 4, 3 / 4], [1 / 3, 2 / 3]]]))
    assert_close(NORMALISATION["softmax_C"](feat).flatten(), torch.tensor([1 / 2, 3 / 5, 1 / 2, 2 / 5]))
    pair = maps(0.0, log(3), shape=(2, 1, 1, 1))
    assert_close(NORMALISATION["softmax_N"](pair).flatten(), torch.tensor([0.25, 0.75]))
    for axis, sample in (("HW", feat), ("C", feat), ("N", pair)):
        assert_close(NORMALISATION[f"logsoftmax_{axis}"](sample).exp(), NORMALISATION[f"softmax_{axis}"](sample))


def test_layouts_say_what_stands_along_dim_1() -> None:
    feat = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert_close(NORMALISATION["batch"](feat), feat.view(2, 60))
    assert_close(NORMALISATION["channel"](feat), feat.view(2, 3, 20))


def test_standardisations() -> None:
    feat = maps(1.0, 3.0, shape=(1, 1, 1, 2))
    assert_close(NORMALISATION["batchnorm"](feat).flatten(), torch.tensor([-1.0, 1.0]) / sqrt(1 + 1e-5))  # biased variance 1
    assert_close(NORMALISATION["standardize"](feat).flatten(), torch.tensor([-1.0, 1.0]) / (sqrt(2) + 1e-6))  # unbiased variance 2
    assert_close(
        NORMALISATION["min_max_normalize"](maps(1.0, 2.0, 3.0, 5.0, shape=(1, 1, 2, 2))).flatten(), torch.tensor([0, 0.25, 0.5, 1])
    )


@pytest.mark.parametrize("name", ["min_max_normalize", "batchnorm", "standardize"])
def test_a_constant_map_has_no_spread_and_gives_zero(name: str) -> None:
    assert NORMALISATION[name](torch.full((2, 3, 2, 2), 7.0)).abs().max() < 1e-4  # batchnorm rounds the mean


@pytest.mark.parametrize("name", ["norm_N", "softmax_N", "logsoftmax_N"])
def test_an_operation_over_images_refuses_one_image_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*at least 2"):
        NORMALISATION[name](torch.ones(1, 2, 2, 2))


@pytest.mark.parametrize("name", ["batchnorm", "standardize"])
def test_a_spread_of_one_value_a_channel_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' needs more than one value"):
        NORMALISATION[name](torch.ones(1, 2, 1, 1))


def test_grams() -> None:
    feat = maps(1, 2, 3, 4, shape=(1, 2, 1, 2))  # channels (1, 2) and (3, 4)
    assert NORMALISATION["bmm"](feat).tolist() == [[[5, 11], [11, 25]]]
    assert NORMALISATION["mm"](feat.view(2, 1, 1, 2)).tolist() == [[5, 11], [11, 25]]
    with pytest.raises(ValueError, match=r"'mm'.*at least 2"):
        NORMALISATION["mm"](feat)


POINTWISE = {
    "pow2": (4, 0.25),
    "pow4": (16, 0.0625),
    "log": (-log(2 + 1e-9), log(0.5 + 1e-9)),
    "abs": (2, 0.5),
    "sigmoid": (1 / (1 + exp(2)), 1 / (1 + exp(-0.5))),
    "swish": (-2 / (1 + exp(2)), 0.5 / (1 + exp(-0.5))),
    "tanh": (tanh(-2), tanh(0.5)),
    "relu": (0, 0.5),
    "leaky_relu": (-0.02, 0.5),
    "mish": (-2 * tanh(log(1 + exp(-2))), 0.5 * tanh(log(1 + exp(0.5)))),
    "exp": (exp(-2), exp(0.5)),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise(name: str) -> None:
    assert_close(NORMALISATION[name](torch.tensor([-2.0, 0.5])), torch.tensor(POINTWISE[name], dtype=torch.float32))


@pytest.mark.parametrize("name", [*POINTWISE, "sqrt"])
def test_pointwise_of_anything_is_finite_with_its_slope(name: str) -> None:
    feat = torch.tensor([0.0, 1e-30, 1e-9, 1, 50, 6e4, 1e6, -1e-9, -1, -50, -6e4, -1e6]).requires_grad_()
    out = NORMALISATION[name](feat)
    (slope,) = torch.autograd.grad(out.sum(), feat, retain_graph=True)
    assert slope.isfinite().all()
    square = out.square().sum() + (out[:, None] @ out[None]).sum()
    (slope,) = torch.autograd.grad(square, feat)
    assert square.isfinite()
    assert slope.isfinite().all()


def test_a_root_is_a_line_near_zero() -> None:
    feat = torch.tensor([0.0, 4.0, 1e-12, 0.25e-12]).requires_grad_()
    out = NORMALISATION["sqrt"](feat)
    out.sum().backward()
    assert_close(out, torch.tensor([0, 2, 1e-6, 0.25e-6]))
    assert feat.grad is not None
    assert_close(feat.grad, torch.tensor([1e6, 0.25, 1e6, 1e6]))


def test_mish_is_what_torch_computes_on_other_devices() -> None:
    feat = torch.linspace(-30, 30, 601).requires_grad_()
    ours, theirs = NORMALISATION["mish"](feat), torch.nn.functional.mish(feat)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (slope,), (other,) = (torch.autograd.grad(one.sum(), feat) for one in (ours, theirs))
    assert_close(slope, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["norm_C", "norm_N", "norm_HW", "standardize", "mish", "log", "pow2"])
def test_the_slope_of_a_normalisation(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(NORMALISATION[name], (feat,))
