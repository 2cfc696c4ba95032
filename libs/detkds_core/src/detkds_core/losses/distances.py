"""Distances between a student's and a teacher's tensor of one shape: not negative, 0 at identity.

`DISTANCES` has them as one scalar, the mean. Those of `VALUES` also have a value at each position, for regions that weigh positions.
"""

from collections.abc import Callable, Mapping
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this length a vector counts as zero. Far above float32's smallest number even when squared, and far below what a softmax over a map
# or an area-weighted mask leaves: the customary 1e-8 on the product of two lengths makes such a vector differ from itself.
NO_LENGTH = 1e-12
FLAT = 1e-6  # spread relative to the mean below which a vector is constant up to float32 rounding
WINDOW = 7  # cells a side that ssim compares at once
NO_RANGE = 1e-15  # below it a teacher's map is constant; its square is still a float32

Distance = Callable[[Tensor, Tensor], Tensor]


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference."""
    return F.l1_loss(student, teacher)


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference."""
    return F.mse_loss(student, teacher)


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of d^2 / 2 where |d| < 1, of |d| - 1/2 elsewhere."""
    return F.smooth_l1_loss(student, teacher)


def cosines(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine similarity over dim 1, (N, ...). Zero vectors: see `_angles`."""
    return _angles(student, teacher, 1)


def correlations(student: Tensor, teacher: Tensor, dim: int = 1) -> Tensor:
    """1 - Pearson correlation over dim, the shape without it. Constant vectors: see `_angles`."""
    s_mean, t_mean = student.mean(dim, keepdim=True), teacher.mean(dim, keepdim=True)
    flat = FLAT * student.shape[dim] ** 0.5
    leasts = (flat * s_mean.squeeze(dim).abs(), flat * t_mean.squeeze(dim).abs())
    return _angles(student - s_mean, teacher - t_mean, dim, *leasts)


def _angles(student: Tensor, teacher: Tensor, dim: int, student_least: Tensor | None = None, teacher_least: Tensor | None = None) -> Tensor:
    """1 - cosine over dim, where a vector not longer than its `least` has no direction.

    Two such vectors are at distance 0, one such and another at distance 1, without gradient. So a masked position costs nothing, and a dead
    student position gets no gradient of one over nearly nothing.
    """
    # torch.linalg.vector_norm does the same in ten times the time where dim is not the last.
    s_squares, t_squares = student.square().sum(dim), teacher.square().sum(dim)
    s_flat, t_flat = s_squares <= NO_LENGTH**2, t_squares <= NO_LENGTH**2
    if student_least is not None and teacher_least is not None:
        s_flat, t_flat = s_flat | (s_squares <= student_least**2), t_flat | (t_squares <= teacher_least**2)
    # One over an endless length is 0, and has no slope.
    s_inverse, t_inverse = s_squares.masked_fill(s_flat, inf).rsqrt(), t_squares.masked_fill(t_flat, inf).rsqrt()
    return (1 - (student * teacher).sum(dim) * s_inverse * t_inverse).masked_fill(s_flat & t_flat, 0)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine similarity over dim 1."""
    return cosines(student, teacher).mean()


def pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - Pearson correlation over dim 1."""
    return correlations(student, teacher).mean()


def pearson_of_positions(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - Pearson correlation over the positions of each channel of (N, C, H, W) or (N, C, M)."""
    return correlations(student.flatten(2), teacher.flatten(2), 2).mean()


def pearson_of_images(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - Pearson correlation over dim 0, element by element."""
    return correlations(_several(student, "pear_N"), teacher, 0).mean()


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (1 - c)^2, c the Pearson correlation of each element over dim 0: what DetKDS' `cor` takes the logarithm of."""
    return correlations(_several(student, "cor"), teacher, 0).square().mean()


def _several(x: Tensor, name: str) -> Tensor:
    if x.shape[0] < 3:
        raise ValueError(f"{name!r} correlates over a batch; over {x.shape[0]} it is 0 or 2 or nothing, without gradient; at least 3")
    return x


def ssim(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - mean structural similarity of two maps (N, C, H, W) (Wang et al. 2004): from 0 to 2.

    Over all windows of at most 7 x 7 cells that lie on the map, uniformly weighted; constants (0.01 L)^2 and (0.03 L)^2 with L the range of
    the teacher's values in that image.
    """
    low, high = teacher.amin(dim=(1, 2, 3), keepdim=True), teacher.amax(dim=(1, 2, 3), keepdim=True)
    span = (high - low).clamp_min(FLAT * torch.maximum(high.abs(), low.abs())).clamp_min(NO_RANGE)
    # Spread does not change with a summand, and rounding does: it is measured around the teacher's mean.
    middle = teacher.mean(dim=(2, 3), keepdim=True)
    s, t = student - middle, teacher - middle
    s_mean, t_mean = _windows(s), _windows(t)
    both = 2 * (_windows(s * t) - s_mean * t_mean)  # twice the covariance
    apart = (_windows((s - t).square()) - (s_mean - t_mean).square()).clamp_min(0)  # spread of the difference: both spreads less `both`
    s_mean, t_mean = s_mean + middle, t_mean + middle
    brightness = 1 - (s_mean - t_mean).square() / (s_mean.square() + t_mean.square() + (0.01 * span) ** 2)
    structure = 1 - apart / ((apart + both).maximum(apart / 2) + (0.03 * span) ** 2)  # what both spread is at least half of `apart`
    return (1 - brightness * structure).mean()


def _windows(maps: Tensor) -> Tensor:
    """The mean of each window of at most 7 x 7 cells: (N, C, H - 6, W - 6). As two products: pooling has a slow backward on a CPU."""
    N, C, H, W = maps.shape
    down, across = _band(H, maps), _band(W, maps)
    rows = down @ maps.permute(0, 2, 3, 1).reshape(N, H, W * C)
    return (across @ rows.view(N, -1, W, C)).permute(0, 3, 1, 2)


def _band(side: int, like: Tensor) -> Tensor:
    """Row i is the mean of the cells i to i + 6, or of all where there are fewer: (side - 6, side)."""
    width = min(WINDOW, side)
    offset = torch.arange(side, device=like.device) - torch.arange(side - width + 1, device=like.device)[:, None]
    return ((offset >= 0) & (offset < width)).to(like.dtype) / width


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
    "l1": lambda student, teacher: F.l1_loss(student, teacher, reduction="none").mean(1),
    "l2": lambda student, teacher: F.mse_loss(student, teacher, reduction="none").mean(1),
    "smooth_l1": lambda student, teacher: F.smooth_l1_loss(student, teacher, reduction="none").mean(1),
    "pear": correlations,
    "cos": cosines,
    "kl_sigmoid": bernoulli_divergences,
}
