"""The training images of a step: a function of (dataset, recipe, seed, step), the same for every candidate and every resumed run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detkds_core.catalogue import Recipe
from detkds_core.evaluation.images import load_image

SYMMETRY = {"none": "none", "flip": "flip", "dihedral": "dihedral", "aerial": "dihedral"}
CACHE_BYTES = 1 << 30  # decoded images kept in memory; above it they are read again


@dataclass(frozen=True)
class Batch:
    """images: B tensors (3, H, W) uint8 BGR; boxes: B tensors (n, 4) xyxy in pixels; labels: B tensors (n,), indices of classes."""

    images: list[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]


class Batches:
    """Random access to the batches of a training run."""

    def __init__(self, split: dict[str, Any], recipe: Recipe, seed: int) -> None:
        content = json.loads(Path(split["annotations"]).read_text())
        self.images = Path(split["images"])
        self.recipe = recipe
        self.seed = seed
        labels = {category: i for i, category in enumerate(sorted(c["id"] for c in content["categories"]))}
        self.records = sorted(content["images"], key=lambda image: image["id"])
        if recipe.train_images is not None:
            # the subset must not depend on the seed: a search's candidates and its confirmation learn from the same images
            order = np.random.Generator(np.random.Philox(key=0)).permutation(len(self.records))
            self.records = [self.records[i] for i in sorted(order[: recipe.train_images])]
        self.truth: dict[int, tuple[list[list[float]], list[int]]] = {record["id"]: ([], []) for record in self.records}
        for annotation in content["annotations"]:
            if annotation["image_id"] in self.truth and not annotation.get("iscrowd", 0):
                x, y, width, height = annotation["bbox"]
                boxes, classes = self.truth[annotation["image_id"]]
                boxes.append([x, y, x + width, y + height])
                classes.append(labels[annotation["category_id"]])
        self._cache: dict[int, NDArray[np.uint8]] = {}
        self._cached_bytes = 0
        self._epoch = -1  # whose permutation is at hand
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def __getitem__(self, step: int) -> Batch:
        B, total = self.recipe.batch, len(self.records)
        images, boxes, labels = [], [], []
        for position in range(step * B, step * B + B):
            record = self.records[self._order(position // total)[position % total]]
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, position, 0, 1]))
            pixels = self._pixels(record)
            given, classes = self.truth[record["id"]]
            scale = np.array([pixels.shape[1] / record["width"], pixels.shape[0] / record["height"]] * 2)
            truth = np.array(given, dtype=np.float64).reshape(-1, 4) * scale
            kept = np.array(classes, dtype=np.int64)
            if self.recipe.augment == "aerial":
                pixels, truth, visible = zoomed(recoloured(pixels, rng), truth, rng)
                kept = kept[visible]
            pixels, truth = augmented(pixels, truth, SYMMETRY[self.recipe.augment], rng)
            images.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
            boxes.append(torch.from_numpy(truth.astype(np.float32)))
            labels.append(torch.from_numpy(kept))
        return Batch(images, boxes, labels)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._epoch != epoch:
            self._epoch = epoch
            self._permutation = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, epoch, 0, 2])).permutation(
                len(self.records)
            )
        return self._permutation

    def _pixels(self, record: dict[str, Any]) -> NDArray[np.uint8]:
        pixels = self._cache.get(record["id"])
        if pixels is None:
            pixels = load_image(self.images / record["file_name"], self.recipe.image_size)
            if self._cached_bytes + pixels.nbytes <= CACHE_BYTES:
                self._cache[record["id"]] = pixels
                self._cached_bytes += pixels.nbytes
        return pixels


def augmented(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float64], kind: str, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A random symmetry of an image (H, W, 3) and its boxes (n, 4) xyxy: `flip` mirrors half of them, `dihedral` draws one of eight."""
    if kind == "none":
        return pixels, boxes
    mirror = rng.random() < 0.5
    quarter_turns = int(rng.integers(4)) if kind == "dihedral" else 0
    if mirror:
        width = pixels.shape[1]
        pixels, boxes = pixels[:, ::-1], np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    for _ in range(quarter_turns):  # counter-clockwise: (x, y) -> (y, width - x)
        width = pixels.shape[1]
        pixels, boxes = np.rot90(pixels), np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], axis=1)
    return pixels, boxes


def recoloured(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another light: each channel (of H, W, 3) gets a gain of 0.7 to 1.3 times a common one, an offset within 30, and all a gamma."""
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.15, size=3)
    offset = rng.uniform(-30, 30) + rng.uniform(-10, 10, size=3)
    gamma = rng.uniform(0.7, 1.4)
    levels = np.clip((np.arange(256) / 255.0)[:, None] ** gamma * 255 * gain + offset, 0, 255).astype(np.uint8)  # (256, 3)
    return np.stack([levels[pixels[..., channel], channel] for channel in range(3)], axis=-1)


def zoomed(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.bool_]]:
    """Scale an image by 0.6 to 1.6 and cut or pad it to its own size at a random place.

    Boxes (n, 4) of which less than half is left are dropped; returns pixels, the boxes left, and which of the n they are.
    """
    height, width = pixels.shape[:2]
    scale = float(np.exp(rng.uniform(np.log(0.6), np.log(1.6))))
    large = cv2.resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_LINEAR)
    spare = np.array([width - large.shape[1], height - large.shape[0]])  # negative: this much is cut
    shift = np.round(spare * rng.random(2)).astype(int)
    result = np.full_like(pixels, 114)  # the grey that detectors are usually padded with
    x, y = np.maximum(shift, 0)
    cut = large[max(0, -shift[1]) :, max(0, -shift[0]) :][: height - y, : width - x]
    result[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    moved = boxes * scale + np.tile(shift, 2)
    inside = moved.clip(0, np.array([width, height, width, height]))
    area = (moved[:, 2:] - moved[:, :2]).prod(axis=1)
    left = (inside[:, 2:] - inside[:, :2]).prod(axis=1)
    visible = left >= 0.5 * area
    return result, inside[visible], visible
