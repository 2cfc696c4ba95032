"""Where on a map a term looks: foreground and background masks (FGD), ground-truth regions (RoIAlign)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ROI_SIZE = 14  # cells a side of a ground-truth region, as in DetKDS
CROP_ELEMENTS = 2**26  # of the largest tensor between map and regions, 256 MB: more boxes are cut in several goes


def padded(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes of B images (n_i, 4) as (B, n, 4) with n the most, zeros after the last, and which of them are boxes (B, n)."""
    together = pad_sequence([b.float() for b in boxes], batch_first=True)
    counts = torch.tensor([len(b) for b in boxes], device=together.device)
    return together, torch.arange(together.shape[1], device=together.device) < counts[:, None]


def boxes_in_cells(boxes: Tensor, map_shape: tuple[int, int], batch_shape: tuple[int, int], pool: int = 1) -> Tensor:
    """Boxes (..., 4) in pixels to whole cells, float: x1 y1 rounded down, x2 y2 rounded up.

    map_shape: height, width of the feature map that covers the batch image of batch_shape. pool: cells of that map in a cell wanted.
    The pixel is divided by the image before it is multiplied by the map, in float32, as FGD does: that decides how a box on a border
    rounds.
    """
    (H, W), (height, width) = map_shape, batch_shape
    boxes = boxes.float()
    image, cells = boxes.new_tensor([width, height, width, height]), boxes.new_tensor([W, H, W, H])
    boxes = boxes / image * cells / pool
    return torch.cat([boxes[..., :2].floor(), boxes[..., 2:].ceil()], dim=-1)


def region_masks(boxes: Sequence[Tensor], map_shape: tuple[int, int], batch_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Foreground and background weight of each cell, (B, 1, H, W) each (FGD).

    A box covers its cells with both ends included, and weighs each 1 / (height + 1) / (width + 1) of the whole box, also where the map cuts
    it off; where boxes overlap, the largest weight stands. Background is 1 / (number of cells outside all boxes). An image without boxes is
    all background, one that is covered has none.
    """
    H, W = map_shape
    together, present = padded(boxes)
    x1, y1, x2, y2 = boxes_in_cells(together, map_shape, batch_shape).unbind(-1)  # (B, n) each
    xs, ys = torch.arange(W, device=x1.device), torch.arange(H, device=x1.device)
    across = (xs >= x1[..., None]) & (xs <= x2[..., None])  # (B, n, W)
    down = (ys >= y1[..., None]) & (ys <= y2[..., None])  # (B, n, H)
    weight = present / (y2 - y1 + 1) / (x2 - x1 + 1)  # (B, n)
    nothing = weight.new_zeros(len(boxes), 1, H, W)  # beside the boxes, so that there is a largest where an image has none
    foreground = torch.cat([nothing, weight[..., None, None] * (down[..., :, None] & across[..., None, :])], dim=1).amax(1, keepdim=True)
    outside = (foreground == 0).float()
    return foreground, outside / outside.sum(dim=(2, 3), keepdim=True).clamp_min(1)


class Regions(NamedTuple):
    """Ground-truth regions as linear maps: a region is down @ map @ across^T, with as many rows and columns as `ROI_SIZE`."""

    down: Tensor  # (B, n, 14, H)
    across: Tensor  # (B, n, 14, W)
    present: Tensor  # (B, n), false after an image's last box


def ground_truth_regions(boxes: Sequence[Tensor], map_shape: tuple[int, int], batch_shape: tuple[int, int], pool: int = 1) -> Regions:
    """The regions of all boxes on a map of map_shape after pooling by `pool`, which pads odd sides.

    RoIAlign with adaptive sampling and without the half-cell shift (`sampling_ratio=0, aligned=False`), of boxes in whole cells, as DetKDS
    calls it. Its bilinear samples separate into rows and columns, so a region is two matrix products. Against torchvision.ops.roi_align on
    one CPU core with its backward: 2.8 ms for 8.9 on 8 maps of 32 x 16 x 16, but 163 ms for 77 on 2 of 256 x 100 x 152, which belong on a
    GPU; and the same to the bit in every run, which the backward of roi_align on a GPU is not.
    """
    H, W = (-(-side // pool) for side in map_shape)
    together, present = padded(boxes)
    x1, y1, x2, y2 = boxes_in_cells(together, map_shape, batch_shape, pool).unbind(-1)
    return Regions(_samples(y1, y2, H), _samples(x1, x2, W), present)


def _samples(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """How much each of `cells` counts in each of 14 bins between start and end, (..., 14, cells); start and end: (...) in cells."""
    length = (end - start).clamp_min(1)
    bin_length = length / ROI_SIZE
    per_bin = bin_length.ceil()  # samples a bin
    most = int(per_bin.max().item()) if per_bin.numel() else 1
    bins, ticks = torch.arange(ROI_SIZE, device=start.device), torch.arange(most, device=start.device)
    start, bin_length, per_bin = (x[..., None, None] for x in (start, bin_length, per_bin))
    at = start + bins[:, None] * bin_length + (ticks + 0.5) * bin_length / per_bin  # (..., 14, samples)
    counted = (ticks < per_bin) & (at >= -1) & (at <= cells)  # further outside is zero
    near = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=start.device)
    weights = (1 - near.abs()).clamp_min(0) * counted[..., None]  # bilinear: (..., 14, samples, cells)
    return weights.sum(-2) / per_bin


def crop(feat: Tensor, regions: Regions) -> Tensor:
    """The regions of the maps feat (B, C, H, W): (K, C, 14, 14), K boxes in the order of images."""
    B, C, _, W = feat.shape
    go = max(1, CROP_ELEMENTS // (B * C * ROI_SIZE * W))  # boxes of an image at once
    parts = []
    for down, across in zip(torch.split(regions.down, go, 1), torch.split(regions.across, go, 1), strict=True):
        rows = torch.einsum("bnph,bchw->bncpw", down, feat)
        parts.append(torch.einsum("bncpw,bnqw->bncpq", rows, across))
    return torch.cat(parts, dim=1)[regions.present]
