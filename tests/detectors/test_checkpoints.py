"""Checkpoints as MMDetection's users have them: of a Runner, of earlier versions, of other frameworks and of backbones' authors."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from detkds_core.detectors.build import build_detector, save_weights
from detkds_core.detectors.checkpoints import (
    CheckpointError,
    load_weights,
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
