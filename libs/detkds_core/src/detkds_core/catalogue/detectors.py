"""Which detectors there are: facts that can be read without torch, and MMDetection's configuration of each.

A detector of MMDetection's own zoo is named by its configuration file; a small one, which a CPU can train, is written out in `small`, or
is one of the zoo with a small backbone and few channels; one of the operator's lies in a file of his folder (`own`).
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detkds_core.catalogue.entry import DetectorEntry, Inputs
from detkds_core.catalogue.own import FOLDER, read_folder
from detkds_core.catalogue.recipe import Recipe
from detkds_core.catalogue.schedules import ADAMW, DENSE, DENSE_2X, DETR, FCOS, ONE_X, RTMDET, THREE_X, YOLOX, between
from detkds_core.catalogue.small import small_faster_rcnn, small_fcos, small_gfl, small_retinanet
from detkds_core.names import meant

PYTORCH = Inputs()
CAFFE = Inputs((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), rgb=False)
CAFFE2 = Inputs((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), rgb=False)


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


RATIOS = (0.5, 1.0, 2.0)
ONE_BOX: dict[str, Any] = {"anchors": 1, "anchor_scales": (8.0,), "anchor_ratios": (1.0,), "overlaps": True}
THREE_BOXES: dict[str, Any] = {"anchors": 3, "anchor_scales": (3.0,), "anchor_ratios": RATIOS, "overlaps": True}
NINE_BOXES: dict[str, Any] = {**THREE_BOXES, "anchors": 9, "anchor_scales": (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))}
PROPOSING: dict[str, Any] = {**THREE_BOXES, "stages": 2, "anchor_scales": (8.0,), "scores": "objectness"}

_SMALL_FAMILIES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "gfl": ("GFL", small_gfl, {"stages": 1, **ONE_BOX, "anchor_scales": (4.0,), "reg_max": 8}),
    "retinanet": ("RetinaNet", small_retinanet, {"stages": 1, **THREE_BOXES}),
    "fcos": ("FCOS", small_fcos, {"stages": 1, "anchors": 1}),
    "faster_rcnn": ("Faster R-CNN", small_faster_rcnn, {**PROPOSING, "anchor_scales": (4.0,)}),
}

ONE_STAGE = {"stages": 1, "strides": (8, 16, 32, 64, 128), "channels": 256}
TWO_STAGE = {"strides": (4, 8, 16, 32, 64), "channels": 256, **PROPOSING}


def _zoo(name: str, title: str, family: str, source: str, **facts: Any) -> DetectorEntry:
    base, training = (TWO_STAGE, ONE_X) if "rcnn" in family else (ONE_STAGE, DENSE)
    masks = "mask_rcnn" in family
    return DetectorEntry(name=name, title=title, family=family, source=source, **{**base, "masks": masks, "training": training, **facts})


# Families that have no configuration of their own above: the zoo's, on a small backbone and with 32 channels.
_SHRUNK: dict[str, tuple[str, str, dict[str, Any]]] = {
    "atss": ("ATSS", "atss/atss_r50_fpn_1x_coco.py", ONE_BOX),
    "reppoints": ("RepPoints", "reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py", {"anchors": 1}),
    "mask_rcnn": ("Mask R-CNN", "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", {}),
    "cascade_rcnn": ("Cascade R-CNN", "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py", {}),
    "cascade_mask_rcnn": ("Cascade Mask R-CNN", "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", {}),
}


def _shrunk(family: str, width: int) -> DetectorEntry:
    title, source, facts = _SHRUNK[family]
    name, title = f"{family}_r18w{width}_fpn32", f"{title}, ResNet-18 of width {width}, FPN of 32 channels"
    return _zoo(name, title, family, source, channels=32, width=width, training=None, **facts)


# Neither the PAFPN's shapes nor the zoo's weights take sides that are no multiples of 32; both were trained with gray around the image.
_YOLO_INPUTS = {
    "rtmdet": Inputs((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), rgb=False),
    "yolox": Inputs((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), rgb=False, fill=114.0),
}


def _yolo(family: str, name: str, title: str, source: str, channels: int, training: Recipe) -> DetectorEntry:
    facts = {"strides": (8, 16, 32), "channels": channels, "anchors": 1, "inputs": _YOLO_INPUTS[family], "training": training}
    return _zoo(name, title, family, source, **facts)


def _detr(family: str, name: str, title: str, source: str, strides: tuple[int, ...], **training: Any) -> DetectorEntry:
    facts = {"strides": strides, "anchors": 0, "scores": "queries", "inputs": replace(PYTORCH, pad=1)}
    return _zoo(name, title, family, source, **facts, training=replace(DETR, **training))


_FCOS_TRICKS = "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
_GFL_2X = replace(DENSE_2X, train_short_sides=between(480, 800))
_REPPOINTS = "reppoints/reppoints-moment"
_SWIN = replace(ADAMW, weight_decay=0.05, warm_up=1000)
_CASCADE_X101 = "dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py"

_ENTRIES = (
    *(_small("gfl", width) for width in (8, 16, 32)),
    _small("gfl", 8, channels=16),
    *(_small("retinanet", width) for width in (8, 16, 32)),
    *(_small("fcos", width) for width in (8, 16, 32)),
    *(_small("faster_rcnn", width) for width in (8, 16, 32)),
    *(_shrunk(family, width) for family in _SHRUNK for width in (8, 16, 32)),
    _zoo("retinanet_r50_fpn", "RetinaNet R50", "retinanet", "retinanet/retinanet_r50_fpn_1x_coco.py", **NINE_BOXES),
    _zoo("retinanet_r101_fpn", "RetinaNet R101", "retinanet", "retinanet/retinanet_r101_fpn_1x_coco.py", **NINE_BOXES),
    _zoo(
        "retinanet_x101_64x4d_fpn",
        "RetinaNet X101-64x4d",
        "retinanet",
        "retinanet/retinanet_x101-64x4d_fpn_ms-640-800-3x_coco.py",
        training=replace(THREE_X, lr=0.01, train_short_sides=between(640, 800)),
        **NINE_BOXES,
    ),
    _zoo("retinanet_swin_t_fpn", "RetinaNet Swin-T", "retinanet", "swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py", **NINE_BOXES),
    _zoo(
        "retinanet_pvtv2_b0_fpn", "RetinaNet PVTv2-B0", "retinanet", "pvt/retinanet_pvtv2-b0_fpn_1x_coco.py", training=ADAMW, **NINE_BOXES
    ),
    _zoo(
        "fcos_r50_fpn",
        "FCOS R50 (caffe)",
        "fcos",
        "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
        anchors=1,
        inputs=CAFFE,
        training=FCOS,
    ),
    _zoo(
        "fcos_tricks_r50_fpn",
        "FCOS R50 (caffe; centre sampling, normalised boxes, GIoU)",
        "fcos",
        _FCOS_TRICKS,
        anchors=1,
        inputs=CAFFE2,
        training=FCOS,
    ),
    _zoo(
        "fcos_r101_fpn",
        "FCOS R101 (caffe)",
        "fcos",
        "fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py",
        anchors=1,
        inputs=CAFFE,
        training=FCOS,
    ),
    _zoo("gfl_r50_fpn", "GFL R50", "gfl", "gfl/gfl_r50_fpn_1x_coco.py", **ONE_BOX, reg_max=16),
    _zoo("gfl_r101_fpn", "GFL R101", "gfl", "gfl/gfl_r101_fpn_ms-2x_coco.py", **ONE_BOX, reg_max=16, training=_GFL_2X),
    _zoo("atss_r50_fpn", "ATSS R50", "atss", "atss/atss_r50_fpn_1x_coco.py", **ONE_BOX),
    _zoo("atss_r101_fpn", "ATSS R101", "atss", "atss/atss_r101_fpn_1x_coco.py", **ONE_BOX),
    _zoo("reppoints_r50_fpn", "RepPoints R50", "reppoints", f"{_REPPOINTS}_r50_fpn_1x_coco.py", anchors=1),
    _zoo(
        "reppoints_gn_r50_fpn",
        "RepPoints R50 (GN)",
        "reppoints",
        f"{_REPPOINTS}_r50_fpn-gn_head-gn_2x_coco.py",
        anchors=1,
        training=DENSE_2X,
    ),
    _zoo(
        "reppoints_gn_x101_dcn_fpn",
        "RepPoints X101-32x4d-DCN (GN)",
        "reppoints",
        f"{_REPPOINTS}_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py",
        anchors=1,
        training=DENSE_2X,
    ),
    _yolo("rtmdet", "rtmdet_tiny", "RTMDet tiny", "rtmdet/rtmdet_tiny_8xb32-300e_coco.py", 96, RTMDET),
    _yolo("rtmdet", "rtmdet_s", "RTMDet s", "rtmdet/rtmdet_s_8xb32-300e_coco.py", 128, RTMDET),
    _yolo("yolox", "yolox_tiny", "YOLOX tiny", "yolox/yolox_tiny_8xb8-300e_coco.py", 96, replace(YOLOX, image_size=416)),
    _yolo("yolox", "yolox_s", "YOLOX s", "yolox/yolox_s_8xb8-300e_coco.py", 128, YOLOX),
    _detr("detr", "detr_r18", "DETR R18", "detr/detr_r18_8xb2-500e_coco.py", (32,), epochs=500, milestones=(334,), eval_every=10),
    _detr("detr", "detr_r50", "DETR R50", "detr/detr_r50_8xb2-150e_coco.py", (32,), epochs=150, milestones=(100,)),
    _detr(
        "deformable_detr",
        "deformable_detr_r50",
        "Deformable DETR R50",
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
        (8, 16, 32, 64),
        epochs=50,
        milestones=(40,),
        lr=2e-4,
        batch=32,
        base_batch=32,
    ),
    _zoo("faster_rcnn_r50_fpn", "Faster R-CNN R50", "faster_rcnn", "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"),
    _zoo("faster_rcnn_r101_fpn", "Faster R-CNN R101", "faster_rcnn", "faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py"),
    _zoo("mask_rcnn_r50_fpn", "Mask R-CNN R50", "mask_rcnn", "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"),
    _zoo("mask_rcnn_r101_fpn", "Mask R-CNN R101", "mask_rcnn", "mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py"),
    _zoo("mask_rcnn_swin_t_fpn", "Mask R-CNN Swin-T", "mask_rcnn", "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py", training=_SWIN),
    _zoo("cascade_rcnn_r50_fpn", "Cascade R-CNN R50", "cascade_rcnn", "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"),
    _zoo("cascade_mask_rcnn_r50_fpn", "Cascade Mask R-CNN R50", "cascade_mask_rcnn", "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py"),
    _zoo("cascade_mask_rcnn_x101_dcn_fpn", "Cascade Mask R-CNN X101-32x4d-DCN", "cascade_mask_rcnn", _CASCADE_X101),
)

BUILT_IN: Mapping[str, DetectorEntry] = {entry.name: entry for entry in _ENTRIES}
_OWN, OWN_FAULTS = read_folder(os.environ.get(FOLDER), BUILT_IN)  # as it is when a process starts; who starts tells of the faults
DETECTORS: Mapping[str, DetectorEntry] = {**BUILT_IN, **_OWN}


class UnknownDetectorError(ValueError):
    """A name that is none of a detector of the catalogue, and what would be."""


def detector(name: str) -> DetectorEntry:
    """Look a detector up. Raises UnknownDetectorError that lists what is known."""
    if name not in DETECTORS:
        raise UnknownDetectorError(f"{name!r} is not a known detector; {meant(name, DETECTORS)}")
    return DETECTORS[name]
