"""Foreground and background masks and ground-truth regions on maps of a few cells."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import roi_align

from detkds_core.losses import regions as regions_module
from detkds_core.losses.regions import (
    boxes_in_cells,
    cells_of,
    crop,
    cut_proposals,
    ground_truth_regions,
    proposal_samples,
    region_masks,
)

NONE = torch.zeros(0, 4)


def masks(*boxes: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """On a map of 4 x 4 cells of 2 pixels."""
    foreground, background = region_masks([torch.tensor(boxes).view(-1, 4)], (4, 4), (8, 8))
    assert foreground.shape == background.shape == (1, 1, 4, 4)
    return foreground[0, 0], background[0, 0]


def test_a_box_covers_its_cells_with_both_ends() -> None:
    foreground, background = masks((2, 2, 5, 6))  # cells 1 to 3 (2.5 rounds up) and 1 to 3
    expected = torch.zeros(4, 4)
    expected[1:4, 1:4] = 1 / 9
    assert_close(foreground, expected)
    assert_close(background, (expected == 0) / 7)


def test_where_boxes_overlap_the_smaller_one_stands() -> None:
    foreground, _ = masks((0, 0, 7, 7), (3, 3, 3.5, 3.5))  # cells 0 to 4 both ways: 25; 1 to 2: 4
    assert_close(foreground[1:3, 1:3], torch.full((2, 2), 1 / 4))
    assert foreground[0, 0].item() == pytest.approx(1 / 25)
    assert foreground[3, 3].item() == pytest.approx(1 / 25)


def test_a_box_that_leaves_the_map_keeps_its_own_area() -> None:
    foreground, background = masks((6, 6, 12, 12))  # cells 3 to 6: 16 cells, one on the map
    assert foreground[3, 3].item() == pytest.approx(1 / 16)
    assert foreground.count_nonzero() == 1
    assert_close(background.sum(), torch.tensor(1.0))
    foreground, _ = masks((-4, 0, 2, 2))  # columns -2 to 1, rows 0 to 1: 8 cells, four on the map
    assert_close(foreground[:2, :2], torch.full((2, 2), 1 / 8))
    assert foreground.count_nonzero() == 4
    foreground, background = masks((100, 100, 120, 120))
    assert foreground.count_nonzero() == 0
    assert_close(background, torch.full((4, 4), 1 / 16))


def test_no_boxes_is_all_background_and_a_full_image_has_none() -> None:
    foreground, background = masks()
    assert foreground.count_nonzero() == 0
    assert_close(background, torch.full((4, 4), 1 / 16))
    foreground, background = masks((0, 0, 8, 8))
    assert_close(foreground, torch.full((4, 4), 1 / 25))
    assert background.count_nonzero() == 0


def test_images_have_their_own_masks() -> None:
    foreground, background = region_masks([NONE, torch.tensor([[0.0, 0, 1, 1]])], (4, 4), (8, 8))
    assert foreground[0].count_nonzero() == 0
    assert foreground[1].count_nonzero() == 4
    assert_close(background.sum((1, 2, 3)), torch.ones(2))


def test_masks_are_what_a_loop_over_boxes_and_cells_gives() -> None:
    generator = torch.Generator().manual_seed(3)
    height, width, H, W = 90, 127, 6, 8
    corners = torch.rand(5, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + torch.rand(5, 2, generator=generator) * 60], dim=1)
    expected = torch.zeros(H, W)
    for x1, y1, x2, y2 in boxes_in_cells(boxes, (H, W), (height, width)).int().tolist():
        for row in range(max(y1, 0), min(y2 + 1, H)):
            for col in range(max(x1, 0), min(x2 + 1, W)):
                expected[row, col] = max(expected[row, col].item(), 1 / (y2 - y1 + 1) / (x2 - x1 + 1))
    assert_close(region_masks([boxes], (H, W), (height, width))[0][0, 0], expected)


def test_boxes_are_scaled_by_the_batch_and_by_the_pool() -> None:
    box = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    # A map of 5 x 10 cells over 100 x 200 pixels: 20 pixels a cell both ways.
    assert boxes_in_cells(box, (5, 10), (100, 200)).tolist() == [[0, 1, 3, 3]]
    # Pooled by 2 it has 3 x 5 cells; the last row is half padding, so cells are 40 pixels and not 100 / 3.
    assert boxes_in_cells(box, (5, 10), (100, 200), pool=2).tolist() == [[0, 0, 2, 2]]


def test_a_region_samples_its_box() -> None:
    # A ramp of slope 1 a cell: a box of 2 cells, sampled 14 times a side, sees its left to right rise.
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    regions = ground_truth_regions([torch.tensor([[4.0, 4.0, 8.0, 8.0]])], (8, 8), (16, 16))
    region = crop(ramp, regions)
    assert region.shape == (1, 1, 14, 14)
    assert_close(region[0, 0, 5], 2 + (torch.arange(14) + 0.5) / 7)


def test_regions_come_in_the_order_of_images() -> None:
    maps = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1).expand(3, 2, 8, 8)
    box = torch.tensor([[4.0, 4.0, 8.0, 8.0]])
    regions = ground_truth_regions([torch.cat([box, box]), NONE, box], (8, 8), (16, 16))
    assert crop(maps, regions).mean((1, 2, 3)).tolist() == [1, 1, 3]
    assert crop(maps, ground_truth_regions([NONE] * 3, (8, 8), (16, 16))).shape == (0, 2, 14, 14)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("boxes_at_once", [100, 1])
def test_regions_are_those_of_roi_align(pool: int, boxes_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    H, W, batch_shape = 33, 46, (264, 368)
    corners = torch.rand(9, 2, generator=generator) * 380 - 40  # some begin left of or above the image, some right of it
    boxes = torch.cat([corners, corners + torch.rand(9, 2, generator=generator) * 300], dim=1)
    boxes[0, 2:] = boxes[0, :2]  # a point counts as a cell
    feat = torch.randn(2, 3, -(-H // pool), -(-W // pool), generator=generator).requires_grad_()
    monkeypatch.setattr(regions_module, "CROP_ELEMENTS", boxes_at_once * feat[:, :, 0].numel() * 14)

    cells = boxes_in_cells(boxes, (H, W), batch_shape, pool)
    image = torch.tensor([0.0] * 4 + [1.0] * 5)[:, None]
    expected = roi_align(feat, torch.cat([image, cells], dim=1), (14, 14), sampling_ratio=0, aligned=False)
    got = crop(feat, ground_truth_regions([boxes[:4], boxes[4:]], (H, W), batch_shape, pool))
    assert_close(got, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(expected.shape, generator=generator)
    slopes = [torch.autograd.grad((x * weight).sum(), feat)[0] for x in (got, expected)]
    assert_close(*slopes, rtol=1e-4, atol=1e-4)


def test_a_proposal_is_read_on_the_level_of_its_size() -> None:
    # Levels of 8 and 16 pixels a cell over 256 x 256; from a mean side of 14 * 16 pixels on the coarse one serves.
    pyramid = [torch.full((2, 3, 32, 32), 1.0), torch.full((2, 3, 16, 16), 2.0)]
    pyramid[1][1] = 3.0
    proposals = torch.tensor([[0.0, 10, 10, 50, 60], [0, 0, 0, 224, 224], [1, 16, 16, 256, 240], [1, 0, 0, 223, 224]])
    samples = proposal_samples(proposals, 2, [(32, 32), (16, 16)], (256, 256))
    read = cut_proposals(cells_of(pyramid), samples)
    assert read.shape == (4, 3, 7, 7)
    assert read.mean((1, 2, 3)).tolist() == pytest.approx([1, 2, 3, 1])


@pytest.mark.parametrize("pool", [1, 2])
def test_a_proposal_samples_its_box(pool: int) -> None:
    # Ramps across and down, in pixels at the middle of each cell: bilinear samples give the place that they are taken at.
    height, width, cell = 15, 18, 8 * pool
    H, W = -(-height // pool), -(-width // pool)
    xs, ys = (torch.arange(W) + 0.5) * cell, (torch.arange(H) + 0.5) * cell
    ramps = torch.stack([xs.expand(H, W), ys[:, None].expand(H, W)])[None].requires_grad_()
    samples = proposal_samples(torch.tensor([[0.0, 20, 30, 90, 86]]), 1, [(height, width)], (height * 8, width * 8), pool)
    read = cut_proposals(cells_of([ramps]), samples)
    middles = (torch.arange(7) + 0.5) / 7
    assert_close(read[0, 0], (20 + 70 * middles).expand(7, 7), rtol=1e-5, atol=1e-4)
    assert_close(read[0, 1], (30 + 56 * middles)[:, None].expand(7, 7), rtol=1e-5, atol=1e-4)
    read.sum().backward()
    assert ramps.grad is not None
    assert ramps.grad.sum().item() == pytest.approx(2 * 49)  # the weights of each sample add up to 1


def test_a_proposal_beyond_the_map_repeats_its_border() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    samples = proposal_samples(torch.tensor([[0.0, -80, -80, -10, -10], [0, 40, 40, 90, 90]]), 1, [(4, 4)], (32, 32))
    assert cut_proposals(cells_of([ramp]), samples).amax((1, 2, 3)).tolist() == [0, 3]
