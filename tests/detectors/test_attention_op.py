"""Multi-scale deformable attention through mmcv's wrapper, against its definition sample by sample."""

import math

import pytest
import torch
from torch import Tensor

from detkds_core.detectors.runtime import prepare_mmdet

prepare_mmdet()

from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction  # noqa: E402  the bridge comes first

SHAPES = ((3, 4), (2, 2))
B, QUERIES, HEADS, POINTS, DEPTH = 2, 3, 2, 2, 3
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def drawn(device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    cells = sum(H * W for H, W in SHAPES)
    value = torch.randn(B, cells, HEADS, DEPTH, generator=generator, dtype=torch.double)
    # some of them outside the map
    locations = torch.rand(B, QUERIES, HEADS, len(SHAPES), POINTS, 2, generator=generator, dtype=torch.double) * 1.4 - 0.2
    weights = torch.rand(B, QUERIES, HEADS, len(SHAPES), POINTS, generator=generator, dtype=torch.double)
    return value.to(device), locations.to(device), weights.to(device)


def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    shapes = torch.tensor(SHAPES, device=value.device)
    starts = torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]], device=value.device)
    return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


def sample(plane: list[list[float]], x: float, y: float) -> float:
    """Bilinear at (x, y) from 0 to 1, cells' centres at (i + 0.5) / n, zero outside."""
    H, W = len(plane), len(plane[0])
    x, y = x * W - 0.5, y * H - 0.5
    left, top = math.floor(x), math.floor(y)
    total = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < H and 0 <= column < W:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * plane[row][column]
    return total


@pytest.mark.parametrize("device", DEVICES)
def test_a_query_sums_its_samples_of_all_maps(device):
    value, locations, weights = drawn(device)
    found = attend(value, locations, weights)
    assert found.shape == (B, QUERIES, HEADS * DEPTH)
    for b, q, head, d in ((0, 0, 0, 0), (1, 2, 1, 2), (0, 1, 1, 0)):
        expected, start = 0.0, 0
        for level, (H, W) in enumerate(SHAPES):
            plane = value[b, start : start + H * W, head, d].view(H, W).tolist()
            start += H * W
            for point in range(POINTS):
                x, y = locations[b, q, head, level, point].tolist()
                expected += float(weights[b, q, head, level, point]) * sample(plane, x, y)
        assert float(found[b, q, head * DEPTH + d]) == pytest.approx(expected)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_the_sum(device):
    value, locations, weights = (tensor.requires_grad_() for tensor in drawn(device))
    assert torch.autograd.gradcheck(attend, (value, locations, weights))
