"""How sure a figure is: intervals of a mean, and of a paired difference, over a few seeds and over the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

BISECTIONS = 40  # of a bracket of some AP: far below what is printed
Resamples = Sequence[Sequence[float | None]]  # one row a seed: the value on each draw of the images; None where a draw has none


class Interval(NamedTuple):
    """A mean and the bounds of its two-sided interval; the bounds are NaN where one value allows none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Error:
    """How a mean may lie off its truth: by the seeds and, apart from them, by the images.

    seeds: the multiplier bootstrap of the seeds with n - 1 degrees of freedom, which is Student's t times `scale` in closed form.
    Resampling three to ten values as they are is known to be too narrow (docs/adr/0007). images: the mean over the seeds on every draw
    of the images, less its average over the draws; a single 0 where images were not drawn.
    """

    scale: float
    freedom: int
    images: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))

    def below(self, x: float) -> float:
        """The probability of an error of at most x: the mean over the draws of what the seeds leave."""
        if self.scale == 0:
            return float(np.mean(self.images <= x))
        return float(np.mean(stdtr(self.freedom, (x - self.images) / self.scale)))

    def quantile(self, probability: float) -> float:
        """The error that is not exceeded with this probability."""
        t = float(stdtrit(self.freedom, probability)) * self.scale
        low, high = float(self.images.min()) + t, float(self.images.max()) + t
        for _ in range(BISECTIONS if high > low else 0):
            middle = (low + high) / 2
            low, high = (low, middle) if self.below(middle) >= probability else (middle, high)
        return high


def error_of(values: Sequence[float], resamples: Resamples = ()) -> Error:
    """The error of the mean of at least two values, one a seed, whose images were drawn anew alike for every seed."""
    n = len(values)
    mean = math.fsum(values) / n
    scale = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    if not resamples:
        return Error(scale, n - 1)
    if len(resamples) != n:
        raise ValueError(f"resamples: {len(resamples)} rows for {n} values; one a seed")
    draws = np.array(resamples, dtype=float).mean(axis=0)  # None becomes NaN
    draws = draws[np.isfinite(draws)]
    return Error(scale, n - 1, draws - draws.mean()) if len(draws) else Error(scale, n - 1)


def mean_interval(values: Sequence[float], confidence: float = 0.95, *, resamples: Resamples = (), choices: int = 1) -> Interval:
    """Mean and interval of independent values (one a seed); with `resamples` over the images too.

    Over seeds alone it is the t interval, mean +- t(n - 1) * s / sqrt(n). One value has no interval: its bounds are NaN.
    choices: among how many the mean was chosen for being the highest. Choosing favours what was measured too high and nothing else, so the
    lower bound alone is that of `choices` simultaneous ones (Bonferroni): the interval covers whatever was chosen, and however.
    Raises ValueError without values, and where confidence is not between 0 and 1.
    """
    if not values:
        raise ValueError("an interval needs at least one value, got none")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, got {confidence}")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    error, tail = error_of(values, resamples), (1 - confidence) / 2
    return Interval(mean, mean - error.quantile(1 - tail / choices), mean - error.quantile(tail))


def differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a - b, pair by pair. Raises ValueError when the two have different lengths."""
    if len(a) != len(b):
        raise ValueError(f"a pair needs both values: {len(a)} on one side, {len(b)} on the other")
    return [x - y for x, y in zip(a, b, strict=True)]


def resample_differences(a: Resamples, b: Resamples) -> list[list[float | None]]:
    """a - b on every draw, seed by seed; nothing where either was not drawn."""
    if not a or not b:
        return []
    return [
        [None if x is None or y is None else x - y for x, y in zip(first, second, strict=True)] for first, second in zip(a, b, strict=True)
    ]


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = 0.95,
    *,
    resamples: tuple[Resamples, Resamples] = ((), ()),
    choices: int = 1,
) -> Interval:
    """Mean of a - b with its interval, where a[i] and b[i] share seed, data order, initial weights and the draws of the images.

    Pairing removes what both have in common, so the interval is narrower than that of two unpaired means.
    choices: among how many a was chosen, as for `mean_interval`. Raises ValueError when the two have different lengths.
    """
    return mean_interval(differences(a, b), confidence, resamples=resample_differences(*resamples), choices=choices)


def p_value(values: Sequence[float], resamples: Resamples = (), choices: int = 1) -> float:
    """How likely values with a mean of 0 are to look as far from it; below 1 - confidence just where the interval excludes 0.

    NaN for one value, which says nothing about noise.
    """
    if len(values) < 2:
        return math.nan
    error, mean = error_of(values, resamples), math.fsum(values) / len(values)
    too_high = choices * (1 - error.below(math.nextafter(mean, -math.inf)))
    return min(1.0, 2 * min(too_high, error.below(mean)))


class Step(NamedTuple):
    """What Holm's procedure makes of one of several p-values. level: the error that its interval may take, so that it excludes 0 just
    where the procedure rejects."""

    adjusted: float
    level: float


def holm(p_values: Sequence[float], level: float = 0.05) -> list[Step]:
    """Holm's step-down procedure over p-values, in their order; NaN takes no part and stays.

    The smallest of k is compared with level / k, the next with level / (k - 1), ...; from the first that is not below on, none is rejected.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    steps = [Step(math.nan, level)] * len(p_values)
    adjusted, stopped = 0.0, 0
    for rank, (p, place) in enumerate(known):
        left = stopped or len(known) - rank
        if not stopped and p >= level / left:
            stopped = left
        adjusted = max(adjusted, min(1.0, (len(known) - rank) * p))
        steps[place] = Step(adjusted, level / left)
    return steps
