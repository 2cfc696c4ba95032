"""Distances between a student's and a teacher's tensor of one shape: not negative, 0 at identity, one scalar each."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this length a vector counts as zero. Far above float32's smallest number even when squared, and far below what a softmax over a map
# or an area-weighted mask leaves: the customary 1e-8 on the product of two lengths makes such a vector differ from itself.
NO_LENGTH = 1e-12
FLAT = 1e-6  # spread relative to the mean below which a vector is constant up to float32 rounding

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


def pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - Pearson correlation over dim 1. Constant vectors: see `_mean_angle`."""
    s_mean, t_mean = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    s, t = student - s_mean, teacher - t_mean
    flat = FLAT * student.shape[1] ** 0.5
    return _mean_angle(s, t, flat * s_mean.squeeze(1).abs(), flat * t_mean.squeeze(1).abs())


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine similarity over dim 1. Zero vectors: see `_mean_angle`."""
    return _mean_angle(student, teacher)


def _mean_angle(student: Tensor, teacher: Tensor, student_least: Tensor | None = None, teacher_least: Tensor | None = None) -> Tensor:
    """Mean of 1 - cosine over dim 1, where a vector not longer than its `least` has no direction.

    Two such vectors are at distance 0, one such and another at distance 1, without gradient. So a masked position costs nothing, and a dead
    student position gets no gradient of one over nearly nothing.
    """
    s_norm, t_norm = torch.linalg.vector_norm(student, dim=1), torch.linalg.vector_norm(teacher, dim=1)
    cosine = (student * teacher).sum(1) / (s_norm * t_norm).clamp_min(NO_LENGTH**2)
    s_flat, t_flat = s_norm <= NO_LENGTH, t_norm <= NO_LENGTH
    if student_least is not None and teacher_least is not None:
        s_flat, t_flat = s_flat | (s_norm <= student_least), t_flat | (t_norm <= teacher_least)
    return torch.where(s_flat | t_flat, (s_flat ^ t_flat).to(cosine.dtype), 1 - cosine).mean()


DISTANCES: Mapping[str, Distance] = {"l1": l1, "l2": l2, "smooth_l1": smooth_l1, "pear": pearson, "cos": cosine}


def kl_divergence(student: Tensor, teacher: Tensor, dims: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)): raw scores in, summed over dims, mean over the rest.

    Only the student is under the log (and the teacher in its own entropy), so it is a divergence (Hinton et al. 2015).
    With dims (2, 3) it is CWD's loss. T^2 keeps the size of the gradient when T changes.
    """
    student, teacher = (_last(x, dims) / temperature for x in (student, teacher))
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    divergence = F.kl_div(log_s, log_t, reduction="sum", log_target=True)
    return divergence * (temperature**2 / (log_s.numel() // log_s.shape[-1]))


def _last(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Move dims to the end and flatten them into one: (..., M)."""
    return x.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
