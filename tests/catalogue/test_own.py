"""The operator's own detectors: a file says the same as its entry, and one that is wrong says where and how."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detkds_core.catalogue import BUILT_IN, DetectorEntry, Recipe
from detkds_core.catalogue.entry import FAMILIES
from detkds_core.catalogue.own import OwnDetectorError, entry_from_json, entry_to_json, read_folder, write_file

CONFIG = json.loads(json.dumps(BUILT_IN["retinanet_r18w8_fpn32"].config))


def as_own(entry: DetectorEntry) -> DetectorEntry:
    return replace(entry, name=f"my_{entry.name}", source=None, width=None, own=True, config=CONFIG)


@pytest.fixture
def data() -> dict[str, Any]:
    """The content of a file: a RetinaNet with three anchor boxes a cell."""
    made: dict[str, Any] = json.loads(json.dumps(entry_to_json(as_own(BUILT_IN["retinanet_r18w8_fpn32"]))))
    return made


def faults(data: Any) -> list[str]:
    with pytest.raises(OwnDetectorError) as error:
        entry_from_json(data)
    return error.value.faults


def test_every_entry_of_the_catalogue_would_be_one(tmp_path: Path) -> None:
    entries = {entry.name: entry for entry in map(as_own, BUILT_IN.values())}
    for entry in entries.values():
        write_file(entry, tmp_path)
    found, wrong = read_folder(tmp_path, BUILT_IN)
    assert wrong == ()
    assert found == entries
    assert {entry.family for entry in found.values()} == set(FAMILIES)


def test_a_file_from_before_the_assigner_was_noted_is_read_by_its_configuration(data: dict[str, Any]) -> None:
    del data["overlaps"]
    assert entry_from_json(data).overlaps
    other = {**data["config"]["train_cfg"], "assigner": {"type": "CenterRegionAssigner"}}
    assert not entry_from_json({**data, "config": {**data["config"], "train_cfg": other}}).overlaps
    assert not entry_from_json({**data, "config": {**data["config"], "train_cfg": None}}).overlaps
    proposing = BUILT_IN["faster_rcnn_r18w8_fpn32"]
    two_stage = json.loads(json.dumps(entry_to_json(replace(as_own(proposing), config=proposing.config))))
    del two_stage["overlaps"]
    assert entry_from_json(two_stage).overlaps


def test_a_file_of_an_earlier_version_says_nothing_of_its_training(data: dict[str, Any]) -> None:
    recipe = Recipe(epochs=24, milestones=(16, 22), schedule="steps", image_size=1333, train_short_sides=(480, 800))
    assert entry_from_json(json.loads(json.dumps({**data, "training": recipe.to_json()}))).training == recipe
    assert data.pop("training") is None
    assert entry_from_json(data).training is None


def test_no_folder_is_no_detector_and_a_folder_that_is_not_there_a_fault(tmp_path: Path) -> None:
    assert read_folder(None, BUILT_IN) == read_folder("", BUILT_IN) == read_folder(tmp_path, BUILT_IN) == ({}, ())
    found, (fault,) = read_folder(tmp_path / "gone", BUILT_IN)
    assert found == {}
    assert fault == f"DETKDS_DETECTORS: {tmp_path / 'gone'} is no folder; make it, or leave DETKDS_DETECTORS unset"


Change = Callable[[dict[str, Any]], Any]
FACTS: list[tuple[Change, str]] = [
    (lambda data: data.update(name="My-Detector"), "name: 'My-Detector' is not a name; use 1 to 64 of a-z, 0-9 and '_'"),
    (lambda data: data.update(title="two\nlines"), r"title: 'two\nlines' is not a line"),
    (lambda data: data.update(family="ssd"), "family: 'ssd' is not a known family; one of retinanet, fcos,"),
    (lambda data: data.update(family=["gfl"]), "family: ['gfl'] is not a known family"),
    (lambda data: data.update(stages=2), "stages: 2 is not that of a retinanet; 1 is"),
    (lambda data: data.update(stages=True), "stages: true is not that of a retinanet; 1 is"),
    (lambda data: data.update(strides=[16, 8]), "strides: [16, 8] is not a list of growing whole numbers"),
    (lambda data: data.update(strides=[8, 8]), "strides: [8, 8] is not a list of growing whole numbers"),
    (lambda data: data.update(strides=[]), "strides: [] is not a list of growing whole numbers"),
    (lambda data: data.update(channels=0), "channels: 0 is not a whole number from 1 on"),
    (lambda data: data.update(anchors=9), "anchors: 9 is not the number of predictions a cell; 3 is, a scale and a ratio each (1 times 3)"),
    (lambda data: data.update(anchor_scales=[-4.0]), "anchor_scales: [-4.0] is not a list of numbers above 0"),
    (lambda data: data.update(anchor_scales=[]), "anchor_scales: [], but a retinanet has anchor boxes"),
    (lambda data: data.update(anchor_ratios=2.0), "anchor_ratios: 2.0 is not a list of numbers above 0"),
    (lambda data: data.update(overlaps=1), "overlaps: 1 is not that of a retinanet; true or false is"),
    (lambda data: data.update(scores="objectness"), 'scores: "objectness" is not that of a retinanet; "classes" is'),
    (lambda data: data.update(reg_max=16), "reg_max: 16 is not that of a retinanet; null is"),
    (lambda data: data.update(masks=True), "masks: true is not that of a retinanet; false is"),
    (lambda data: data.update(inputs={"mean": [0, 0, 0]}), 'inputs: {"mean": [0, 0, 0]} is not an object of mean, std, rgb, pad, fill'),
    (lambda data: data["inputs"].update(mean=[0.0]), "inputs.mean: [0.0] is not a list of three numbers"),
    (lambda data: data["inputs"].update(std=[1, 1, 0]), "inputs.std: [1, 1, 0] is not a list of three numbers above 0"),
    (lambda data: data["inputs"].update(rgb="yes"), 'inputs.rgb: "yes" is not true (red comes first) or false'),
    (lambda data: data["inputs"].update(pad=0), "inputs.pad: 0 is not a whole number of pixels from 1 on"),
    (lambda data: data["inputs"].update(fill=None), "inputs.fill: null is not a number"),
    (lambda data: data.pop("config"), "config: is missing"),
    (lambda data: data.update(training=[12]), "training: [12] is not a recipe (an object), or null"),
    (lambda data: data.update(training={"epoch": 12}), "training.epoch: not a field; did you mean epochs?"),
    (lambda data: data.update(training={"lr": -1}), "training.lr: -1 is not a number above 0"),
    (lambda data: data.update(source="x.py"), "source: is no field; the fields are name, title, family"),
]


@pytest.mark.parametrize(("change", "fault"), FACTS, ids=[fault.split(" is ")[0] for _, fault in FACTS])
def test_a_wrong_fact_is_named_with_what_would_be_right(data: dict[str, Any], change: Change, fault: str) -> None:
    change(data)
    (found,) = faults(data)
    assert found.startswith(fault)


NO_BOXES = {"anchor_scales": [], "anchor_ratios": [], "overlaps": False}
FOR_FAMILIES = [
    ("gfl", {"anchors": 1, "anchor_scales": [4.0], "anchor_ratios": [1.0]}, "reg_max: null is not that of a gfl; the last bin"),
    ("fcos", {"anchors": 1}, "anchor_scales: [3.0], but a fcos has none, so that [] is right"),
    ("rtmdet", {**NO_BOXES, "anchors": 1, "overlaps": True}, "overlaps: true is not that of a rtmdet; false is"),
    ("yolox", {**NO_BOXES, "anchors": 2}, "anchors: 2 is not the number of predictions a cell; 1 is"),
    ("detr", {**NO_BOXES, "anchors": 1, "scores": "queries"}, "anchors: 1 is not the number of predictions"),
]


@pytest.mark.parametrize(("family", "facts", "fault"), FOR_FAMILIES, ids=[family for family, _, _ in FOR_FAMILIES])
def test_facts_are_those_of_the_family(data: dict[str, Any], family: str, facts: dict[str, Any], fault: str) -> None:
    (found,) = faults({**data, "family": family, **facts})
    assert found.startswith(fault)


CONFIGS: list[tuple[Change, str]] = [
    (lambda config: config.update(_base_="evil.py"), "config._base_: is not allowed"),
    (lambda config: config["neck"].update(_delete_=True), "config.neck._delete_: is not allowed"),
    (lambda config: config["backbone"].update(_scope_="mmpretrain"), "config.backbone._scope_: is not allowed"),
    (lambda config: config.update(custom_imports={"imports": ["evil"]}), "config.custom_imports: is not allowed"),
    (lambda config: config["backbone"].update(style="{{$HOME:x}}"), "config.backbone.style: '{{$HOME:x}}' holds '{{'"),
    (lambda config: config["backbone"].update({"{{a}}": 1}), "config.backbone.{{a}}: is not allowed"),
    (
        lambda config: config["backbone"].update(type="os.system"),
        "config.backbone.type: 'os.system' is not a name in MMDetection's registry",
    ),
    (lambda config: config["test_cfg"]["nms"].update(type="exit()"), "config.test_cfg.nms.type: 'exit()' is not a name"),
    (lambda config: config["backbone"].update(pretrained="resnet50"), "config.backbone.pretrained: weights come by request"),
    (
        lambda config: config["bbox_head"].update(init_cfg=[{"type": "Pretrained", "checkpoint": "/data/a.pth"}]),
        "config.bbox_head.init_cfg[0].checkpoint: weights come by request",
    ),
    (lambda config: config["neck"].update(upsample_cfg="s3://bucket/a"), "config.neck.upsample_cfg: 's3://bucket/a' would be fetched"),
    (lambda config: config["neck"].update(num_outs=float("nan")), "config.neck.num_outs: nan is not a finite number"),
    (lambda config: config["neck"].update(num_outs={1, 2}), "config.neck.num_outs: is a set, which no JSON holds"),
    (lambda config: config.update(backbone="ResNet"), "config.backbone: is missing, or no object"),
    (lambda config: config.pop("data_preprocessor"), "config.data_preprocessor: is missing, or no object"),
]


@pytest.mark.parametrize(("change", "fault"), CONFIGS, ids=[fault.split(":")[0] for _, fault in CONFIGS])
def test_a_configuration_is_data_and_fetches_nothing(data: dict[str, Any], change: Change, fault: str) -> None:
    data["config"] = copy.deepcopy(data["config"])
    change(data["config"])
    (found,) = faults(data)
    assert found.startswith(fault)


def test_all_that_is_wrong_is_told_at_once(data: dict[str, Any]) -> None:
    data |= {"channels": -1, "stages": 3}
    data["config"]["_base_"] = "x"
    assert [fault.partition(":")[0] for fault in faults(data)] == ["stages", "channels", "config._base_"]
    assert faults([]) == ["is a list, not an object with the fields of a detector"]
    assert faults({**data, "config": []})[-1] == "config: is a list, not MMDetection's configuration of a model"


def test_a_faulty_file_is_named_and_takes_nothing_from_the_others(data: dict[str, Any], tmp_path: Path) -> None:
    name = data["name"]
    for file, content in {
        f"{name}.json": json.dumps(data),
        "another.json": json.dumps(data),
        "fcos_r50_fpn.json": json.dumps({**data, "name": "fcos_r50_fpn"}),
        "half.json": '{"name": ',
        "infinite.json": '{"channels": Infinity}',
        "readme.txt": "no detector",
    }.items():
        (tmp_path / file).write_text(content)
    (tmp_path / "latin.json").write_bytes(b'{"title": "\xe9"}')
    (tmp_path / "folder.json").mkdir()
    found, wrong = read_folder(tmp_path, BUILT_IN)
    assert list(found) == [name]
    said = dict(line.removeprefix(f"{tmp_path}/").split(": ", 1) for line in wrong)
    assert said.keys() == {"another.json", "fcos_r50_fpn.json", "folder.json", "half.json", "infinite.json", "latin.json"}
    assert said["another.json"] == f"name: {name!r} is not the file's; call the file {name}.json, or the detector 'another'"
    assert said["fcos_r50_fpn.json"] == "name: 'fcos_r50_fpn' is a built-in detector; choose another name"
    assert said["folder.json"] == "cannot be read: Is a directory"
    assert said["half.json"].startswith("is not JSON: Expecting value: line 1 column 10")
    assert said["infinite.json"] == "is not JSON: Infinity is no number of JSON"
    assert "is not JSON" in said["latin.json"]


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    entry = as_own(BUILT_IN["retinanet_r18w8_fpn32"])
    with pytest.raises(OwnDetectorError, match="_base_"):
        write_file(replace(entry, config={**CONFIG, "_base_": "a.py"}), tmp_path)
    assert list(tmp_path.iterdir()) == []
