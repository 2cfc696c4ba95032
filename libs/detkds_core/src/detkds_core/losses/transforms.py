"""The transforms of a feature term: attention, then scale, then normalisation (DetKDS `operations.py`, `_TRANS_FUNC1` to `_TRANS_FUNC3`).

Every transform takes float32 maps of shape (N, C, H, W). Attentions and scales return maps; a normalisation may return (N, M), (N, C, M),
(N, C, C) or (N, N).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf, log, prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkds_core.losses.reductions import mean_of_abs, sum_of_squares

ATTENTION_TEMPERATURE = 0.5  # DetKDS and FGD; `_Attended` counts on it
MASK_KEEP_SHARE = 0.35  # DetKDS keeps 35 % of the positions
DROP_SHARE = 0.1  # and drops 10 % of the channels
UNIT_EPS = 1e-12  # F.normalize's; below it a vector counts as zero
MIN_MAX_EPS = 1e-9  # these three survive because losses are computed in float32
BATCHNORM_EPS = 1e-5
STANDARDIZE_EPS = 1e-6  # PKD adds it to the standard deviation
LOG_EPS = 1e-9  # DetKDS adds it to the absolute value
# Nearer to 0 the slope of `log` (1 / |f|) counts as none, and a root (slope 1 / 2 root f) is a straight line.
LEAST_OF_LOG, LEAST_OF_ROOT = 1e-6, 1e-12
# What goes into a power is held where the square of the result, summed over 2^31 elements, is still a float32: 2^96 each.
MOST_OF_POW2, MOST_OF_POW4, MOST_OF_EXP = 2.0**24, 2.0**12, 32.0

Attention = Callable[..., Tensor]  # (feat) or (feat, guide)
Transform = Callable[[Tensor], Tensor]


def identity(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    return feat


# --- attention -------------------------------------------------------------------------------------------------------


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


def _each(feats: tuple[Tensor, ...], dims: tuple[int, ...]) -> Tensor:
    """Place for a number of each of several maps of one shape along dims: (maps, ...), those dims 1."""
    shape = list(feats[0].shape)
    for dim in dims:
        shape[dim] = 1
    return feats[0].new_empty(len(feats), *shape)


class _Attended(torch.autograd.Function):
    """Maps of one shape, each times the root of its attention, its strength a mean of |feat| over dims.

    With two maps at a time where autograd has five. Strengths of all maps pass the softmax together.
    """

    @staticmethod
    def forward(ctx: Any, dims: tuple[int, ...], *feats: Tensor) -> tuple[Tensor, ...]:
        logs, roots = _roots_of_each(feats, dims)
        ctx.dims = dims
        return _keep(ctx, feats, [feat * root for feat, root in zip(feats, roots, strict=True)], logs, roots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *aboves: Tensor | None) -> tuple[Tensor | None, ...]:
        def slope(above: Tensor, feat: Tensor, logs: Tensor, root: Tensor) -> Tensor:
            by_strength = _slope_of_strength((above * feat).mean(ctx.dims, True) * root, logs)
            return feat.sign().mul_(by_strength).addcmul_(above, root)

        return None, *_slopes(ctx, aboves, slope)


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
        return _keep(ctx, feats, outs, logs, roots, outs, [places for _, places in pools])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *aboves: Tensor | None) -> tuple[Tensor | None, ...]:
        def slope(above: Tensor, feat: Tensor, logs: Tensor, root: Tensor, out: Tensor, places: Tensor) -> Tensor:
            H, W = feat.shape[2:]
            by_strength = _slope_of_strength((above * out).sum((2, 3), True) / (H * W), logs)
            return _unpooled(above * root, places, feat, ctx.n).addcmul_(feat.sign(), by_strength)

        return None, *_slopes(ctx, aboves, slope)


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
    strength = _each(feats, dims)
    for feat, out in zip(feats, strength, strict=True):
        mean_of_abs(feat, dims, out)
    logs = strength.flatten(2).div_(ATTENTION_TEMPERATURE).log_softmax(dim=2)
    return logs, _roots(logs).view_as(strength)


def _slope_of_strength(slope: Tensor, logs: Tensor) -> Tensor:
    """What multiplies the sign of a map where its attention's roots, times themselves, have this slope: the same shape."""
    # A root has half the slope of its logarithm, and a temperature of 1/2 twice that of the strength.
    return torch._log_softmax_backward_data(slope.view_as(logs), logs, 1, logs.dtype).view_as(slope)


def _keep(ctx: Any, feats: tuple[Tensor, ...], outs: Sequence[Tensor], *of_each: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Save for the backward what those maps need that learn; the other outputs get no gradient. feats: the last inputs."""
    ctx.learns = ctx.needs_input_grad[-len(feats) :]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(out for out, learns in zip(outs, ctx.learns, strict=True) if not learns))
    learning = [place for place, learns in enumerate(ctx.learns) if learns]
    ctx.save_for_backward(*(one[place] for place in learning for one in (feats, *of_each)))
    return tuple(outs)


def _slopes(ctx: Any, aboves: tuple[Tensor | None, ...], slope: Callable[..., Tensor]) -> Iterator[Tensor | None]:
    """The gradient of each map, by slope(above, feat, *what else was kept of it)."""
    kept = iter(ctx.saved_tensors)
    count = len(ctx.saved_tensors) // max(1, sum(ctx.learns))
    for above, learns in zip(aboves, ctx.learns, strict=True):
        own = list(islice(kept, count)) if learns else []
        yield slope(above, *own) if learns and above is not None else None


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

    What an image gets follows from the seeds and its own place: the same on every machine, and however a step's images are split.
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


# --- scale -----------------------------------------------------------------------------------------------------------


def pad_to_multiple(feat: Tensor, n: int) -> Tensor:
    """Append zeros on the right and at the bottom until H and W are multiples of n."""
    H, W = feat.shape[2:]
    if H % n == 0 and W % n == 0:
        return feat
    return F.pad(feat, (0, -W % n, 0, -H % n))


def max_pool(feat: Tensor, n: int) -> Tensor:
    """n x n max pooling after zero padding: (N, C, ceil(H/n), ceil(W/n)). The zeros take part, as in DetKDS."""
    return F.max_pool2d(pad_to_multiple(feat, n), n)


def local_patches(feat: Tensor, n: int) -> Tensor:
    """Move the patches of n x n positions to the channels: (N, C*H/n*W/n, n, n) after zero padding; channels innermost in memory."""
    feat = pad_to_multiple(feat, n)
    N, C, H, W = feat.shape
    h, w = H // n, W // n
    return feat.view(N, C, h, n, w, n).permute(0, 3, 5, 1, 2, 4).reshape(N, n, n, C * h * w).permute(0, 3, 1, 2)


def half_shift(feat: Tensor) -> Tensor:
    """(feat + 1) / 2: DetKDS calls it `scale`; it is affine and bounds nothing."""
    return (feat + 1) / 2


SCALE: Mapping[str, Transform] = {
    "none": identity,
    "scale_r1": identity,  # a pool of one cell
    "scale_r2": lambda feat: max_pool(feat, 2),
    "multi_scale_r4": lambda feat: max_pool(feat, 4),
    "local_s1": lambda feat: local_patches(feat, 1),
    "local_s2": lambda feat: local_patches(feat, 2),
    "local_s4": lambda feat: local_patches(feat, 4),
    "scale": half_shift,
}

POOL: Mapping[str, int] = {"scale_r2": 2, "multi_scale_r4": 4}  # cells of the map in a cell of the scaled map; 1 for the others


# --- predictions -----------------------------------------------------------------------------------------------------


def predictions_apart(scores: Tensor, classes: int) -> Tensor:
    """The scores (B, A*K, ..., W), anchor-major, of A predictions a position as those of one at A times as many: (B, K, ..., W*A).

    With channels innermost in memory, as dense heads leave them, nothing is copied.
    """
    return scores.movedim(1, -1).unflatten(-1, (-1, classes)).flatten(-3, -2).movedim(-1, 1)


def predictions_together(scores: Tensor, anchors: int) -> Tensor:
    """Back again: (B, K, ..., W*A) to (B, A*K, ..., W)."""
    return scores.movedim(1, -1).unflatten(-2, (-1, anchors)).flatten(-2).movedim(-1, 1)


# --- normalisation ---------------------------------------------------------------------------------------------------


def several_images(feat: Tensor, name: str) -> Tensor:
    """feat itself. Raises ValueError for a batch of one image, where an operation over the images is constant."""
    if feat.shape[0] < 2:
        raise ValueError(f"{name!r} compares the images of a batch and is constant on one image; train with a batch of at least 2")
    return feat


class _Unit(torch.autograd.Function):
    """Maps of one shape, each divided by its length over dims; 0 where kept, of the lengths' shape, is 0."""

    @staticmethod
    def forward(ctx: Any, dims: tuple[int, ...], kept: Tensor | None, *feats: Tensor) -> tuple[Tensor, ...]:
        squares = _each(feats, dims)
        for feat, out in zip(feats, squares, strict=True):
            sum_of_squares(feat, dims, out)
        squares = torch.threshold_(squares, UNIT_EPS**2, inf)
        if kept is not None:
            squares.masked_fill_(kept == 0, inf)
        inverses = squares.rsqrt()
        ctx.dims = dims
        return _keep(ctx, feats, [feat * inverse for feat, inverse in zip(feats, inverses, strict=True)], squares, inverses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *aboves: Tensor | None) -> tuple[Tensor | None, ...]:
        def slope(above: Tensor, feat: Tensor, squares: Tensor, inverse: Tensor) -> Tensor:
            along = (above * feat).sum(ctx.dims, keepdim=True) / squares
            return torch.addcmul(above, feat, along, value=-1).mul_(inverse)

        return None, None, *_slopes(ctx, aboves, slope)


def unit(feat: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divide by the Euclidean norm over dims. A zero vector stays zero and gets no gradient (F.normalize would give it 1e12)."""
    return _Unit.apply(dims, None, feat)[0]


def min_max(feat: Tensor) -> Tensor:
    """Map the smallest value of the whole tensor to 0 and the largest to 1. A constant tensor gives 0."""
    low, high = feat.aminmax()
    return (feat - low) / (high - low + MIN_MAX_EPS)


def several_values(feat: Tensor, name: str) -> Tensor:
    """feat itself. Raises ValueError where a channel has one value, which has no spread."""
    if feat.shape[0] * feat.shape[2] * feat.shape[3] < 2:
        raise ValueError(f"{name!r} needs more than one value a channel, got a tensor of shape {tuple(feat.shape)}")
    return feat


def batchnorm(feat: Tensor) -> Tensor:
    """Per channel, over images and positions: zero mean and unit biased variance, eps 1e-5 inside the root."""
    return F.batch_norm(several_values(feat, "batchnorm"), None, None, training=True, eps=BATCHNORM_EPS)


class _Standardized(torch.autograd.Function):
    """`standardize`. The result is kept for the backward, where autograd keeps two maps more."""

    @staticmethod
    def forward(ctx: Any, feat: Tensor) -> Tensor:
        std, mean = torch.std_mean(feat, dim=(0, 2, 3), keepdim=True)
        out = (feat - mean).div_(std + STANDARDIZE_EPS)
        ctx.save_for_backward(out, std)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> Tensor:
        out, std = ctx.saved_tensors
        divisor, freedom = std + STANDARDIZE_EPS, out.numel() // std.numel() - 1
        along = (above * out).sum((0, 2, 3), keepdim=True) * divisor / (freedom * std)
        along.masked_fill_(std == 0, 0)
        return (above - above.mean((0, 2, 3), keepdim=True)).addcmul_(out, along, value=-1).div_(divisor)


def standardize(feat: Tensor) -> Tensor:
    """Per channel, over images and positions: zero mean and unit unbiased standard deviation, eps 1e-6 on it (PKD)."""
    return _Standardized.apply(several_values(feat, "standardize"))


def channel_gram(feat: Tensor) -> Tensor:
    """Products of the channels of (N, C, ...) over all positions, not divided by their number: (N, C, C) (DetKDS `bmm`)."""
    channels = feat.flatten(2)
    return channels @ channels.mT


def batch_gram(feat: Tensor) -> Tensor:
    """Products of the images of a batch over all channels and positions: (N, N) (DetKDS `mm`)."""
    images = several_images(feat, "mm").flatten(1)
    return images @ images.mT


class _OfEach(torch.autograd.Function):
    """A function of each value of a map, which alone is kept for the backward, where autograd keeps every step of the function."""

    @staticmethod
    def forward(ctx: Any, feat: Tensor, value: Transform, slope: Transform) -> Tensor:
        ctx.save_for_backward(feat)
        ctx.slope = slope
        return value(feat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.slope(*ctx.saved_tensors).mul_(above), None, None


def square(feat: Tensor) -> Tensor:
    """The square, beyond 2^24 that of 2^24."""

    def slope(feat: Tensor) -> Tensor:
        return (2 * feat).masked_fill_(feat.abs() > MOST_OF_POW2, 0)

    return _OfEach.apply(feat, lambda feat: feat.clamp(-MOST_OF_POW2, MOST_OF_POW2).square_(), slope)


def root(feat: Tensor) -> Tensor:
    """The square root; below 1e-12 a straight line to 0, so that its slope stays below 1e6. 0 for what is negative."""
    return torch.where(feat > LEAST_OF_ROOT, feat.clamp_min(LEAST_OF_ROOT).sqrt(), feat.clamp(0, LEAST_OF_ROOT) / LEAST_OF_ROOT**0.5)


def mish(feat: Tensor) -> Tensor:
    """f * tanh(softplus(f)). The tanh is n / (n + 2) with n = e^f (e^f + 2); the kernels of F.mish and softplus are slow on a CPU."""

    def value(feat: Tensor) -> Tensor:
        e = feat.clamp_max(20).exp_()
        n = (e + 2).mul_(e)
        return n.div_(n + 2).mul_(feat)

    def slope(feat: Tensor) -> Tensor:
        """(n + 4 f (n - e^f) / (n + 2)) / (n + 2), in the memory of three maps."""
        e = feat.clamp_max(20).exp_()
        n = (e + 2).mul_(e)
        steep = e.neg_().add_(n).mul_(feat.clamp_max(20)).mul_(4)
        inverse = (n + 2).reciprocal_()
        return steep.mul_(inverse).add_(n).mul_(inverse)

    return _OfEach.apply(feat, value, slope)


def signed_log(feat: Tensor) -> Tensor:
    """sign(f) * log(|f| + 1e-9), 0 at 0, where it jumps: no gradient nearer to 0 than 1e-6, else one value could outweigh a map."""

    def slope(feat: Tensor) -> Tensor:
        size = feat.abs()
        return (size + LOG_EPS).reciprocal_().masked_fill_(size <= LEAST_OF_LOG, 0)

    return _OfEach.apply(feat, lambda feat: feat.abs().add_(LOG_EPS).log_().mul_(feat.sign()), slope)


NORMALISATION: Mapping[str, Transform] = {
    "none": identity,
    "batch": lambda feat: feat.flatten(1),
    "channel": lambda feat: feat.flatten(2),
    "norm_HW": lambda feat: unit(feat, (2, 3)),
    "norm_C": lambda feat: unit(feat, (1,)),
    "norm_N": lambda feat: unit(several_images(feat, "norm_N"), (0,)),
    "softmax_N": lambda feat: several_images(feat, "softmax_N").softmax(0),
    "softmax_C": lambda feat: feat.softmax(1),
    "softmax_HW": lambda feat: feat.flatten(2).softmax(2),
    "logsoftmax_N": lambda feat: several_images(feat, "logsoftmax_N").log_softmax(0),
    "logsoftmax_C": lambda feat: feat.log_softmax(1),
    "logsoftmax_HW": lambda feat: feat.flatten(2).log_softmax(2),
    "min_max_normalize": min_max,
    "batchnorm": batchnorm,
    "standardize": standardize,
    "bmm": channel_gram,
    "mm": batch_gram,
    "pow2": square,
    "pow4": lambda feat: feat.clamp(-MOST_OF_POW4, MOST_OF_POW4).square().square(),
    "sqrt": root,
    "log": signed_log,
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "swish": F.silu,
    "tanh": torch.tanh,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "mish": mish,
    "exp": lambda feat: feat.clamp_max(MOST_OF_EXP).exp(),
}

SOFTMAX_DIMS: Mapping[str, tuple[int, ...]] = {"softmax_N": (0,), "softmax_C": (1,), "softmax_HW": (2, 3)}  # of a map (N, C, H, W)

# The same as on each map for itself, with fewer operations: those on what is a number a channel or a position are done for both at once.
OF_BOTH: Mapping[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "satt": lambda *feats: _Attended.apply((1,), *feats),
    "catt": lambda *feats: _Attended.apply((2, 3), *feats),
    "norm_HW": lambda *feats: _Unit.apply((2, 3), None, *feats),
    "norm_C": lambda *feats: _Unit.apply((1,), None, *feats),
    "norm_N": lambda *feats: _Unit.apply((0,), None, *(several_images(feat, "norm_N") for feat in feats)),
}


def norm_C_where(kept: Tensor, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`norm_C` of both maps times a factor of each position, (N, 1, H, W): it cancels, but for where it is 0."""
    ours, theirs = _Unit.apply((1,), kept, student, teacher)
    return ours, theirs


def pooled_catt(scale: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`catt` and then a scale of `POOL` of both maps."""
    ours, theirs = _AttendedPools.apply(POOL[scale], student, teacher)
    return ours, theirs
