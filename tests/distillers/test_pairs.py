"""Every named policy trains the pairs that it claims, on small real detectors, and is refused with a reason elsewhere."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkds_core.catalogue import detector
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.cross_head import head_tail
from detkds_core.detectors.pair import PairError, Student, Teacher, check_policy, make_adapters, match_levels
from detkds_core.detectors.tap import dense_head
from detkds_core.distillers import DistillerContext, build
from detkds_core.distillers.maskd import MasKD
from detkds_core.losses import Scene, needs, policy_losses
from detkds_core.policy import named_policies

# Teacher and student, and the named policies that they cannot run; all others they can.
RESPONSES = {"cwd_logits", "dist", "frs", "frs_gfl", "frs_fcos", "frs_two_stage", "gid", "maskd_boxes", "detkds_faster_rcnn"}
LD = {"ld", "ld_main"}
CROSS = {"crosskd", "crosskd_fcos", "crosskd_gfl", "crosskd_pkd"}
ROIS = {"maskd_two_stage_boxes"}
PAIRS = {
    ("gfl_r18w16_fpn32", "gfl_r18w8_fpn16"): ROIS,
    ("retinanet_r18w8_fpn32", "retinanet_r18w8_fpn32"): {*LD, *ROIS},
    ("fcos_r18w8_fpn32", "fcos_r18w8_fpn32"): {*LD, *ROIS},
    ("gfl_r18w8_fpn16", "fcos_r18w8_fpn32"): {*LD, *ROIS},
    ("faster_rcnn_r18w8_fpn32", "faster_rcnn_r18w8_fpn32"): {*LD, *CROSS},
    ("retinanet_r18w8_fpn32", "fcos_r18w8_fpn32"): {*LD, *RESPONSES, *CROSS, *ROIS},
    ("atss_r18w16_fpn32", "atss_r18w8_fpn32"): {*LD, *ROIS},
    ("reppoints_r18w16_fpn32", "reppoints_r18w8_fpn32"): {*LD, *CROSS, *ROIS},
    ("cascade_rcnn_r18w8_fpn32", "cascade_rcnn_r18w8_fpn32"): {*LD, *CROSS},
    ("retinanet_r18w8_fpn32", "faster_rcnn_r18w8_fpn32"): {*LD, *RESPONSES, *CROSS, *ROIS},
}


def batch() -> tuple[Tensor, list[Any], tuple[Tensor, ...]]:
    """Three images of 64 pixels, the last without objects."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    boxes = (torch.tensor([[8.0, 16.0, 40.0, 40.0], [30.0, 4.0, 60.0, 28.0]]), torch.tensor([[4.0, 4.0, 30.0, 60.0]]), torch.zeros(0, 4))
    samples = []
    for own in boxes:
        sample = DetDataSample(metainfo={"img_shape": (64, 64), "pad_shape": (64, 64)})
        sample.gt_instances = InstanceData(bboxes=own.clone(), labels=torch.zeros(len(own), dtype=torch.long))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)), samples, boxes


class Pairing:
    """A teacher and a student with random weights, and what distillers need to know of them."""

    def __init__(self, teacher: str, student: str) -> None:
        self.entries = detector(teacher), detector(student)
        levels = match_levels(*self.entries)
        torch.manual_seed(0)
        self.teacher = Teacher(build_detector(teacher, ("a", "b")), levels.teacher)
        model = build_detector(student, ("a", "b")).train()
        self.student = Student(model, levels.student, make_adapters(*self.entries, len(levels.student)))
        channels = (self.entries[0].channels,) * len(levels.teacher)  # the student's signals come adapted
        heads = [dense_head(one) for one in (self.teacher.model, model)]
        self.context = DistillerContext(
            channels,
            channels,
            tower_channels=(heads[1].feat_channels, heads[0].feat_channels),
            head_tail=head_tail(heads[0], levels.teacher),
            tokens=MasKD(channels, channels).mask_modules.state_dict(),
        )


@pytest.fixture(scope="module", params=PAIRS, ids=" -> ".join)
def pair(request: pytest.FixtureRequest) -> tuple[Pairing, set[str]]:
    return Pairing(*request.param), PAIRS[request.param]


@pytest.mark.parametrize("name", [name for name in named_policies() if name != "none"])
def test_it_trains_or_is_refused_with_a_reason(name: str, pair: tuple[Pairing, set[str]]) -> None:
    pairing, refused = pair
    policy = named_policies()[name].policy
    if name in refused:
        with pytest.raises(PairError, match=r"policy\.(terms|distillers)\[\d\].*: .+"):
            check_policy(policy, *pairing.entries)
        return
    check_policy(policy, *pairing.entries)
    wanted, (images, samples, boxes) = needs(policy), batch()
    modules = build(policy, pairing.context)
    learnt = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([*pairing.student.parameters(), *learnt], lr=1e-4)
    for step in range(2):
        scene = Scene(boxes, (64, 64), step=600 + step, total_steps=1000)
        task, ours = pairing.student.losses(images, samples, wanted)
        theirs = pairing.teacher.signals(images, wanted)
        if ours.rois is not None:
            theirs = replace(theirs, rois=pairing.teacher.regard(ours.rois, wanted))
        losses = policy_losses(policy, ours, theirs, scene) if policy.terms else {}
        for module in modules:
            losses |= module(ours, theirs, scene)
        assert all(loss.isfinite() for loss in losses.values()), losses
        total = torch.stack(list(losses.values())).sum()
        assert total.item() > 0
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(pairing.student.parameters(), 35.0)
        optimizer.step()
        assert task
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in pairing.student.model.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learnt)
    assert all(p.grad is None for p in pairing.teacher.model.parameters())
