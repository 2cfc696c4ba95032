import sys

import numpy as np
import pytest
from PIL import Image

from detkds_core.datasets import DatasetError, report_ids, selection_ids, trees
from detkds_core.datasets.trees import TRAIN, Site, adjoining, cut, data_folder, overlapping, read_site


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return trees(tmp_path_factory.mktemp("cache"))


def test_the_whole_photographs_become_tiles(dataset):
    assert dataset.classes == ("Tree",)
    assert (dataset.train.count, dataset.train.boxes, dataset.train.crowd) == (17 * 19, 2174, 603)
    assert (dataset.val.count, dataset.val.boxes, dataset.val.crowd) == (20, 277, 60)
    # Pinned: a change changes every figure measured on `trees`, so it needs a new VERSION.
    assert dataset.digest == "15f535d5fb645fd0c1226bfa1d09a8fb26326a44111d1b242a513a35bdda1d0d"


def test_a_tile_is_the_photograph_at_full_resolution(dataset):
    site = read_site(data_folder(), TRAIN)
    assert site.pixels.shape == (2472, 2299, 3)
    assert site.boxes.shape == (574, 4)
    image = dataset.train.load()["images"][100]
    tile = np.asarray(Image.open(dataset.train.images / image["file_name"]))
    assert (tile == site.pixels[image["y"] : image["y"] + 256, image["x"] : image["x"] + 256]).all()


def test_every_train_tree_is_whole_in_some_tile(dataset):
    content = dataset.train.load()
    corner = {image["id"]: (image["x"], image["y"]) for image in content["images"]}
    seen = set()
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        left, top = corner[annotation["image_id"]]
        seen.add((x + left, y + top, x + left + width, y + top + height))
    assert {tuple(box) for box in read_site(data_folder(), TRAIN).boxes.tolist()} <= seen


def test_selection_and_report_share_no_ground(dataset):
    images = {image["id"]: image for image in dataset.val.load()["images"]}
    selection, report = selection_ids(dataset), report_ids(dataset)
    assert len(selection) == len(report) == 10
    assert max(images[i]["y"] + images[i]["height"] for i in selection) <= min(images[i]["y"] for i in report)
    assert selection_ids(dataset, seed=7) == selection, "the ground does not depend on the seed"


def test_val_tiles_do_not_overlap(dataset):
    counted = np.zeros((1035, 1249), dtype=int)
    for image in dataset.val.load()["images"]:
        counted[image["y"] : image["y"] + image["height"], image["x"] : image["x"] + image["width"]] += 1
    assert counted.max() == 1
    assert counted.mean() > 0.98


def test_tile_positions():
    assert overlapping(600, 256) == [0, 128, 256, 344]
    assert overlapping(256, 256) == [0]
    assert adjoining(1249, 256) == [(0, 256), (256, 256), (512, 256), (768, 256), (1024, 225)]
    assert adjoining(1035, 256) == [(0, 256), (256, 256), (512, 256), (768, 256)]


def test_what_a_cut_leaves_of_a_box():
    site = Site(
        np.zeros((100, 100, 3), dtype=np.uint8),
        np.array([[10, 10, 30, 30], [40, 10, 60, 20], [41, 30, 71, 40], [47, 50, 70, 60], [80, 80, 90, 90]], dtype=float),
    )
    tile, extra, boxes = cut(site, 0, 0, 50, 100, {"half": "report"})
    assert tile.shape == (100, 50, 3)
    assert extra == {"half": "report", "x": 0, "y": 0}
    assert boxes == [
        {"bbox": [10, 10, 20, 20], "category_id": 1, "iscrowd": 0},  # whole
        {"bbox": [40, 10, 10, 10], "category_id": 1, "iscrowd": 0},  # half of it
        {"bbox": [41, 30, 9, 10], "category_id": 1, "iscrowd": 1},  # 9 of 30 columns: ignored
        # 3 columns of the fourth are a sliver, and the fifth lies elsewhere
    ]
    assert [box["bbox"] for box in cut(site, 35, 5, 50, 50, {})[2]] == [[5, 5, 20, 10], [6, 25, 30, 10], [12, 45, 23, 5]]


def test_without_the_package_the_error_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(DatasetError, match=r"pip install --no-deps deepforest==2\.1\.0"):
        trees(tmp_path)


def test_a_changed_file_is_refused(tmp_path):
    for suffix in ("png", "xml"):
        (tmp_path / f"{TRAIN}.{suffix}").write_bytes(b"something else")
    with pytest.raises(DatasetError, match=r"is not the file of deepforest 2\.1\.0"):
        read_site(tmp_path, TRAIN)


def test_its_code_is_not_run(dataset):
    assert "deepforest" not in sys.modules


@pytest.mark.parametrize("tile", [64, 1024])
def test_a_tile_out_of_range_is_refused(tmp_path, tile):
    with pytest.raises(DatasetError, match="between 128 and 512"):
        trees(tmp_path, tile=tile)


def test_a_larger_tile_still_has_both_halves(tmp_path):
    dataset = trees(tmp_path, tile=512)
    assert len(selection_ids(dataset)) > 0
    assert len(report_ids(dataset)) > 0
