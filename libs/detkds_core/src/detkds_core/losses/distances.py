"""Distances between a student's and a teacher's tensor of one shape: not negative, 0 at identity.

`DISTANCES` has them as one scalar, the mean. Those of `VALUES` also have a value at each position, for regions that weigh positions.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkds_core.losses.reductions import mean_of_abs, sum_of_squares

# Below this length a vector counts as zero. Far above float32's smallest number even when squared, and far below what a softmax over a map
# or an area-weighted mask leaves: the customary 1e-8 on the product of two lengths makes such a vector differ from itself.
NO_LENGTH = 1e-12
FLAT = 1e-6  # spread relative to the mean below which a vector is constant up to float32 rounding
WINDOW = 7  # cells a side that ssim compares at once
NO_RANGE = 1e-15  # below it a teacher's map is constant; its square is still a float32

Distance = Callable[[Tensor, Tensor], Tensor]


class _MeanOf(torch.autograd.Function):
    """The mean of a function of student - teacher. Only the difference is kept for the backward, of which there is one, and overwritten.

    torch's own losses keep both sides and take the difference twice: half as much again in time and memory.
    dim: that the mean is over; None for all. mean: of the difference over dims, which stay as 1; slope: of the difference, which it may
    overwrite, times a number a mean.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        dim: int | None,
        mean: Callable[[Tensor, tuple[int, ...]], Tensor],
        slope: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        apart = student - teacher
        ctx.save_for_backward(apart)
        ctx.dim, ctx.slope = dim, slope
        return mean(apart, tuple(range(apart.dim()))).reshape(()) if dim is None else mean(apart, (dim,)).squeeze(dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        (apart,) = ctx.saved_tensors
        factor = factor / (apart.numel() // factor.numel())
        if ctx.dim is not None:
            factor = factor.unsqueeze(ctx.dim)
        gradient = ctx.slope(apart, factor) if ctx.needs_input_grad[0] or ctx.needs_input_grad[1] else None
        return gradient if ctx.needs_input_grad[0] else None, -gradient if ctx.needs_input_grad[1] else None, None, None, None


def l1(student: Tensor, teacher: Tensor, dim: int | None = None) -> Tensor:
    """Mean absolute difference, over all or over dim."""
    return _MeanOf.apply(student, teacher, dim, mean_of_abs, lambda apart, factor: apart.sign_().mul_(factor))


def l2(student: Tensor, teacher: Tensor, dim: int | None = None) -> Tensor:
    """Mean squared difference, over all or over dim."""

    def mean(apart: Tensor, dims: tuple[int, ...]) -> Tensor:
        squares = sum_of_squares(apart, dims)
        return squares.div_(apart.numel() // squares.numel())

    return _MeanOf.apply(student, teacher, dim, mean, lambda apart, factor: apart.mul_(2 * factor))


def smooth_l1(student: Tensor, teacher: Tensor, dim: int | None = None) -> Tensor:
    """Mean of d^2 / 2 where |d| < 1, of |d| - 1/2 elsewhere, over all or over dim."""

    def mean(apart: Tensor, dims: tuple[int, ...]) -> Tensor:
        near = apart.clamp(-1, 1)  # and the slope
        return torch.sub(apart, near, alpha=0.5).mul_(near).mean(dims, keepdim=True)

    return _MeanOf.apply(student, teacher, dim, mean, lambda apart, factor: apart.clamp_(-1, 1).mul_(factor))


def cosines(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine similarity over dim 1, (N, ...). Zero vectors: see `_Angles`."""
    return _Angles.apply(student, teacher, (1,), False, 1.0)


def correlations(student: Tensor, teacher: Tensor, dims: tuple[int, ...] = (1,)) -> Tensor:
    """1 - Pearson correlation over dims, the shape without them. Constant vectors: see `_Angles`."""
    return _Angles.apply(student, teacher, dims, True, 1.0)


def squares_of_units(student: Tensor, teacher: Tensor) -> Tensor:
    """`l2` over dim 1 of both sides after `norm_C`, (N, ...), from their angle: |s - t|^2 = 2 (1 - s t) of vectors of length 1."""
    return _Angles.apply(student, teacher, (1,), False, 0.5) * (2 / student.shape[1])


class _Angles(torch.autograd.Function):
    """1 - cosine over dims, of the vectors as they are or `centred`, where one that is zero, or constant up to rounding, has no direction.

    Two such vectors are at distance 0, one such and another at distance `alone`, without gradient. So a masked position costs nothing, and
    a dead student position gets no gradient of one over nearly nothing.
    What is a number a vector keeps its dims, and is computed of both sides at once: (2, ...).
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, dims: tuple[int, ...], centred: bool, alone: float) -> Tensor:
        numbers = [1 if dim in dims else size for dim, size in enumerate(student.shape)]
        squares, means = student.new_empty(2, *numbers), student.new_empty(2, *numbers) if centred else None
        if means is not None:
            student, teacher = (x - torch.mean(x, dims, True, out=out) for x, out in zip((student, teacher), means, strict=True))
        for x, out in zip((student, teacher), squares, strict=True):
            sum_of_squares(x, dims, out)
        # One over an endless length is 0, and has no slope.
        if means is None:
            torch.threshold_(squares, NO_LENGTH**2, inf)
        else:
            length = student.numel() * 2 // squares.numel()
            above_rounding = torch.addcmul(squares, means, means, value=-(FLAT**2) * length, out=means)
            squares.masked_fill_(above_rounding <= NO_LENGTH**2, inf)
            del means, above_rounding
        inverse = squares.rsqrt()
        product, scale = (student * teacher).sum(dims, keepdim=True), inverse[0] * inverse[1]
        ctx.save_for_backward(student, teacher, squares, product, scale)
        ctx.dims, ctx.centred = dims, centred
        most = inverse.any(0) if alone == 1 else inverse.sign().sum(0).mul_(alone).clamp_max_(1)
        # torch does not subtract from what is true
        return torch.add(most, product * scale, alpha=-1).clamp_min_(0).squeeze(dims)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, squares, product, scale = ctx.saved_tensors
        across = above.reshape(scale.shape) * scale  # how much of the other side
        product = product * across

        def slope(here: Tensor, there: Tensor, square: Tensor) -> Tensor:
            gradient = (here * (product / square)).addcmul_(there, across, value=-1)
            # Without rounding its mean is 0, and where vectors are long and hardly spread nothing of it is small beside their spread.
            return gradient.sub_(gradient.mean(ctx.dims, keepdim=True)) if ctx.centred else gradient

        ours, theirs = ctx.needs_input_grad[:2]
        of_student = slope(student, teacher, squares[0]) if ours else None
        return of_student, slope(teacher, student, squares[1]) if theirs else None, None, None, None


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine similarity over dim 1."""
    return cosines(student, teacher).mean()


def pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - Pearson correlation over dim 1."""
    return correlations(student, teacher).mean()


def pearson_of_positions(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - Pearson correlation over the positions of each channel of (N, C, H, W) or (N, C, M)."""
    return correlations(student, teacher, (2, 3) if student.dim() == 4 else (2,)).mean()


def pearson_of_images(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - Pearson correlation over dim 0, element by element."""
    return correlations(_several(student, "pear_N"), teacher, (0,)).mean()


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (1 - c)^2, c the Pearson correlation of each element over dim 0: what DetKDS' `cor` takes the logarithm of."""
    return correlations(_several(student, "cor"), teacher, (0,)).square().mean()


def _several(x: Tensor, name: str) -> Tensor:
    if x.shape[0] < 3:
        raise ValueError(f"{name!r} correlates over a batch; over {x.shape[0]} it is 0 or 2 or nothing, without gradient; at least 3")
    return x


def ssim(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - mean structural similarity of two maps (N, C, H, W) (Wang et al. 2004): from 0 to 2. The teacher gets no gradient.

    Over all windows of at most 7 x 7 cells that lie on the map, uniformly weighted; constants (0.01 L)^2 and (0.03 L)^2 with L the range of
    the teacher's values in that image.
    """
    return _Ssim.apply(student, teacher)


class _Ssim(torch.autograd.Function):
    """Everything with channels innermost, where a mean over windows is two products: pooling has a slow backward on a CPU.

    The gradient of each window's mean is computed with the loss, in the memory of what it comes from: autograd would hold three times as
    many maps. Names: (s), (t), (st) and (s - t)^2 are the means of a window, of values less the teacher's mean.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = (x.permute(0, 2, 3, 1) for x in (student, teacher))  # (N, H, W, C)
        low, high = teacher.amin((1, 2, 3), keepdim=True), teacher.amax((1, 2, 3), keepdim=True)
        span = (high - low).maximum(FLAT * torch.maximum(high, -low)).clamp_min(NO_RANGE).square_()
        # Spread does not change with a summand, and rounding does: it is measured around the teacher's mean.
        middle = teacher.mean((1, 2), keepdim=True)
        bands = _band(student.shape[1], student), _band(student.shape[2], student)
        s, t = _less(student, middle), _less(teacher, middle)
        s_mean, t_mean = _windows(s, *bands), _windows(t, *bands)
        covariance = _windows(s.mul_(t), *bands).addcmul_(s_mean, t_mean, value=-1)
        apart = s_mean - t_mean
        del s, t
        spread = _windows(_less(student, teacher).square_(), *bands).addcmul_(apart, apart, value=-1)  # of the difference
        rounded = spread < 0
        spread.clamp_min_(0)
        s_mean += middle
        t_whole = t_mean + middle
        size = t_whole.square_().addcmul_(s_mean, s_mean).add_(span, alpha=0.01**2)
        unlike = apart.square().div_(size)  # 1 - brightness
        gradient = s_mean.mul_(unlike).neg_().add_(apart).div_(size)
        del s_mean, t_whole, size
        whole = covariance.mul_(2).add_(spread)  # both spreads less that of the difference
        half = spread / 2  # what both spread is at least half of the difference's
        more = whole >= half
        whole = torch.maximum(whole, half, out=half).add_(span, alpha=0.03**2)
        del covariance, half
        apart_share = spread.div_(whole)  # 1 - structure
        bright, structure = unlike.neg_().add_(1), 1 - apart_share
        gradient *= structure  # of (s), and so on; each half as large as it is
        value = 1 - structure.mul_(bright).mean()
        del unlike, structure
        of_apart = bright.div_(whole)
        del whole
        share = apart_share.mul_(of_apart)
        of_product = share * more
        of_apart.add_(share, alpha=-0.5).add_(of_product, alpha=-0.5).masked_fill_(rounded, 0)
        gradient.addcmul_(t_mean, of_product).addcmul_(apart, of_apart, value=-1)
        ctx.save_for_backward(student, teacher, middle, *bands, gradient, of_product, of_apart)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        student, teacher, middle, down, across, gradient, of_product, of_apart = ctx.saved_tensors
        back = down.mT, across.mT
        found = _windows(gradient, *back)
        found.addcmul_(_windows(of_product, *back), teacher - middle, value=-1)
        found.addcmul_(_windows(of_apart, *back), student - teacher)
        return found.mul_(2 * above / gradient.numel()).permute(0, 3, 1, 2), None


def _less(x: Tensor, other: Tensor) -> Tensor:
    """x - other, (N, H, W, C), channels innermost in memory."""
    return torch.sub(x, other, out=x.new_empty(x.shape))


def _windows(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """The mean of each window: (N, H, W, C) by `_band`s to (N, H - 6, W - 6, C)."""
    N, H, W, C = maps.shape
    return across @ (down @ maps.view(N, H, W * C)).view(N, -1, W, C)


def _band(side: int, like: Tensor) -> Tensor:
    """Row i is the mean of the cells i to i + 6, or of all where there are fewer: (side - 6, side)."""
    width = min(WINDOW, side)
    return like.new_full((side - width + 1, side), 1 / width).triu_().tril_(width - 1)


DISTANCES: Mapping[str, Distance] = {
    "l1": l1,
    "l2": l2,
    "smooth_l1": smooth_l1,
    "pear": pearson,
    "pear_HW": pearson_of_positions,
    "pear_N": pearson_of_images,
    "cos": cosine,
    "cor": correlation,
    "ssim": ssim,
}


def divergences(student: Tensor, teacher: Tensor, dims: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) of raw scores, summed over dims: the shape without them.

    Only the student is under the log (and the teacher in its own entropy), so it is a divergence (Hinton et al. 2015).
    With dims (2, 3) it is CWD's loss. T^2 keeps the size of the gradient when T changes.
    """
    log_s, log_t, dim = _log_softmaxes(student, teacher, dims, temperature)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim) * temperature**2


def kl_divergence(student: Tensor, teacher: Tensor, dims: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """Mean of `divergences`."""
    log_s, log_t, dim = _log_softmaxes(student, teacher, dims, temperature)
    divergence = F.kl_div(log_s, log_t, reduction="sum", log_target=True)
    return divergence * (temperature**2 / (log_s.numel() // log_s.shape[dim]))


def _log_softmaxes(student: Tensor, teacher: Tensor, dims: tuple[int, ...], temperature: float) -> tuple[Tensor, Tensor, int]:
    """Both log-softmaxes and the dim that they run over; dims of several are flattened into the first."""
    dim = dims[0]
    scores = [x.flatten(dim, dims[-1]) for x in (student, teacher)]
    log_s, log_t = ((x if temperature == 1 else x / temperature).log_softmax(dim) for x in scores)
    return log_s, log_t, dim


def bernoulli_divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of the Bernoulli distributions sigmoid(teacher) and sigmoid(student) of raw scores, summed over dim 1.

    It is the binary cross-entropy less the teacher's own entropy, which has no gradient.
    """
    chance = teacher.sigmoid()
    entropy = chance * teacher - F.softplus(teacher)  # negative
    return (F.softplus(student) - chance * student + entropy).sum(1)


def kl_sigmoid(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of `bernoulli_divergences`."""
    return bernoulli_divergences(student, teacher).mean()


# One value a position: (N, C, H, W) becomes (N, H, W).
VALUES: Mapping[str, Distance] = {
    "l1": partial(l1, dim=1),
    "l2": partial(l2, dim=1),
    "smooth_l1": partial(smooth_l1, dim=1),
    "pear": correlations,
    "cos": cosines,
    "kl_sigmoid": bernoulli_divergences,
}
