"""The training images of a step: a function of (dataset, recipe, seed, step), the same for every candidate and every resumed run."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detkds_core.catalogue import Recipe
from detkds_core.datasets import DatasetError
from detkds_core.evaluation.images import load_image
from detkds_core.evaluation.masks import object_mask

SYMMETRY = {"none": "none", "flip": "flip", "dihedral": "dihedral", "aerial": "dihedral"}
Picture = tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64], NDArray[np.uint8]]  # pixels, boxes, labels, masks
CACHE_BYTES = 1 << 30  # decoded images kept in memory; above it they are read again


@dataclass(frozen=True)
class Batch:
    """images: B tensors (3, H, W) uint8 BGR; boxes: B tensors (n, 4) xyxy in pixels; labels: B tensors (n,), indices of classes.

    masks: B arrays (n, H, W) of 0 and 1, or nothing for a detector that does not learn from them.
    """

    images: list[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: list[NDArray[np.uint8]] = field(default_factory=list)


class Batches:
    """Random access to the batches of a training run; batch k + s * accumulate is the k-th forward of optimisation step s.

    rank, devices: which equal share of each batch's images is this process's. masks: whether the detector learns from outlines.
    Raises DatasetError when it does and the dataset has none.
    """

    def __init__(self, split: dict[str, Any], recipe: Recipe, seed: int, *, masks: bool = False, rank: int = 0, devices: int = 1) -> None:
        content = json.loads(Path(split["annotations"]).read_text())
        self.images = Path(split["images"])
        self.recipe = recipe
        self.seed = seed
        self.masks = masks
        self.share = range(rank * recipe.batch // devices, (rank + 1) * recipe.batch // devices)  # of a batch's places
        if masks and not any(one.get("segmentation") and not one.get("iscrowd", 0) for one in content["annotations"]):
            raise DatasetError(f"{split['annotations']}: no annotation has a segmentation, which a detector with masks learns from")
        labels = {category: i for i, category in enumerate(sorted(c["id"] for c in content["categories"]))}
        self.records = sorted(content["images"], key=lambda image: image["id"])
        if recipe.train_images is not None:
            # the subset must not depend on the seed: a search's candidates and its confirmation learn from the same images
            order = np.random.Generator(np.random.Philox(key=0)).permutation(len(self.records))
            self.records = [self.records[i] for i in sorted(order[: recipe.train_images])]
        self.truth: dict[int, tuple[list[list[float]], list[int], list[dict[str, Any]]]] = {r["id"]: ([], [], []) for r in self.records}
        for annotation in content["annotations"]:
            if annotation["image_id"] in self.truth and not annotation.get("iscrowd", 0):
                x, y, width, height = annotation["bbox"]
                if min(width, height) <= 0:  # COCO has two; such a box teaches nothing, and no detector says so
                    continue
                boxes, classes, objects = self.truth[annotation["image_id"]]
                boxes.append([x, y, x + width, y + height])
                classes.append(labels[annotation["category_id"]])
                objects.append(annotation)
        self._cache: dict[tuple[int, int | None], NDArray[np.uint8]] = {}
        self._cached_bytes = 0
        self._epoch = -1  # whose permutation is at hand
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def __getitem__(self, index: int) -> Batch:
        return self.assembled([self.image(*place) for place in self.places(index)])

    def places(self, index: int) -> list[tuple[dict[str, Any], int]]:
        """The images of a batch: record and position in the endless row of all images that training shows."""
        total = len(self.records)
        positions = [index * self.recipe.batch + i for i in self.share]
        return [(self.records[self._order(position // total)[position % total]], position) for position in positions]

    def image(self, record: dict[str, Any], position: int) -> Picture:
        """One image as training sees it at a position: a function of both, so that threads may prepare several at once."""
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, position, 0, 1]))
        short_side = self.recipe.short_side
        if self.recipe.train_short_sides is not None:
            scales = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, position, 0, 4]))
            short_side = int(scales.choice(self.recipe.train_short_sides))
        pixels = self._pixels(record, short_side)
        given, classes, objects = self.truth[record["id"]]
        height, width = pixels.shape[:2]
        scale = np.array([width / record["width"], height / record["height"]] * 2)
        boxes = np.array(given, dtype=np.float64).reshape(-1, 4) * scale
        labels = np.array(classes, dtype=np.int64)
        drawn = [object_mask(one, record, height, width) for one in objects] if self.masks else []
        masks = np.stack(drawn) if drawn else np.zeros((0, height, width), np.uint8)
        picture = pixels, boxes, labels, masks
        if self.recipe.augment == "aerial":
            picture = zoomed(recoloured(pixels, rng), boxes, labels, masks, rng)
        return augmented(*picture, SYMMETRY[self.recipe.augment], rng)

    def assembled(self, pictures: Sequence[Picture]) -> Batch:
        return Batch(
            images=[torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))) for pixels, _, _, _ in pictures],
            boxes=[torch.from_numpy(boxes.astype(np.float32)) for _, boxes, _, _ in pictures],
            labels=[torch.from_numpy(labels) for _, _, labels, _ in pictures],
            masks=[np.ascontiguousarray(masks) for _, _, _, masks in pictures] if self.masks else [],
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._epoch != epoch:
            self._epoch = epoch
            self._permutation = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, epoch, 0, 2])).permutation(
                len(self.records)
            )
        return self._permutation

    def _pixels(self, record: dict[str, Any], short_side: int | None) -> NDArray[np.uint8]:
        key = (record["id"], short_side)
        pixels = self._cache.get(key)
        if pixels is None:
            pixels = load_image(self.images, record["file_name"], self.recipe.image_size, short_side)
            if self._cached_bytes + pixels.nbytes <= CACHE_BYTES:
                self._cache[key] = pixels
                self._cached_bytes += pixels.nbytes
        return pixels


def ahead(batches: Batches, first: int, last: int, *, threads: int) -> Iterator[Batch]:
    """The batches from `first` to before `last`; with threads, the next one is prepared while the last is learnt from."""
    if not threads:
        yield from (batches[index] for index in range(first, last))
        return
    with ThreadPoolExecutor(threads) as pool:

        def begin(index: int) -> list[Future[Picture]]:
            return [pool.submit(batches.image, *place) for place in batches.places(index)] if index < last else []

        waiting = deque([begin(first), begin(first + 1)])
        for index in range(first, last):
            pictures = [one.result() for one in waiting.popleft()]
            waiting.append(begin(index + 2))
            yield batches.assembled(pictures)


def augmented(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    masks: NDArray[np.uint8],
    kind: str,
    rng: np.random.Generator,
) -> Picture:
    """A random symmetry of an image (H, W, 3), its boxes (n, 4) xyxy and masks (n, H, W).

    `flip` mirrors half of them, `dihedral` draws one of eight.
    """
    if kind == "none":
        return pixels, boxes, labels, masks
    mirror = rng.random() < 0.5
    quarter_turns = int(rng.integers(4)) if kind == "dihedral" else 0
    if mirror:
        width = pixels.shape[1]
        pixels, boxes = pixels[:, ::-1], np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        masks = masks[:, :, ::-1]
    for _ in range(quarter_turns):  # counter-clockwise: (x, y) -> (y, width - x)
        width = pixels.shape[1]
        pixels, boxes = np.rot90(pixels), np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], axis=1)
        masks = np.rot90(masks, axes=(1, 2))
    return pixels, boxes, labels, masks


def recoloured(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another light: each channel (of H, W, 3) gets a gain of 0.7 to 1.3 times a common one, an offset within 30, and all a gamma."""
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.15, size=3)
    offset = rng.uniform(-30, 30) + rng.uniform(-10, 10, size=3)
    gamma = rng.uniform(0.7, 1.4)
    levels = np.clip((np.arange(256) / 255.0)[:, None] ** gamma * 255 * gain + offset, 0, 255).astype(np.uint8)  # (256, 3)
    return np.stack([levels[pixels[..., channel], channel] for channel in range(3)], axis=-1)


def zoomed(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    masks: NDArray[np.uint8],
    rng: np.random.Generator,
) -> Picture:
    """Scale an image, its boxes (n, 4) and masks (n, H, W) by 0.6 to 1.6 and cut or pad it to its own size at a random place.

    Objects of whose boxes less than half is left are dropped.
    """
    height, width = pixels.shape[:2]
    scale = float(np.exp(rng.uniform(np.log(0.6), np.log(1.6))))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    spare = np.array([width - size[0], height - size[1]])  # negative: this much is cut
    shift = np.round(spare * rng.random(2)).astype(int)
    x, y = np.maximum(shift, 0)

    def placed(plane: NDArray[np.uint8], interpolation: int, empty: int) -> NDArray[np.uint8]:
        result = np.full_like(plane, empty)
        large = cv2.resize(plane, size, interpolation=interpolation)
        cut = large[max(0, -shift[1]) :, max(0, -shift[0]) :][: height - y, : width - x]
        result[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
        return result

    moved = boxes * scale + np.tile(shift, 2)
    inside = moved.clip(0, np.array([width, height, width, height]))
    area = (moved[:, 2:] - moved[:, :2]).prod(axis=1)
    left = (inside[:, 2:] - inside[:, :2]).prod(axis=1)
    visible = left >= 0.5 * area
    kept = [placed(mask, cv2.INTER_NEAREST, 0) for mask, seen in zip(masks, visible, strict=False) if seen]
    grey = 114  # that detectors are usually padded with
    return (
        placed(pixels, cv2.INTER_LINEAR, grey),
        inside[visible],
        labels[visible],
        np.stack(kept) if kept else masks[:0],
    )
