"""Images and ground truth for detectors: two images of noise with the same boxes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from detkds_core.detectors.runtime import prepare_mmdet

BOXES = ((8.0, 8.0, 40.0, 48.0), (20.0, 4.0, 90.0, 60.0))


@pytest.fixture(autouse=True)
def _ready() -> None:
    prepare_mmdet()
    torch.manual_seed(0)


@pytest.fixture
def ground_truth() -> Callable[..., list[Any]]:
    """samples(images, (height, width), masks): MMDetection's samples, each with an object of class 0 and one of class 2."""

    def samples(count: int, size: tuple[int, int] = (64, 96), masks: bool = False) -> list[Any]:
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData

        found = []
        for _ in range(count):
            sample = DetDataSample(
                metainfo={"img_shape": size, "ori_shape": size, "batch_input_shape": size, "pad_shape": size, "scale_factor": (1.0, 1.0)}
            )
            sample.gt_instances = InstanceData(bboxes=torch.tensor(BOXES), labels=torch.tensor([0, 2]))
            if masks:
                filled = torch.zeros(2, *size, dtype=torch.uint8)
                for mask, (x1, y1, x2, y2) in zip(filled, torch.tensor(BOXES).int().tolist(), strict=True):
                    mask[y1:y2, x1:x2] = 1
                sample.gt_instances.masks = BitmapMasks(filled.numpy(), *size)
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
            found.append(sample)
        return found

    return samples
