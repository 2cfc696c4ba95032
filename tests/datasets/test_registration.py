import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkds_core.datasets import Dataset, DatasetError, register
from detkds_core.datasets.registration import Problems

WIDTH, HEIGHT = 40, 30


@dataclass
class Draft:
    """A dataset on disk that a test damages before it is registered: 3 images in train, 2 in val, a box of each of 2 classes each."""

    root: Path
    train: dict[str, Any]
    val: dict[str, Any]

    def register(self, **changes) -> Dataset:
        for split in ("train", "val"):
            (self.root / f"{split}.json").write_text(json.dumps(getattr(self, split)))
        given = {
            "name": "mine",
            "train_annotations": self.root / "train.json",
            "train_images": self.root / "train",
            "val_annotations": self.root / "val.json",
            "val_images": self.root / "val",
        }
        return register(**{**given, **changes})

    def problems(self, **changes) -> list[str]:
        with pytest.raises(DatasetError) as caught:
            self.register(**changes)
        return list(caught.value.problems)


@pytest.fixture
def draft(tmp_path) -> Draft:
    rng = np.random.default_rng(0)
    contents = []
    for split, count in (("train", 3), ("val", 2)):
        (tmp_path / split).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            file_name = f"{number}.{'png' if number % 2 else 'jpg'}"
            Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(tmp_path / split / file_name)
            images.append({"id": number, "file_name": file_name, "width": WIDTH, "height": HEIGHT})
            for category in (1, 2):
                box = {"id": 2 * number + category, "image_id": number, "category_id": category, "bbox": [5, 6, 10 * category, 20]}
                annotations.append({**box, "area": 200 * category, "iscrowd": 0})
        categories = [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}]
        contents.append({"images": images, "annotations": annotations, "categories": categories})
    return Draft(tmp_path, *contents)


def test_a_sound_dataset(draft):
    draft.train["annotations"][0]["iscrowd"] = 1
    dataset = draft.register(roots=[draft.root])
    assert dataset.name == "mine"
    assert dataset.classes == ("cat", "dog")
    assert (dataset.train.count, dataset.train.boxes, dataset.train.crowd) == (3, 5, 1)
    assert (dataset.val.count, dataset.val.boxes, dataset.val.crowd) == (2, 4, 0)
    assert dataset.train.sides == dataset.val.sides == (max(WIDTH, HEIGHT), min(WIDTH, HEIGHT))
    assert dataset.val.annotations == (draft.root / "val.json").resolve()
    assert draft.register().digest == dataset.digest, "the roots are no part of it"


def test_the_digest_sees_an_image_that_changed(draft):
    before = draft.register().digest
    Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(draft.root / "val" / "1.png")
    assert draft.register().digest != before


def put(split: str, kind: str, index: int, **values) -> Callable[[Draft], None]:
    return lambda draft: getattr(draft, split)[kind][index].update(values)


def drop(split: str, kind: str, index: int, key: str) -> Callable[[Draft], None]:
    return lambda draft: getattr(draft, split)[kind][index].pop(key)


def test_a_half_of_val_without_boxes_is_refused(draft):
    # Two images, one a half: without the first one's boxes, its half has none.
    draft.val["annotations"] = [box for box in draft.val["annotations"] if box["image_id"] == 2]
    (problem,) = draft.problems()
    assert problem.startswith("annotations.val: the 1 images of the ")
    assert "half hold no box" in problem


BOX = "annotations.train: annotations[3].bbox (id 6): "


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (put("train", "annotations", 3, bbox=[5, 6, 0, 4]), BOX + "[5, 6, 0, 4] has no area, as have 1 of 6; width and height are above 0"),
        (put("train", "annotations", 3, bbox=[5, 6, 4, -1]), BOX + "[5, 6, 4, -1] has no area"),
        (
            put("train", "annotations", 3, bbox=[30, 6, 12, 4]),
            BOX + "[30, 6, 12, 4] reaches x 30 to 42 and y 6 to 10, outside image 2 of 40 x 30 pixels; cut it at the edge",
        ),
        (put("train", "annotations", 3, bbox=[-2, 6, 12, 4]), BOX + "[-2, 6, 12, 4] reaches x -2 to 10"),
        (put("train", "annotations", 3, bbox=[5, 6, 4]), BOX + "[5, 6, 4] is not [x, y, width, height] in pixels, four finite numbers"),
        (put("train", "annotations", 3, bbox=[5, 6, float("nan"), 4]), BOX + "[5, 6, nan, 4] is not [x, y"),
        (put("train", "annotations", 3, bbox=[5, 6, 10**400, 4]), BOX + "[5, 6, "),
        (put("train", "annotations", 3, bbox=[5, 6, True, 4]), BOX + "[5, 6, True, 4] is not [x, y"),
        (put("train", "annotations", 3, bbox="5 6 4 4"), BOX + "'5 6 4 4' is not [x, y"),
        (drop("train", "annotations", 3, "bbox"), BOX + "None is not [x, y"),
        (put("train", "annotations", 3, area=-1), "annotations.train: annotations[3].area (id 6): -1 is not an area"),
        (put("train", "annotations", 3, iscrowd=2), "annotations.train: annotations[3].iscrowd (id 6): 2 is neither 0 nor 1"),
        (put("val", "annotations", 1, image_id=9), "annotations.val: annotations[1].image_id (id 4): 9 is not an image's id"),
        (
            put("val", "annotations", 1, category_id=9),
            "annotations.val: annotations[1].category_id (id 4): 9 is not a category's id; they are 1, 2",
        ),
        (put("val", "annotations", 1, id=3), "annotations.val: annotations[1].id: 3 is the id of annotations.val: annotations[0] too"),
        (put("val", "annotations", 1, id="x"), "annotations.val: annotations[1].id: 'x' is not a whole number"),
        (put("val", "images", 1, id=1), "annotations.val: images[1].id: 1 is the id of annotations.val: images[0] too"),
        (put("val", "images", 1, width=0), "annotations.val: images[1].width (id 2): 0 is not a positive whole number of pixels"),
        (put("val", "images", 1, file_name="1.png"), "annotations.val: images: the file_name '1.png' is used 2 times; use it once"),
        (put("val", "images", 1, file_name="../train/1.png"), "annotations.val: images[1].file_name (id 2): '../train/1.png' leaves"),
        (put("val", "images", 1, file_name="/etc/passwd.png"), "annotations.val: images[1].file_name (id 2): '/etc/passwd.png' leaves"),
        (put("val", "images", 1, file_name="..\\1.png"), "annotations.val: images[1].file_name (id 2): '..\\\\1.png' leaves"),
        (
            put("val", "images", 1, file_name="1.tiff"),
            "annotations.val: images[1].file_name (id 2): '1.tiff' is not one of .jpg, .jpeg, .png",
        ),
        (put("val", "images", 1, file_name="a\0.png"), "annotations.val: images[1].file_name (id 2): 'a\\x00.png' holds control"),
        (put("val", "images", 1, file_name="\ud800.png"), "annotations.val: images[1].file_name (id 2): '\\ud800.png' holds control"),
        (put("val", "images", 1, file_name=7), "annotations.val: images[1].file_name (id 2): 7 is not a file name"),
        (put("val", "images", 1, file_name="8.png"), "images.val: 8.png (id 2): there is no such file"),
        (put("val", "images", 1, width=30, height=40), "images.val: 2.jpg (id 2): has 40 x 30 pixels, its record says 30 x 40"),
        (put("val", "categories", 1, name="fox"), "annotations.val: categories: as class 1, train has 'cat' and val has 'fox'"),
        (put("val", "categories", 1, name=""), "annotations.val: categories[1].name (id 1): '' is not a class name"),
        (put("val", "categories", 1, name="dog"), "annotations.val: categories: the name 'dog' is used 2 times; use it once"),
        (lambda d: d.val["categories"].append({"id": 3, "name": "fox"}), "as class 3, train has 'none' and val has 'fox'"),
        (lambda d: d.val["images"].append("x"), "annotations.val: images[2]: is a str, not an object"),
        (lambda d: d.val.pop("categories"), "annotations.val: has no list 'categories'"),
        (lambda d: d.val.update(images=[]), "annotations.val: has 0 images; half of val selects and half reports, so give at least 2"),
        (lambda d: d.train.update(images=[]), "annotations.train: has 0 images; give at least 1"),
        (lambda d: d.train.update(annotations=[]), "annotations.train: has no valid box; there is nothing to learn"),
        (
            lambda d: [box.update(iscrowd=1) for box in d.val["annotations"]],
            "annotations.val: has no valid box but 4 crowd annotations",
        ),
    ],
)
def test_a_damaged_record_is_named(draft, damage, problem):
    damage(draft)
    found = draft.problems()
    assert any(problem in line for line in found), found
    assert max(map(len, found)) < 400


def test_boxes_whose_ids_are_missing_are_boxes(draft):
    for box in draft.val["annotations"]:
        del box["id"]
    problems = draft.problems()
    assert "annotations.val: annotations[0].id: is missing; give each a whole number of its own" in problems
    assert not any("has no valid box" in problem for problem in problems)


def test_a_few_boxes_without_area_in_train_are_let_through_as_in_coco(draft):
    draft.train["annotations"] += [{**draft.train["annotations"][0], "id": number, "bbox": [5, 6, 10, 20]} for number in range(100, 300)]
    draft.train["annotations"][3]["bbox"] = [5, 6, 1.03, 0.0]
    assert draft.register().train.count == 3
    draft.val["annotations"] = [{**draft.val["annotations"][number % 4], "id": number} for number in range(200)]
    draft.val["annotations"][5]["bbox"] = [5, 6, 0, 4]
    assert draft.problems() == [
        "annotations.val: annotations[5].bbox (id 5): [5, 6, 0, 4] has no area; width and height are above 0 "
        "([x, y, width, height], not corners)"
    ]


def rewrite(file_name: str, change: Callable[[bytes], bytes]) -> Callable[[Draft], None]:
    def damage(draft: Draft) -> None:
        path = draft.root / file_name
        path.write_bytes(change(path.read_bytes()))

    return damage


def save_rotated(draft: Draft) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(draft.root / "train" / "2.jpg", exif=exif)


def link_out(draft: Draft) -> None:
    path = draft.root / "train" / "1.png"
    path.rename(draft.root / "elsewhere.png")
    path.symlink_to(draft.root / "elsewhere.png")


def make_fifo(draft: Draft) -> None:
    (draft.root / "train" / "1.png").unlink()
    os.mkfifo(draft.root / "train" / "1.png")


def copy_to_val(draft: Draft) -> None:
    (draft.root / "val" / "1.png").write_bytes((draft.root / "train" / "3.png").read_bytes())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (rewrite("train/1.png", lambda data: data[:-200]), "images.train: 1.png (id 1): breaks off before the end of the PNG"),
        (rewrite("train/2.jpg", lambda data: data[:-50]), "images.train: 2.jpg (id 2): breaks off before the end of the JPEG"),
        (rewrite("train/1.png", lambda data: b""), "images.train: 1.png (id 1): is neither JPEG nor PNG inside"),
        (rewrite("train/1.png", lambda data: b"GIF89a" + data), "images.train: 1.png (id 1): is neither JPEG nor PNG inside"),
        # a PNG that claims 60,000 x 60,000 pixels
        (
            rewrite("train/1.png", lambda data: with_size(data, 60_000)),
            "images.train: 1.png (id 1): has more than 89478485 pixels; cut it into tiles",
        ),
        (
            rewrite("train/1.png", lambda data: with_size(data, 10_000)),
            "images.train: 1.png (id 1): has 10000 x 10000 pixels, more than 89478485; cut it into tiles",
        ),
        (save_rotated, "images.train: 2.jpg (id 2): is stored rotated (EXIF orientation 6)"),
        (link_out, "images.train: 1.png (id 1): is a link out of the image folder"),
        (make_fifo, "images.train: 1.png (id 1): is not a regular file"),
        (copy_to_val, "images.val: 1.png has the same content as 3.png of train"),
    ],
)
def test_a_damaged_image_is_named(draft, damage, problem):
    damage(draft)
    found = draft.problems()
    assert len(found) == 1
    assert found[0].startswith(problem)


def with_size(data: bytes, side: int) -> bytes:
    """The PNG with another width and height in its header, and the header's checksum."""
    header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_a_link_inside_the_image_folder_is_followed(draft):
    path = draft.root / "train" / "1.png"
    path.rename(draft.root / "train" / "original.png")
    path.symlink_to("original.png")
    assert draft.register().train.count == 3


def test_a_box_may_reach_a_pixel_beyond_the_image(draft):
    draft.train["annotations"][0]["bbox"] = [-0.5, 0, 41, 30.5]
    assert draft.register().train.boxes == 6


def test_all_problems_at_once_in_order(draft):
    put("train", "annotations", 0, bbox=[5, 6, 0, 4])(draft)
    put("val", "images", 0, file_name="gone.png")(draft)
    found = draft.problems(name="My Data", train_images=draft.root / "nowhere")
    assert [line.split(":")[0] for line in found] == ["name", "images.train", "annotations.train", "images.val"]
    assert found[1] == f"images.train: there is no folder {draft.root}/nowhere"


def test_many_of_a_kind_are_counted(draft):
    draft.val["images"] += [{"id": 100 + i, "file_name": f"gone{i}.jpg", "width": 4, "height": 4} for i in range(40)]
    found = draft.problems()
    assert [line.split(" (")[0] for line in found[:5]] == [f"images.val: gone{i}.jpg" for i in range(5)]
    assert found[5:] == ["images.val: missing images: 35 more, 40 in all"]


def test_problems_without_any():
    assert not Problems()
    assert Problems().listed() == []


@pytest.mark.parametrize("name", ["", "My", "a b", "../x", "x" * 65, ".x", "digits", "trees"])
def test_a_name_that_cannot_be_used(draft, name):
    assert draft.problems(name=name)[0].startswith(f"name: {name!r} is ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "annotations.val: is not JSON: Expecting property name enclosed in double quotes in line 1, column 2"),
        ("[]", "annotations.val: is a list, not an object with images, annotations and categories"),
        ("[" * 100_000, "annotations.val: cannot be read (maximum recursion depth exceeded"),
    ],
)
def test_a_file_that_is_not_coco(draft, text, problem):
    draft.register()
    (draft.root / "other.json").write_text(text)
    assert draft.problems(val_annotations=draft.root / "other.json")[0].startswith(problem)


def test_roots(draft, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "val.json").write_text("{}")
    link = draft.root / "link.json"
    link.symlink_to(outside / "val.json")
    for path in (outside / "val.json", outside / "missing.json", link, draft.root / ".." / outside.name / "val.json"):
        assert draft.problems(roots=[draft.root], val_annotations=path) == [
            f"annotations.val: {path} is outside the folders that data may come from: {draft.root}"
        ]
    assert len(draft.problems(roots=[])) == 4


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_what_is_not_a_path(draft, path):
    found = draft.problems(val_images=Path(path))
    assert len(found) == 1
    assert found[0].startswith("images.val: ")


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(DatasetError(["a", "b"])))
    assert error.problems == ("a", "b")
    assert str(error) == "a\nb"


def test_how_far_a_check_is_is_told(draft):
    told = []
    draft.register(report=lambda *what: told.append(what))
    assert told == [
        (0, 0, "reading the annotations of train"),
        *((done, 3, "reading the images of train") for done in (1, 2, 3)),
        (0, 0, "reading the annotations of val"),
        *((done, 2, "reading the images of val") for done in (1, 2)),
    ]
