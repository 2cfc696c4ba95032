"""Checkpoints as MMDetection's users have them: of a Runner, of earlier versions, of other frameworks and of backbones' authors."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from detkds_core.detectors import checkpoints
from detkds_core.detectors.build import build_detector, save_weights
from detkds_core.detectors.checkpoints import (
    BACKBONE,
    CheckpointError,
    backbone_weights,
    load_student,
    load_weights,
    misfits,
    read_checkpoint,
)

CLASSES = ("a", "b", "c")
NAME = "gfl_r18w8_fpn32"

RUNNER = """
import sys, torch
from detkds_core.detectors.build import build_detector
from mmengine.runner import Runner
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

class Images(torch.utils.data.Dataset):
    metainfo = {"classes": ("a", "b", "c"), "palette": [(1, 2, 3), (4, 5, 6), (7, 8, 9)]}
    def __len__(self):
        return 2
    def __getitem__(self, index):
        sample = DetDataSample(metainfo={"img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8.0, 40.0, 48.0]]), labels=torch.tensor([index]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        return {"inputs": torch.full((3, 64, 64), 90, dtype=torch.uint8), "data_samples": sample}

torch.manual_seed(0)
runner = Runner(
    build_detector("gfl_r18w8_fpn32", ("a", "b", "c")),
    work_dir=sys.argv[1],
    train_dataloader={"batch_size": 1, "dataset": Images(), "sampler": {"type": "DefaultSampler", "shuffle": False},
                      "collate_fn": {"type": "pseudo_collate"}},
    train_cfg={"by_epoch": True, "max_epochs": 1},
    optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}},
    param_scheduler=[{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 2}, {"type": "MultiStepLR", "milestones": [1]}],
    custom_hooks=[{"type": "EMAHook"}],
    default_hooks={"logger": {"type": "LoggerHook", "interval": 1}},
    default_scope="mmdet",
    log_level="ERROR",
)
model = runner.train()
"""


def test_the_file_that_a_runner_leaves_is_read(tmp_path):
    # a process of its own: a Runner changes loggers, scopes and the start of processes
    done = subprocess.run([sys.executable, "-c", RUNNER, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    path = tmp_path / "epoch_1.pth"
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert "mmengine.logging.history_buffer.HistoryBuffer" in names  # what torch alone refuses
    weights, metadata = read_checkpoint(path)
    assert metadata == {"classes": '["a", "b", "c"]'}
    model = build_detector(NAME, CLASSES)
    before = model.state_dict()["bbox_head.gfl_cls.weight"].clone()
    load_weights(model, path)
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], value) for key, value in weights.items())
    assert not torch.equal(before, weights["bbox_head.gfl_cls.weight"])


def test_nothing_but_weights_and_class_names_is_read_of_a_training(tmp_path):
    import numpy as np
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    content = {
        "state_dict": {"w": torch.ones(2)},
        "meta": {"dataset_meta": ConfigDict(classes=("a", "b")), "hook_msgs": {"best_score": np.float64(0.5)}},
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer([1.0, 2.0], [1, 1])}},
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "epoch.pth", _use_new_zipfile_serialization=zipped)
        weights, metadata = read_checkpoint(tmp_path / "epoch.pth")
        assert list(weights) == ["w"]
        assert metadata == {"classes": '["a", "b"]'}


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"CLASSES": ("a", "b"), "PALETTE": None}, ["a", "b"]),  # MMDetection 2
        ({"dataset_meta": {"CLASSES": ("a", "b")}}, ["a", "b"]),  # 3.0rc
        ({"dataset_meta": {"classes": ["a", "b"]}}, ["a", "b"]),  # 3
        ({"dataset_meta": {"classes": ("a",)}, "CLASSES": ("b",)}, ["a"]),
        ({"dataset_meta": {"classes": None}}, None),
        ({"CLASSES": "a file of names"}, None),
        ({"CLASSES": (1, 2)}, None),
        ({}, None),
        (None, None),
        ("text", None),
    ],
)
def test_class_names_are_found_where_each_version_writes_them(tmp_path, meta, names):
    torch.save({"state_dict": {"w": torch.ones(2)}, "meta": meta}, tmp_path / "a.pth")
    _, metadata = read_checkpoint(tmp_path / "a.pth")
    assert metadata == ({"classes": json.dumps(names)} if names else {})


@pytest.mark.parametrize(
    "content",
    [
        {"w": torch.ones(2)},
        {"state_dict": {"w": torch.ones(2)}},
        {"model": {"w": torch.ones(2)}, "epoch": 3},
        {"state_dict": {"module.w": torch.ones(2)}},
        {"state_dict": {"w": nn.Parameter(torch.ones(2))}},
    ],
)
def test_weights_are_found_wherever_a_file_has_them(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    weights, _ = read_checkpoint(tmp_path / "a.pth")
    assert list(weights) == ["w"]
    assert type(weights["w"]) is torch.Tensor
    assert weights["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"net": {"w": torch.ones(2)}}, r"'net' holds a dict, not a tensor; save the model's state_dict alone"),
        ({"model": "resnet"}, r"'model' holds a str, not a tensor"),
        ({3: torch.ones(2)}, r"one of its keys is a int, not the name of a tensor"),
        ({"w": torch.ones(2).to_sparse()}, r"'w' holds a tensor that is not dense"),
        ({"w": torch.ones(2, device="meta")}, r"'w' holds a tensor that is not dense"),
        ([torch.ones(2)], r"holds a list, not a state_dict"),
    ],
)
def test_what_is_no_weight_is_named(tmp_path, weights, told):
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(tmp_path / "a.pth")


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "w16.safetensors"
    save_weights(build_detector("gfl_r18w16_fpn32", CLASSES), path, {"classes": '["a", "b", "c"]'})
    with pytest.raises(CheckpointError, match=r"of another shape \(backbone.conv1.weight: \(16, 3, 7, 7\) instead of \(8, 3, 7, 7\)"):
        load_weights(build_detector("gfl_r18w8_fpn32", CLASSES), path)
    with pytest.raises(CheckpointError, match=r"trained on the classes \['a', 'b', 'c'\], the dataset has \['a', 'b', 'x'\]"):
        load_weights(build_detector("gfl_r18w16_fpn32", ("a", "b", "x")), path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_weights(build_detector("gfl_r18w8_fpn32", CLASSES), tmp_path / "nowhere.pth")


def test_a_checkpoint_that_holds_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("this must not run",))

    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"x": Payload()}}, path)
    with pytest.raises(CheckpointError, match="tensors only"):
        load_weights(build_detector("gfl_r18w8_fpn32", CLASSES), path)


def renamed(state):
    """FCOS's weights as MMDetection before 2.0 named them."""
    old = {"conv_cls": "fcos_cls", "conv_reg": "fcos_reg", "conv_centerness": "fcos_centerness"}
    return {".".join(old.get(part, part) for part in key.split(".")): value for key, value in state.items()}


def test_names_of_earlier_versions_are_understood_as_mmdetection_does(tmp_path):
    given = build_detector("fcos_r18w8_fpn32", CLASSES)
    torch.save({"state_dict": renamed(given.state_dict()), "meta": {"CLASSES": CLASSES}}, tmp_path / "old.pth")
    model = build_detector("fcos_r18w8_fpn32", CLASSES)
    load_weights(model, tmp_path / "old.pth")
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in given.state_dict().items())


def test_a_refusal_under_earlier_names_is_clear_and_leaves_the_model_alone(tmp_path):
    state = renamed(build_detector("fcos_r18w8_fpn32", CLASSES).state_dict())
    state["bbox_head.fcos_cls.weight"] = torch.zeros(5, 32, 3, 3)
    state["bbox_head.fcos_angle.weight"] = state.pop("bbox_head.fcos_reg.weight")
    torch.save(state, tmp_path / "old.pth")
    model = build_detector("fcos_r18w8_fpn32", CLASSES)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as refusal:
        load_weights(model, tmp_path / "old.pth")
    assert str(refusal.value) == (
        "old.pth: does not fit the detector: 1 missing (bbox_head.conv_reg.weight); 1 surplus (bbox_head.fcos_angle.weight); "
        "1 of another shape (bbox_head.conv_cls.weight: (5, 32, 3, 3) instead of (3, 32, 3, 3))"
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_what_is_compared_has_no_content_and_says_nothing(recwarn):
    """A detector has hundreds of megabytes: shapes are all that is needed of it."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module[1].weight.requires_grad_(False)
    seen = []
    module[1].register_load_state_dict_pre_hook(lambda part, *_: seen.extend([*part.parameters(), *part.buffers()]))
    given = {**module.state_dict(), "0.bias": torch.zeros(4), "0.more": torch.zeros(1)}
    del given["1.running_mean"]
    misshapen = ["0.bias: (4,) instead of (3,)"]
    assert misfits(module, given) == {"missing": ["1.running_mean"], "surplus": ["0.more"], "of another shape": misshapen}
    assert {value.device.type for value in seen} == {"meta"}
    assert [value.requires_grad for value in seen] == [False, True, False, False, False]
    assert not recwarn.list
    assert all(value.device.type == "cpu" for value in module.state_dict().values())


def test_a_detector_without_counts_of_batches_fits(tmp_path):
    """Files from before PyTorch 0.4.1, and those of other frameworks, have none."""
    given = build_detector(NAME, CLASSES).state_dict()
    torch.save({key: value for key, value in given.items() if not key.endswith("num_batches_tracked")}, tmp_path / "a.pth")
    model = build_detector(NAME, CLASSES)
    load_weights(model, tmp_path / "a.pth")
    assert torch.equal(model.state_dict()["backbone.conv1.weight"], given["backbone.conv1.weight"])


def backbone_file(path, weights):
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in backbone_weights(weights).items()}, path, metadata={"part": BACKBONE})
    return path


def test_a_backbone_of_another_framework_fits_and_what_stays_unused_is_told(tmp_path):
    """As Detectron's, which MMDetection's Caffe models begin with: convolutions have biases, normalisations no count of batches."""
    model = build_detector(NAME, CLASSES)
    given = {key: torch.rand_like(value) for key, value in model.backbone.state_dict().items() if value.is_floating_point()}
    biases = {f"{key.removesuffix('weight')}bias": torch.ones(len(value)) for key, value in given.items() if value.ndim == 4}
    whole, notes = load_student(model, backbone_file(tmp_path / "caffe.safetensors", {**given, **biases}))
    state = model.backbone.state_dict()
    assert not whole
    assert all(torch.equal(state[key], value) for key, value in given.items())
    assert notes == [
        "student.checkpoint: not used, since the student's backbone has nothing of that name: "
        f"conv1.bias, layer1.0.conv1.bias, layer1.0.conv2.bias and {len(biases) - 3} more"
    ]


def test_a_student_s_whole_detector_is_read_once(tmp_path, monkeypatch):
    """A file of hundreds of megabytes, held twice, would need the memory of two."""
    given, model = (build_detector(NAME, CLASSES) for _ in range(2))
    save_weights(given, tmp_path / "a.safetensors", {"classes": json.dumps(CLASSES)})
    read = []
    monkeypatch.setattr(checkpoints, "read_checkpoint", lambda path: read.append(path) or read_checkpoint(path))
    assert load_student(model, tmp_path / "a.safetensors") == (True, [])
    assert read == [tmp_path / "a.safetensors"]
    assert all(torch.equal(value, given.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="trained on the classes"):
        load_student(build_detector(NAME, ("a", "b", "x")), tmp_path / "a.safetensors")


def test_a_backbone_may_lack_what_begins_with_one_value_and_nothing_else(tmp_path):
    model = build_detector(NAME, CLASSES)
    given = {key: torch.rand_like(value) for key, value in model.backbone.state_dict().items() if value.is_floating_point()}
    lacking = {key: value for key, value in given.items() if not key.startswith("bn1.")}
    _, notes = load_student(model, backbone_file(tmp_path / "a.safetensors", lacking))
    assert notes == [
        "student.checkpoint: not in it, so that the student's backbone keeps its own first values: "
        "bn1.weight, bn1.bias, bn1.running_mean and 1 more"
    ]
    assert torch.equal(model.backbone.bn1.weight, torch.ones(8))
    assert torch.equal(model.backbone.conv1.weight, given["conv1.weight"])
    model, fresh = (build_detector(NAME, CLASSES) for _ in range(2))
    fresh.load_state_dict(model.state_dict())
    del given["layer4.1.conv2.weight"]
    with pytest.raises(CheckpointError, match=r"the detector's backbone: 1 missing \(layer4\.1\.conv2\.weight\)$"):
        load_student(model, backbone_file(tmp_path / "b.safetensors", given))
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())
