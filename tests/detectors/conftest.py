"""Ground truth for detectors that learn."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from detkds_core.detectors.runtime import prepare_mmdet

BOXES = [[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 62.0]]


@pytest.fixture(autouse=True)
def _ready() -> None:
    prepare_mmdet()
    torch.manual_seed(0)


@pytest.fixture
def truth() -> Callable[..., list[Any]]:
    """truth(images, (height, width), masks): MMDetection's samples, each with the same two boxes of classes 1 and 2, masks filling them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    def make(images: int, shape: tuple[int, int], masks: bool = False) -> list[Any]:
        samples = []
        for _ in range(images):
            facts = dict.fromkeys(("img_shape", "ori_shape", "batch_input_shape", "pad_shape"), shape)
            sample = DetDataSample(metainfo={**facts, "scale_factor": (1.0, 1.0)})
            sample.gt_instances = InstanceData(bboxes=torch.tensor(BOXES), labels=torch.tensor([1, 2]))
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
            if masks:
                filled = torch.zeros(len(BOXES), *shape, dtype=torch.uint8)
                for mask, (x1, y1, x2, y2) in zip(filled, BOXES, strict=True):
                    mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
                sample.gt_instances.masks = BitmapMasks(filled.numpy(), *shape)
            samples.append(sample)
        return samples

    return make
