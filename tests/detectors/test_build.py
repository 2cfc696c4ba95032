"""Which memory format a detector may use, and that the catalogue's narrow students survive the images that killed them."""

import json
import os
import subprocess
import sys

import pytest
from torch import nn

from detkds_core.catalogue import DETECTORS
from detkds_core.detectors.build import build_detector, safe_channels_last

TRAIN = """
import sys, torch
from detkds_core.detectors.build import build_detector
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
torch.manual_seed(0)
model = build_detector(sys.argv[1], ("a",)).train()
size, samples = 256, []
for _ in range(4):
    shape = {"img_shape": (size, size), "ori_shape": (size, size), "batch_input_shape": (size, size), "pad_shape": (size, size)}
    sample = DetDataSample(metainfo={**shape, "scale_factor": (1.0, 1.0)})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8.0, 60.0, 60.0]]), labels=torch.tensor([0]))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    samples.append(sample)
for _ in range(6):
    inputs = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
    losses = model.loss(inputs, samples)
    sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k).backward()
print("survived")
"""


@pytest.mark.parametrize("name", ["gfl_r18w8_fpn32", "gfl_r18w16_fpn32"])
def test_training_on_larger_images_does_not_corrupt_memory(name):
    # in a process of its own, with the allocator told to look: a corrupted heap ends it
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, name],
        env={**os.environ, "MALLOC_CHECK_": "3"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.endswith("survived\n")


def test_a_strided_pointwise_convolution_of_few_channels_forbids_channels_last():
    assert not safe_channels_last(nn.Sequential(nn.Conv2d(8, 16, 1, stride=2)))
    assert safe_channels_last(nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, stride=2), nn.Conv2d(16, 32, 1, stride=2)))


def test_every_small_detector_of_the_catalogue_is_fast_and_safe():
    for entry in DETECTORS.values():
        if entry.source is None:
            assert safe_channels_last(build_detector(entry.name, ("a", "b"))), entry.name
            json.dumps(dict(entry.config))
