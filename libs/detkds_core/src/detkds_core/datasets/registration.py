"""A user's COCO-format dataset: checked before use, so that a mistake is found now and not in the middle of a search.

Every problem that can be found is reported at once, and says where it is, what is there and what would be right.
"""

import json
import os
import re
import reprlib
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from PIL import Image, UnidentifiedImageError

from detkds_core.datasets.dataset import Dataset, DatasetError, Split, digest, halves, median_sides
from detkds_core.names import counted

BUILT_IN = ("digits", "trees")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SUFFIXES = (".jpg", ".jpeg", ".png")
LISTED = 5  # examples of one kind of problem; the rest is counted
TOLERANCE = 1.0  # pixels that a box may reach beyond the image: annotation tools round
MAX_ANNOTATION_BYTES = 2 << 30
MAX_IMAGE_BYTES = 256 << 20
ORIENTATION = 0x0112  # EXIF tag
PIXEL_READERS = 8
MOST_FLAT = 0.01  # share of the boxes of train that may have no width or no height
Report = Callable[[int, int, str], None]  # of how many, how many are done, and of what


class Problems:
    """Problems in the order they were found, at most LISTED of a kind and then their count."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, problem: str) -> None:
        """kind: what more of the same would be called, such as `annotations.train: boxes without area`."""
        self._counts[kind] += 1
        if self._counts[kind] <= LISTED:
            self._found.setdefault(kind, []).append(problem)

    def listed(self) -> list[str]:
        lines = []
        for kind, problems in self._found.items():
            lines.extend(problems)
            if (more := self._counts[kind] - LISTED) > 0:
                lines.append(f"{kind}: {more} more, {self._counts[kind]} in all")
        return lines

    def __bool__(self) -> bool:
        return bool(self._found)


def register(
    name: str,
    train_annotations: Path,
    train_images: Path,
    val_annotations: Path,
    val_images: Path,
    roots: Sequence[Path] | None = None,
    report: Report = lambda done, total, message: None,
) -> Dataset:
    """Check a COCO-format dataset and return it with its digest.

    annotations: COCO instances files; images: the folders that their file names are relative to (JPEG and PNG). roots: folders
    that everything must lie in, after symbolic links; None: anywhere. report: told of each image that was read.
    Raises DatasetError with every problem found.
    """
    problems = Problems()
    if not NAME.fullmatch(name):
        problems.add("name", f"name: {name!r} is not a name; use 1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit")
    elif name in BUILT_IN:
        problems.add("name", f"name: {name!r} is a built-in dataset; choose another name")
    given = {"train": (Path(train_annotations), Path(train_images)), "val": (Path(val_annotations), Path(val_images))}
    paths: dict[str, tuple[Path | None, Path | None]] = {}
    contents: dict[str, dict[str, Any]] = {}
    categories: dict[str, dict[int, str]] = {}
    hashes: dict[str, dict[str, str]] = {}
    for split, (annotations, images) in given.items():
        file = _resolved(f"annotations.{split}", annotations, roots, problems, wants_folder=False)
        folder = _resolved(f"images.{split}", images, roots, problems, wants_folder=True)
        paths[split] = (file, folder)
        report(0, 0, f"reading the annotations of {split}")
        if file is None or (content := _content(f"annotations.{split}", file, problems)) is None:
            continue
        contents[split] = content
        images_found, categories[split] = _check_records(split, content, problems)
        if folder is not None:
            hashes[split] = _read_images(split, images_found, folder, problems, report)
    if len(categories) == 2:
        _check_categories(categories["train"], categories["val"], problems)
    if len(hashes) == 2:
        _check_disjoint(hashes["train"], hashes["val"], problems)
    if not problems:
        _check_halves(contents["val"], problems)
    if problems:
        raise DatasetError(problems.listed())
    splits = {split: _split(file, folder, contents[split]) for split, (file, folder) in paths.items() if file and folder}
    classes = tuple(name for _, name in sorted(categories["train"].items()))
    total = digest((split, contents[split], hashes[split]) for split in ("train", "val"))
    return Dataset(name, classes, splits["train"], splits["val"], total)


def _split(annotations: Path, images: Path, content: Mapping[str, Any]) -> Split:
    records = content["annotations"]
    asked = [record for record in records if not record.get("iscrowd", 0)]
    crowd, masks = len(records) - len(asked), sum(bool(record.get("segmentation")) for record in asked)
    return Split(annotations, images, len(content["images"]), len(asked), crowd, masks, median_sides(content["images"]))


def _resolved(where: str, path: Path, roots: Sequence[Path] | None, problems: Problems, *, wants_folder: bool) -> Path | None:
    """The real path of a file or folder that exists inside the roots, else None."""
    wanted = "folder" if wants_folder else "file"
    try:
        resolved = path.resolve()
        inside = roots is None or any(resolved.is_relative_to(Path(root).resolve()) for root in roots)
        exists = inside and (resolved.is_dir() if wants_folder else resolved.is_file())
    except (OSError, ValueError, RuntimeError) as error:  # a NUL byte, a name too long, a loop of links
        problems.add(where, f"{where}: {str(path)!r} is not a path ({error})")
        return None
    if not inside:
        # Said before anything about its existence, so that nobody learns what lies outside.
        allowed = ", ".join(str(root) for root in roots or ()) or "(none)"
        problems.add(where, f"{where}: {path} is outside the folders that data may come from: {allowed}")
    elif not exists:
        problems.add(where, f"{where}: there is no {wanted} {path}")
    return resolved if exists else None


def _content(where: str, file: Path, problems: Problems) -> dict[str, Any] | None:
    if file.stat().st_size > MAX_ANNOTATION_BYTES:
        problems.add(where, f"{where}: is larger than {MAX_ANNOTATION_BYTES >> 30} GiB; without masks to learn, remove segmentations")
        return None
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        problems.add(where, f"{where}: is not JSON: {error.msg} in line {error.lineno}, column {error.colno}")
    except (OSError, UnicodeDecodeError, RecursionError, ValueError) as error:
        problems.add(where, f"{where}: cannot be read ({error})")
    else:
        if isinstance(content, dict):
            lists = [key for key in ("images", "annotations", "categories") if isinstance(content.get(key), list)]
            for key in ("images", "annotations", "categories"):
                if key not in lists:
                    problems.add(where, f"{where}: has no list {key!r}; a COCO instances file has images, annotations and categories")
            return content if len(lists) == 3 else None
        problems.add(where, f"{where}: is a {type(content).__name__}, not an object with images, annotations and categories")
    return None


def _check_records(split: str, content: Mapping[str, Any], problems: Problems) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Check all records against one another; return the image records whose files can be looked at, and class names by id."""
    where = f"annotations.{split}"
    images, image_ids = _by_id(f"{where}: images", content["images"], _image_problems, problems)
    categories, category_ids = _by_id(f"{where}: categories", content["categories"], _category_problems, problems)
    for key, records, wanted in (("file_name", images, "images"), ("name", categories, "categories")):
        for value, times in Counter(record[key] for record in records.values()).items():
            if times > 1:
                problems.add(
                    f"{where}: {wanted} of one {key}", f"{where}: {wanted}: the {key} {value!r} is used {times} times; use it once"
                )
    boxes, _ = _by_id(f"{where}: annotations", content["annotations"], _annotation_problems, problems)
    indices = {id(record): index for index, record in enumerate(content["annotations"])}
    for number, box in boxes.items():
        at = f"{where}: annotations[{indices[id(box)]}]"
        if box["image_id"] not in image_ids:
            problems.add(f"{where}: unknown image ids", f"{at}.image_id (id {number}): {box['image_id']!r} is not an image's id")
        elif box["image_id"] in images:
            _check_box(where, at, number, box["bbox"], images[box["image_id"]], problems)
        if box["category_id"] not in category_ids:
            listed = ", ".join(str(i) for i in sorted(category_ids)[:LISTED])
            problems.add(
                f"{where}: unknown category ids",
                f"{at}.category_id (id {number}): {box['category_id']!r} is not a category's id; they are {listed}"
                + (", ..." if len(category_ids) > LISTED else ""),
            )
    if split == "train":
        _check_flat(where, boxes, indices, problems)
    fewest = 2 if split == "val" else 1
    if len(content["images"]) < fewest:
        reason = "; half of val selects and half reports, so give at least 2" if split == "val" else "; give at least 1"
        problems.add(f"{where}: too few images", f"{where}: has {counted(len(content['images']), 'image')}{reason}")
    if not any(map(_has_box, content["annotations"])):
        crowd = f" but {len(boxes)} crowd annotations" if boxes else ""
        problems.add(f"{where}: no boxes", f"{where}: has no valid box{crowd}; there is nothing to learn or to measure")
    return list(images.values()), {number: category["name"] for number, category in categories.items()}


def _has_box(record: Any) -> bool:
    """Whether an annotation has a box to learn, whatever else is wrong with it."""
    if not isinstance(record, dict) or record.get("iscrowd", 0):
        return False
    return not any(key == "bbox" for key, _ in _annotation_problems(record)) and min(record["bbox"][2:]) > 0


def _by_id(
    where: str, records: Sequence[Any], check: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]], problems: Problems
) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """The well-formed records by id, of those that share an id the first; and all ids, of the others too."""
    kept: dict[int, dict[str, Any]] = {}
    first: dict[int, int] = {}
    for index, record in enumerate(records):
        at = f"{where}[{index}]"
        if not isinstance(record, dict):
            problems.add(f"{where}: not objects", f"{at}: is a {type(record).__name__}, not an object")
            continue
        number = record.get("id")
        if not _whole(number):
            wrong = f"{_shown(number)} is not a whole number" if "id" in record else "is missing; give each a whole number of its own"
            problems.add(f"{where}: ids", f"{at}.id: {wrong}")
            continue
        broken = list(check(record))
        for key, problem in broken:
            problems.add(f"{where}: {key}", f"{at}.{key} (id {number}): {problem}")
        if number in first:
            problems.add(f"{where}: duplicate ids", f"{at}.id: {number} is the id of {where}[{first[number]}] too; give each its own")
        elif not broken:
            kept[number] = record
        first.setdefault(number, index)
    return kept, set(first)


def _image_problems(record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for side in ("width", "height"):
        if not _whole(record.get(side)) or record[side] <= 0:
            yield side, f"{_shown(record.get(side))} is not a positive whole number of pixels"
    file_name = record.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        yield "file_name", f"{_shown(file_name)} is not a file name"
    elif not file_name.isprintable() or len(file_name) > 1024:
        yield "file_name", f"{_shown(file_name)} holds control characters or is longer than 1,024; rename the file"
    elif "\\" in file_name or PurePosixPath(file_name).is_absolute() or ".." in PurePosixPath(file_name).parts:
        yield "file_name", f"{file_name!r} leaves the image folder; give a path below it, with '/' and without '..'"
    elif not file_name.lower().endswith(SUFFIXES):
        yield "file_name", f"{file_name!r} is not one of {', '.join(SUFFIXES)}"


def _category_problems(record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    name = record.get("name")
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        yield "name", f"{_shown(name)} is not a class name: 1 to 200 printable characters"


def _annotation_problems(record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key in ("image_id", "category_id"):
        if not _whole(record.get(key)):
            yield key, f"{_shown(record.get(key))} is not a whole number"
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_finite(value) for value in box):
        yield "bbox", f"{_shown(box)} is not [x, y, width, height] in pixels, four finite numbers"
    if "area" in record and (not _finite(record["area"]) or record["area"] < 0):
        yield "area", f"{_shown(record['area'])} is not an area in square pixels; leave it out to take the box's"
    if record.get("iscrowd", 0) not in (0, 1):
        yield "iscrowd", f"{_shown(record['iscrowd'])} is neither 0 nor 1"


def _check_box(where: str, at: str, number: int, box: Sequence[float], image: Mapping[str, Any], problems: Problems) -> None:
    x, y, width, height = box
    if min(width, height) == 0 and where == "annotations.train":
        return  # a few are let through (`_check_flat`): COCO itself has two
    if width <= 0 or height <= 0:
        problems.add(
            f"{where}: boxes without area",
            f"{at}.bbox (id {number}): {list(box)} has no area; width and height are above 0 ([x, y, width, height], not corners)",
        )
    elif min(x, y) < -TOLERANCE or x + width > image["width"] + TOLERANCE or y + height > image["height"] + TOLERANCE:
        problems.add(
            f"{where}: boxes outside their image",
            f"{at}.bbox (id {number}): {list(box)} reaches x {x:g} to {x + width:g} and y {y:g} to {y + height:g}, outside image "
            f"{image['id']} of {image['width']} x {image['height']} pixels; cut it at the edge",
        )


def _check_flat(where: str, boxes: Mapping[int, Mapping[str, Any]], indices: Mapping[int, int], problems: Problems) -> None:
    """Boxes of no width or no height teach nothing, and training leaves them out; many of them are a mistake."""
    flat = {number: box for number, box in boxes.items() if min(box["bbox"][2:]) == 0}
    if len(flat) <= MOST_FLAT * len(boxes):
        return
    for number, box in flat.items():
        problems.add(
            f"{where}: boxes without area",
            f"{where}: annotations[{indices[id(box)]}].bbox (id {number}): {list(box['bbox'])} has no area, as have {len(flat)} of "
            f"{len(boxes)}; width and height are above 0 ([x, y, width, height], not corners)",
        )


def _check_categories(train: Mapping[int, str], val: Mapping[int, str], problems: Problems) -> None:
    for number in sorted(train.keys() | val.keys()):
        if train.get(number) != val.get(number):
            has = [f"{split} has {names.get(number, 'none')!r}" for split, names in (("train", train), ("val", val))]
            problems.add(
                "annotations.val: categories that differ",
                f"annotations.val: categories: as class {number}, {' and '.join(has)}; both need the same list",
            )


def _read_images(split: str, records: Sequence[Mapping[str, Any]], folder: Path, problems: Problems, report: Report) -> dict[str, str]:
    """sha256 of each file name's bytes; whatever is wrong with a file is a problem."""
    hashes: dict[str, str] = {}
    # Reading and hashing release the interpreter's lock.
    with ThreadPoolExecutor(min(PIXEL_READERS, os.cpu_count() or 1)) as pool:
        read = zip(records, pool.map(lambda r: _read_image(folder, r), records), strict=True)
        for done, (record, (found, kind, problem)) in enumerate(read, start=1):
            report(done, len(records), f"reading the images of {split}")
            if problem:
                problems.add(f"images.{split}: {kind}", f"images.{split}: {record['file_name']} (id {record['id']}): {problem}")
            else:
                hashes[record["file_name"]] = found
    return hashes


def _read_image(folder: Path, record: Mapping[str, Any]) -> tuple[str, str, str]:
    """(sha256, "", "") of a file that is the image its record describes, else ("", kind of problem, problem)."""
    path = folder / record["file_name"]
    try:
        resolved = path.resolve()
        if not resolved.is_relative_to(folder):
            return "", "links out of the folder", "is a link out of the image folder; put the file itself there"
        status = resolved.stat()
        if not stat.S_ISREG(status.st_mode):
            return "", "not files", "is not a regular file"
        if status.st_size > MAX_IMAGE_BYTES:
            return "", "too large", f"has {status.st_size >> 20} MiB; at most {MAX_IMAGE_BYTES >> 20}"
        data = resolved.read_bytes()
    except FileNotFoundError:
        return "", "missing images", "there is no such file"
    except (OSError, ValueError, RuntimeError) as error:
        return "", "unreadable images", f"cannot be read ({error.__class__.__name__})"
    kind, problem = _header_problem(data, record)
    return (sha256(data).hexdigest(), "", "") if not problem else ("", kind, problem)


def _header_problem(data: bytes, record: Mapping[str, Any]) -> tuple[str, str]:
    """What is wrong with the image's header or end; its pixels are not decoded, for speed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, with the numbers
            with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as image:
                size, kind = image.size, image.format
                # Of JPEG alone: for a PNG, Pillow would decode all pixels to look for it.
                orientation = image.getexif().get(ORIENTATION, 1) if kind != "PNG" else 1
    except UnidentifiedImageError:
        return "not images", "is neither JPEG nor PNG inside; convert it"
    except Image.DecompressionBombError:
        return "too many pixels", f"has more than {Image.MAX_IMAGE_PIXELS} pixels; cut it into tiles"
    except (OSError, ValueError, SyntaxError) as error:
        return "not images", f"its header cannot be read ({error})"
    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        return "too many pixels", f"has {size[0]} x {size[1]} pixels, more than {Image.MAX_IMAGE_PIXELS}; cut it into tiles"
    if size != (record["width"], record["height"]):
        return "sizes that differ", (
            f"has {size[0]} x {size[1]} pixels, its record says {record['width']} x {record['height']}; boxes would be misplaced"
        )
    if orientation not in (0, 1):
        return "rotated images", f"is stored rotated (EXIF orientation {orientation}), so readers disagree about it; save it upright"
    # A copy that broke off; some cameras write a little behind the end.
    if (b"IEND" if kind == "PNG" else b"\xff\xd9") not in data[-4096:]:
        return "cut-off images", f"breaks off before the end of the {kind}; copy it again"
    return "", ""


def _check_disjoint(train: Mapping[str, str], val: Mapping[str, str], problems: Problems) -> None:
    by_content: dict[str, str] = {}
    for file_name, found in train.items():
        by_content.setdefault(found, file_name)
    for file_name, found in val.items():
        if found in by_content:
            problems.add(
                "images of both splits",
                f"images.val: {file_name} has the same content as {by_content[found]} of train; AP would be of images learned by heart",
            )


def _check_halves(val: Mapping[str, Any], problems: Problems) -> None:
    """AP is undefined on images without a box, so a search would find out only when its first candidates are trained."""
    with_box = {box["image_id"] for box in val["annotations"] if not box.get("iscrowd", 0)}
    for half, ids in zip(("selection", "report"), halves(val["images"]), strict=True):
        if with_box.isdisjoint(ids):
            problems.add(
                "annotations.val: halves without boxes",
                f"annotations.val: the {len(ids)} images of the {half} half hold no box, so nothing can be measured on them; "
                "give more images with boxes",
            )


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53  # exact in JSON and in arrays


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12  # false for NaN too


def _shown(value: Any) -> str:
    """For a message, which must not become as long as what somebody sent."""
    return reprlib.repr(value)
