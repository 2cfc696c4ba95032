"""Masks of objects: COCO's outlines as pixels, and pixels as COCO's run lengths."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from faster_coco_eval.core import mask as runs
from numpy.typing import NDArray


def outline(annotation: Mapping[str, Any]) -> Any:
    """The annotation's segmentation; an object without one is taken to fill its box."""
    if annotation.get("segmentation"):
        return annotation["segmentation"]
    x, y, width, height = annotation["bbox"]
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def object_mask(annotation: Mapping[str, Any], record: Mapping[str, Any], height: int, width: int) -> NDArray[np.uint8]:
    """The pixels (height, width), 1 or 0, of an object in its image (`record`) scaled to this size.

    Polygons are drawn at this size; run lengths, compressed or not, are decoded at the image's own size and scaled by nearest pixel.
    """
    given = outline(annotation)
    if isinstance(given, list):
        factors = (width / record["width"], height / record["height"])
        scaled = [[value * factors[i % 2] for i, value in enumerate(polygon)] for polygon in given]
        drawn: NDArray[np.uint8] = runs.decode(runs.segmToRle(scaled, width, height))
        return drawn
    own = runs.decode(runs.segmToRle(_compressed(given), record["width"], record["height"]))
    return own if own.shape == (height, width) else cv2.resize(own, (width, height), interpolation=cv2.INTER_NEAREST)


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) in COCO's compressed run lengths, `{"size": [H, W], "counts": text}`."""
    encoded = runs.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _compressed(segmentation: Mapping[str, Any]) -> dict[str, Any]:
    counts = segmentation["counts"]
    return {"size": segmentation["size"], "counts": counts.encode() if isinstance(counts, str) else counts}
