"""What a report is made of. Whoever has measured something fills these in; the report measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

Role = Literal["teacher", "alone", "reference", "searched"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result table: a detector and what it is worth.

    role: `teacher`, `alone` (the student without distillation), `reference` (a hand-designed policy, PKD) or `searched`.
    seeds: the training seeds; ap, ap50, ap75: one value a seed, in the same order, in percent (0-100).
    parameters: of the detector as it ships. images: how many the figures were measured on.
    """

    name: str
    role: Role
    seeds: tuple[int, ...]
    ap: tuple[float, ...]
    ap50: tuple[float, ...]
    ap75: tuple[float, ...]
    parameters: int
    images: int

    def __post_init__(self) -> None:
        for name in ("ap", "ap50", "ap75"):
            values = getattr(self, name)
            if len(values) != len(self.seeds) or not values:
                raise ValueError(
                    f"row {self.name!r}: {name} has {len(values)} values for {len(self.seeds)} seeds; one each, and at least one"
                )


@dataclass(frozen=True, slots=True)
class CandidatePoint:
    """One candidate of the search. fitness: its AP in percent, None where it was infeasible, with the failure.

    stage: `reference`, `stage1` or `stage2`. island: the knowledge of a stage 1 candidate. name: what a reference is called.
    """

    index: int
    stage: str
    formula: str
    fitness: float | None
    island: str | None = None
    operator: str = ""
    failure: str | None = None
    name: str | None = None


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

    rows: as they shall stand in the table. formula and policy: the searched policy as text and as JSON (`{"terms": [...]}`).
    panels: detections below `score_threshold` are not drawn. evidence: label -> value, in the order of the page (dataset digest,
    counts, seeds, versions, times).
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
