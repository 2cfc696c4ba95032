"""COCO average precision of boxes and of masks, in percent; the numbers of pycocotools, computed by faster-coco-eval."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from detkds_core.evaluation.masks import outline

DETECTIONS_PER_IMAGE = 100
LENIENT = np.linspace(0.10, 0.50, 9)  # IoU
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 10**10)}  # square pixels; COCO's own


@dataclass(frozen=True, slots=True)
class Metrics:
    """AP in percent (0-100). ap: mean over IoU 0.50, 0.55, ... 0.95 and over classes that have ground truth.

    ap_small, ap_medium, ap_large: None without ground truth of that size; per_class: None for a class without ground truth.
    images: how many were measured. segm: the same of the masks, for a detector that draws them; what stands beside it is of boxes.
    not_finite: how many detections the detector gave without a finite box and score (`predict.detect`).
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    images: int
    per_class: Mapping[str, float | None]
    segm: "Metrics | None" = None
    not_finite: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def coco_ap(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int] | None = None,
    *,
    kind: str = "bbox",
) -> Metrics:
    """Average precision of `detections` on the images of `ground_truth`, or on those in `image_ids`; by boxes, or masks (kind "segm").

    ground_truth: a COCO dictionary; a crowd annotation absorbs detections and is not asked for.
    detections: `{"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"}`; at most the best 100 of each
    image and class count, those of images that are not measured are left out, and none at all gives 0. Neither is changed.
    For "segm" each has a "segmentation" (run lengths) instead of the box, and its size is the mask's.
    Raises ValueError when the images hold no ground truth (AP is undefined then), and for an unknown image or category id or
    a number that is not finite.
    """
    chosen, annotations, results, categories = _chosen(ground_truth, detections, image_ids, kind)
    evaluation = _evaluated(ground_truth, chosen, annotations, results, categories, kind)
    # (IoU thresholds, 101 recalls, classes, areas "all" and AREAS, detections per image); -1 where there is no ground truth
    precision: NDArray[np.float64] = np.asarray(evaluation.eval["precision"])[..., -1]
    every = precision[..., 0]
    return Metrics(
        ap=_mean(every) or 0.0,
        ap50=_mean(every[0]) or 0.0,
        ap75=_mean(every[5]) or 0.0,
        ap_small=_mean(precision[..., 1]),
        ap_medium=_mean(precision[..., 2]),
        ap_large=_mean(precision[..., 3]),
        images=len(chosen),
        per_class={category["name"]: _mean(every[:, :, index]) for index, category in enumerate(categories)},
    )


def lenient_ap(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], image_ids: Sequence[int] | None = None) -> float:
    """AP of boxes in percent over IoU 0.10, 0.15, ... 0.50: half of it the mean over classes, half of all classes as one.

    A detector learns roughly where before exactly where, and that there is something before what it is, so this tells weak ones apart
    that COCO's AP does not yet (docs/benchmarks.md, "Rungs and forks"). Parameters and errors as of `coco_ap`.
    """
    chosen, annotations, results, categories = _chosen(ground_truth, detections, image_ids, "bbox")
    alike = [[{**one, "category_id": 1} for one in some] for some in (annotations, results)]
    halves = []
    for some, found, classes in ((annotations, results, categories), (*alike, [{"id": 1, "name": "object"}])):
        evaluation = _evaluated(ground_truth, chosen, some, found, classes, "bbox", LENIENT)
        precision: NDArray[np.float64] = np.asarray(evaluation.eval["precision"])[..., -1]
        halves.append(_mean(precision[..., 0]) or 0.0)
    return sum(halves) / 2


def _chosen(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], image_ids: Sequence[int] | None, kind: str
) -> tuple[set[int], list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The images that are measured, their annotations and detections, and the categories by id. Raises ValueError as `coco_ap`."""
    known = {image["id"] for image in ground_truth["images"]}
    chosen = known if image_ids is None else set(image_ids)
    if unknown := sorted(chosen - known):
        raise ValueError(f"image_ids: {unknown[:5]} are not images of the ground truth")
    annotations = _annotations(ground_truth, chosen, kind)
    if all(annotation["iscrowd"] for annotation in annotations):
        raise ValueError(f"ground truth: the {len(chosen)} images measured hold no box that is not crowd, so AP is undefined")
    categories = sorted(ground_truth["categories"], key=lambda category: int(category["id"]))
    results = _results(detections, known, {category["id"] for category in categories}, chosen, kind)
    return chosen, annotations, results, categories


def _evaluated(
    ground_truth: Mapping[str, Any],
    chosen: set[int],
    annotations: list[dict[str, Any]],
    results: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    kind: str,
    thresholds: NDArray[np.float64] | None = None,
) -> COCOeval_faster:
    """The evaluation, accumulated. thresholds: of the IoU; None: COCO's own."""
    silent = logging.getLogger(__name__).debug
    images = [image for image in ground_truth["images"] if image["id"] in chosen]
    truth = COCO({"images": images, "annotations": annotations, "categories": categories}, print_function=silent)
    evaluation = COCOeval_faster(truth, truth.loadRes(results), iouType=kind, print_function=silent, ranges=dict(AREAS))
    evaluation.params.maxDets = [1, 10, DETECTIONS_PER_IMAGE]
    if thresholds is not None:
        evaluation.params.iouThrs = thresholds
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _annotations(ground_truth: Mapping[str, Any], chosen: set[int], kind: str) -> list[dict[str, Any]]:
    """The chosen images' objects, numbered from 1: COCO's matching takes id 0 for "no match"."""
    kept = (annotation for annotation in ground_truth["annotations"] if annotation["image_id"] in chosen)
    return [
        {
            "id": number,
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
            "iscrowd": int(annotation.get("iscrowd", 0)),
            **({"segmentation": outline(annotation)} if kind == "segm" else {}),
        }
        for number, annotation in enumerate(kept, start=1)
    ]


def _results(
    detections: Sequence[Mapping[str, Any]], images: set[int], categories: set[int], chosen: set[int], kind: str
) -> list[dict[str, Any]]:
    kept = []
    # COCO takes the size of a detection from its box where it has one
    place = "segmentation" if kind == "segm" else "bbox"
    for index, detection in enumerate(detections):
        if detection["image_id"] not in images:
            raise ValueError(f"detections[{index}].image_id: {detection['image_id']} is not an image of the ground truth")
        if detection["category_id"] not in categories:
            raise ValueError(f"detections[{index}].category_id: {detection['category_id']} is not one of {sorted(categories)}")
        if not all(map(math.isfinite, (*detection["bbox"], detection["score"]))):
            raise ValueError(f"detections[{index}]: bbox and score must be finite, not {detection['bbox']}, {detection['score']}")
        if detection["image_id"] in chosen:
            kept.append({key: detection[key] for key in ("image_id", "category_id", place, "score")})
    return kept


def _mean(precision: NDArray[np.float64]) -> float | None:
    """Mean in percent over the entries that have ground truth, None when none has."""
    measured = precision[precision > -1]
    return 100 * float(measured.mean()) if measured.size else None
