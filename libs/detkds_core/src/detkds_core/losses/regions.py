"""Where on a map a term looks: foreground and background masks (FGD), ground-truth regions (RoIAlign), proposals.

Nothing here waits for the device: how many boxes an image has is known from shapes, and whatever else depends on boxes stays a tensor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ROI_SIZE = 14  # cells a side of a ground-truth region, as in DetKDS
FAR = -1e9  # pixels: where what is no box is put, so that it covers nothing
PROPOSAL_SIZE = 7  # cells a side of a proposal, of which there are hundreds, as RoI heads read them
CROP_ELEMENTS = 2**26  # of the tensor between map and regions, 256 MB or half the map: more boxes are cut in several goes


def padded(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of B images (n_i, 4) as (B, n, 4) with n the most, at least 1. After the last come boxes far from every image."""
    together = pad_sequence([b.float() for b in boxes], batch_first=True, padding_value=FAR)
    return together if together.shape[1] else together.new_full((len(boxes), 1, 4), FAR)


def boxes_in_cells(boxes: Tensor, map_shape: tuple[int, int], batch_shape: tuple[int, int], pool: int = 1) -> Tensor:
    """Boxes (..., 4) in pixels to whole cells, float: x1 y1 rounded down, x2 y2 rounded up.

    map_shape: height, width of the feature map that covers the batch image of batch_shape. pool: cells of that map in a cell wanted.
    The pixel is divided by the image before it is multiplied by the map, in float32, as FGD does: that decides how a box on a border
    rounds.
    """
    low, high = _corners_in_cells(boxes, [map_shape], batch_shape, pool)
    return torch.cat([low[0], high[0]], dim=-1)


def _corners_in_cells(
    boxes: Tensor, map_shapes: Sequence[tuple[int, int]], batch_shape: tuple[int, int], pool: int = 1
) -> tuple[Tensor, Tensor]:
    """The corners of `boxes_in_cells` on L maps, each (L, ..., 2) xy. pool: a power of two, so that dividing by it does not round."""
    # Numbers of the device: a GPU would multiply by the inverse of a host's number, and round differently.
    shares = boxes.float().unflatten(-1, (2, 2)) / _sides([batch_shape], boxes.device)[0]
    sides = _sides([(H / pool, W / pool) for H, W in map_shapes], boxes.device)
    low, high = (shares * sides.view(-1, *[1] * boxes.dim(), 2)).unbind(-2)
    return low.floor(), high.ceil()


def _sides(shapes: Sequence[tuple[float, float]], device: torch.device) -> Tensor:
    """Heights and widths as numbers of the device, which does not wait for the host to copy them: (L, 2) xy."""
    return torch.stack([torch.linspace(width, height, 2, device=device) for height, width in shapes])


def region_masks(boxes: Sequence[Tensor], map_shape: tuple[int, int], batch_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Foreground and background weight of each cell, (B, 1, H, W) each (FGD).

    A box covers its cells with both ends included, and weighs each 1 / (height + 1) / (width + 1) of the whole box, also where the map cuts
    it off; where boxes overlap, the largest weight stands. Background is 1 / (number of cells outside all boxes). An image without boxes is
    all background, one that is covered has none.
    """
    return masks_of_levels(boxes, [map_shape], batch_shape)[0]


def masks_of_levels(
    boxes: Sequence[Tensor], map_shapes: Sequence[tuple[int, int]], batch_shape: tuple[int, int]
) -> list[tuple[Tensor, Tensor]]:
    """The `region_masks` of several maps. What is a number a box is computed of all at once."""
    low, high = _corners_in_cells(padded(boxes), map_shapes, batch_shape)  # (L, B, n, 2) each
    places = torch.arange(max(map(max, map_shapes)), device=low.device)
    inside = (places >= low[..., None]) & (places <= high[..., None])  # (L, B, n, 2, places)
    width, height = (high - low + 1).unbind(-1)
    weighted = inside[..., 1, :] * (1 / height / width)[..., None]  # the rows of a box, by its weight
    masks = []
    for (H, W), rows, columns in zip(map_shapes, weighted, inside[..., 0, :], strict=True):
        foreground = (rows[..., :H, None] * columns[..., None, :W]).amax(1, keepdim=True)  # (B, 1, H, W)
        outside = foreground == 0
        masks.append((foreground, outside / outside.sum(dim=(2, 3), keepdim=True).clamp_min(1)))
    return masks


class Regions(NamedTuple):
    """Ground-truth regions as linear maps: a region is down @ map @ across^T, with as many rows and columns as `ROI_SIZE`."""

    down: Tensor  # (B, n, 14, H)
    across: Tensor  # (B, n, 14, W)
    counts: tuple[int, ...]  # boxes of each image, at most n


def ground_truth_regions(boxes: Sequence[Tensor], map_shape: tuple[int, int], batch_shape: tuple[int, int], pool: int = 1) -> Regions:
    """The regions of all boxes on a map of map_shape after pooling by `pool`, which pads odd sides.

    RoIAlign with adaptive sampling and without the half-cell shift (`sampling_ratio=0, aligned=False`), of boxes in whole cells, as DetKDS
    calls it. Its bilinear samples separate into rows and columns, so a region is two matrix products. Against torchvision.ops.roi_align on
    one CPU core with its backward: 2.8 ms for 8.9 on 8 maps of 32 x 16 x 16, but 163 ms for 77 on 2 of 256 x 100 x 152, which belong on a
    GPU; and the same to the bit in every run, which the backward of roi_align on a GPU is not.
    """
    return regions_of_levels(boxes, [map_shape], batch_shape, pool)[0]


def regions_of_levels(
    boxes: Sequence[Tensor], map_shapes: Sequence[tuple[int, int]], batch_shape: tuple[int, int], pool: int = 1
) -> list[Regions]:
    """The `ground_truth_regions` of several maps. What is a number a sample is computed of all at once."""
    shapes = [(-(-H // pool), -(-W // pool)) for H, W in map_shapes]
    most = [(_most_samples(H), _most_samples(W)) for H, W in shapes]
    start, end = _corners_in_cells(padded(boxes), map_shapes, batch_shape, pool)  # (L, B, n, 2) each
    sides = _sides(shapes, start.device)[:, None, None, :, None, None]
    bin_length = (end - start).clamp_min(1) / ROI_SIZE
    per_bin = bin_length.ceil().minimum(_sides(most, start.device)[:, None, None])  # samples
    start, bin_length, per_bin = (x[..., None, None] for x in (start, bin_length, per_bin))
    bins = torch.arange(ROI_SIZE, device=start.device)[:, None]
    ticks = torch.arange(max(map(max, most)), device=start.device) + 0.5
    at = start + bins * bin_length + ticks * bin_length / per_bin  # (L, B, n, 2, 14, samples)
    outside = (ticks > per_bin) | (at < -1) | (at > sides)
    at = at.clamp_min(0).minimum(sides - 1).masked_fill_(outside, -2)  # which is near no cell
    cells = torch.arange(max(map(max, shapes)), device=start.device)
    regions = []
    for (H, W), (high, wide), samples, number in zip(shapes, most, at, per_bin, strict=True):
        across, down = (
            F.relu_(1 - (samples[:, :, side, :, :many, None] - cells[:length]).abs_()).sum(-2) / number[:, :, side]  # bilinear
            for side, many, length in ((0, wide, W), (1, high, H))
        )
        regions.append(Regions(down, across, tuple(len(b) for b in boxes)))
    return regions


def _most_samples(cells: int) -> int:
    """Samples a bin of a box as long as a map of so many cells; of a longer one they lie further apart."""
    return -(-(cells + 2) // ROI_SIZE)


def crop(feat: Tensor, regions: Regions) -> Tensor:
    """The regions of the maps feat (B, C, H, W): (K, C, 14, 14), K boxes in the order of images.

    Channels stay innermost, as detectors that use channels_last have them: then nothing is copied but what is computed.
    """
    B, C, H, W = feat.shape
    cells = feat.permute(0, 2, 3, 1).reshape(B, H, W * C)
    go = max(1, max(CROP_ELEMENTS, feat.numel() // 2) // (B * C * ROI_SIZE * W))  # boxes of an image at once
    parts = []
    for down, across in zip(torch.split(regions.down, go, 1), torch.split(regions.across, go, 1), strict=True):
        rows = down.flatten(1, 2).to(feat.dtype) @ cells  # (B, n * 14, W * C)
        parts.append(across[:, :, None].to(feat.dtype) @ rows.view(B, -1, ROI_SIZE, W, C))  # (B, n, 14, 14, C)
    together = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    if set(regions.counts) == {together.shape[1]}:
        kept = together.flatten(0, 1)
    else:
        kept = torch.cat([image[:count] for image, count in zip(together, regions.counts, strict=True)])
    return kept.permute(0, 3, 1, 2)


class Samples(NamedTuple):
    """Where proposals are read: each sample is a weighted sum of four cells of a pyramid whose cells are numbered one after another."""

    cells: Tensor  # (R * 49, 4)
    weights: Tensor  # (R * 49, 4)


def proposal_samples(
    proposals: Tensor, images: int, map_shapes: Sequence[tuple[int, int]], batch_shape: tuple[int, int], pool: int = 1
) -> Samples:
    """7 x 7 bilinear samples, the middles of as many parts, of each proposal (R, 5) on one level of a pyramid of several.

    A proposal is read on the coarsest level on which its mean side is at least 14 cells, else on the finest, as a RoI head chooses it.
    map_shapes: height and width of each level before it is pooled by `pool`. Pyramids are numbered by image, level, row and column.
    """
    shapes = [(-(-H // pool), -(-W // pool)) for H, W in map_shapes]
    device = proposals.device
    image, corners = proposals[:, 0].long(), proposals[:, 1:].float()
    side = ((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])).clamp_min(0).sqrt()
    strides = [(batch_shape[0] / H, batch_shape[1] / W) for H, W in map_shapes]  # pixels a cell
    level = torch.zeros_like(image)
    for down, across in strides[1:]:
        level = level + (side >= 2 * PROPOSAL_SIZE * (down * across) ** 0.5)

    def of_level(values: Sequence[float]) -> Tensor:
        """The value of the level of each proposal, (R, 1)."""
        chosen = torch.zeros_like(side)
        for number, value in enumerate(values):
            chosen = torch.where(level == number, value, chosen)
        return chosen[:, None]

    steps = (torch.arange(PROPOSAL_SIZE, device=device) + 0.5) / PROPOSAL_SIZE
    x1, y1, x2, y2 = corners[:, :, None].unbind(1)  # (R, 1) each
    xs, ys = x1 + steps * (x2 - x1), y1 + steps * (y2 - y1)  # (R, 7) in pixels
    heights, widths = of_level([H for H, _ in shapes]), of_level([W for _, W in shapes])
    ys = (ys / of_level([down * pool for down, _ in strides]) - 0.5).clamp_min(0).minimum(heights - 1)  # (R, 7) in cells
    xs = (xs / of_level([across * pool for _, across in strides]) - 0.5).clamp_min(0).minimum(widths - 1)
    top, left = ys.floor(), xs.floor()
    bottom, right = (top + 1).minimum(heights - 1), (left + 1).minimum(widths - 1)
    rows = torch.stack([top, bottom], -1)[:, :, None, :, None]  # (R, 7, 1, 2, 1)
    columns = torch.stack([left, right], -1)[:, None, :, None, :]  # (R, 1, 7, 1, 2)
    low, high = ys - top, xs - left
    weights = torch.stack([1 - low, low], -1)[:, :, None, :, None] * torch.stack([1 - high, high], -1)[:, None, :, None, :]
    sizes = [H * W for H, W in shapes]
    # Whole numbers stay exact in float32 only up to 2^24 cells, so they are added up as integers.
    first = image * sum(sizes)
    for number in range(len(sizes)):
        first = first + (level == number) * sum(sizes[:number])
    cells = first[:, None, None, None, None] + rows.long() * widths.long()[:, :, None, None, None] + columns.long()
    return Samples(cells.flatten(3).reshape(-1, 4), weights.flatten(3).reshape(-1, 4))


def cells_of(pyramid: Sequence[Tensor]) -> Tensor:
    """The cells of a pyramid of maps (B, C, H, W) as `Samples` number them: (B * cells, C)."""
    return torch.cat([level.flatten(2).mT for level in pyramid], dim=1).flatten(0, 1)


def cut_proposals(cells: Tensor, samples: Samples) -> Tensor:
    """The proposals of a pyramid, given as its `cells_of`: (R, C, 7, 7)."""
    C = cells.shape[1]
    read = F.embedding_bag(samples.cells, cells, mode="sum", per_sample_weights=samples.weights.to(cells.dtype))  # (R * 49, C)
    return read.view(-1, PROPOSAL_SIZE, PROPOSAL_SIZE, C).permute(0, 3, 1, 2)
