"""`digits`: detection scenes of real handwritten digits on real photographs, generated from a seed; nothing to download.

The digits are scikit-learn's 1,797 images of 8 x 8 (UCI Optical Recognition of Handwritten Digits), the photographs its two
sample images. Train and val share neither a digit image nor a pixel of a photograph.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detkds_core.datasets import cache as built
from detkds_core.datasets.dataset import Dataset

CLASSES = tuple("0123456789")
VERSION = 3  # of the generator; part of the cache folder's name, so that a change of it never meets old scenes

VAL_SHARE = 0.25  # of each class's digit images
VAL_COLUMNS = 192  # of each photograph (640 wide), at its left edge: both photographs have more to see there than at the right
CROP = (64, 192)  # side of the square that is cut from a photograph, pixels
MAX_DIGITS = 6  # a scene
SIZE = (0.1, 0.5)  # longer side of a digit as a share of the scene's side; its logarithm is uniform
MAX_COVERED = 0.15  # of the smaller of two boxes
INK = 0.25  # coverage from which a pixel counts as ink; fainter fringes are not seen and not drawn
MIN_DIFFERENCE = 24.0  # mean over RGB of |ink - background| after opacity, of 255


@dataclass(frozen=True, slots=True)
class Material:
    """What the scenes of one split are made of. glyphs: (n, 8, 8) coverage 0-255; photographs: (height, width, 3) RGB."""

    glyphs: NDArray[np.uint8]
    labels: NDArray[np.int64]
    photographs: tuple[NDArray[np.uint8], ...]


def digits(cache: Path, seed: int = 0, train: int = 3000, val: int = 600, size: int = 128) -> Dataset:
    """Load the dataset from `cache`, generating it when it is missing.

    train, val: scenes; size: their side in pixels. Scene i of a seed is the same whatever the counts.
    """
    folder = cache / f"digits-v{VERSION}-seed{seed}-{train}-{val}-{size}px"
    if (dataset := built.load(folder)) is not None:
        return dataset
    materials = split_material(seed)
    return built.build(folder, "digits", CLASSES, scenes(materials[0], (seed, 0), train, size), scenes(materials[1], (seed, 1), val, size))


def split_material(seed: int) -> tuple[Material, Material]:
    """Train's and val's digit images and photograph regions, disjoint."""
    from sklearn.datasets import load_digits, load_sample_images  # takes a second, which a start of the API has no use for

    source = load_digits()
    glyphs = np.minimum(source.images * 16, 255).astype(np.uint8)  # 0-16 to 0-255
    labels = source.target.astype(np.int64)
    rng = np.random.default_rng((seed, 2))
    is_val = np.zeros(len(labels), dtype=bool)
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_val[members[: round(VAL_SHARE * len(members))]] = True
    photographs = [np.asarray(image) for image in load_sample_images().images]
    return (
        Material(glyphs[~is_val], labels[~is_val], tuple(p[:, VAL_COLUMNS:] for p in photographs)),
        Material(glyphs[is_val], labels[is_val], tuple(p[:, :VAL_COLUMNS] for p in photographs)),
    )


def scenes(
    material: Material, stream: tuple[int, int], count: int, size: int
) -> Iterator[tuple[NDArray[np.uint8], dict[str, Any], list[dict[str, Any]]]]:
    for index in range(count):
        pixels, boxes = draw_scene(material, np.random.default_rng((*stream, index)), size)
        yield pixels, {}, boxes


def draw_scene(material: Material, rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """One scene (size, size, 3) and its boxes as COCO annotations; each box is tight around the ink drawn."""
    canvas = background(material.photographs, rng, size)  # float32
    placed: list[tuple[int, int, int, int]] = []
    boxes: list[dict[str, Any]] = []
    for _ in range(int(rng.integers(1, MAX_DIGITS + 1))):
        chosen = int(rng.integers(len(material.labels)))
        low, high = np.log(SIZE[0] * size), np.log(SIZE[1] * size)
        ink = glyph(material.glyphs[chosen], rng, float(np.exp(rng.uniform(low, high))))
        height, width = ink.shape
        for _ in range(10):  # a scene that is too full for this digit goes without it
            x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
            box = (x, y, width, height)
            if all(covered(box, other) <= MAX_COVERED for other in placed):
                paint(canvas[y : y + height, x : x + width], ink, rng)
                placed.append(box)
                boxes.append({"bbox": list(box), "category_id": int(material.labels[chosen]) + 1})
                break
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), boxes


def background(photographs: tuple[NDArray[np.uint8], ...], rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A random crop, mirrored half the time, of random brightness, as (size, size, 3) float32."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    side = int(rng.integers(CROP[0], CROP[1] + 1))
    y = int(rng.integers(photograph.shape[0] - side + 1))
    x = int(rng.integers(photograph.shape[1] - side + 1))
    crop = photograph[y : y + side, x : x + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(crop)).resize((size, size), Image.Resampling.BILINEAR))
    return resized.astype(np.float32) * np.float32(rng.uniform(0.5, 1.2))


def glyph(image: NDArray[np.uint8], rng: np.random.Generator, longer_side: float) -> NDArray[np.float32]:
    """The digit's coverage (height, width) in 0-1, cut tight around its ink; height and width vary a little apart."""
    rows, columns = ink_extent(image / 255)
    scale = longer_side / max(rows.stop - rows.start, columns.stop - columns.start)
    stretch = rng.uniform(0.8, 1.0, 2)
    size = (max(round(8 * scale * stretch[0]), 4), max(round(8 * scale * stretch[1]), 4))
    drawn = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    # A rotation about the middle would cut strokes at the edge of the canvas, so it gets a margin first.
    padded = Image.new("L", (size[0] * 3 // 2, size[1] * 3 // 2))
    padded.paste(drawn, (size[0] // 4, size[1] // 4))
    coverage = np.asarray(padded.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BILINEAR)).astype(np.float32) / 255
    # Enlarged 8 x 8 strokes are blurred: steepen their edges, so that a digit looks written rather than smoked.
    ink = np.clip((coverage - 0.2) / 0.5, 0, 1).astype(np.float32, copy=False)
    return ink[ink_extent(ink)]


def ink_extent(coverage: NDArray[Any]) -> tuple[slice, slice]:
    """Rows and columns of the tight box around the ink."""
    inked = coverage >= INK
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def paint(patch: NDArray[np.float32], ink: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Blend one random colour over `patch` (height, width, 3) in place, at an opacity that leaves the digit visible."""
    mean = patch.mean(axis=(0, 1))
    for _ in range(50):
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        opacity = np.float32(rng.uniform(0.5, 1.0))
        if float(np.abs(colour - mean).mean() * opacity) >= MIN_DIFFERENCE:
            break
    alpha = (ink * opacity)[:, :, None]  # (height, width, 1)
    patch *= 1 - alpha
    patch += alpha * colour


def covered(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Share of the smaller of two boxes (x, y, width, height) that the other covers."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])
