"""Where on a map a term looks: foreground and background masks (FGD), ground-truth regions (RoIAlign)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align  # type: ignore[import-untyped]

ROI_SIZE = 14  # cells a side of a ground-truth region, as in DetKDS


def boxes_in_cells(boxes: Tensor, map_shape: tuple[int, int], batch_shape: tuple[int, int], pool: int = 1) -> Tensor:
    """Boxes in pixels to whole cells: (n, 4) float, x1 y1 rounded down, x2 y2 rounded up.

    map_shape: height, width of the feature map that covers the batch image of batch_shape. pool: cells of that map in a cell wanted.
    The pixel is divided by the image before it is multiplied by the map, in float32, as FGD does: that decides how a box on a border
    rounds.
    """
    (H, W), (height, width) = map_shape, batch_shape
    boxes = boxes.float()
    image, cells = boxes.new_tensor([width, height, width, height]), boxes.new_tensor([W, H, W, H])
    boxes = boxes / image * cells / pool
    return torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1)


def region_masks(boxes: Sequence[Tensor], map_shape: tuple[int, int], batch_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Foreground and background weight of each cell, (B, 1, H, W) each (FGD).

    A box covers its cells with both ends included, and weighs each 1 / (height + 1) / (width + 1) of the whole box, also where the map cuts
    it off; where boxes overlap, the largest weight stands. Background is 1 / (number of cells outside all boxes). An image without boxes is
    all background, one that is covered has none.
    """
    foreground = torch.stack([_box_weights(b, map_shape, batch_shape) for b in boxes])  # (B, H, W)
    outside = (foreground == 0).float()
    background = outside / outside.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    return foreground[:, None], background[:, None]


def _box_weights(boxes: Tensor, map_shape: tuple[int, int], batch_shape: tuple[int, int]) -> Tensor:
    """Foreground weights of one image: (H, W)."""
    H, W = map_shape
    if not len(boxes):
        return boxes.new_zeros(H, W, dtype=torch.float32)
    x1, y1, x2, y2 = boxes_in_cells(boxes, map_shape, batch_shape).unbind(1)
    xs, ys = torch.arange(W, device=boxes.device), torch.arange(H, device=boxes.device)
    across = (xs >= x1[:, None]) & (xs <= x2[:, None])  # (n, W)
    down = (ys >= y1[:, None]) & (ys <= y2[:, None])  # (n, H)
    weight = 1 / (y2 - y1 + 1) / (x2 - x1 + 1)  # (n,)
    return (weight[:, None, None] * (down[:, :, None] & across[:, None, :])).amax(0)


def rois(boxes: Sequence[Tensor], map_shape: tuple[int, int], batch_shape: tuple[int, int], pool: int = 1) -> Tensor:
    """Ground truth of all images as (K, 5): image index, then x1 y1 x2 y2 in whole cells of the map pooled by `pool`."""
    cells = torch.cat([boxes_in_cells(b, map_shape, batch_shape, pool) for b in boxes])
    image = torch.cat([b.new_full((len(b), 1), i, dtype=torch.float32) for i, b in enumerate(boxes)])
    return torch.cat([image, cells], dim=1)


def crop(feat: Tensor, regions: Tensor) -> Tensor:
    """RoIAlign to (K, C, 14, 14), adaptive sampling, cell corners not aligned (as DetKDS calls it)."""
    cut: Tensor = roi_align(feat, regions, (ROI_SIZE, ROI_SIZE), spatial_scale=1.0, sampling_ratio=0, aligned=False)
    return cut
