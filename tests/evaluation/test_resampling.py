"""AP on images drawn anew: the figures of COCO's evaluation on a dataset that has these images as often as they were drawn."""

import copy

import numpy as np
import pytest

from detkds_core.evaluation.coco import coco_ap
from detkds_core.evaluation.resampling import image_weights, resampled_ap

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def scene(seed, images=12):
    """Objects of two classes, a crowd here and there, and detections near them and elsewhere; no two scores are equal."""
    rng = np.random.default_rng(seed)
    records = [{"id": 40 - 3 * i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(images)]
    annotations, detections = [], []
    for record in records:
        for _ in range(rng.integers(0, 5)):
            box = [*rng.uniform(0, 150, 2), *rng.uniform(10, 60, 2)]
            category = int(rng.choice([3, 7]))
            crowd = int(rng.random() < 0.2)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": record["id"], "category_id": category, "bbox": box, "iscrowd": crowd}
            )
            for _ in range(rng.integers(0, 3)):
                near = [value + rng.normal(0, 4) for value in box]
                detections.append({"image_id": record["id"], "category_id": category, "bbox": near, "score": rng.random()})
        for _ in range(rng.integers(0, 3)):
            box = [*rng.uniform(0, 150, 2), *rng.uniform(10, 60, 2)]
            detections.append({"image_id": record["id"], "category_id": int(rng.choice([3, 7])), "bbox": box, "score": rng.random()})
    return {"images": records, "annotations": annotations, "categories": CATEGORIES}, detections


def repeated(truth, detections, ids, weights):
    """The same as a dataset of its own, in which an image that was drawn twice is there twice."""
    images, annotations, found = [], [], []
    for image_id, weight in zip(sorted(ids), weights, strict=True):
        for copied in range(weight):
            new = 1000 * copied + image_id
            images.append({"id": new, "file_name": f"{new}.png", "width": 200, "height": 200})
            annotations += [{**copy.deepcopy(a), "image_id": new} for a in truth["annotations"] if a["image_id"] == image_id]
            found += [{**d, "image_id": new} for d in detections if d["image_id"] == image_id]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, found


@pytest.mark.parametrize("seed", range(6))
def test_a_draw_is_worth_what_coco_says_of_its_images(seed):
    truth, detections = scene(seed)
    ids = [record["id"] for record in truth["images"]][:9]
    weights = np.vstack([np.ones(9, dtype=int), image_weights(9, count=8, seed=seed)])
    found = resampled_ap(truth, detections, ids, weights)
    assert found[0] == pytest.approx(coco_ap(truth, detections, ids).ap, abs=1e-9)
    for ap, row in zip(found[1:], weights[1:], strict=True):
        assert ap == pytest.approx(coco_ap(*repeated(truth, detections, ids, row)).ap, abs=1e-9)


def test_draws_are_the_same_for_everybody_and_whole():
    weights = image_weights(30, count=5)
    assert (weights == image_weights(30, count=5)).all()
    assert (weights.sum(axis=1) == 30).all()
    assert (weights != image_weights(30, count=5, seed=1)).any()


def test_a_draw_without_an_object_has_no_ap():
    truth = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "iscrowd": 0}],
        "categories": CATEGORIES,
    }
    detection = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.5}
    assert resampled_ap(truth, [detection], [1, 2], np.array([[1, 1], [2, 0], [0, 2]])) == pytest.approx([100.0, 100.0, None])
    assert resampled_ap(truth, [], [1, 2], np.array([[1, 1]])) == [0.0]
