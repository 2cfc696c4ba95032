"""Small detectors, written out: a ResNet-18 of few channels and a pyramid of three levels, which a CPU can train."""

from typing import Any

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def _preprocessor() -> dict[str, Any]:
    return {
        "type": "DetDataPreprocessor",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "bgr_to_rgb": True,
        "pad_size_divisor": 32,
    }


def small_backbone(width: int, stages: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
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
        "out_indices": stages,
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
        "backbone": small_backbone(width),
        "neck": _small_neck(width, channels, len(strides)),
        "bbox_head": {"in_channels": channels, "feat_channels": channels, **head},
        "train_cfg": train,
        "test_cfg": _test_cfg(),
    }


def small_gfl(width: int, channels: int) -> dict[str, Any]:
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


def small_retinanet(width: int, channels: int) -> dict[str, Any]:
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


def small_fcos(width: int, channels: int) -> dict[str, Any]:
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


def small_faster_rcnn(width: int, channels: int) -> dict[str, Any]:
    strides = (8, 16, 32)
    rpn_assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3, "match_low_quality": True}
    roi_assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5, "match_low_quality": False}
    sampler = {"type": "RandomSampler", "neg_pos_ub": -1, "add_gt_as_proposals": True}
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}
    return {
        "type": "FasterRCNN",
        "data_preprocessor": _preprocessor(),
        "backbone": small_backbone(width),
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
