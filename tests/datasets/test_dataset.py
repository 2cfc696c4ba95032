import json
import subprocess
import sys

import pytest

from detkds_core.datasets import Dataset, DatasetError, Split, default_cache, image_ids, load_dataset, report_ids, selection_ids
from detkds_core.datasets.dataset import canonical_annotations, digest, median_sides


def split_of(tmp_path, images, name="val"):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return Split(path, tmp_path, len(images))


def dataset_of(tmp_path, images):
    split = split_of(tmp_path, images)
    return Dataset("mine", ("cat", "dog"), split, split, "0" * 64)


def test_json_and_back(tmp_path):
    dataset = Dataset(
        "mine", ("cat",), Split(tmp_path / "a.json", tmp_path, 3, 5, 1, sides=(90, 60)), Split(tmp_path / "b.json", tmp_path, 2), "ab"
    )
    assert Dataset.from_json(json.loads(json.dumps(dataset.to_json()))) == dataset
    assert load_dataset(dataset.to_json(), tmp_path) == dataset


def test_a_specification_may_leave_the_counts_out(tmp_path):
    split = Split.from_json({"annotations": "a.json", "images": "images"})
    assert (split.count, split.boxes, split.crowd, split.masks, split.sides) == (0, 0, 0, None, None)


def test_the_median_sides_are_of_the_longer_and_the_shorter_one():
    sizes = [(640, 480), (480, 640), (100, 50), (4000, 3000), (640, 427)]
    assert median_sides([{"width": width, "height": height} for width, height in sizes]) == (640, 480)


def test_halves_are_disjoint_and_whole(tmp_path):
    dataset = dataset_of(tmp_path, [{"id": i} for i in (9, 3, 5, 1, 7)])
    selection, report = selection_ids(dataset), report_ids(dataset)
    assert (len(selection), len(report)) == (2, 3)
    assert sorted(selection + report) == list(image_ids(dataset.val)) == [1, 3, 5, 7, 9]
    assert selection_ids(dataset) == selection
    assert len({selection_ids(dataset, seed) for seed in range(20)}) > 1
    for seed in range(20):
        assert not set(selection_ids(dataset, seed)) & set(report_ids(dataset, seed))


def test_halves_that_the_images_name(tmp_path):
    dataset = dataset_of(tmp_path, [{"id": 1, "half": "report"}, {"id": 2, "half": "selection"}, {"id": 3, "half": "report"}])
    assert selection_ids(dataset) == selection_ids(dataset, 5) == (2,)
    assert report_ids(dataset) == (1, 3)


def test_a_half_that_only_some_images_name_does_not_count(tmp_path):
    dataset = dataset_of(tmp_path, [{"id": 1, "half": "report"}, {"id": 2, "half": "selection"}, {"id": 3}, {"id": 4}])
    assert len(selection_ids(dataset)) == len(report_ids(dataset)) == 2


def test_one_image_cannot_be_halved(tmp_path):
    with pytest.raises(DatasetError, match="give at least 2"):
        selection_ids(dataset_of(tmp_path, [{"id": 1}]))


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}, {"id": 2, "file_name": "b.png", "width": 10, "height": 10}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4]},
    ],
    "categories": [{"id": 1, "name": "cat"}],
}


def test_the_digest_is_of_content_alone():
    same = {
        "info": {"year": 2026},
        "images": [{**image, "license": 3} for image in reversed(COCO["images"])],
        "annotations": [{**a, "bbox": [float(v) for v in a["bbox"]], "segmentation": []} for a in reversed(COCO["annotations"])],
        "categories": COCO["categories"],
    }
    assert canonical_annotations(same) == canonical_annotations(COCO)
    hashes = {"a.png": "1" * 64, "b.png": "2" * 64}
    assert digest([("train", same, hashes)]) == digest([("train", COCO, dict(reversed(hashes.items())))])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["images"][0].update(file_name="c.png"),
        lambda c: c["images"][0].update(half="report"),
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3, 4.5]),
        lambda c: c["annotations"][0].update(area=11),
        lambda c: c["annotations"][0].update(iscrowd=1),
        lambda c: c["annotations"].pop(),
        lambda c: c["categories"][0].update(name="dog"),
    ],
)
def test_the_digest_sees_every_change_that_training_or_ap_would(change):
    changed = json.loads(json.dumps(COCO))
    change(changed)
    assert digest([("train", changed, {})]) != digest([("train", COCO, {})])


def test_the_digest_sees_pixels_and_splits():
    assert (
        len({digest([("train", COCO, {"a.png": "1"})]), digest([("train", COCO, {"a.png": "2"})]), digest([("val", COCO, {"a.png": "1"})])})
        == 3
    )


def test_an_unknown_name(tmp_path):
    with pytest.raises(DatasetError, match="'digit' is not built in; one of digits, trees"):
        load_dataset("digit", tmp_path)


def test_the_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DETKDS_CACHE", raising=False)
    assert default_cache() == tmp_path / "detkds"
    monkeypatch.setenv("DETKDS_CACHE", str(tmp_path / "elsewhere"))
    assert default_cache() == tmp_path / "elsewhere"


def test_the_room_starts_without_torch_and_without_scikit_learn():
    code = "import sys, detkds_core.datasets; print([m for m in ('torch', 'sklearn', 'mmdet') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
