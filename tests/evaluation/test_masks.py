"""Masks: outlines drawn, scaled and written as run lengths; their AP is pycocotools'."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools import mask as oracle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkds_core.evaluation.coco import coco_ap
from detkds_core.evaluation.masks import object_mask, run_lengths

RECORD = {"id": 1, "width": 10, "height": 8}
SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]  # x 2..6, y 1..5


def drawn(height, width, x1, y1, x2, y2):
    mask = np.zeros((height, width), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        {"size": [8, 10], "counts": [17, 4, 4, 4, 4, 4, 4, 4, 35]},  # column by column: 2 whole ones and a pixel, then 4 in, 4 out
        run_lengths(drawn(8, 10, 2, 1, 6, 5) > 0),
        None,  # the box itself
    ],
    ids=["polygon", "counts", "compressed", "box"],
)
def test_an_outline_of_each_kind_becomes_the_same_pixels(segmentation):
    annotation = {"bbox": [2, 1, 4, 4], "segmentation": segmentation}
    np.testing.assert_array_equal(object_mask(annotation, RECORD, 8, 10), drawn(8, 10, 2, 1, 6, 5))
    np.testing.assert_array_equal(object_mask(annotation, RECORD, 16, 20), drawn(16, 20, 4, 2, 12, 10))


def test_an_object_of_two_parts_is_one_mask():
    annotation = {"bbox": [0, 0, 10, 8], "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2], [6, 4, 8, 4, 8, 6, 6, 6]]}
    np.testing.assert_array_equal(object_mask(annotation, RECORD, 8, 10), drawn(8, 10, 0, 0, 2, 2) + drawn(8, 10, 6, 4, 8, 6))


def test_run_lengths_are_read_by_pycocotools():
    mask = np.random.default_rng(0).random((13, 7)) > 0.6
    np.testing.assert_array_equal(oracle.decode(run_lengths(mask)), mask)


def ellipse(centre, radii, size=120):
    y, x = np.mgrid[:size, :size]
    return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1


def scene(seed):
    """Ellipses as ground truth (one of them a crowd, one a polygon) and shifted, stretched ones as detections."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 120} for i in (4, 9)]
    annotations, detections = [], []
    for image in images:
        for n in range(5):
            centre, radii, category = rng.uniform(30, 90, 2), rng.uniform(6, 28, 2), int(rng.choice([3, 7]))
            mask = ellipse(centre, radii)
            rle = run_lengths(mask)
            annotation = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "iscrowd": int(n == 4)}
            annotation |= {"segmentation": rle, "area": float(mask.sum()), "bbox": oracle.toBbox(rle).tolist()}
            if n == 0:
                x, y, w, h = annotation["bbox"]
                annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append(annotation)
            for _ in range(2):
                found = run_lengths(ellipse(centre + rng.normal(0, 3, 2), radii * rng.uniform(0.8, 1.2, 2)))
                wrong_box = [1.0, 1.0, 110.0, 110.0]  # must not matter: the size is the mask's
                detections.append(
                    {"image_id": image["id"], "category_id": category, "segmentation": found, "bbox": wrong_box, "score": rng.random()}
                )
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


@pytest.mark.parametrize("seed", range(5))
def test_the_ap_of_masks_is_pycocotools(seed):
    truth, detections = scene(seed)
    before = copy.deepcopy((truth, detections))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = copy.deepcopy(truth)
        reference.createIndex()
        alone = [{key: value for key, value in d.items() if key != "bbox"} for d in copy.deepcopy(detections)]
        evaluation = COCOeval(reference, reference.loadRes(alone), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = coco_ap(truth, detections, kind="segm")
    ours = [metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ap_medium, metrics.ap_large]
    expected = [None if value < 0 else 100 * value for value in evaluation.stats[:6]]
    assert ours == [value if value is None else pytest.approx(value, abs=1e-9) for value in expected]
    assert 5 < metrics.ap < 100
    assert (truth, detections) == before
    assert metrics.ap != coco_ap(truth, detections).ap
