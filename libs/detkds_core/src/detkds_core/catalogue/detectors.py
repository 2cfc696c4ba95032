"""Which detectors there are: facts that can be read without torch, and MMDetection's configuration of each.

A detector of MMDetection's own zoo is named by its configuration file; a small one, which a CPU can train, is written out here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, slots=True)
class DetectorEntry:
    """A detector that teachers and students can be built from.

    strides: pixels a cell, one a pyramid level, fine to coarse; channels: of each pyramid level; anchors: predictions a cell;
    reg_max: last bin of the edge distributions (GFL), None without; scores: what the dense head scores,
    "classes" (one a class) or "objectness" (a region proposal network).
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
    source: str | None = None  # MMDetection's configuration file, relative to its configs folder
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def has_edges(self) -> bool:
        return self.reg_max is not None


def _preprocessor() -> dict[str, Any]:
    return {
        "type": "DetDataPreprocessor",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "bgr_to_rgb": True,
        "pad_size_divisor": 32,
    }


def _small_backbone(width: int) -> dict[str, Any]:
    """ResNet-18 with `width` channels in its first stage (64 in the original), trained from scratch, so no layer is frozen.

    The narrowest halves its shortcuts by pooling instead of a strided 1x1 convolution, which oneDNN cannot be trusted with there
    (`detectors.build.safe_channels_last`).
    """
    return {
        "type": "ResNet",
        "depth": 18,
        "base_channels": width,
        "stem_channels": width,
        "num_stages": 4,
        "out_indices": (1, 2, 3),
        "frozen_stages": -1,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": False,
        "avg_down": width < 16,
        "style": "pytorch",
    }


def _small_neck(width: int, channels: int, levels: int) -> dict[str, Any]:
    return {
        "type": "FPN",
        "in_channels": [width * 2, width * 4, width * 8],
        "out_channels": channels,
        "start_level": 0,
        "add_extra_convs": "on_output" if levels > 3 else False,
        "num_outs": levels,
    }


def _test_cfg() -> dict[str, Any]:
    return {
        "nms_pre": 300,
        "min_bbox_size": 0,
        "score_thr": 0.05,
        "nms": {"type": "nms", "iou_threshold": 0.6},
        "max_per_img": 100,
    }


def _one_stage(
    kind: str, width: int, channels: int, strides: tuple[int, ...], head: dict[str, Any], train: dict[str, Any]
) -> dict[str, Any]:
    return {
        "type": kind,
        "data_preprocessor": _preprocessor(),
        "backbone": _small_backbone(width),
        "neck": _small_neck(width, channels, len(strides)),
        "bbox_head": {"in_channels": channels, "feat_channels": channels, **head},
        "train_cfg": train,
        "test_cfg": _test_cfg(),
    }


def _small_gfl(width: int, channels: int) -> dict[str, Any]:
    strides = (8, 16, 32)
    head = {
        "type": "GFLHead",
        "stacked_convs": 2,
        "norm_cfg": {"type": "GN", "num_groups": min(32, channels), "requires_grad": True},
        "anchor_generator": {
            "type": "AnchorGenerator",
            "ratios": [1.0],
            "octave_base_scale": 4,
            "scales_per_octave": 1,
            "strides": list(strides),
        },
        "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
        "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
        "reg_max": 8,
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    }
    train = {"assigner": {"type": "ATSSAssigner", "topk": 9}, "allowed_border": -1, "pos_weight": -1, "debug": False}
    return _one_stage("GFL", width, channels, strides, head, train)


def _small_retinanet(width: int, channels: int) -> dict[str, Any]:
    strides = (8, 16, 32)
    head = {
        "type": "RetinaHead",
        "stacked_convs": 2,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "ratios": [0.5, 1.0, 2.0],
            "octave_base_scale": 3,
            "scales_per_octave": 1,
            "strides": list(strides),
        },
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [1.0] * 4},
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }
    train = {
        "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0, "ignore_iof_thr": -1},
        "sampler": {"type": "PseudoSampler"},
        "allowed_border": -1,
        "pos_weight": -1,
        "debug": False,
    }
    return _one_stage("RetinaNet", width, channels, strides, head, train)


def _small_fcos(width: int, channels: int) -> dict[str, Any]:
    strides = (8, 16, 32)
    head = {
        "type": "FCOSHead",
        "stacked_convs": 2,
        "strides": list(strides),
        "regress_ranges": ((-1, 32), (32, 64), (64, 100000000)),
        "norm_on_bbox": True,
        "centerness_on_reg": True,
        "center_sampling": True,
        "conv_bias": True,
        "norm_cfg": {"type": "GN", "num_groups": 8, "requires_grad": True},
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
        "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
    }
    return _one_stage("FCOS", width, channels, strides, head, {})


def _small_faster_rcnn(width: int, channels: int) -> dict[str, Any]:
    strides = (8, 16, 32)
    rpn_assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3, "match_low_quality": True}
    roi_assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5, "match_low_quality": False}
    sampler = {"type": "RandomSampler", "neg_pos_ub": -1, "add_gt_as_proposals": True}
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}
    return {
        "type": "FasterRCNN",
        "data_preprocessor": _preprocessor(),
        "backbone": _small_backbone(width),
        "neck": _small_neck(width, channels, len(strides)),
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": channels,
            "feat_channels": channels,
            "anchor_generator": {"type": "AnchorGenerator", "scales": [4], "ratios": [0.5, 1.0, 2.0], "strides": list(strides)},
            "bbox_coder": {**coder, "target_stds": [1.0] * 4},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
                "out_channels": channels,
                "featmap_strides": list(strides),
                "finest_scale": 28,
            },
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": channels,
                "fc_out_channels": 128,
                "roi_feat_size": 7,
                "bbox_coder": {**coder, "target_stds": [0.1, 0.1, 0.2, 0.2]},
                "reg_class_agnostic": False,
                "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
                "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            },
        },
        "train_cfg": {
            "rpn": {
                "assigner": rpn_assigner,
                "sampler": {**sampler, "num": 64, "pos_fraction": 0.5, "add_gt_as_proposals": False},
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": {"nms_pre": 300, "max_per_img": 100, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0},
            "rcnn": {"assigner": roi_assigner, "sampler": {**sampler, "num": 64, "pos_fraction": 0.25}, "pos_weight": -1, "debug": False},
        },
        "test_cfg": {
            "rpn": {"nms_pre": 300, "max_per_img": 100, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0},
            "rcnn": {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100},
        },
    }


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
    "gfl": ("GFL", _small_gfl, {"stages": 1, "anchors": 1, "reg_max": 8}),
    "retinanet": ("RetinaNet", _small_retinanet, {"stages": 1, "anchors": 3}),
    "fcos": ("FCOS", _small_fcos, {"stages": 1, "anchors": 1}),
    "faster_rcnn": ("Faster R-CNN", _small_faster_rcnn, {"stages": 2, "anchors": 3, "scores": "objectness"}),
}


def _zoo(name: str, title: str, family: str, source: str, **facts: Any) -> DetectorEntry:
    one_stage = {"stages": 1, "strides": (8, 16, 32, 64, 128), "channels": 256}
    two_stage = {"stages": 2, "strides": (4, 8, 16, 32, 64), "channels": 256, "anchors": 3, "scores": "objectness"}
    base = two_stage if "rcnn" in family else one_stage
    return DetectorEntry(name=name, title=title, family=family, source=source, **{**base, **facts})


_ENTRIES = (
    *(_small("gfl", width) for width in (8, 16, 32)),
    _small("gfl", 8, channels=16),
    *(_small("retinanet", width) for width in (8, 16, 32)),
    *(_small("fcos", width) for width in (8, 16, 32)),
    *(_small("faster_rcnn", width) for width in (8, 16, 32)),
    _zoo("retinanet_r50_fpn", "RetinaNet R50", "retinanet", "retinanet/retinanet_r50_fpn_1x_coco.py", anchors=9),
    _zoo("retinanet_r101_fpn", "RetinaNet R101", "retinanet", "retinanet/retinanet_r101_fpn_1x_coco.py", anchors=9),
    _zoo("fcos_r50_fpn", "FCOS R50 (caffe)", "fcos", "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", anchors=1),
    _zoo("fcos_r101_fpn", "FCOS R101 (caffe)", "fcos", "fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py", anchors=1),
    _zoo("gfl_r50_fpn", "GFL R50", "gfl", "gfl/gfl_r50_fpn_1x_coco.py", anchors=1, reg_max=16),
    _zoo("gfl_r101_fpn", "GFL R101", "gfl", "gfl/gfl_r101_fpn_ms-2x_coco.py", anchors=1, reg_max=16),
    _zoo("atss_r50_fpn", "ATSS R50", "atss", "atss/atss_r50_fpn_1x_coco.py", anchors=1),
    _zoo("reppoints_r50_fpn", "RepPoints R50", "reppoints", "reppoints/reppoints-moment_r50_fpn_1x_coco.py", anchors=1),
    _zoo("faster_rcnn_r50_fpn", "Faster R-CNN R50", "faster_rcnn", "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"),
    _zoo("faster_rcnn_r101_fpn", "Faster R-CNN R101", "faster_rcnn", "faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py"),
    _zoo("cascade_rcnn_r50_fpn", "Cascade R-CNN R50", "cascade_rcnn", "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"),
)

DETECTORS: Mapping[str, DetectorEntry] = {entry.name: entry for entry in _ENTRIES}
