"""`GET /detectors`: which detectors and pairs there are."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from detkds_core.catalogue import DETECTORS, PAIRS, DetectorEntry, Pair, builtin_checkpoint, exchange

router = APIRouter(tags=["detectors"])


class DetectorView(BaseModel):
    """A detector that teachers and students can be built from; `own`: the operator of this service brought it.

    training: the recipe of MMDetection's configuration of it, which is a student's where no pair is named; null: the defaults are.
    """

    name: str
    title: str
    family: str
    stages: int
    strides: list[int]
    channels: int
    has_edges: bool
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
            "has_edges": True,
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
    return DetectorView(
        name=entry.name,
        title=entry.title,
        family=entry.family,
        stages=entry.stages,
        strides=list(entry.strides),
        channels=entry.channels,
        has_edges=entry.has_edges,
        own=entry.own,
        training=entry.training.to_json() if entry.training else None,
    )


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
