"""`/datasets`: what is registered, and what is refused with which reason."""

import json
import shutil
from pathlib import Path

import pytest


def body(service, name="copy", **changes):
    """A registration of the dataset `shapes` under another name; changes: `val_images=path`."""
    paths = {
        f"{split}_{kind}": str(service.roots / split / file)
        for split in ("train", "val")
        for kind, file in (("annotations", "coco.json"), ("images", "images"))
    } | {place: str(path) for place, path in changes.items()}
    return {"name": name} | {
        split: {"annotations": paths[f"{split}_annotations"], "images": paths[f"{split}_images"]} for split in ("train", "val")
    }


def errors(answer):
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


def test_the_list_begins_with_what_is_built_in(service):
    items = service.http.get("/datasets").json()["items"]
    assert [(item["name"], item["builtin"]) for item in items[:3]] == [("digits", True), ("trees", True), ("shapes", False)]
    assert items[2]["classes"] == ["circle", "square"]
    assert (items[2]["train_images"], items[2]["val_images"]) == (6, 4)
    assert len(items[2]["digest"]) == 64


def test_a_wrong_cursor_is_told(service):
    assert list(errors(service.http.get("/datasets", params={"cursor": "not a cursor"}))) == ["?cursor"]


def test_the_names_of_what_is_built_in_are_those_of_the_library():
    from detkds_api.datasets import BUILTIN
    from detkds_core.datasets import BUILT_IN

    assert BUILTIN == BUILT_IN


def test_the_same_content_is_registered_once(service):
    assert service.http.post("/datasets", json=body(service, "again")).status_code == 201
    assert service.http.post("/datasets", json=body(service, "again")).status_code == 200
    other = body(service, "again", train_annotations=service.roots / "val/coco.json", train_images=service.roots / "val/images")
    other["val"] = body(service)["train"]
    answer = service.http.post("/datasets", json=other)
    assert answer.status_code == 409
    assert "choose another name" in answer.json()["detail"]


def test_the_digest_follows_the_content_not_the_place(service):
    shutil.copytree(service.roots / "train", service.roots / "moved")
    moved = body(service, "moved", train_annotations=service.roots / "moved/coco.json", train_images=service.roots / "moved/images")
    digests = {item["name"]: item["digest"] for item in service.http.get("/datasets").json()["items"]}
    assert service.http.post("/datasets", json=moved).json()["digest"] == digests["shapes"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.json", "relative.json", "/", "~/data.json"])
def test_a_path_outside_the_registered_folders_is_refused(service, path):
    assert list(errors(service.http.post("/datasets", json=body(service, train_annotations=path)))) == ["/train/annotations"]


def test_a_path_that_is_not_there_is_told(service):
    found = errors(service.http.post("/datasets", json=body(service, val_images=service.roots / "nowhere")))
    assert "does not exist" in found["/val/images"]


def test_what_lies_outside_is_not_told_to_exist_or_not(service):
    there, not_there = (
        errors(service.http.post("/datasets", json=body(service, train_annotations=path)))["/train/annotations"].replace(path, "PATH")
        for path in ("/etc/passwd", "/etc/no-such-file")
    )
    assert there == not_there


def test_a_link_out_of_the_folder_is_refused(service, tmp_path):
    (tmp_path / "images").mkdir()
    link = service.roots / "link"
    link.symlink_to(tmp_path / "images")
    assert "leads outside" in errors(service.http.post("/datasets", json=body(service, train_images=link)))["/train/images"]


def test_a_file_name_in_the_annotations_cannot_lead_out_either(service):
    content = json.loads((service.roots / "train/coco.json").read_text())
    content["images"][0]["file_name"] = "../../../../../../etc/passwd"
    path = service.roots / "escaping.json"
    path.write_text(json.dumps(content))
    found = errors(service.http.post("/datasets", json=body(service, train_annotations=path)))
    assert any(pointer.startswith("/train/") for pointer in found)


def test_wrong_content_is_told_with_its_place(service):
    content = json.loads((service.roots / "train/coco.json").read_text())
    content["annotations"][2]["bbox"] = [60, 60, 30, 30]
    content["annotations"][3]["category_id"] = 77
    path = service.roots / "wrong.json"
    path.write_text(json.dumps(content))
    answer = service.http.post("/datasets", json=body(service, train_annotations=path))
    messages = [error["message"] for error in answer.json()["errors"]]
    assert any("annotations[2]" in message for message in messages)
    assert any("annotations[3]" in message and "77" in message for message in messages)
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/train/annotations"}


def test_images_in_train_and_val_are_a_leak(service):
    same = body(service)
    same["val"] = same["train"]
    assert errors(service.http.post("/datasets", json=same))


@pytest.mark.parametrize("name", ["digits", "Capital", "with space", "", "x" * 65, "../up"])
def test_names_are_bounded_and_built_in_ones_taken(service, name):
    assert service.http.post("/datasets", json=body(service, name)).status_code in (409, 422)


def test_without_a_registered_folder_nothing_is_read(tmp_path):
    from detkds_api.paths import inside

    with pytest.raises(ValueError, match="DETKDS_DATA_ROOTS"):
        inside(str(Path(tmp_path)), [])
