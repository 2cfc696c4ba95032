"""What the outputs of MMDetection's dense heads mean: boxes and point sets in pixels, one layout for all heads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def decode_boxes(head: nn.Module, outputs: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Boxes of every prediction, one (B, H*W*A, 4) tensor a level, xyxy in pixels, with gradient.

    Heads differ in what their second output means, some between training and evaluation; what each means is read from MMDetection's source.
    """
    kind = type(head).__name__
    device = outputs[0][0].device
    predictions = outputs[2] if kind.startswith("RepPoints") and head.training else outputs[1]
    priors = head.prior_generator.grid_priors(sizes, device=device)
    return [decode_level(head, prediction, prior, level) for level, (prediction, prior) in enumerate(zip(predictions, priors, strict=True))]


def decode_level(head: nn.Module, prediction: Tensor, prior: Tensor, level: int) -> Tensor:
    """The boxes of one level: (B, H*W*A, 4). prior: what the head's prior generator gives for the level's cells.

    In float32 also under autocast: half precision cannot tell pixels.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return _decode_level(head, prediction.float(), prior, level)


def _decode_level(head: nn.Module, prediction: Tensor, prior: Tensor, level: int) -> Tensor:
    kind = type(head).__name__
    stride = stride_of(head, level)
    B = prediction.shape[0]
    if kind.startswith("RepPoints"):
        offsets = head.points2bbox(prediction) if head.training else prediction  # (B, 4, H, W) in strides
        flat = offsets.permute(0, 2, 3, 1).reshape(B, -1, 4) * stride
        return flat + prior[:, :2].repeat(1, 2)
    if hasattr(head, "reg_max") and hasattr(head, "integral"):
        flat = prediction.permute(0, 2, 3, 1).reshape(B, -1, 4 * (head.reg_max + 1))
        distances = head.integral(flat.reshape(-1, flat.shape[-1])).view(B, -1, 4) * stride
        return _around((prior[:, :2] + prior[:, 2:]) / 2, distances)
    flat = prediction.permute(0, 2, 3, 1).reshape(B, -1, 4)
    if prior.shape[-1] == 2:
        if getattr(head, "norm_on_bbox", False) and head.training:
            flat = flat * stride  # FCOS multiplies by the stride itself only when it predicts
        return _around(prior, flat)
    return head.bbox_coder.decode(prior.repeat(B, 1), flat.reshape(-1, 4)).reshape(B, -1, 4)


def decode_points(head: nn.Module, points: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """RepPoints' point sets of every cell, one (B, H*W, P, 2) tensor a level, xy in pixels. points: (B, 2*P, H, W), y first, in strides."""
    priors = head.prior_generator.grid_priors(sizes, device=points[0].device)
    sets = []
    for level, (offsets, prior) in enumerate(zip(points, priors, strict=True)):
        B, channels = offsets.shape[:2]
        flat = offsets.float().permute(0, 2, 3, 1).reshape(B, -1, channels // 2, 2).flip(-1)  # (B, H*W, P, 2) xy
        sets.append(flat * stride_of(head, level) + prior[:, None, :2])
    return sets


def stride_of(head: nn.Module, level: int) -> float:
    """Pixels a cell of a level."""
    stride = head.prior_generator.strides[level]
    return stride[0] if isinstance(stride, list | tuple) else stride


def _around(centers: Tensor, distances: Tensor) -> Tensor:
    """centers (M, 2), distances left, top, right, bottom (B, M, 4) -> boxes (B, M, 4)."""
    return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=-1)
