"""Which detectors there are: facts that can be read without torch, and MMDetection's configuration of each.

A detector of MMDetection's own zoo is named by its configuration file; a small one, which a CPU can train, is written out in `small`, or
is one of the zoo with a small backbone and few channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detkds_core.catalogue.small import small_faster_rcnn, small_fcos, small_gfl, small_retinanet


@dataclass(frozen=True, slots=True)
class DetectorEntry:
    """A detector that teachers and students can be built from.

    strides: pixels a cell, one a pyramid level, fine to coarse; channels: of each pyramid level; anchors: predictions a cell;
    reg_max: last bin of the edge distributions (GFL), None without; scores: what the dense head scores,
    "classes" (one a class), "objectness" (a region proposal network) or "queries" (a DETR, which has no dense head);
    masks: it predicts instance masks; width: channels of the first stage of the ResNet-18 that replaces its backbone, None: its own.
    """

    name: str
    title: str
    family: str
    stages: int
    strides: tuple[int, ...]
    channels: int
    anchors: int
    scores: str = "classes"
    reg_max: int | None = None
    masks: bool = False
    source: str | None = None  # MMDetection's configuration file, relative to its configs folder
    width: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def has_edges(self) -> bool:
        return self.reg_max is not None


def _small(family: str, width: int, channels: int = 32) -> DetectorEntry:
    title, builder, facts = _SMALL_FAMILIES[family]
    return DetectorEntry(
        name=f"{family}_r18w{width}_fpn{channels}",
        title=f"{title}, ResNet-18 of width {width}, FPN of {channels} channels",
        family=family,
        strides=(8, 16, 32),
        channels=channels,
        config=builder(width, channels),
        **facts,
    )


_SMALL_FAMILIES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "gfl": ("GFL", small_gfl, {"stages": 1, "anchors": 1, "reg_max": 8}),
    "retinanet": ("RetinaNet", small_retinanet, {"stages": 1, "anchors": 3}),
    "fcos": ("FCOS", small_fcos, {"stages": 1, "anchors": 1}),
    "faster_rcnn": ("Faster R-CNN", small_faster_rcnn, {"stages": 2, "anchors": 3, "scores": "objectness"}),
}

ONE_STAGE = {"stages": 1, "strides": (8, 16, 32, 64, 128), "channels": 256}
TWO_STAGE = {"stages": 2, "strides": (4, 8, 16, 32, 64), "channels": 256, "anchors": 3, "scores": "objectness"}


def _zoo(name: str, title: str, family: str, source: str, **facts: Any) -> DetectorEntry:
    base = TWO_STAGE if "rcnn" in family else ONE_STAGE
    masks = "mask_rcnn" in family
    return DetectorEntry(name=name, title=title, family=family, source=source, **{**base, "masks": masks, **facts})


# Families that have no configuration of their own above: the zoo's, on a small backbone and with 32 channels.
_SHRUNK: dict[str, tuple[str, str, dict[str, Any]]] = {
    "atss": ("ATSS", "atss/atss_r50_fpn_1x_coco.py", {"anchors": 1}),
    "reppoints": ("RepPoints", "reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py", {"anchors": 1}),
    "mask_rcnn": ("Mask R-CNN", "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", {}),
    "cascade_rcnn": ("Cascade R-CNN", "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py", {}),
    "cascade_mask_rcnn": ("Cascade Mask R-CNN", "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", {}),
}


def _shrunk(family: str, width: int) -> DetectorEntry:
    title, source, facts = _SHRUNK[family]
    name, title = f"{family}_r18w{width}_fpn32", f"{title}, ResNet-18 of width {width}, FPN of 32 channels"
    return _zoo(name, title, family, source, channels=32, width=width, **facts)


_FCOS_TRICKS = "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
_REPPOINTS = "reppoints/reppoints-moment"
_CASCADE_X101 = "dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py"

_ENTRIES = (
    *(_small("gfl", width) for width in (8, 16, 32)),
    _small("gfl", 8, channels=16),
    *(_small("retinanet", width) for width in (8, 16, 32)),
    *(_small("fcos", width) for width in (8, 16, 32)),
    *(_small("faster_rcnn", width) for width in (8, 16, 32)),
    *(_shrunk(family, width) for family in _SHRUNK for width in (8, 16, 32)),
    _zoo("retinanet_r50_fpn", "RetinaNet R50", "retinanet", "retinanet/retinanet_r50_fpn_1x_coco.py", anchors=9),
    _zoo("retinanet_r101_fpn", "RetinaNet R101", "retinanet", "retinanet/retinanet_r101_fpn_1x_coco.py", anchors=9),
    _zoo(
        "retinanet_x101_64x4d_fpn",
        "RetinaNet X101-64x4d",
        "retinanet",
        "retinanet/retinanet_x101-64x4d_fpn_ms-640-800-3x_coco.py",
        anchors=9,
    ),
    _zoo("retinanet_swin_t_fpn", "RetinaNet Swin-T", "retinanet", "swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py", anchors=9),
    _zoo("retinanet_pvtv2_b0_fpn", "RetinaNet PVTv2-B0", "retinanet", "pvt/retinanet_pvtv2-b0_fpn_1x_coco.py", anchors=9),
    _zoo("fcos_r50_fpn", "FCOS R50 (caffe)", "fcos", "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", anchors=1),
    _zoo("fcos_tricks_r50_fpn", "FCOS R50 (caffe; centre sampling, normalised boxes, GIoU)", "fcos", _FCOS_TRICKS, anchors=1),
    _zoo("fcos_r101_fpn", "FCOS R101 (caffe)", "fcos", "fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py", anchors=1),
    _zoo("gfl_r50_fpn", "GFL R50", "gfl", "gfl/gfl_r50_fpn_1x_coco.py", anchors=1, reg_max=16),
    _zoo("gfl_r101_fpn", "GFL R101", "gfl", "gfl/gfl_r101_fpn_ms-2x_coco.py", anchors=1, reg_max=16),
    _zoo("atss_r50_fpn", "ATSS R50", "atss", "atss/atss_r50_fpn_1x_coco.py", anchors=1),
    _zoo("atss_r101_fpn", "ATSS R101", "atss", "atss/atss_r101_fpn_1x_coco.py", anchors=1),
    _zoo("reppoints_r50_fpn", "RepPoints R50", "reppoints", f"{_REPPOINTS}_r50_fpn_1x_coco.py", anchors=1),
    _zoo("reppoints_gn_r50_fpn", "RepPoints R50 (GN)", "reppoints", f"{_REPPOINTS}_r50_fpn-gn_head-gn_2x_coco.py", anchors=1),
    _zoo(
        "reppoints_gn_x101_dcn_fpn",
        "RepPoints X101-32x4d-DCN (GN)",
        "reppoints",
        f"{_REPPOINTS}_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py",
        anchors=1,
    ),
    _zoo("rtmdet_tiny", "RTMDet tiny", "rtmdet", "rtmdet/rtmdet_tiny_8xb32-300e_coco.py", strides=(8, 16, 32), channels=96, anchors=1),
    _zoo("rtmdet_s", "RTMDet s", "rtmdet", "rtmdet/rtmdet_s_8xb32-300e_coco.py", strides=(8, 16, 32), channels=128, anchors=1),
    _zoo("detr_r18", "DETR R18", "detr", "detr/detr_r18_8xb2-500e_coco.py", strides=(32,), anchors=0, scores="queries"),
    _zoo("detr_r50", "DETR R50", "detr", "detr/detr_r50_8xb2-150e_coco.py", strides=(32,), anchors=0, scores="queries"),
    _zoo("faster_rcnn_r50_fpn", "Faster R-CNN R50", "faster_rcnn", "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"),
    _zoo("faster_rcnn_r101_fpn", "Faster R-CNN R101", "faster_rcnn", "faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py"),
    _zoo("mask_rcnn_r50_fpn", "Mask R-CNN R50", "mask_rcnn", "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"),
    _zoo("mask_rcnn_r101_fpn", "Mask R-CNN R101", "mask_rcnn", "mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py"),
    _zoo("mask_rcnn_swin_t_fpn", "Mask R-CNN Swin-T", "mask_rcnn", "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"),
    _zoo("cascade_rcnn_r50_fpn", "Cascade R-CNN R50", "cascade_rcnn", "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"),
    _zoo("cascade_mask_rcnn_r50_fpn", "Cascade Mask R-CNN R50", "cascade_mask_rcnn", "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py"),
    _zoo("cascade_mask_rcnn_x101_dcn_fpn", "Cascade Mask R-CNN X101-32x4d-DCN", "cascade_mask_rcnn", _CASCADE_X101),
)

DETECTORS: Mapping[str, DetectorEntry] = {entry.name: entry for entry in _ENTRIES}


def detector(name: str) -> DetectorEntry:
    """Look a detector up. Raises ValueError that lists what is known."""
    if name not in DETECTORS:
        raise ValueError(f"{name!r} is not a known detector; one of {', '.join(DETECTORS)}")
    return DETECTORS[name]
