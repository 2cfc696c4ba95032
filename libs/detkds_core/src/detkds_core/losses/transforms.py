"""The transforms of a term after attention: scale, then normalisation (DetKDS `operations.py`, `_TRANS_FUNC2` and `_TRANS_FUNC3`).

Every transform takes float32 maps of shape (N, C, H, W). A scale returns maps; a normalisation may return (N, M), (N, C, M), (N, C, C) or
(N, N).
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkds_core.losses.at_once import each, gradients, keep
from detkds_core.losses.reductions import sum_of_squares

UNIT_EPS = 1e-12  # F.normalize's; below it a vector counts as zero
MIN_MAX_EPS = 1e-9  # these three survive because losses are computed in float32
BATCHNORM_EPS = 1e-5
STANDARDIZE_EPS = 1e-6  # PKD adds it to the standard deviation
LOG_EPS = 1e-9  # DetKDS adds it to the absolute value
# Nearer to 0 the slope of `log` (1 / |f|) counts as none, and a root (slope 1 / 2 root f) is a straight line.
LEAST_OF_LOG, LEAST_OF_ROOT = 1e-6, 1e-12
# What goes into a power is held where the square of the result, summed over 2^31 elements, is still a float32: 2^96 each.
MOST_OF_POW2, MOST_OF_POW4, MOST_OF_EXP = 2.0**24, 2.0**12, 32.0

Transform = Callable[[Tensor], Tensor]
OfBoth = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of student and teacher


def identity(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    return feat


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
        squares = each(feats, dims)
        for feat, out in zip(feats, squares, strict=True):
            sum_of_squares(feat, dims, out)
        squares = torch.threshold_(squares, UNIT_EPS**2, inf)
        if kept is not None:
            squares.masked_fill_(kept == 0, inf)
        inverses = squares.rsqrt()
        ctx.dims = dims
        return keep(ctx, feats, [feat * inverse for feat, inverse in zip(feats, inverses, strict=True)], squares, inverses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *aboves: Tensor | None) -> tuple[Tensor | None, ...]:
        def slope(above: Tensor, feat: Tensor, squares: Tensor, inverse: Tensor) -> Tensor:
            along = (above * feat).sum(ctx.dims, keepdim=True) / squares
            return torch.addcmul(above, feat, along, value=-1).mul_(inverse)

        return None, None, *gradients(ctx, aboves, slope)


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

    def value(feat: Tensor) -> Tensor:
        return feat.clamp_min(LEAST_OF_ROOT).rsqrt_().mul_(feat.clamp_min(0))

    def slope(feat: Tensor) -> Tensor:
        steep = feat.clamp_min(LEAST_OF_ROOT).rsqrt_().div_(2)
        return steep.masked_fill_(feat <= LEAST_OF_ROOT, LEAST_OF_ROOT**-0.5).masked_fill_(feat < 0, 0)

    return _OfEach.apply(feat, value, slope)


def mish(feat: Tensor) -> Tensor:
    """f * tanh(softplus(f)). The tanh is n / (n + 2) with n = e^f (e^f + 2): torch has it in one kernel, which is slow on a CPU."""
    if feat.device.type != "cpu":
        return F.mish(feat)

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
NORMALISATION_OF_BOTH: Mapping[str, OfBoth] = {
    "norm_HW": lambda *feats: _Unit.apply((2, 3), None, *feats),
    "norm_C": lambda *feats: _Unit.apply((1,), None, *feats),
    "norm_N": lambda *feats: _Unit.apply((0,), None, *(several_images(feat, "norm_N") for feat in feats)),
}


def norm_C_where(kept: Tensor, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`norm_C` of both maps times a factor of each position, (N, 1, H, W): it cancels, but for where it is 0."""
    ours, theirs = _Unit.apply((1,), kept, student, teacher)
    return ours, theirs
