"""Run a detector over images and measure its COCO AP."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detkds_core.evaluation.coco import Metrics, coco_ap
from detkds_core.evaluation.images import image_sample, load_image, resized_shape


@torch.no_grad()
def detect(
    model: nn.Module,
    annotations: dict[str, Any],
    images: Path,
    image_ids: Sequence[int],
    *,
    image_size: int,
    batch: int = 16,
) -> list[dict[str, Any]]:
    """COCO detections of `model` on the given images: image_id, category_id, bbox (xywh in original pixels), score.

    Images of one shape share a batch, so that padding, and with it the result, does not depend on the batch.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    categories = [category["id"] for category in sorted(annotations["categories"], key=lambda c: c["id"])]
    records = {image["id"]: image for image in annotations["images"]}
    by_shape: dict[tuple[int, int], list[int]] = {}
    for image_id in image_ids:
        record = records[image_id]
        by_shape.setdefault(resized_shape(record["height"], record["width"], image_size), []).append(image_id)
    chunks = [ids[i : i + batch] for ids in by_shape.values() for i in range(0, len(ids), batch)]
    detections: list[dict[str, Any]] = []
    for chunk in chunks:
        pixels = [load_image(images / records[i]["file_name"], image_size) for i in chunk]
        samples = [image_sample(p, records[i], device) for p, i in zip(pixels, chunk, strict=True)]
        tensors = [torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))).to(device) for p in pixels]
        data = model.data_preprocessor({"inputs": tensors, "data_samples": samples}, False)
        inputs = data["inputs"].contiguous(memory_format=torch.channels_last)
        for image_id, sample in zip(chunk, model.predict(inputs, data["data_samples"], rescale=True), strict=True):
            found = sample.pred_instances
            for box, score, label in zip(found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
                x1, y1, x2, y2 = box
                detections.append(
                    {"image_id": image_id, "category_id": categories[label], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
                )
    model.train(was_training)
    return detections


def measure(
    model: nn.Module, split: dict[str, Any], image_ids: Sequence[int], *, image_size: int, batch: int = 16
) -> tuple[Metrics, list[dict[str, Any]]]:
    """COCO AP of `model` on the given images of a split ({"annotations", "images"}), and the detections behind it."""
    annotations = json.loads(Path(split["annotations"]).read_text())
    detections = detect(model, annotations, Path(split["images"]), image_ids, image_size=image_size, batch=batch)
    return coco_ap(annotations, detections, image_ids), detections
