"""Detectors of MMDetection's own configurations, shrunk, train two iterations and predict on the bridged ops."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds_core.detectors.runtime import prepare_mmdet

prepare_mmdet()

import mmdet  # noqa: E402  the bridge comes first
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402
from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
FAMILIES = {
    "RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "GFL": "gfl/gfl_r50_fpn_1x_coco.py",
    "RepPoints": "reppoints/reppoints-moment_r50_fpn_1x_coco.py",  # deformable convolution v1 in its head
    "Faster R-CNN": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "Mask R-CNN": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "Cascade R-CNN": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "Faster R-CNN, DCNv2": "dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py",
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CLASSES, CHANNELS, SIDE = 3, 32, 64  # heads normalise in 32 groups of channels
PROPOSALS = 20  # of an image, at most; as many detections
SHRUNK = {
    "num_classes": CLASSES,
    "fc_out_channels": CHANNELS,
    "conv_out_channels": CHANNELS,
    "nms_pre": PROPOSALS * 5,
    "max_per_img": PROPOSALS,
    "score_thr": 0.0,  # random weights are sure of nothing
}


def shrink(node: Any) -> Any:
    """Heads and necks of 256 channels become CHANNELS wide, wherever the configuration says so; other values as in SHRUNK."""
    if isinstance(node, dict):
        return {key: SHRUNK.get(key, shrink(value)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(shrink(value) for value in node)
    return CHANNELS if node == 256 else node


def shrunk_detector(config: str) -> torch.nn.Module:
    """The configuration's model with a narrow backbone, every layer of which learns."""
    model = Config.fromfile(CONFIGS / config).model.to_dict()
    backbone = model.pop("backbone")
    in_channels = [4 * 4 * 2**stage for stage in range(4)]  # a bottleneck stage puts out four times its width
    model = shrink(model)
    model["neck"]["in_channels"] = in_channels
    model["backbone"] = {
        **backbone,
        "base_channels": 4,
        "stem_channels": 4,
        "frozen_stages": -1,
        "norm_eval": False,
        "zero_init_residual": False,  # else residual branches get no gradient in the first iteration
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "init_cfg": None,
    }
    detector = MODELS.build(ConfigDict(model))
    detector.init_weights()
    return detector


def batch(with_masks: bool) -> dict[str, list[Any]]:
    """Two images of noise with two boxes each, as a data loader gives them."""
    generator = torch.Generator().manual_seed(4)
    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo={
                "img_shape": (SIDE, SIDE),
                "ori_shape": (SIDE, SIDE),
                "pad_shape": (SIDE, SIDE),
                "batch_input_shape": (SIDE, SIDE),
                "scale_factor": (1.0, 1.0),
            }
        )
        boxes = torch.tensor([[8.0, 8, 40, 48], [20, 4, 60, 30]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]))
        if with_masks:
            masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y1:y2, x1:x2] = 1
            sample.gt_instances.masks = BitmapMasks(masks.numpy(), SIDE, SIDE)
        samples.append(sample)
    images = [torch.randint(0, 256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8) for _ in range(2)]
    return {"inputs": images, "data_samples": samples}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_two_iterations_and_predicts(family, device):
    torch.manual_seed(0)
    detector = shrunk_detector(FAMILIES[family]).to(device).train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    for _ in range(2):
        losses = detector(**detector.data_preprocessor(batch(family == "Mask R-CNN"), training=True), mode="loss")
        total, _ = detector.parse_losses(losses)
        assert math.isfinite(float(total.detach()))
        optimizer.zero_grad()
        total.backward()
        silent = [name for name, weight in detector.backbone.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert silent == []
        optimizer.step()

    detector.eval()
    with torch.no_grad():
        results = detector.test_step(batch(False))
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        assert 0 < len(found) <= PROPOSALS
        assert found.bboxes.isfinite().all()
        assert found.bboxes.min() >= 0
        assert found.bboxes.max() <= SIDE
        assert found.labels.max() < CLASSES
        assert (found.scores.diff() <= 0).all()
        if family == "Mask R-CNN":
            assert found.masks.shape == (len(found), SIDE, SIDE)
