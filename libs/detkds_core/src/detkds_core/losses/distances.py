"""Distances between a student's and a teacher's tensor of one shape: not negative, 0 at identity, one scalar each."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

COSINE_EPS = 1e-8  # torch's and DetKDS'; survives because losses are computed in float32
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


def _mean_apart(cosine: Tensor, student_flat: Tensor, teacher_flat: Tensor) -> Tensor:
    """Mean of 1 - cosine. Two vectors without a direction are at distance 0, one without is at distance 1, both without gradient.

    So a masked position costs nothing, and a dead student position does not get the gradient of 1 / eps.
    """
    return torch.where(student_flat | teacher_flat, (student_flat ^ teacher_flat).to(cosine.dtype), 1 - cosine).mean()


def pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - Pearson correlation over dim 1. Constant vectors: see `_mean_apart`."""
    s_mean, t_mean = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    s, t = student - s_mean, teacher - t_mean
    s_norm, t_norm = torch.linalg.vector_norm(s, dim=1), torch.linalg.vector_norm(t, dim=1)
    cosine = (s * t).sum(1) / (s_norm * t_norm + COSINE_EPS)
    flat = FLAT * student.shape[1] ** 0.5
    return _mean_apart(cosine, s_norm <= flat * s_mean.squeeze(1).abs(), t_norm <= flat * t_mean.squeeze(1).abs())


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine similarity over dim 1. Zero vectors: see `_mean_apart`."""
    s_norm, t_norm = torch.linalg.vector_norm(student, dim=1), torch.linalg.vector_norm(teacher, dim=1)
    similarity = (student * teacher).sum(1) / (s_norm.clamp_min(COSINE_EPS) * t_norm.clamp_min(COSINE_EPS))
    return _mean_apart(similarity, s_norm <= COSINE_EPS, t_norm <= COSINE_EPS)


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
