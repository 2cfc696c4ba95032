"""The attentions of a feature term, its first transform (DetKDS `operations.py`, `_TRANS_FUNC1`), two of which draw what they keep.

Each takes float32 maps of shape (N, C, H, W) and returns such maps.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log, prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkds_core.losses.at_once import each, gradients, keep
from detkds_core.losses.reductions import mean_of_abs
from detkds_core.losses.transforms import POOL, OfBoth, Transform, identity, pad_to_multiple, several_images

ATTENTION_TEMPERATURE = 0.5  # DetKDS and FGD; `_Attended` counts on it
MASK_KEEP_SHARE = 0.35  # DetKDS keeps 35 % of the positions
DROP_SHARE = 0.1  # and drops 10 % of the channels

Attention = Callable[..., Tensor]  # (feat) or (feat, guide)


def spatial_weights(feat: Tensor, temperature: float = ATTENTION_TEMPERATURE) -> Tensor:
    """H*W * softmax over positions of mean_C |feat| / temperature: (N, 1, H, W), mean 1 (FGD; DetKDS `satt`)."""
    N, _, H, W = feat.shape
    return (H * W * (_spatial_strength(feat) / temperature).softmax(dim=1)).view(N, 1, H, W)


def channel_weights(feat: Tensor, temperature: float = ATTENTION_TEMPERATURE) -> Tensor:
    """C * softmax over channels of mean_HW |feat| / temperature: (N, C, 1, 1), mean 1 (FGD; DetKDS `catt`)."""
    return feat.shape[1] * (_channel_strength(feat) / temperature).softmax(dim=1)


def spatial_roots(feat: Tensor) -> Tensor:
    """The roots of `spatial_weights`: (N, 1, H, W)."""
    return _root_softmax(feat.abs().mean(dim=1, keepdim=True))


def channel_roots(feat: Tensor) -> Tensor:
    """The roots of `channel_weights`: (N, C, 1, 1)."""
    return _root_softmax(_channel_strength(feat))


def spatial_attention(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    """Scale each position by the root of its attention, taken from guide (default: from feat itself)."""
    return _Attended.apply((1,), feat)[0] if guide is None else feat * spatial_roots(guide)


def channel_attention(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    """Scale each channel by the root of its attention, taken from guide (default: from feat itself)."""
    return _Attended.apply((2, 3), feat)[0] if guide is None else feat * channel_roots(guide)


def _spatial_strength(feat: Tensor) -> Tensor:
    return feat.abs().mean(dim=1).flatten(1)  # (N, H*W)


def _channel_strength(feat: Tensor) -> Tensor:
    return feat.abs().mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)


def _root_softmax(strength: Tensor) -> Tensor:
    """The root of an attention of mean 1 over all but the images. By the logarithm: a root of what underflowed has no slope but NaN."""
    return _roots((strength.flatten(1) / ATTENTION_TEMPERATURE).log_softmax(dim=1)).view_as(strength)


def _roots(logs: Tensor) -> Tensor:
    """The roots of shares, given by their logarithms along the last dim, times as many as there are."""
    return torch.rsub(logs, log(logs.shape[-1]) / 2, alpha=-0.5).exp_()


class _Attended(torch.autograd.Function):
    """Maps of one shape, each times the root of its attention, its strength a mean of |feat| over dims.

    With two maps at a time where autograd has five. Strengths of all maps pass the softmax together.
    """

    @staticmethod
    def forward(ctx: Any, dims: tuple[int, ...], *feats: Tensor) -> tuple[Tensor, ...]:
        logs, roots = _roots_of_each(feats, dims)
        ctx.dims = dims
        return keep(ctx, feats, [feat * root for feat, root in zip(feats, roots, strict=True)], logs, roots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *aboves: Tensor | None) -> tuple[Tensor | None, ...]:
        def slope(above: Tensor, feat: Tensor, logs: Tensor, root: Tensor) -> Tensor:
            by_strength = _slope_of_strength((above * feat).mean(ctx.dims, True) * root, logs)
            return feat.sign().mul_(by_strength).addcmul_(above, root)

        return None, *gradients(ctx, aboves, slope)


class _AttendedPools(torch.autograd.Function):
    """Maps of one shape, each times the root of its channel attention, after n x n max pooling.

    The pool comes first, as a positive factor of a channel passes through it, and through the zeros that it appends: what follows is done
    on 1 / n^2 of the cells.
    """

    @staticmethod
    def forward(ctx: Any, n: int, *feats: Tensor) -> tuple[Tensor, ...]:
        logs, roots = _roots_of_each(feats, (2, 3))
        pools = [F.max_pool2d(pad_to_multiple(feat, n), n, return_indices=True) for feat in feats]
        outs = [pool * root for (pool, _), root in zip(pools, roots, strict=True)]
        ctx.n = n
        return keep(ctx, feats, outs, logs, roots, outs, [places for _, places in pools])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *aboves: Tensor | None) -> tuple[Tensor | None, ...]:
        def slope(above: Tensor, feat: Tensor, logs: Tensor, root: Tensor, out: Tensor, places: Tensor) -> Tensor:
            H, W = feat.shape[2:]
            by_strength = _slope_of_strength((above * out).sum((2, 3), True) / (H * W), logs)
            return _unpooled(above * root, places, feat, ctx.n).addcmul_(feat.sign(), by_strength)

        return None, *gradients(ctx, aboves, slope)


def _unpooled(above: Tensor, places: Tensor, feat: Tensor, n: int) -> Tensor:
    """The gradient of a map whose `max_pool` has the gradient above. places: where on the padded map each value of the pool is from."""
    H, W = feat.shape[2:]
    if H % n == 0 and W % n == 0:
        padded = feat  # of which only the shape and the layout are asked for
    else:
        last = feat.is_contiguous(memory_format=torch.channels_last)
        shape = (*feat.shape[:2], H + -H % n, W + -W % n)
        padded = torch.empty(shape, dtype=feat.dtype, device=feat.device, memory_format=torch.channels_last if last else None)
    whole = torch.ops.aten.max_pool2d_with_indices_backward(above, padded, [n, n], [n, n], [0, 0], [1, 1], False, places)
    return whole[:, :, :H, :W]


def _roots_of_each(feats: tuple[Tensor, ...], dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logarithms (maps, N, M) and roots (maps, ..., those dims 1) of the attentions of several maps, whose strengths are over dims."""
    strength = each(feats, dims)
    for feat, out in zip(feats, strength, strict=True):
        mean_of_abs(feat, dims, out)
    logs = strength.flatten(2).div_(ATTENTION_TEMPERATURE).log_softmax(dim=2)
    return logs, _roots(logs).view_as(strength)


def _slope_of_strength(slope: Tensor, logs: Tensor) -> Tensor:
    """What multiplies the sign of a map where its attention's roots, times themselves, have this slope: the same shape."""
    # A root has half the slope of its logarithm, and a temperature of 1/2 twice that of the strength.
    return torch._log_softmax_backward_data(slope.view_as(logs), logs, 1, logs.dtype).view_as(slope)


def batch_attention(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    """N * softmax over images of feat / 0.5. It replaces the feature, so there is no attention that another could be scaled by."""
    if guide is not None:
        raise ValueError("'natt' replaces the feature by its attention and cannot be shared; one of satt, catt can")
    return several_images(feat, "natt").shape[0] * (feat / ATTENTION_TEMPERATURE).softmax(dim=0)


def random_mask(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    """Zero the positions that guide, a (N, 1, H, W) mask of 0 and 1 from `draw_mask`, does not keep."""
    if guide is None:
        raise ValueError("'mask' needs the mask that student and teacher share; draw_mask draws it")
    return feat * guide


def dropped_channels(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    """Scale the channels by guide, (N, C, 1, 1) from `draw_channels`: 0 for those that are dropped."""
    if guide is None:
        raise ValueError("'drop' needs the channels that student and teacher share; draw_channels draws them")
    return feat * guide


def draw_mask(feat: Tensor, seeds: Sequence[int], place: int = 0, keep_share: float = MASK_KEEP_SHARE) -> Tensor:
    """Keep each position of each image with the chance keep_share: (N, 1, H, W) of 0 and 1. See `_drawn`."""
    N, _, H, W = feat.shape
    return _drawn((N, 1, H, W), seeds, place, keep_share, feat)


def draw_channels(feat: Tensor, seeds: Sequence[int], place: int = 0, share: float = DROP_SHARE) -> Tensor:
    """Drop each channel of each image with the chance share: (N, C, 1, 1), 0 there and 1 / (1 - share) elsewhere, as dropout has it."""
    N, C = feat.shape[:2]
    return _drawn((N, C, 1, 1), seeds, place, 1 - share, feat) / (1 - share)


def _drawn(shape: tuple[int, ...], seeds: Sequence[int], place: int, share: float, like: Tensor) -> Tensor:
    """1 with the chance share, to 1 in 65,536, else 0. place: of the first image among all of a step.

    What an image gets follows from the seeds, its own place and the size of its map, and not from how a step's images are split.
    """
    # SeedSequence mixes, so that (seed, step) = (0, 1) and (1, 0) give unrelated masks; it wants non-negative words.
    key = np.random.SeedSequence([word & 0xFFFFFFFFFFFFFFFF for word in seeds]).generate_state(2, np.uint64)
    images = np.empty((shape[0], prod(shape[1:])), np.float32)
    for number, image in enumerate(images, place):
        words = np.random.Philox(key=key, counter=[0, 0, 0, number]).random_raw(-(-image.size // 4))
        np.less(words.view(np.uint16)[: image.size], round(share * 2**16), out=image)
    drawn = torch.from_numpy(images).view(shape).to(like.dtype)
    # Memory that is not pinned would be copied only when the GPU has caught up.
    return drawn.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else drawn.to(like.device)


Draw = Callable[[Tensor, Sequence[int], int], Tensor]
DRAWS: Mapping[str, Draw] = {"mask": draw_mask, "drop": draw_channels}  # the guides that are drawn at random


ATTENTION: Mapping[str, Attention] = {
    "none": identity,
    "satt": spatial_attention,
    "natt": batch_attention,
    "catt": channel_attention,
    "mask": random_mask,
    "drop": dropped_channels,
}


ROOTS: Mapping[str, Transform] = {"satt": spatial_roots, "catt": channel_roots}  # what a shared attention multiplies both sides by

ATTENTION_OF_BOTH: Mapping[str, OfBoth] = {
    "satt": lambda *feats: _Attended.apply((1,), *feats),
    "catt": lambda *feats: _Attended.apply((2, 3), *feats),
}


def pooled_catt(scale: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`catt` and then a scale of `POOL` of both maps."""
    ours, theirs = _AttendedPools.apply(POOL[scale], student, teacher)
    return ours, theirs
