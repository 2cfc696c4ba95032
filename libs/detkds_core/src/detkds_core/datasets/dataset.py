"""What a dataset is: two COCO-format splits that share their classes, and a digest that every figure measured on them carries."""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high
from typing import Any


class DatasetError(ValueError):
    """A dataset that cannot be used. `problems`: each says where, what is wrong and what would be right."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


@dataclass(frozen=True, slots=True)
class Split:
    """annotations: a COCO instances file; images: the folder that its file names are relative to.

    count: images; boxes: annotations that are asked for; crowd: annotations that are not (COCO's `iscrowd`); masks: those
    asked for that have a segmentation; sides: medians of the images' longer and shorter sides, pixels; None where nobody has counted.
    """

    annotations: Path
    images: Path
    count: int
    boxes: int = 0
    crowd: int = 0
    masks: int | None = None
    sides: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "annotations": str(self.annotations),
            "images": str(self.images),
            "count": self.count,
            "boxes": self.boxes,
            "crowd": self.crowd,
            "masks": self.masks,
            "sides": list(self.sides) if self.sides is not None else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Split":
        """A job's specification needs only the paths, so the counts may be missing."""
        counts = {key: int(value.get(key, 0)) for key in ("count", "boxes", "crowd")}
        sides = tuple(value["sides"]) if value.get("sides") else None
        return cls(Path(value["annotations"]), Path(value["images"]), **counts, masks=value.get("masks"), sides=sides)

    def load(self) -> dict[str, Any]:
        """The COCO dictionary: `images`, `annotations` (bbox: x, y, width, height in pixels) and `categories`."""
        content: dict[str, Any] = json.loads(self.annotations.read_text(encoding="utf-8"))
        return content


@dataclass(frozen=True, slots=True)
class Dataset:
    """classes: names in the order of their category ids; digest: sha256, hexadecimal, of annotations and images."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    digest: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "classes": list(self.classes),
            "digest": self.digest,
            "train": self.train.to_json(),
            "val": self.val.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Dataset":
        return cls(
            value["name"],
            tuple(value["classes"]),
            Split.from_json(value["train"]),
            Split.from_json(value["val"]),
            value["digest"],
        )


def median_sides(images: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """The medians of the longer and of the shorter sides of COCO image records, pixels."""
    sides = [sorted((image["width"], image["height"])) for image in images]
    return median_high(longer for _, longer in sides), median_high(shorter for shorter, _ in sides)


def image_ids(split: Split) -> tuple[int, ...]:
    """The split's image ids, ascending."""
    return tuple(sorted(image["id"] for image in split.load()["images"]))


def selection_ids(dataset: Dataset, seed: int = 0) -> tuple[int, ...]:
    """The half of val that a search selects on; disjoint from `report_ids` of the same seed."""
    return _halves(dataset.val, seed)[0]


def report_ids(dataset: Dataset, seed: int = 0) -> tuple[int, ...]:
    """The half of val that everything reported is measured on: sealed, no candidate and no checkpoint of a search is chosen by it."""
    return _halves(dataset.val, seed)[1]


def _halves(val: Split, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return halves(val.load()["images"], seed)


def halves(images: Iterable[Mapping[str, Any]], seed: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids for the selection and for the report, of COCO image records.

    Halves named by the images themselves (`"half": "selection" | "report"` on every image, for images that see the same
    ground), otherwise a shuffle by seed; an odd image goes to the report. Raises DatasetError for fewer than two images.
    """
    named = {image["id"]: image.get("half") for image in images}
    if all(half in ("selection", "report") for half in named.values()) and {"selection", "report"} <= set(named.values()):
        first = [i for i, half in named.items() if half == "selection"]
        second = [i for i, half in named.items() if half == "report"]
    else:
        ids = sorted(named)
        if len(ids) < 2:
            raise DatasetError(f"annotations.val: {len(ids)} images cannot be halved into selection and report; give at least 2")
        random.Random(seed).shuffle(ids)
        first, second = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    return tuple(sorted(first)), tuple(sorted(second))


def canonical_annotations(coco: Mapping[str, Any]) -> bytes:
    """What detection training and COCO AP read of a COCO dictionary, in one spelling: equal content gives equal bytes.

    Order of records, key order, spaces, `info` and `licenses` do not matter; numbers are compared as floats.
    """
    images = sorted((i["id"], i["file_name"], i["width"], i["height"], i.get("half")) for i in coco["images"])
    categories = sorted((c["id"], c["name"]) for c in coco["categories"])
    boxes = sorted(
        (a["id"], a["image_id"], a["category_id"], [float(v) for v in a["bbox"]], area(a), int(a.get("iscrowd", 0)))
        for a in coco["annotations"]
    )
    return json.dumps([images, categories, boxes], separators=(",", ":")).encode()


def area(annotation: Mapping[str, Any]) -> float:
    """Square pixels: as annotated (of the mask, where there is one), else of the box."""
    return float(annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]))


def digest(splits: Iterable[tuple[str, Mapping[str, Any], Mapping[str, str]]]) -> str:
    """sha256 over, for each (split name, COCO dictionary, sha256 of each file name's bytes), its canonical content."""
    total = hashlib.sha256(b"detkds dataset 1\n")
    for name, coco, hashes in splits:
        total.update(f"{name}\n".encode())
        total.update(hashlib.sha256(canonical_annotations(coco)).digest())
        total.update(json.dumps(sorted(hashes.items()), separators=(",", ":")).encode())
    return total.hexdigest()
