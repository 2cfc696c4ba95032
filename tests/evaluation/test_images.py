"""Image scale, against MMDetection's own Resize."""

import cv2
import numpy as np
import pytest

from detkds_core.detectors.runtime import prepare_mmdet
from detkds_core.evaluation.images import load_image, resized_shape


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((300, 900), (444, 1333)), ((800, 1333), (800, 1333))],
)
def test_keep_ratio_scale_1333_800_worked_out_by_hand(size, expected):
    assert resized_shape(*size, 1333, 800) == expected


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (37, 121)])
def test_an_image_is_loaded_as_mmdetection_resizes_it(size, tmp_path):
    prepare_mmdet()
    from mmdet.datasets.transforms import Resize

    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    expected = Resize(scale=(133, 80), keep_ratio=True)({"img": pixels})["img"]
    np.testing.assert_array_equal(load_image(tmp_path, "a.png", 133, 80), expected)
    assert load_image(tmp_path, "a.png", 133).shape[:2] == resized_shape(*size, 133)
