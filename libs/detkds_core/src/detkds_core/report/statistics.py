"""How sure a figure is: intervals of a mean, and of a paired difference, from a few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit  # type: ignore[import-untyped]


class Interval(NamedTuple):
    """A mean and the bounds of its two-sided t interval; the bounds are NaN where one value allows none."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean and t interval of independent values (one a seed).

    mean +- t(n - 1) * s / sqrt(n), s with n - 1 in its denominator. One value has no interval: its bounds are NaN.
    Raises ValueError without values, and where confidence is not between 0 and 1.
    """
    if not values:
        raise ValueError("an interval needs at least one value, got none")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, got {confidence}")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a - b with its t interval, where a[i] and b[i] share seed, data order and initial weights.

    Pairing removes what both have in common, so the interval is narrower than that of two unpaired means.
    Raises ValueError when the two have different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"a pair needs both values: {len(a)} on one side, {len(b)} on the other")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], confidence)
