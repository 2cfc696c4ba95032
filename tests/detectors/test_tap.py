"""Decoded boxes against the boxes that MMDetection itself predicts."""

import pytest
import torch

from detkds_core.catalogue import DETECTORS
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.runtime import prepare_mmdet
from detkds_core.detectors.tap import Tap, decode_boxes, dense_head

CLASSES = ("a", "b", "c")
HUGE = {"img_shape": (100000, 100000), "scale_factor": (1.0, 1.0), "ori_shape": (100000, 100000)}


def reppoints():
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    from detkds_core.detectors.build import model_config

    config = model_config(DETECTORS["reppoints_r50_fpn"], 3)
    config["backbone"] |= {"depth": 18}
    config["neck"]["in_channels"] = [64, 128, 256, 512]
    return MODELS.build(ConfigDict(config))


def built(name):
    prepare_mmdet()
    torch.manual_seed(0)
    return reppoints() if name == "reppoints" else build_detector(name, CLASSES)


FAMILIES = ("gfl", "retinanet", "fcos", "faster_rcnn", "atss", "reppoints", "mask_rcnn", "cascade_rcnn")


@pytest.mark.parametrize("name", [*(f"{family}_r18w8_fpn32" for family in FAMILIES), "rtmdet_tiny", "yolox_tiny", "reppoints"])
def test_decoded_boxes_are_those_that_mmdetection_predicts(name):
    from mmengine.config import ConfigDict

    model = built(name).eval()
    head = dense_head(model)
    with torch.no_grad():
        features = model.extract_feat(torch.randn(2, 3, 64, 96))
        outputs = head(features)
        # everything kept, nothing suppressed, nothing clamped: an image larger than any box
        config = ConfigDict(score_thr=-1.0, nms_pre=100000, max_per_img=100000, min_bbox_size=-1, nms={"type": "nms", "iou_threshold": 1.0})
        predicted = head.predict_by_feat(*outputs, batch_img_metas=[HUGE, HUGE], cfg=config, with_nms=False)
        decoded = torch.cat(decode_boxes(head, outputs, [tuple(level.shape[-2:]) for level in outputs[0]]), dim=1)
    for image in range(2):
        theirs = predicted[image].bboxes.clamp(0, 100000)  # all heads but YOLOX's clamp by themselves
        ours = decoded[image].clamp(0, 100000)
        assert len(theirs) >= ours.shape[0]  # once a class where classes are scored apart
        apart = torch.cdist(theirs, ours, compute_mode="donot_use_mm_for_euclid_dist")  # the fast way loses the digits that matter here
        assert float(apart.min(dim=1).values.max()) < 1e-3
        assert float(apart.min(dim=0).values.max()) < 1e-3


@pytest.mark.parametrize("name", ["fcos_r18w8_fpn32", "reppoints"])
def test_heads_that_answer_otherwise_in_training_decode_the_same(name):
    model = built(name)
    head = dense_head(model)
    with torch.no_grad():
        features = [
            torch.randn(2, 256 if name == "reppoints" else 32, size, size)
            for size in ((8, 4, 2, 1, 1) if name == "reppoints" else (8, 4, 2))
        ]
        decoded = []
        for training in (True, False):
            head.train(training)
            outputs = head(features)
            decoded.append(torch.cat(decode_boxes(head, outputs, [tuple(level.shape[-2:]) for level in outputs[0]]), dim=1))
    torch.testing.assert_close(decoded[0], decoded[1])


def test_a_tap_gives_only_what_was_asked_for_and_forgets():
    model = built("gfl_r18w8_fpn32").eval()
    tap = Tap(model)
    features = model.extract_feat(torch.randn(1, 3, 64, 64))
    model.bbox_head(features)
    only_features = tap.signals(frozenset({"features"}), (0, 2))
    assert [level.shape for level in only_features.features] == [(1, 32, 8, 8), (1, 32, 2, 2)]
    assert (only_features.logits, only_features.boxes, only_features.edges) == ((), (), ())
    every = tap.signals(frozenset({"features", "logits", "boxes", "edges"}), (1,))
    assert every.logits[0].shape == (1, 3, 4, 4)
    assert every.boxes[0].shape == (1, 16, 4)
    assert every.edges[0].shape == (1, 36, 4, 4)
    tap.clear()
    assert tap.features == ()
