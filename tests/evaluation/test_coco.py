import contextlib
import copy
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkds_core.evaluation.coco import coco_ap, lenient_ap

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def oracle(ground_truth, detections, image_ids=None):
    """pycocotools' AP, AP50, AP75, small, medium, large in percent (None where it says -1) and AP of each class."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = [p[p > -1] for p in np.moveaxis(precision, 2, 0)]
    return [None if s < 0 else 100 * s for s in evaluation.stats[:6]], [100 * c.mean() if c.size else None for c in classes]


def lenient_oracle(ground_truth, detections):
    """pycocotools' AP over IoU 0.10 to 0.50 in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.params.iouThrs = np.linspace(0.10, 0.50, 9)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return 100 * precision[precision > -1].mean()


def figures(metrics):
    return [metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ap_medium, metrics.ap_large], list(metrics.per_class.values())


def same(ours, theirs):
    for a, b in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        assert (a is None) == (b is None)
        assert a is None or a == pytest.approx(b, abs=1e-9)


# Sides below and above 32 and 96 pixels, so that all three areas occur.
side = st.one_of(st.integers(1, 40), st.integers(20, 110), st.integers(90, 200))
corner = st.integers(0, 60)
box = st.tuples(corner, corner, side, side).map(list)
nudge = st.tuples(*[st.floats(-6, 6, width=32)] * 4)
score = st.sampled_from([0.1, 0.25, 0.5, 0.5, 0.75, 0.9])  # with ties


@st.composite
def scenes(draw):
    count = draw(st.integers(1, 4))
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 300, "height": 300} for i in range(count)]
    annotations, detections = [], []
    for image in images:
        for at in draw(st.lists(box, max_size=4)):
            category = draw(st.sampled_from([3, 7]))
            annotations.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": at,
                    "area": at[2] * at[3],
                    "iscrowd": int(draw(st.integers(0, 4)) == 0),
                }
            )
            for by in draw(st.lists(nudge, max_size=3)):
                moved = [max(v + d, 1) for v, d in zip(at, by, strict=True)]
                found = draw(st.sampled_from([category, category, category, 3]))
                detections.append({"image_id": image["id"], "category_id": found, "bbox": moved, "score": draw(score)})
        for at in draw(st.lists(box, max_size=2)):
            detections.append({"image_id": image["id"], "category_id": 7, "bbox": [float(v) for v in at], "score": draw(score)})
    # One box at least that is asked for: without any, AP is undefined (tested below).
    annotations.append({"image_id": 10, "category_id": 3, "bbox": draw(box), "area": draw(st.floats(1, 20_000)), "iscrowd": 0})
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, draw(st.permutations(detections))


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_equal_to_pycocotools(scene):
    ground_truth, detections = scene
    if detections:
        same(figures(coco_ap(ground_truth, detections)), oracle(ground_truth, detections))
    else:  # pycocotools cannot load an empty list
        assert coco_ap(ground_truth, detections).ap == 0


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_equal_to_pycocotools_on_some_images(scene):
    ground_truth, detections = scene
    chosen = [10, *(image["id"] for image in ground_truth["images"][2:])]
    if detections:
        same(figures(coco_ap(ground_truth, detections, chosen)), oracle(ground_truth, detections, chosen))


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_lenient_ap_is_the_mean_of_two_of_pycocotools(scene):
    ground_truth, detections = scene
    cats = {
        **ground_truth,
        "annotations": [{**one, "category_id": 3} for one in ground_truth["annotations"]],
        "categories": CATEGORIES[:1],
    }
    if detections:
        both = lenient_oracle(ground_truth, detections), lenient_oracle(cats, [{**one, "category_id": 3} for one in detections])
        assert lenient_ap(ground_truth, detections) == pytest.approx(sum(both) / 2, abs=1e-9)
    else:
        assert lenient_ap(ground_truth, detections) == 0


def test_lenient_ap_by_hand():
    # An IoU of 0.25 is right at 0.10, 0.15, 0.20 and 0.25, wrong at the five others; COCO's AP is 0.
    near = found(22, 10, 20, 10)  # 8 x 10 of 320
    assert lenient_ap(one_box(), [near]) == pytest.approx(100 * 4 / 9)
    assert coco_ap(one_box(), [near]).ap == 0
    # The wrong class: half of it is whatever the class.
    assert lenient_ap(one_box(), [found(10, 10, 20, 10, category_id=7)]) == pytest.approx(50)
    assert lenient_ap(one_box(), []) == 0


def test_equal_to_pycocotools_on_a_crowded_image():
    # More than the 100 best detections of an image and class; the rest must not count.
    rng = np.random.default_rng(0)
    boxes = [[float(x), float(y), 20.0, 20.0] for x in range(0, 300, 25) for y in range(0, 300, 25)]
    annotations = [{"id": i + 1, "image_id": 1, "category_id": 3, "bbox": b, "area": 400, "iscrowd": 0} for i, b in enumerate(boxes)]
    ground_truth = {"images": [{"id": 1, "width": 300, "height": 300}], "annotations": annotations, "categories": CATEGORIES}
    detections = [
        {"image_id": 1, "category_id": 3, "bbox": (np.array(b) + rng.uniform(-3, 3, 4)).tolist(), "score": float(rng.random())}
        for b in boxes
    ]
    metrics = coco_ap(ground_truth, detections)
    same(figures(metrics), oracle(ground_truth, detections))
    assert metrics.ap50 < 72  # 100 of 144 boxes can be found at most


def one_box(**annotation):
    box = {"id": 0, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 10], "area": 200, "iscrowd": 0}
    images = [{"id": 1, "width": 100, "height": 100}, {"id": 2, "width": 100, "height": 100}]
    return {"images": images, "annotations": [{**box, **annotation}], "categories": CATEGORIES}


def found(*box, image_id=1, category_id=3, score=0.9):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}


def test_a_perfect_detection_is_100_also_of_annotation_0():
    metrics = coco_ap(one_box(), [found(10, 10, 20, 10)])
    assert (metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small) == (100, 100, 100, 100)
    assert metrics.ap_medium is metrics.ap_large is None
    assert metrics.per_class == {"cat": 100, "dog": None}
    assert metrics.images == 2


def test_by_hand():
    # Intersection 15 x 10 over union 250 is an IoU of 0.6: right at 0.50, 0.55 and 0.60, wrong at the seven others.
    metrics = coco_ap(one_box(), [found(15, 10, 20, 10)])
    assert metrics.ap == pytest.approx(30)
    assert (metrics.ap50, metrics.ap75) == (100, 0)
    # A better scored miss before the hit halves the precision at every recall.
    assert coco_ap(one_box(), [found(10, 10, 20, 10, score=0.5), found(60, 60, 20, 10, score=0.6)]).ap == pytest.approx(50)


def test_no_detections_are_0():
    metrics = coco_ap(one_box(), [])
    assert (metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ap_medium) == (0, 0, 0, 0, None)
    assert metrics.per_class == {"cat": 0, "dog": None}


def test_an_area_that_is_not_given_is_the_box_s():
    ground_truth = one_box(bbox=[10, 10, 50, 50])
    del ground_truth["annotations"][0]["area"]
    metrics = coco_ap(ground_truth, [found(10, 10, 50, 50)])
    assert (metrics.ap_small, metrics.ap_medium) == (None, 100)


def test_detections_of_other_images_are_left_out():
    assert coco_ap(one_box(), [found(10, 10, 20, 10), found(1, 1, 9, 9, image_id=2, score=1.0)], [1]).ap == 100
    assert coco_ap(one_box(), [found(10, 10, 20, 10)], [1]).images == 1


@pytest.mark.parametrize(("ground_truth", "image_ids"), [(one_box(), [2]), (one_box(), []), (one_box(iscrowd=1), None)])
def test_without_ground_truth_ap_is_undefined(ground_truth, image_ids):
    with pytest.raises(ValueError, match="hold no box that is not crowd, so AP is undefined"):
        coco_ap(ground_truth, [found(10, 10, 20, 10)], image_ids)


@pytest.mark.parametrize(
    ("detection", "problem"),
    [
        (found(1, 1, 2, 2, image_id=5), r"detections\[0\].image_id: 5 is not an image"),
        (found(1, 1, 2, 2, category_id=1), r"detections\[0\].category_id: 1 is not one of \[3, 7\]"),
        (found(1, 1, float("nan"), 2), r"detections\[0\]: bbox and score must be finite"),
        (found(1, 1, 2, 2, score=float("inf")), r"detections\[0\]: bbox and score must be finite"),
    ],
)
def test_what_is_no_detection(detection, problem):
    with pytest.raises(ValueError, match=problem):
        coco_ap(one_box(), [detection])


def test_an_unknown_image_id():
    with pytest.raises(ValueError, match=r"image_ids: \[4\] are not images"):
        coco_ap(one_box(), [], [1, 4])


def test_quiet_and_without_side_effects(capfd):
    ground_truth, detections = one_box(), [found(10, 10, 20, 10)]
    before = copy.deepcopy((ground_truth, detections))
    coco_ap(ground_truth, detections).to_json()
    assert (ground_truth, detections) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("crowd", [0, 1])
def test_a_box_without_area_is_wrong_and_lies_on_no_crowd(crowd):
    """What `detect` makes of a box that is not finite; pycocotools would leave one of infinite area out."""
    ground_truth = one_box(id=1, bbox=[0, 0, 60, 60], area=3600)
    ground_truth["annotations"].append({**ground_truth["annotations"][0], "id": 2, "iscrowd": crowd, "bbox": [-5, -5, 10, 10]})
    nowhere, right = found(0, 0, 0, 0, score=0.9), [found(0, 0, 60, 60, score=0.5), found(-5, -5, 10, 10, score=0.4)]
    detections = [nowhere, *(right[:1] if crowd else right)]
    metrics = coco_ap(ground_truth, detections)
    same(figures(metrics), oracle(ground_truth, detections))
    assert metrics.ap == pytest.approx(50 if crowd else 100 * 2 / 3)
