"""What a detector says that is no number costs it AP, and nobody else anything."""

import json
import math

import pytest
import torch

from detkds_core.datasets import report_ids
from detkds_core.datasets.digits import digits
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.runtime import prepare_mmdet
from detkds_core.evaluation.masks import run_lengths
from detkds_core.evaluation.predict import _as_coco, measure
from detkds_core.evaluation.resampling import image_weights, resampled_ap


def test_boxes_of_exploded_sizes_are_wrong_and_counted(tmp_path):
    """YOLOX decodes sizes by exp, and MMDetection does not clip its boxes."""
    prepare_mmdet()
    dataset = digits(tmp_path, train=1, val=4, size=64)
    torch.manual_seed(0)
    model = build_detector("yolox_tiny", dataset.classes).eval()
    with torch.no_grad():
        for scores, boxes in zip(model.bbox_head.multi_level_conv_obj, model.bbox_head.multi_level_conv_reg, strict=True):
            scores.bias.fill_(10.0)
            boxes.bias[2:] = 100.0
    ids = report_ids(dataset)
    metrics, detections = measure(model, dataset.to_json()["val"], ids, image_size=64)
    assert metrics.ap == 0
    assert metrics.not_finite == len(detections) > 0
    assert all(one["bbox"] == [0, 0, 0, 0] and 0 < one["score"] < 1 for one in detections)
    json.dumps(detections, allow_nan=False)
    assert set(resampled_ap(dataset.val.load(), detections, ids, image_weights(len(ids), count=3))) <= {0.0, None}


class Found:
    """MMDetection's InstanceData, as far as it is read."""

    def __init__(self, **fields):
        self.__dict__ |= fields

    def __contains__(self, name):
        return hasattr(self, name)


@pytest.mark.parametrize(
    ("box", "score", "kept"),
    [((0.0, 0.0, math.inf, 9.0), 0.7, 0.7), ((math.nan, 0.0, 8.0, 9.0), 0.7, 0.7), ((0.0, 0.0, 8.0, 9.0), math.nan, 0.0)],
)
def test_a_box_or_a_score_that_is_not_finite_finds_nothing(box, score, kept):
    found = Found(
        bboxes=torch.tensor([[1.0, 2.0, 4.0, 8.0], box]),
        scores=torch.tensor([0.5, score]),
        labels=torch.tensor([0, 1]),
        masks=torch.ones(2, 10, 10, dtype=torch.bool),
    )
    right, wrong = _as_coco(7, found, [3, 9])
    full = run_lengths(found.masks[0].numpy())
    assert right == {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 6], "score": 0.5, "segmentation": full}
    empty = run_lengths(torch.zeros(10, 10, dtype=torch.bool).numpy())
    expected = {"image_id": 7, "category_id": 9, "bbox": [0, 0, 0, 0], "not_finite": True, "segmentation": empty}
    assert {key: value for key, value in wrong.items() if key != "score"} == expected
    assert wrong["score"] == pytest.approx(kept)
