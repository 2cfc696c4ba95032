"""What a report is made of. Whoever has measured something fills these in; the report measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from detkds_core.report.statistics import Interval

if TYPE_CHECKING:
    from detkds_core.report.verdict import Verdict

State = Literal["PROPOSED", "MEASURED", "INFEASIBLE", "REJECTED", "DUPLICATE"]
Role = Literal["teacher", "alone", "reference", "searched"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result table: a detector and what it is worth.

    role: `teacher`, `alone` (the student without distillation), `reference` (a hand-designed policy, PKD) or `searched`.
    seeds: the training seeds, None where one is not known; ap, ap50, ap75: one value a seed, in the same order, in percent (0-100).
    parameters: of the detector as it ships, 0 where nobody counted them. images: how many the figures were measured on.
    resamples: the AP on every draw of these images, a row a seed, the same draws in every row of a table; empty: not drawn.
    interval: of the mean AP, where whoever judged the row has said it; else it follows from ap and resamples. formula: of its policy, where
    the name does not say it.
    """

    name: str
    role: Role
    seeds: tuple[int | None, ...]
    ap: tuple[float, ...]
    ap50: tuple[float, ...]
    ap75: tuple[float, ...]
    parameters: int
    images: int
    resamples: tuple[tuple[float | None, ...], ...] = ()
    interval: Interval | None = None
    formula: str = ""

    def __post_init__(self) -> None:
        for name in ("ap", "ap50", "ap75"):
            values = getattr(self, name)
            if len(values) != len(self.seeds) or not values:
                raise ValueError(
                    f"row {self.name!r}: {name} has {len(values)} values for {len(self.seeds)} seeds; one each, and at least one"
                )
        if self.resamples and len(self.resamples) != len(self.seeds):
            raise ValueError(f"row {self.name!r}: resamples has {len(self.resamples)} rows for {len(self.seeds)} seeds; one each, or none")

    @property
    def mean(self) -> float:
        return math.fsum(self.ap) / len(self.ap)


@dataclass(frozen=True, slots=True)
class CandidatePoint:
    """One candidate of the search. fitness: its AP in percent at the highest rung that it was measured at, None where it was not.

    stage: `reference`, `stage1` or `stage2`. island: the knowledge of a stage 1 candidate. name: what a reference is called.
    state: that of the ledger; failure: why an infeasible one could not be trained. rungs: its mean AP in percent by the student iterations
    of each rung, empty where these are not known.
    """

    index: int
    stage: str
    formula: str
    fitness: float | None
    island: str | None = None
    operator: str = ""
    failure: str | None = None
    name: str | None = None
    state: State = "MEASURED"
    rungs: Mapping[int, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, float, int]:
        """Sorts best first: who came to a higher rung was better where both were, and APs of different rungs do not compare."""
        return (-max(self.rungs, default=0), -(self.fitness or 0.0), self.index)


@dataclass(frozen=True, slots=True)
class Box:
    """One object. xyxy: absolute pixels of the panel's image. score: in 0-1, None for ground truth."""

    xyxy: tuple[float, float, float, float]
    label: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class ImagePanel:
    """One validation image, three times side by side. image: a file or a picture in memory; title: its name or id."""

    image: Path | Image.Image
    title: str
    truth: Sequence[Box]
    alone: Sequence[Box]
    distilled: Sequence[Box]


@dataclass(frozen=True, slots=True)
class ReportData:
    """All of a report.

    rows: as they shall stand in the table. formula and policy: of the result, as text and as JSON (`{"terms": [...]}`).
    panels: detections below `score_threshold` are not drawn. evidence: label -> value, in the order of the page (dataset digest,
    counts, seeds, versions, times). verdict: as the service judged the confirmation; None: from the rows. insight: of `insight`, or empty.
    searched_on: what the candidates were measured on, in words. funnel: of the search's summary, or empty.
    """

    title: str
    dataset: str
    pair: str
    rows: Sequence[Row]
    formula: str
    policy: Mapping[str, Any]
    candidates: Sequence[CandidatePoint] = ()
    panels: Sequence[ImagePanel] = ()
    evidence: Mapping[str, str] = field(default_factory=dict)
    score_threshold: float = 0.3
    verdict: Verdict | None = None
    insight: Mapping[str, Any] = field(default_factory=dict)
    searched_on: str = "the selection images"
    funnel: Mapping[str, Any] = field(default_factory=dict)
