"""What the catalogue says of a detector: facts that can be read without torch, and MMDetection's configuration of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detkds_core.catalogue.recipe import Recipe
from detkds_core.catalogue.small import IMAGENET_MEAN, IMAGENET_STD

BY_OVERLAP = ("ATSSAssigner", "MaxIoUAssigner")  # MMDetection's assigners of which the overlap is known from which an anchor is an object's


@dataclass(frozen=True, slots=True)
class Inputs:
    """How a detector wants its images: (pixel - mean) / std channel by channel, sides filled up to multiples of `pad` pixels.

    rgb: red comes first, as in `mean` and `std`; else blue does. fill: what is filled up with, after the normalisation.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    rgb: bool = True
    pad: int = 32
    fill: float = 0.0


@dataclass(frozen=True, slots=True)
class DetectorEntry:
    """A detector that teachers and students can be built from.

    strides: pixels a cell, one a pyramid level, fine to coarse; channels: of each pyramid level; anchors: predictions a cell;
    anchor_scales, anchor_ratios: sizes in strides and heights over widths of the anchor boxes, ratio by ratio, empty where points are;
    overlaps: objects go to anchor boxes by how much these overlap them (`BY_OVERLAP`);
    reg_max: last bin of the edge distributions (GFL), None without; scores: what the dense head scores,
    "classes" (one a class), "objectness" (a region proposal network) or "queries" (a DETR, which has no dense head);
    masks: it predicts instance masks; width: channels of the first stage of the ResNet-18 that replaces its backbone, None: its own;
    own: the operator brought it (`catalogue.own`); training: as its configuration has it, None where no configuration is known to say it.
    """

    name: str
    title: str
    family: str
    stages: int
    strides: tuple[int, ...]
    channels: int
    anchors: int
    anchor_scales: tuple[float, ...] = ()
    anchor_ratios: tuple[float, ...] = ()
    overlaps: bool = False
    scores: str = "classes"
    reg_max: int | None = None
    masks: bool = False
    inputs: Inputs = Inputs()
    source: str | None = None  # MMDetection's configuration file, relative to its configs folder
    width: int | None = None
    own: bool = False
    training: Recipe | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def has_edges(self) -> bool:
        return self.reg_max is not None

    @property
    def bins(self) -> int:
        """Of an edge's distribution (GFL), 0 without."""
        return 0 if self.reg_max is None else self.reg_max + 1

    @property
    def points(self) -> int:
        """Of the set that a cell predicts (RepPoints), 0 without."""
        return self.config.get("bbox_head", {}).get("num_points", 9) if self.family == "reppoints" else 0


@dataclass(frozen=True, slots=True)
class Family:
    """What all detectors of a family have in common. anchored: their cells predict from anchor boxes, else from points or queries."""

    stages: int = 1
    scores: str = "classes"
    anchored: bool = True
    masks: bool = False
    edges: bool = False


_PROPOSING = Family(stages=2, scores="objectness")
_FROM_POINTS = Family(anchored=False)
_FROM_QUERIES = Family(scores="queries", anchored=False)

FAMILIES: Mapping[str, Family] = {
    "retinanet": Family(),
    "fcos": _FROM_POINTS,
    "gfl": Family(edges=True),
    "atss": Family(),
    "reppoints": _FROM_POINTS,
    "rtmdet": _FROM_POINTS,
    "yolox": _FROM_POINTS,
    "detr": _FROM_QUERIES,
    "deformable_detr": _FROM_QUERIES,
    "faster_rcnn": _PROPOSING,
    "mask_rcnn": Family(stages=2, scores="objectness", masks=True),
    "cascade_rcnn": _PROPOSING,
    "cascade_mask_rcnn": Family(stages=2, scores="objectness", masks=True),
}
