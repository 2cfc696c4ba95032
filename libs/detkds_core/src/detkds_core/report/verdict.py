"""What the figures allow to say, in one sentence, and no more than that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detkds_core.report.data import Row
from detkds_core.report.statistics import Interval, paired_difference

Outcome = Literal["better", "worse", "within noise", "one pair", "not measured"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One detector against another on the seeds that both were trained with.

    difference: of their APs, seed by seed, with its 95 % t interval. outcome: `better` or `worse` only where that interval
    excludes 0; `one pair` where a single seed allows no interval.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    difference: Interval
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Verdict:
    """The sentence, and the comparisons it stands on; a comparison is None where one of its detectors was not measured."""

    sentence: str
    against_alone: Comparison | None
    against_reference: Comparison | None


def compare(first: Row, second: Row) -> Comparison | None:
    """Compare two rows by the seeds they share; None when they share none."""
    a, b = dict(zip(first.seeds, first.ap, strict=True)), dict(zip(second.seeds, second.ap, strict=True))
    seeds = tuple(seed for seed in first.seeds if seed in b)
    if not seeds:
        return None
    difference = paired_difference([a[seed] for seed in seeds], [b[seed] for seed in seeds])
    outcome: Outcome = "within noise"
    if len(seeds) == 1:
        outcome = "one pair"
    elif difference.low > 0:
        outcome = "better"
    elif difference.high < 0:
        outcome = "worse"
    return Comparison(first.name, second.name, seeds, tuple(a[seed] - b[seed] for seed in seeds), difference, outcome)


def verdict(rows: Sequence[Row]) -> Verdict:
    """Whether distillation beat the student alone beyond noise, and whether the searched policy beat the hand-designed one.

    The hand-designed one is the `reference` row with the highest mean AP. Without a `searched` row that reference stands for distillation.
    """
    alone = next((row for row in rows if row.role == "alone"), None)
    searched = next((row for row in rows if row.role == "searched"), None)
    reference = max((row for row in rows if row.role == "reference"), key=lambda row: math.fsum(row.ap) / len(row.ap), default=None)
    distilled = searched or reference
    against_alone = compare(distilled, alone) if distilled and alone else None
    against_reference = compare(searched, reference) if searched and reference else None
    if distilled is None:
        return Verdict("No distilled student was measured.", None, None)
    sentences = [_against_alone(against_alone)]
    if searched is not None:
        sentences.append(_against_reference(against_reference))
    return Verdict(" ".join(sentences), against_alone, against_reference)


def _against_alone(comparison: Comparison | None) -> str:
    if comparison is None:
        return "The student alone was not measured with the same seeds, so what distillation brought is not known."
    figures = describe(comparison)
    return {
        "better": f"Distillation beat the student alone beyond noise: {figures}.",
        "worse": f"Distillation made the student worse than alone, beyond noise: {figures}.",
        "within noise": f"Distillation did not beat the student alone beyond noise: {figures}.",
        "one pair": f"One seed cannot tell whether distillation beat the student alone: {figures}.",
    }[comparison.outcome]


def _against_reference(comparison: Comparison | None) -> str:
    if comparison is None:
        return "No hand-designed policy was measured with the same seeds."
    figures = describe(comparison)
    return {
        "better": f"The searched policy beat {comparison.second} beyond noise: {figures}.",
        "worse": f"The searched policy was worse than {comparison.second} beyond noise: {figures}.",
        "within noise": f"The searched policy and {comparison.second} do not differ beyond noise: {figures}.",
        "one pair": f"One seed cannot tell it from {comparison.second}: {figures}.",
    }[comparison.outcome]


def describe(comparison: Comparison) -> str:
    """`+6.3 AP (95 % interval +4.1 to +8.5, 3 paired seeds)`."""
    mean, low, high = comparison.difference
    if len(comparison.seeds) == 1:
        return f"{mean:+.1f} AP (1 seed, no interval)"
    return f"{mean:+.1f} AP (95 % interval {low:+.1f} to {high:+.1f}, {len(comparison.seeds)} paired seeds)"
