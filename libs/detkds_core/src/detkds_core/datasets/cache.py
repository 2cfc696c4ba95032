"""Built-in datasets on disk: written once into a cache folder, all or nothing, also when two processes ask at once."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detkds_core.datasets.dataset import Dataset, Split, digest, median_sides

SPLITS = ("train", "val")


def load(folder: Path) -> Dataset | None:
    """The dataset in `folder`, or None when it is missing or some of its files are."""
    try:
        record = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        for name in SPLITS:
            with os.scandir(folder / name) as entries:
                present = sum(entry.name.endswith(".png") for entry in entries)
            if present != record["splits"][name]["count"] or (folder / f"{name}.json").stat().st_size != record["bytes"][name]:
                return None
        splits = [_split(folder, name, record["splits"][name]) for name in SPLITS]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return Dataset(record["name"], tuple(record["classes"]), splits[0], splits[1], record["digest"])


def _split(folder: Path, name: str, counts: dict[str, Any]) -> Split:
    """Earlier caches say neither that there are no masks nor how large the images are."""
    paths = {"annotations": str(folder / f"{name}.json"), "images": str(folder / name)}
    return Split.from_json({**paths, "masks": 0, **counts})


def build(
    folder: Path,
    name: str,
    classes: tuple[str, ...],
    train: Iterable[tuple[NDArray[np.uint8], dict[str, Any], list[dict[str, Any]]]],
    val: Iterable[tuple[NDArray[np.uint8], dict[str, Any], list[dict[str, Any]]]],
) -> Dataset:
    """Write the dataset and return it; what another process finished meanwhile is kept and returned instead.

    train, val: for each image its pixels (height, width, 3) RGB, further keys of its COCO record, and its boxes as COCO
    annotations without ids: `{"bbox": [x, y, width, height], "category_id": ..., "iscrowd": 1 if so}`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the final rename stays within one file system and is atomic.
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        parts = []
        record: dict[str, Any] = {"name": name, "classes": classes, "splits": {}, "bytes": {}}
        for split, scenes in zip(SPLITS, (train, val), strict=True):
            coco, hashes = _write_split(temporary / split, classes, scenes)
            text = json.dumps(coco, separators=(",", ":")).encode()
            (temporary / f"{split}.json").write_bytes(text)
            crowd = sum(annotation["iscrowd"] for annotation in coco["annotations"])
            boxes = len(coco["annotations"]) - crowd
            counts = {"count": len(coco["images"]), "boxes": boxes, "crowd": crowd, "masks": 0, "sides": median_sides(coco["images"])}
            record["splits"][split] = counts
            record["bytes"][split] = len(text)
            parts.append((split, coco, hashes))
        record["digest"] = digest(parts)
        (temporary / "dataset.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        os.chmod(temporary, 0o755)  # mkdtemp's 0700 would hide the dataset from a trainer of another user
        return _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> Dataset:
    for _ in range(3):
        try:
            temporary.rename(folder)
        except OSError:  # the target exists: another process was faster, or it is damaged
            if (dataset := load(folder)) is not None:
                return dataset
            damaged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-damaged-", dir=folder.parent))
            try:
                folder.rename(damaged)
            except FileNotFoundError:  # another process moved it away first
                pass
            finally:
                shutil.rmtree(damaged, ignore_errors=True)
        else:
            break
    dataset = load(folder)
    if dataset is None:
        raise OSError(f"{folder}: could not be written; check the disk and the permissions of its folder")
    return dataset


def _write_split(
    folder: Path, classes: tuple[str, ...], scenes: Iterable[tuple[NDArray[np.uint8], dict[str, Any], list[dict[str, Any]]]]
) -> tuple[dict[str, Any], dict[str, str]]:
    folder.mkdir()
    hashes: dict[str, str] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (pixels, extra, boxes) in enumerate(scenes, start=1):
        file_name = f"{number:06d}.png"
        data = png(pixels)
        (folder / file_name).write_bytes(data)
        hashes[file_name] = sha256(data).hexdigest()
        height, width = pixels.shape[:2]
        images.append({"id": number, "file_name": file_name, "width": width, "height": height, **extra})
        annotations.extend(_annotations(boxes, number, len(annotations)))
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}, hashes


def _annotations(boxes: list[dict[str, Any]], image_id: int, before: int) -> Iterator[dict[str, Any]]:
    for index, box in enumerate(boxes, start=before + 1):
        yield {"id": index, "image_id": image_id, "iscrowd": 0, **box, "area": box["bbox"][2] * box["bbox"][3]}


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Stored without compression: the same bytes whatever zlib is installed, and faster to read in training."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()
