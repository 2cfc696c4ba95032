"""Configurations that execute: what MMEngine would obey in a configuration is refused, or is plain text, wherever somebody can write it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KEYS = {
    "_base_": "/tmp/evil.py",
    "custom_imports": {"imports": ["os"], "allow_failed_imports": False},
    "_scope_": "evil",
    "_delete_": True,
    "type": "evil.Evil",
    "init_cfg": {"type": "Pretrained", "checkpoint": "http://127.0.0.1:1/evil.pth"},
    "__class__": "x",
}
TEMPLATES = ["{{$HOME:x}}", "{{ $PATH:x }}", "{{_base_.model}}", "{{ fileDirname }}", "${HOME}", "!!python/object/apply:os.system [id]"]
YAML = b"!!python/object/apply:os.system ['touch /tmp/the-yaml-ran']"
PYTHON = b"import os\nos.system('touch /tmp/the-config-ran')\n"


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_mmengine_obeys_is_no_field_anywhere(service, wanted, refused, key) -> None:
    value = KEYS[key]
    distill = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")} | {"policy": "none"}
    split = {"annotations": str(service.roots / "train/coco.json"), "images": str(service.roots / "train/images")}
    term = {"knowledge": "global", "transforms": ["none"] * 3, "distance": "l2", "weight": 1.0}
    bodies = [
        ("/searches", {**wanted, key: value}),
        ("/distill", {**distill, key: value}),
        *(("/searches", {**wanted, part: {**wanted[part], key: value}}) for part in ("teacher", "student", "recipe")),
        *(("/distill", {**distill, part: {**distill[part], key: value}}) for part in ("teacher", "student", "recipe")),
        ("/distill", {**distill, "policy": {"terms": [], key: value}}),
        ("/distill", {**distill, "policy": {"terms": [{**term, key: value}]}}),
        ("/distill", {**distill, "policy": {"terms": [], "distillers": [{"name": "fgd", "settings": {key: value}}]}}),
        ("/searches", {**wanted, "confirmation": {key: value}}),
        ("/datasets", {"name": "evil", "train": {**split, key: value}, "val": split}),
        ("/keys", {"name": "a", "owner": "b", key: value}),
    ]
    for path, body in bodies:
        detail = refused(service.http.post(path, json=body))
        assert key in detail, f"{path}: {detail}"


@pytest.mark.parametrize("text", TEMPLATES)
def test_a_template_is_no_name_of_anything(service, wanted, refused, text) -> None:
    for field in ("dataset", "pair"):
        refused(service.http.post("/searches", json={**wanted, field: text}))
    for role in ("teacher", "student"):
        for field in ("detector", "checkpoint"):
            refused(service.http.post("/searches", json={**wanted, role: {**wanted["teacher"], field: text}}))
    for field in ("optimizer", "schedule", "precision", "augment"):
        refused(service.http.post("/searches", json={**wanted, "recipe": {field: text}}))
    for policy in (text, {"terms": [{"knowledge": text, "transforms": ["none"] * 3, "distance": "l2", "weight": 1.0}]}):
        distill = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")}
        refused(service.http.post("/distill", json={**distill, "policy": policy}))
    one = service.http.post("/searches", json={**wanted, "name": text})
    assert one.json()["name"] == text, "a title is text, and stays what it was"


@pytest.mark.parametrize(("kind", "content"), [("application/yaml", YAML), ("text/x-python", PYTHON), ("application/json", YAML)])
def test_yaml_and_python_are_no_request(service, refused, kind, content) -> None:
    for path in ("/searches", "/distill", "/datasets"):
        refused(service.http.post(path, content=content, headers={"Content-Type": kind}), 400, 415)
    assert not Path("/tmp/the-yaml-ran").exists()


@pytest.mark.parametrize(("name", "content"), [("evil.py", PYTHON), ("evil.yaml", YAML), ("evil.json", b'{"_base_": "evil.py"}')])
def test_a_configuration_in_place_of_data_is_read_as_data(service, refused_dataset, name, content) -> None:
    folder = service.roots / f"config-{name}"
    folder.mkdir()
    (folder / name).write_bytes(content)
    images = str(service.roots / "train/images")
    split = {"annotations": str(folder / name), "images": images}
    detail = refused_dataset(service.http, {"name": "evil", "train": split, "val": split})
    assert "is not JSON" in detail or "has no list 'images'" in detail
    assert not Path("/tmp/the-config-ran").exists()


def test_class_names_stay_text_in_the_configuration_that_is_handed_out(tmp_path: Path) -> None:
    """MMEngine reads the exported file as a template first: a class called `{{$SECRET:x}}` would take the environment's place."""
    script = """
import json, os, sys
from pathlib import Path
from detkds_core.catalogue import detector
from detkds_core.detectors.build import build_detector, export_student
from detkds_core.detectors.runtime import prepare_mmdet
prepare_mmdet()
from mmengine.config import Config
folder, classes = Path(sys.argv[1]), json.loads(sys.argv[2])
name = "gfl_r18w8_fpn32"
dataset = {"classes": classes, "val": {"annotations": "/data/{{fileDirname}}/val.json", "images": "/data/val"}}
export_student(build_detector(name, classes), detector(name), folder, dataset=dataset, image_size=64, metadata={})
config = Config.fromfile(folder / "student_config.py")
loader = config.test_dataloader.dataset
print(json.dumps([list(loader.metainfo.classes), loader.ann_file]))
"""
    templates = ["{{$DETKDS_SECRET:x}}", "{{ '$HOME:x' }}", "{{_base_.model}}", "{{{{"]
    classes = [*templates, 'it\'s "quoted" \\x7b\\x7b', "'+__import__('os').name+'"]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), json.dumps(classes)],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "DETKDS_SECRET": "leaked", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [classes, "/data/{{fileDirname}}/val.json"]
