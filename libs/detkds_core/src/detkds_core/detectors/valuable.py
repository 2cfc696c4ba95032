"""LD's valuable localization region: anchors that nearly became an object's, of the heads that assign objects by overlap."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkds_core.catalogue.entry import BY_OVERLAP
from detkds_core.losses.localization import box_diou, box_iou

ALPHA = 0.25  # of the overlap from which an anchor becomes an object's: from this share on it is valuable


def overlaps(
    assigner: Any, anchors: Sequence[Sequence[Tensor]], usable: Sequence[Sequence[Tensor]], objects: Sequence[Any]
) -> list[Tensor]:
    """How much the valuable anchors of each image overlap an object, (M,) each over all levels, 0 for other anchors (`valuable`).

    assigner: MMDetection's, one of `BY_OVERLAP`; the others arguments are as its heads hand them to `get_targets`, an entry an
    image: the anchors (M_l, 4) of each level, which of them lie on the image (M_l,), and its ground truth with `bboxes` (n, 4).
    Raises ValueError for an assigner that does not compare anchors with objects.
    """
    kind = type(assigner).__name__
    if kind not in BY_OVERLAP:
        raise ValueError(f"{kind} assigns no object to anchors by their overlap, so that none nearly becomes one; leave 'valuable' out")
    found = []
    for levels, masks, truth in zip(anchors, usable, objects, strict=True):
        here, boxes = torch.cat(list(masks)), truth.bboxes
        if kind == "ATSSAssigner":
            least = adaptive_thresholds(levels, masks, boxes, assigner.topk)
        else:
            least = boxes.new_full((len(boxes),), assigner.pos_iou_thr)
        found.append(valuable(torch.cat(list(levels)), boxes, least) * here)
    return found


def valuable(anchors: Tensor, boxes: Tensor, least: Tensor) -> Tensor:
    """The IoU of each anchor with the object that it nearly became, the largest of several, 0 with none: (M,) (LD, Zheng et al. 2022).

    anchors: (M, 4), boxes: (n, 4), both xyxy in pixels. least: of each object the overlap from which an anchor becomes its, (n,). An anchor
    is valuable to an object if its distance-IoU with it, IoU - squared distance of the centres / squared diagonal of the box around both,
    is at least ALPHA times that and below it. As an example, an anchor of 8 x 8 pixels that lies 4 to the right of an object of that
    size has the IoU 1/3 and the distance-IoU 1/3 - 16 / 208: with a least overlap of 1/2 it is valuable, by 1/3.
    """
    if not len(boxes):
        return anchors.new_zeros(len(anchors))
    pairs = anchors[:, None], boxes[None]
    distance_iou = 1 - box_diou(*pairs)  # (M, n)
    nearly = (distance_iou >= ALPHA * least) & (distance_iou < least)
    return ((1 - box_iou(*pairs)) * nearly).amax(1)


def adaptive_thresholds(levels: Sequence[Tensor], usable: Sequence[Tensor], boxes: Tensor, nearest: int) -> Tensor:
    """The overlap from which an anchor becomes an object's under ATSS (Zhang et al. 2020): (n,), NaN where it has fewer than 2 candidates.

    Mean plus standard deviation of the IoU between an object and its candidates: on each level the `nearest` usable anchors by centre.
    levels: (M_l, 4) each; usable: (M_l,) bool each; boxes: (n, 4).
    """
    shares, counted = [], []
    for anchors, here in zip(levels, usable, strict=True):
        if not len(anchors):
            continue
        apart = (anchors[:, None, :2] + anchors[:, None, 2:] - boxes[None, :, :2] - boxes[None, :, 2:]).square().sum(-1)  # (M_l, n)
        distance, place = apart.masked_fill(~here[:, None], torch.inf).topk(min(nearest, len(anchors)), dim=0, largest=False)
        shares.append(1 - box_iou(anchors[place], boxes))  # (candidates, n)
        counted.append(distance.isfinite())
    share, real = torch.cat(shares), torch.cat(counted)
    count = real.sum(0)
    mean = (share * real).sum(0) / count
    return mean + (((share - mean) * real).square().sum(0) / (count - 1)).sqrt()
