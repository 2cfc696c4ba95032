"""Run a detector over images and measure its COCO AP."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detkds_core.evaluation.coco import Metrics, coco_ap
from detkds_core.evaluation.images import image_sample, load_image, resized_shape
from detkds_core.evaluation.masks import run_lengths


@torch.no_grad()
def detect(
    model: nn.Module,
    annotations: dict[str, Any],
    images: Path,
    image_ids: Sequence[int],
    *,
    image_size: int,
    short_side: int | None = None,
    batch: int = 16,
) -> list[dict[str, Any]]:
    """COCO detections of `model` on the given images: image_id, category_id, bbox (xywh in original pixels), score, and
    segmentation (run lengths) of a detector that draws masks.

    One whose box or score is not finite, as sizes that are decoded by exp become, finds nothing but has been said: it stays as a box
    without area at [0, 0], which matches no object and counts as wrong, with its score (0 where that is not finite), and as `not_finite`.

    Images of one shape share a batch, so that padding, and with it the result, does not depend on the batch. One that does not fit in
    the accelerator's memory is halved.
    """
    was_training = model.training
    model.eval()
    categories = [category["id"] for category in sorted(annotations["categories"], key=lambda c: c["id"])]
    records = {image["id"]: image for image in annotations["images"]}
    by_shape: dict[tuple[int, int], list[int]] = {}
    for image_id in image_ids:
        record = records[image_id]
        by_shape.setdefault(resized_shape(record["height"], record["width"], image_size, short_side), []).append(image_id)
    waiting = [ids[i : i + batch] for ids in by_shape.values() for i in range(0, len(ids), batch)]
    detections: list[dict[str, Any]] = []
    while waiting:
        chunk = waiting.pop(0)
        pixels = [load_image(images, records[i]["file_name"], image_size, short_side) for i in chunk]
        found = _predictions(model, pixels, [records[i] for i in chunk])
        if found is None:
            torch.cuda.empty_cache()
            waiting[:0] = [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
            continue
        for image_id, sample in zip(chunk, found, strict=True):
            detections.extend(_as_coco(image_id, sample.pred_instances, categories))
    model.train(was_training)
    return detections


def _predictions(model: nn.Module, pixels: Sequence[Any], records: Sequence[dict[str, Any]]) -> list[Any] | None:
    """MMDetection's predictions for images of one shape; None when several do not fit in memory."""
    device = next(model.parameters()).device
    samples = [image_sample(p, record, device) for p, record in zip(pixels, records, strict=True)]
    tensors = [torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))).to(device) for p in pixels]
    try:
        data = model.data_preprocessor({"inputs": tensors, "data_samples": samples}, False)
        inputs: Tensor = data["inputs"].contiguous(memory_format=torch.channels_last)
        return list(model.predict(inputs, data["data_samples"], rescale=True))
    except torch.OutOfMemoryError:
        if len(records) == 1:
            raise
        return None


def _as_coco(image_id: int, found: Any, categories: Sequence[int]) -> list[dict[str, Any]]:
    detections = []
    for box, score, label in zip(found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        x1, y1, x2, y2 = box
        one = {"image_id": image_id, "category_id": categories[label], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        if not all(map(math.isfinite, (*box, score))):
            one |= {"bbox": [0.0] * 4, "score": score if math.isfinite(score) else 0.0, "not_finite": True}
        detections.append(one)
    if "masks" in found:
        for detection, mask in zip(detections, found.masks.cpu().numpy(), strict=True):
            detection["segmentation"] = run_lengths(np.zeros_like(mask) if "not_finite" in detection else mask)
    return detections


def draws_masks(model: nn.Module) -> bool:
    """Whether a detector of MMDetection predicts masks beside its boxes, and learns from them."""
    return bool(getattr(model, "with_mask", False))


def measure(
    model: nn.Module,
    split: dict[str, Any],
    image_ids: Sequence[int],
    *,
    image_size: int,
    short_side: int | None = None,
    batch: int = 16,
) -> tuple[Metrics, list[dict[str, Any]]]:
    """COCO AP of `model` on the given images of a split ({"annotations", "images"}), and the detections behind it."""
    annotations = json.loads(Path(split["annotations"]).read_text())
    detections = detect(model, annotations, Path(split["images"]), image_ids, image_size=image_size, short_side=short_side, batch=batch)
    return metrics_of(annotations, detections, image_ids, masks=draws_masks(model)), detections


def metrics_of(annotations: dict[str, Any], detections: Sequence[dict[str, Any]], image_ids: Sequence[int], *, masks: bool) -> Metrics:
    """AP of the boxes and, with `masks` and where the ground truth has outlines, of the masks; detections of `detect`."""
    not_finite = sum("not_finite" in detection for detection in detections)
    metrics = replace(coco_ap(annotations, detections, image_ids), not_finite=not_finite)
    if not masks or not any(annotation.get("segmentation") for annotation in annotations["annotations"]):
        return metrics
    return replace(metrics, segm=coco_ap(annotations, detections, image_ids, kind="segm"))
