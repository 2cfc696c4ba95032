"""`GET /detectors`: which detectors and pairs there are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from detkds_core.catalogue import DETECTORS, PAIRS, DetectorEntry, Pair, builtin_checkpoint, exchange

router = APIRouter(tags=["detectors"])


class InputsView(BaseModel):
    """How a detector wants its images: (pixel - mean) / std, red first or not; sides filled with `fill` to multiples of `pad` pixels."""

    mean: list[float]
    std: list[float]
    rgb: bool
    pad: int
    fill: float


class DetectorView(BaseModel):
    """A detector that teachers and students can be built from, with all that decides what it can exchange with another.

    strides: pixels a cell of each pyramid level; channels: of each. anchors: predictions a cell, with their anchor boxes by
    `anchor_scales` (in strides) and `anchor_ratios` (height over width), empty where there are none. overlaps: objects go to anchor boxes
    by how much these overlap them. scores: what the dense head scores, `classes`, `objectness` (a region proposal network) or `queries` (a
    DETR). reg_max: last bin of its edge distributions, null without (`has_edges`). masks: it predicts instance masks. own: the operator of
    this service brought it. training: the recipe of MMDetection's configuration of it, which is a student's where no pair is named; null:
    the defaults are.
    """

    name: str
    title: str
    family: str
    stages: int
    strides: list[int]
    channels: int
    anchors: int
    anchor_scales: list[float]
    anchor_ratios: list[float]
    overlaps: bool
    scores: str
    reg_max: int | None
    has_edges: bool
    masks: bool
    inputs: InputsView
    own: bool
    training: dict[str, Any] | None


class PairView(BaseModel):
    """A teacher and a student with schedules that suit them; `knowledge` is what they can exchange, `excluded` says why not the rest."""

    name: str
    title: str
    dataset: str
    teacher: dict[str, str]
    student: dict[str, str]
    ready: bool
    knowledge: list[str]
    excluded: dict[str, str]
    recipe: dict[str, Any]
    full_recipe: dict[str, Any]


class Catalogue(BaseModel):
    """Everything that `teacher.detector`, `student.detector` and `pair` may name."""

    detectors: list[DetectorView]
    pairs: list[PairView]


CATALOGUE_EXAMPLE = {
    "detectors": [
        {
            "name": "gfl_r18w16_fpn32",
            "title": "GFL, ResNet-18 of width 16, FPN of 32 channels",
            "family": "gfl",
            "stages": 1,
            "strides": [8, 16, 32],
            "channels": 32,
            "anchors": 1,
            "anchor_scales": [4.0],
            "anchor_ratios": [1.0],
            "overlaps": True,
            "scores": "classes",
            "reg_max": 8,
            "has_edges": True,
            "masks": False,
            "inputs": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "rgb": True, "pad": 32, "fill": 0.0},
            "own": False,
            "training": None,
        }
    ],
    "pairs": [],
}


@router.get("/detectors", responses={200: {"content": {"application/json": {"example": CATALOGUE_EXAMPLE}}}})
def list_detectors() -> Catalogue:
    """The detectors, and the pairs that come with a teacher."""
    return Catalogue(
        detectors=[detector_view(entry) for entry in DETECTORS.values()],
        pairs=[pair_view(pair) for pair in PAIRS.values()],
    )


def detector_view(entry: DetectorEntry) -> DetectorView:
    facts = {name: getattr(entry, name) for name in DetectorView.model_fields if name not in ("inputs", "training")}
    training = entry.training.to_json() if entry.training else None
    return DetectorView(**facts, inputs=InputsView(**asdict(entry.inputs)), training=training)


def pair_view(pair: Pair) -> PairView:
    common = exchange(DETECTORS[pair.teacher], DETECTORS[pair.student])
    return PairView(
        name=pair.name,
        title=pair.title,
        dataset=pair.dataset,
        teacher={"detector": pair.teacher, "checkpoint": pair.teacher_checkpoint},
        student={"detector": pair.student},
        ready=builtin_checkpoint(pair.teacher_checkpoint) is not None,
        knowledge=list(common.knowledge),
        excluded=dict(common.excluded),
        recipe=pair.proxy.to_json(),
        full_recipe=pair.full.to_json(),
    )
