"""How much of an AP is the images' luck: the AP of boxes on images drawn anew, with replacement, from those that were measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkds_core.evaluation.coco import DETECTIONS_PER_IMAGE

RESAMPLES = 200
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


def image_weights(images: int, count: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """How often each image is drawn: (count, images), every row sums to `images`.

    Students that are compared must share these draws: what they differ by on one draw is then free of its luck.
    """
    drawn = np.random.default_rng((seed, images)).integers(images, size=(count, images))
    return np.stack([np.bincount(row, minlength=images) for row in drawn])


def resampled_ap(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], image_ids: Sequence[int], weights: NDArray[np.int64]
) -> list[float | None]:
    """AP of boxes in percent, one a row of `weights` (its columns: `image_ids` in ascending order); None where the draw has no object.

    The numbers of `coco_ap` on images that are there as often as their weight says: detections are matched once, and only what they
    add to precision and recall is weighted.
    """
    place = {image_id: index for index, image_id in enumerate(sorted(set(image_ids)))}
    truth = _by_class(ground_truth["annotations"], place)
    found = _by_class(detections, place)
    sums = np.zeros(len(weights))
    classes = np.zeros(len(weights), dtype=np.int64)  # with an object in the draw
    for category, objects in sorted(truth.items()):
        counts = np.zeros(len(place), dtype=np.int64)
        for image, boxes in objects.items():
            counts[image] = sum(not box.get("iscrowd", 0) for box in boxes)
        asked = weights @ counts  # (draws,)
        if not counts.any():
            continue
        sums += np.where(asked > 0, _class_ap(objects, found.get(category, {}), asked, weights), 0.0)
        classes += asked > 0
    return [None if number == 0 else float(100 * total / number) for total, number in zip(sums, classes, strict=True)]


Boxes = dict[int, list[Mapping[str, Any]]]  # of one class, by the place of their image


def _by_class(records: Sequence[Mapping[str, Any]], place: Mapping[int, int]) -> dict[int, Boxes]:
    classes: dict[int, Boxes] = {}
    for one in records:
        if one["image_id"] in place:
            classes.setdefault(one["category_id"], {}).setdefault(place[one["image_id"]], []).append(one)
    return classes


def _class_ap(truth: Boxes, found: Boxes, asked: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """AP (0-1) of one class for each draw, mean over IoU thresholds; 0 where nothing is asked for."""
    scores: list[NDArray[np.float64]] = []
    images: list[NDArray[np.int64]] = []
    hits: list[NDArray[np.bool_]] = []  # (IoU thresholds, detections) each
    ignored: list[NDArray[np.bool_]] = []
    for image in sorted(found):
        best = sorted(found[image], key=lambda one: -one["score"])[:DETECTIONS_PER_IMAGE]
        hit, crowd = _match(truth.get(image, []), best)
        scores.append(np.array([one["score"] for one in best]))
        images.append(np.full(len(best), image))
        hits.append(hit)
        ignored.append(crowd)
    if not scores:
        return np.zeros(len(weights))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    drawn = weights[:, np.concatenate(images)[order]]  # (draws, detections), best score first
    hit, crowd = np.concatenate(hits, axis=1)[:, order], np.concatenate(ignored, axis=1)[:, order]
    every = drawn.cumsum(axis=1)
    total = np.zeros(len(weights))
    for level in range(len(IOUS)):
        # Precision can only peak at a hit, so the others count in `seen` and need no place of their own.
        right = np.flatnonzero(hit[level])
        if not len(right):
            continue
        true = drawn[:, right].cumsum(axis=1)
        seen = every[:, right] if not crowd[level].any() else (drawn * ~crowd[level]).cumsum(axis=1)[:, right]
        precision = true / np.maximum(seen, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = true / np.maximum(asked, 1)[:, None]
        # The recall points that each hit is the first to reach; recall 0 falls to the first, whose envelope is that of all.
        points = np.diff(np.searchsorted(RECALLS, recall, side="right"), axis=1, prepend=0)
        total += (envelope * points).sum(axis=1) / len(RECALLS)
    return total / len(IOUS)


def _match(truth: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections (best first) find an object and which lie on a crowd: (IoU thresholds, detections) each.

    COCO's matching: each detection takes the free object that it overlaps most, of equals the last; a crowd takes any number of the rest.
    """
    hit = np.zeros((len(IOUS), len(found)), dtype=np.bool_)
    crowd = np.zeros_like(hit)
    if not truth or not found:
        return hit, crowd
    truth = sorted(truth, key=lambda one: int(one.get("iscrowd", 0)))
    normal = sum(not one.get("iscrowd", 0) for one in truth)
    overlaps = _iou(np.array([one["bbox"] for one in found], dtype=float), np.array([one["bbox"] for one in truth], dtype=float), normal)
    free = np.ones((len(IOUS), normal), dtype=np.bool_)
    levels = np.arange(len(IOUS))
    for index in np.flatnonzero(overlaps.max(axis=1) >= IOUS[0]):
        overlap = overlaps[index]
        fits = (overlap[:normal] >= IOUS[:, None]) & free
        some = fits.any(axis=1)
        if normal:
            choice = normal - 1 - np.where(fits, overlap[:normal], -1.0)[:, ::-1].argmax(axis=1)
            free[levels[some], choice[some]] = False
        hit[:, index] = some
        crowd[:, index] = ~some & (overlap[normal:] >= IOUS[:, None]).any(axis=1)
    return hit, crowd


def _iou(found: NDArray[np.float64], truth: NDArray[np.float64], normal: int) -> NDArray[np.float64]:
    """(detections, objects) of boxes x, y, width, height; of a crowd (from `normal` on): the share of the detection inside."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], truth[None, :, :2] + truth[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=2)
    own, other = np.prod(found[:, 2:], axis=1)[:, None], np.prod(truth[:, 2:], axis=1)[None]
    union = own + other - shared
    union[:, normal:] = np.broadcast_to(own, shared.shape)[:, normal:]
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
