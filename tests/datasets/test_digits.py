import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from detkds_core.datasets import Dataset, digits
from detkds_core.datasets.digits import Material, covered, draw_scene, split_material

SMALL = {"seed": 0, "train": 6, "val": 4, "size": 64}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return digits(tmp_path_factory.mktemp("cache"), **SMALL)


def pixels(split, file_name):
    return np.asarray(Image.open(split.images / file_name))


def test_a_seed_gives_these_bytes(dataset):
    # Pinned: a change of them changes every figure measured on `digits`, so it needs a new VERSION.
    assert dataset.digest == "bc9d9970f4e2f23c2faf127b1b2d72cffb5b1c95c11269109cfd69d1e440e644"
    first = hashlib.sha256(pixels(dataset.train, "000001.png").tobytes()).hexdigest()
    last = hashlib.sha256(pixels(dataset.val, "000004.png").tobytes()).hexdigest()
    assert (first[:16], last[:16]) == ("17ffca3143b9ea38", "2ee5338349dfb879")


def test_another_seed_gives_another_dataset(dataset, tmp_path):
    assert digits(tmp_path, **{**SMALL, "seed": 1}).digest != dataset.digest


def test_a_scene_does_not_depend_on_how_many_there_are(dataset, tmp_path):
    more = digits(tmp_path, **{**SMALL, "train": 8})
    assert (pixels(more.train, "000006.png") == pixels(dataset.train, "000006.png")).all()
    assert more.train.load()["annotations"][: dataset.train.boxes] == dataset.train.load()["annotations"]


def test_the_files_are_coco(dataset):
    for split, count in ((dataset.train, 6), (dataset.val, 4)):
        content = split.load()
        assert split.count == len(content["images"]) == count
        assert split.boxes == len(content["annotations"])
        assert split.sides == (64, 64)
        assert [c["name"] for c in content["categories"]] == list(dataset.classes) == list("0123456789")
        assert {i["id"] for i in content["images"]} == {a["image_id"] for a in content["annotations"]}, "no scene is empty"
        for image in content["images"]:
            assert Image.open(split.images / image["file_name"]).size == (image["width"], image["height"]) == (64, 64)
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            assert 0 <= x < x + width <= 64
            assert 0 <= y < y + height <= 64
            assert annotation["area"] == width * height > 0


def test_train_and_val_share_no_digit_and_no_pixel_of_a_photograph():
    train, val = split_material(0)
    assert len(train.labels) + len(val.labels) == 1797
    assert set(train.labels) == set(val.labels) == set(range(10))
    assert not {g.tobytes() for g in train.glyphs} & {g.tobytes() for g in val.glyphs}
    for of_train, of_val in zip(train.photographs, val.photographs, strict=True):
        assert of_train.shape[1] + of_val.shape[1] == 640
        assert not np.shares_memory(of_train, of_val)


def test_a_box_is_tight_around_the_ink():
    # A bar of 2 x 6 cells on black: whatever is not black in the scene is its ink.
    bar = np.zeros((1, 8, 8), dtype=np.uint8)
    bar[0, 1:7, 3:5] = 255
    material = Material(bar, np.array([1]), (np.zeros((200, 200, 3), dtype=np.uint8),))
    for index in range(20):
        scene, boxes = draw_scene(material, np.random.default_rng(index), 128)
        seen = scene.max(axis=2) > 0
        inside = np.zeros_like(seen)
        for box in boxes:
            x, y, width, height = box["bbox"]
            inside[y : y + height, x : x + width] = True
            part = seen[y : y + height, x : x + width]
            assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
            assert box["category_id"] == 2
        assert not (seen & ~inside).any()


def test_digits_differ_in_size_and_hardly_cover_each_other():
    train, _ = split_material(0)
    longer = []
    for index in range(100):
        _, boxes = draw_scene(train, np.random.default_rng(index), 128)
        placed = [tuple(box["bbox"]) for box in boxes]
        assert 1 <= len(placed) <= 6
        assert all(covered(a, b) <= 0.15 for i, a in enumerate(placed) for b in placed[:i])
        longer.extend(max(box[2:]) for box in placed)
    assert min(longer) < 16
    assert max(longer) > 56


@pytest.mark.parametrize(
    ("a", "b", "share"), [((0, 0, 10, 10), (5, 0, 10, 10), 0.5), ((0, 0, 10, 10), (2, 2, 4, 4), 1.0), ((0, 0, 4, 4), (4, 0, 4, 4), 0.0)]
)
def test_covered(a, b, share):
    assert covered(a, b) == share


def test_what_is_there_is_loaded_and_what_is_damaged_is_made_again(dataset, tmp_path):
    folder = tmp_path / dataset.train.annotations.parent.name
    shutil.copytree(dataset.train.annotations.parent, folder)
    written = folder.stat().st_mtime_ns, folder.stat().st_ino
    loaded = digits(tmp_path, **SMALL)
    assert (folder.stat().st_mtime_ns, folder.stat().st_ino) == written
    assert loaded.digest == dataset.digest
    for damage in (
        lambda: (folder / "val" / "000002.png").unlink(),
        lambda: (folder / "train.json").write_text("{}"),
        lambda: (folder / "dataset.json").write_text("not json"),
        lambda: shutil.rmtree(folder),
    ):
        damage()
        assert digits(tmp_path, **SMALL) == loaded
        assert len(list((folder / "val").iterdir())) == 4
    assert [p.name for p in tmp_path.iterdir()] == [folder.name], "nothing temporary stays"


def test_processes_that_ask_at_once_get_the_same(dataset, tmp_path):
    code = f"""
import json
from pathlib import Path
from detkds_core.datasets import digits
print(json.dumps(digits(Path({str(tmp_path)!r}), **{SMALL!r}).to_json()))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert len(answers) == 1
    assert Dataset.from_json(json.loads(answers.pop())).digest == dataset.digest
    assert len(list(tmp_path.iterdir())) == 1, "nothing temporary stays"
