"""Each attention on numbers small enough to check by hand, and what is drawn at random."""

from math import log

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkds_core.losses.attention import ATTENTION, Draw, draw_channels, draw_mask


def maps(*values: float, shape: tuple[int, int, int, int]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(shape)


def test_spatial_attention_scales_positions_by_the_root_of_their_softmax() -> None:
    # |f| / 0.5 = ln of 1, 2, 3, 2: softmax 1/8, 2/8, 3/8, 2/8; times H*W = 4.
    feat = maps(0.0, 0.5 * log(2), -0.5 * log(3), 0.5 * log(2), shape=(1, 1, 2, 2))
    attention = maps(0.5, 1.0, 1.5, 1.0, shape=(1, 1, 2, 2))
    assert_close(ATTENTION["satt"](feat), feat * attention.sqrt())


def test_channel_attention_scales_channels_by_the_root_of_their_softmax() -> None:
    # mean |f| / 0.5 = ln 2 and ln 6: softmax 1/4, 3/4; times C = 2.
    feat = maps(0.0, log(2), -0.5 * log(6), 0.5 * log(6), shape=(1, 2, 1, 2))
    attention = torch.tensor([0.5, 1.5]).view(1, 2, 1, 1)
    assert_close(ATTENTION["catt"](feat), feat * attention.sqrt())


@pytest.mark.parametrize("name", ["satt", "catt"])
def test_equal_strength_passes_unchanged_and_a_guide_replaces_the_feature(name: str) -> None:
    flat = maps(1.0, -1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, shape=(1, 2, 2, 2))
    assert_close(ATTENTION[name](flat), flat)
    guide = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    assert_close(ATTENTION[name](flat, guide), flat * (ATTENTION[name](guide) / guide))


def test_batch_attention_is_a_softmax_over_images() -> None:
    feat = maps(0.0, 0.5 * log(3), shape=(2, 1, 1, 1))
    assert_close(ATTENTION["natt"](feat).flatten(), torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match="cannot be shared"):
        ATTENTION["natt"](feat, feat)


def test_mask_keeps_35_percent_of_positions_for_all_channels() -> None:
    feat = torch.ones(4, 3, 50, 50)
    mask = draw_mask(feat, (0, 0, 0, 0))
    assert mask.shape == (4, 1, 50, 50)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(0.35, abs=0.02)  # 10,000 draws: a standard deviation is 0.005
    assert_close(ATTENTION["mask"](feat, mask), mask.expand_as(feat))
    with pytest.raises(ValueError, match="share"):
        ATTENTION["mask"](feat)


def test_mask_depends_on_each_seed_word_and_on_nothing_else() -> None:
    feat = torch.ones(1, 1, 20, 20)
    torch.manual_seed(1)
    first = draw_mask(feat, (5, 6, 7, 8))
    torch.manual_seed(2)
    assert_close(draw_mask(feat, (5, 6, 7, 8)), first)
    for other in [(6, 6, 7, 8), (5, 7, 7, 8), (5, 6, 8, 8), (5, 6, 7, 9), (6, 5, 7, 8), (-5, 6, 7, 8)]:
        assert not torch.equal(draw_mask(feat, other), first)


@pytest.mark.parametrize("draw", [draw_mask, draw_channels])
def test_an_image_gets_its_own_draw_however_the_images_are_split(draw: Draw) -> None:
    feat, seeds = torch.ones(4, 30, 5, 7), (1, 2, 3, 4)
    whole = draw(feat, seeds, 0)
    assert torch.equal(torch.cat([draw(feat[:1], seeds, 0), draw(feat[1:], seeds, 1)]), whole)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 4


def test_a_draw_keeps_all_or_nothing_where_that_is_its_share() -> None:
    feat = torch.ones(2, 1, 9, 9)
    assert draw_mask(feat, (0,), keep_share=1.0).all()
    assert not draw_mask(feat, (0,), keep_share=0.0).any()


def test_batch_attention_refuses_one_image() -> None:
    with pytest.raises(ValueError, match=r"'natt'.*at least 2"):
        ATTENTION["natt"](torch.ones(1, 2, 2, 2))


def test_drop_zeroes_whole_channels_and_keeps_the_mean() -> None:
    feat = torch.ones(8, 500, 2, 2)
    factors = draw_channels(feat, (0, 0, 0, 0))
    assert factors.shape == (8, 500, 1, 1)
    assert (factors == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)  # 4,000 draws: a standard deviation is 0.005
    assert_close(factors.unique(), torch.tensor([0, 1 / 0.9]))
    assert_close(ATTENTION["drop"](feat, factors), factors.expand_as(feat))
    assert torch.equal(draw_channels(feat, (0, 0, 0, 0)), factors)
    assert not torch.equal(draw_channels(feat, (0, 1, 0, 0)), factors)
    with pytest.raises(ValueError, match="share"):
        ATTENTION["drop"](feat)


@pytest.mark.parametrize("name", ["satt", "catt"])
def test_the_slope_of_an_attention(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(ATTENTION[name], (feat,))
    huge = (1e6 * feat.detach().float()).requires_grad_()  # its softmax underflows
    ATTENTION[name](huge).sum().backward()
    assert huge.grad is not None
    assert huge.grad.isfinite().all()
