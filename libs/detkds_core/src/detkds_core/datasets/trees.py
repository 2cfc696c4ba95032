"""`trees`: aerial photographs of Yellowstone with human boxes around every tree crown, cut into tiles at full resolution.

The photographs (NEON, 0.1 m a pixel) and boxes come as data files in the wheel of `deepforest` 2.1.0 (MIT licence; Weinstein et
al., Methods in Ecology and Evolution 2020); its code is never imported. Train and val are two sites.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detkds_core.datasets import cache as built
from detkds_core.datasets.dataset import Dataset, DatasetError

CLASSES = ("Tree",)
VERSION = 1  # of the cutting; part of the cache folder's name
INSTALL = "pip install --no-deps deepforest==2.1.0"

TRAIN = "2019_YELL_2_528000_4978000_image_crop2"  # 2299 x 2472 pixels, 574 trees
VAL = "2019_YELL_2_541000_4977000_image_crop"  # 1249 x 1035 pixels, 279 trees
SHA256 = {
    "2019_YELL_2_528000_4978000_image_crop2.png": "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
    "2019_YELL_2_528000_4978000_image_crop2.xml": "bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11",
    "2019_YELL_2_541000_4977000_image_crop.png": "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
    "2019_YELL_2_541000_4977000_image_crop.xml": "cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631",
}

TILES = (128, 512)  # pixels; a larger tile leaves no second row of val tiles to report on
KEPT_SHARE = 0.5  # visible share of a box that a tile's edge cuts, from which it is asked for
SLIVER = 4  # pixels; what is left of a box below this width or height is not even ignored


@dataclass(frozen=True, slots=True)
class Site:
    """pixels: (height, width, 3) RGB; boxes: (n, 4) xyxy in pixels."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64]


def trees(cache: Path, tile: int = 256) -> Dataset:
    """Load the dataset from `cache`, cutting it from the installed package when it is missing.

    tile: side of a tile in pixels (a crown is about 40, so the default shows it among its neighbours). Train tiles overlap by
    half, so that a tree that one tile cuts is whole in another; val tiles do not overlap.
    Raises DatasetError when the tile is out of range, or the data are needed and not installed.
    """
    if not TILES[0] <= tile <= TILES[1]:
        raise DatasetError(f"trees: tile {tile} is not between {TILES[0]} and {TILES[1]} pixels")
    folder = cache / f"trees-v{VERSION}-{tile}px"
    if (dataset := built.load(folder)) is not None:
        return dataset
    data = data_folder()
    return built.build(folder, "trees", CLASSES, train_tiles(read_site(data, TRAIN), tile), val_tiles(read_site(data, VAL), tile))


def data_folder() -> Path:
    """The package's data files, found without running its code."""
    spec = importlib.util.find_spec("deepforest")
    for location in (spec and spec.submodule_search_locations) or ():
        if (Path(location) / "data" / f"{TRAIN}.png").is_file():
            return Path(location) / "data"
    raise DatasetError(f"trees: its photographs are not installed; run `{INSTALL}` (the data alone is used)")


def read_site(data: Path, name: str) -> Site:
    for file_name in (f"{name}.png", f"{name}.xml"):
        found = hashlib.sha256((data / file_name).read_bytes()).hexdigest()
        if found != SHA256[file_name]:
            raise DatasetError(f"trees: {file_name} is not the file of deepforest 2.1.0 (sha256 {found}); run `{INSTALL}`")
    with Image.open(data / f"{name}.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    # labelImg wrote these files: coordinates are edges, up to the image's width and height, not indices of pixels.
    boxes = [
        [float(tree.findtext(f"bndbox/{edge}", "nan")) for edge in ("xmin", "ymin", "xmax", "ymax")]
        for tree in ElementTree.parse(data / f"{name}.xml").getroot().iter("object")
    ]
    return Site(pixels, np.array(boxes))


def train_tiles(site: Site, tile: int) -> Iterator[tuple[NDArray[np.uint8], dict[str, Any], list[dict[str, Any]]]]:
    height, width = site.pixels.shape[:2]
    for y in overlapping(height, tile):
        for x in overlapping(width, tile):
            yield cut(site, x, y, tile, tile, {})


def val_tiles(site: Site, tile: int) -> Iterator[tuple[NDArray[np.uint8], dict[str, Any], list[dict[str, Any]]]]:
    """The upper rows are for selection and the lower rows for the report: no ground is in both."""
    height, width = site.pixels.shape[:2]
    rows = adjoining(height, tile)
    for row, (y, tile_height) in enumerate(rows):
        half = "selection" if row < len(rows) // 2 else "report"
        for x, tile_width in adjoining(width, tile):
            yield cut(site, x, y, tile_width, tile_height, {"half": half})


def overlapping(length: int, tile: int) -> list[int]:
    """Starts of tiles half a tile apart; the last is moved back to end where the photograph does."""
    return [*range(0, length - tile, tile // 2), length - tile]


def adjoining(length: int, tile: int) -> list[tuple[int, int]]:
    """(start, length) of tiles side by side; a remainder below half a tile is left out."""
    return [(start, min(tile, length - start)) for start in range(0, length, tile) if length - start >= tile / 2]


def cut(
    site: Site, x: int, y: int, width: int, height: int, extra: dict[str, Any]
) -> tuple[NDArray[np.uint8], dict[str, Any], list[dict[str, Any]]]:
    """A tile and what its edges leave of the boxes: at least half visible is a tree, less is marked as crowd, which COCO
    neither asks for nor counts against a detector, and a sliver is nothing."""
    corner = np.array([x, y, x, y])
    visible = np.clip(site.boxes, corner, np.array([x + width, y + height] * 2)) - corner
    boxes = []
    for (x1, y1, x2, y2), whole in zip(visible.tolist(), site.boxes.tolist(), strict=True):
        w, h = x2 - x1, y2 - y1
        if min(w, h) >= SLIVER:
            share = w * h / ((whole[2] - whole[0]) * (whole[3] - whole[1]))
            boxes.append({"bbox": [x1, y1, w, h], "category_id": 1, "iscrowd": int(share < KEPT_SHARE)})
    return site.pixels[y : y + height, x : x + width], {**extra, "x": x, "y": y}, boxes
