"""What the figures allow to say, in one sentence, and no more than that; and which policy they allow to hand out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

from detkds_core.report.data import Row
from detkds_core.report.statistics import (
    Interval,
    Resamples,
    Step,
    differences,
    holm,
    mean_interval,
    p_value,
    resample_differences,
)

Outcome = Literal["better", "worse", "within noise", "one pair", "not measured"]
Returned = Literal["searched", "reference"]
T = TypeVar("T")
LEVEL = 0.05  # of error, for all of a family of comparisons together
BEHIND = 0.99  # confidence at which one is so far behind the best that it cannot have been chosen by luck


@dataclass(frozen=True, slots=True)
class Comparison:
    """One detector against another on the seeds that both were trained with.

    difference: of their APs, seed by seed, with its interval (95 % or, by Holm, more). outcome: `better` or `worse` only where that
    interval excludes 0; `one pair` where a single seed allows no interval. p: adjusted by Holm over the comparisons of the family.
    images: over how many the interval was drawn, 0 where it covers the seeds alone. choices: among how many the first was chosen.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    difference: Interval
    outcome: Outcome
    p: float = math.nan
    images: int = 0
    choices: int = 1

    def to_json(self) -> dict[str, Any]:
        """As JSON, which has no NaN."""
        return {
            "first": self.first,
            "second": self.second,
            "seeds": list(self.seeds),
            "differences": list(self.differences),
            "mean": self.difference.mean,
            "interval": [finite(self.difference.low), finite(self.difference.high)],
            "outcome": self.outcome,
            "p": finite(self.p),
            "images": self.images,
            "choices": self.choices,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Comparison:
        """What `to_json` gave; results of before images were drawn have neither p, images nor choices."""
        low, high = (math.nan if bound is None else float(bound) for bound in value["interval"])
        return cls(
            first=value["first"],
            second=value["second"],
            seeds=tuple(value["seeds"]),
            differences=tuple(value["differences"]),
            difference=Interval(value["mean"], low, high),
            outcome=value["outcome"],
            p=math.nan if value.get("p") is None else float(value["p"]),
            images=int(value.get("images", 0)),
            choices=int(value.get("choices", 1)),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The sentence, and the comparisons it stands on; a comparison is None where one of its detectors was not measured.

    against_alone: of what is returned. against_reference: of the best searched policy against the best hand-designed one. comparisons:
    those and all others. returned: which of the two is the result, and why; searched, reference: their names. choices: among how many
    each of the two was chosen, by name.
    """

    sentence: str
    against_alone: Comparison | None
    against_reference: Comparison | None
    comparisons: tuple[Comparison, ...] = ()
    returned: Returned | None = None
    why: str = ""
    searched: str | None = None
    reference: str | None = None
    choices: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the metrics of a result have it; the sentence is called `verdict`."""
        return {
            "verdict": self.sentence,
            "against_alone": self.against_alone.to_json() if self.against_alone else None,
            "against_reference": self.against_reference.to_json() if self.against_reference else None,
            "comparisons": [one.to_json() for one in self.comparisons],
            "returned": self.returned,
            "why": self.why,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Verdict:
        """What the metrics of a result say. names: what to call its detectors in the comparisons."""

        def read(one: Mapping[str, Any] | None) -> Comparison | None:
            if one is None:
                return None
            comparison = Comparison.from_json(one)
            first, second = ((names or {}).get(name, name) for name in (comparison.first, comparison.second))
            return replace(comparison, first=first, second=second)

        return cls(
            sentence=str(value["verdict"]),
            against_alone=read(value.get("against_alone")),
            against_reference=read(value.get("against_reference")),
            comparisons=tuple(cast(Comparison, read(one)) for one in value.get("comparisons", ())),
            returned=value.get("returned"),
            why=str(value.get("why", "")),
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows on the seeds that they share. choices: among how many the first was chosen."""

    first: Row
    second: Row
    choices: int = 1

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(seed for seed in self.first.seeds if seed is not None and seed in self.second.seeds)

    @property
    def differences(self) -> list[float]:
        return differences(*(of_seeds(row, row.ap, self.seeds) for row in (self.first, self.second)))

    @property
    def resamples(self) -> Resamples:
        """The differences on every draw of the images; empty where one of the two has none, or they are of other images."""
        a, b = self.first, self.second
        if not a.resamples or not b.resamples or a.images != b.images:
            return ()
        return resample_differences(*(of_seeds(row, row.resamples, self.seeds) for row in (a, b)))

    @property
    def p(self) -> float:
        return p_value(self.differences, self.resamples, self.choices)

    def judged(self, step: Step) -> Comparison:
        """The comparison, its interval as wide as the step of Holm's procedure says."""
        found, drawn = self.differences, self.resamples
        difference = mean_interval(found, 1 - step.level, resamples=drawn, choices=self.choices)
        outcome: Outcome = "within noise"
        if len(found) == 1:
            outcome = "one pair"
        elif difference.low > 0:
            outcome = "better"
        elif difference.high < 0:
            outcome = "worse"
        images = self.first.images if drawn else 0
        return Comparison(
            self.first.name, self.second.name, self.seeds, tuple(found), difference, outcome, step.adjusted, images, self.choices
        )


def of_seeds(row: Row, values: Sequence[T], seeds: Sequence[int]) -> list[T]:
    """What a row has for these seeds, in their order."""
    known = dict(zip(row.seeds, values, strict=True))
    return [known[seed] for seed in seeds]


def judge(pairs: Sequence[Pair]) -> list[Comparison]:
    """The comparisons of one family, together wrong about any of them in 5 % of cases at most (Holm)."""
    return [pair.judged(step) for pair, step in zip(pairs, holm([pair.p for pair in pairs], LEVEL), strict=True)]


def compare(first: Row, second: Row, choices: int = 1) -> Comparison | None:
    """Compare two rows alone, by the seeds they share; None when they share none."""
    pair = Pair(first, second, choices)
    return judge([pair])[0] if pair.seeds else None


def ap_interval(row: Row, choices: int = 1) -> Interval:
    """Mean AP and its interval: as the row has it, else over its seeds and, where they were drawn, its images."""
    return row.interval or mean_interval(row.ap, resamples=row.resamples, choices=choices)


def ap_intervals(rows: Sequence[Row]) -> list[Interval]:
    """`ap_interval` of every row of a table; the best of each kind was chosen from it."""
    choices = verdict(rows).choices
    return [ap_interval(row, choices.get(row.name, 1)) for row in rows]


def contenders(rows: Sequence[Row]) -> int:
    """Among how many the best was chosen: those that are not behind it beyond any noise, itself included."""
    if not rows:
        return 0
    best = max(rows, key=lambda row: row.mean)
    return sum(row is best or not beyond_reach(Pair(best, row)) for row in rows)


def beyond_reach(pair: Pair) -> bool:
    return len(pair.seeds) > 1 and mean_interval(pair.differences, BEHIND, resamples=pair.resamples).low > 0


def verdict(rows: Sequence[Row]) -> Verdict:
    """Whether distillation beat the student alone beyond noise, whether the best searched policy beat the best hand-designed one, and
    which of the two is handed out: the searched one only if it did.

    The best of either kind is the row with the highest mean AP; that it was chosen by the figures that are reported is in their intervals
    (`choices`, of either kind; between the two a test decides). Without a `searched` row the reference stands for distillation.
    """
    alone = next((row for row in rows if row.role == "alone"), None)
    finalists, references = ([row for row in rows if row.role == role] for role in ("searched", "reference"))
    searched, reference = (max(of, key=lambda row: row.mean, default=None) for of in (finalists, references))
    if searched is None and reference is None:
        return Verdict("No distilled student was measured.", None, None)
    of_finalists, of_references = contenders(finalists), contenders(references)
    headline = [
        Pair(first, second, choices)
        for first, second, choices in (
            (searched, alone, of_finalists),
            (searched, reference, of_finalists),
            (reference, alone, of_references),
        )
        if first is not None and second is not None
    ]
    found = {(one.first, one.second): one for one in judge([pair for pair in headline if pair.seeds])}
    others = [Pair(row, alone) for row in [*finalists, *references] if alone and row is not searched and row is not reference]
    others += [Pair(searched, row, of_finalists) for row in references if searched and row is not reference]

    def between(first: Row | None, second: Row | None) -> Comparison | None:
        return found.get((first.name, second.name)) if first and second else None

    against_reference = between(searched, reference)
    returned: Returned = "reference"
    if searched is not None and (against_reference is None or against_reference.outcome == "better"):
        returned = "searched"
    distilled = searched if returned == "searched" else reference
    against_alone = between(distilled, alone)
    why = _against_reference(against_reference, len(references)) if searched else ""
    by = f" with {reference.name}" if searched and reference and returned == "reference" else ""
    return Verdict(
        sentence=" ".join([_against_alone(against_alone, by), *([why] if why else [])]),
        against_alone=against_alone,
        against_reference=against_reference,
        comparisons=(*found.values(), *judge([pair for pair in others if pair.seeds])),
        returned=returned,
        why=why,
        searched=searched.name if searched else None,
        reference=reference.name if reference else None,
        choices={row.name: number for row, number in ((searched, of_finalists), (reference, of_references)) if row},
    )


def _against_alone(comparison: Comparison | None, by: str) -> str:
    if comparison is None:
        return "The student alone was not measured with the same seeds, so what distillation brought is not known."
    figures = describe(comparison)
    return {
        "better": f"Distillation{by} beat the student alone beyond noise: {figures}.",
        "worse": f"Distillation{by} made the student worse than alone, beyond noise: {figures}.",
        "within noise": f"Distillation{by} did not beat the student alone beyond noise: {figures}.",
        "one pair": f"One seed cannot tell whether distillation{by} beat the student alone: {figures}.",
    }[comparison.outcome]


def _against_reference(comparison: Comparison | None, of: int) -> str:
    if comparison is None:
        return "No hand-designed policy was measured with the same seeds."
    figures = describe(comparison)
    name = comparison.second
    best = f"{name}, the best of {of} hand-designed policies," if of > 1 else name
    return {
        "better": f"The searched policy beat {best} beyond noise: {figures}.",
        "worse": f"The searched policy was worse than {best} beyond noise: {figures}. So the result is {name}.",
        "within noise": f"The searched policy and {best} do not differ beyond noise: {figures}. So the result is {name}.",
        "one pair": f"One seed cannot tell the searched policy from {best}: {figures}. So the result is {name}.",
    }[comparison.outcome]


def describe(comparison: Comparison) -> str:
    """`+6.3 AP (95 % interval +4.1 to +8.5, 5 paired seeds, 300 images)`; without the images where they were not drawn."""
    mean, low, high = comparison.difference
    if len(comparison.seeds) == 1:
        return f"{mean:+.1f} AP (1 seed, no interval)"
    images = f", {comparison.images} images" if comparison.images else ""
    return f"{mean:+.1f} AP (95 % interval {low:+.1f} to {high:+.1f}, {len(comparison.seeds)} paired seeds{images})"


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
