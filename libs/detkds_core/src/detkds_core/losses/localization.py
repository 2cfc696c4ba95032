"""Distances between a student's and a teacher's boxes, cell by cell, weighted by how sure the teacher is of an object there."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BoxDistance = Callable[[Tensor, Tensor], Tensor]


def box_l1(student: Tensor, teacher: Tensor, least: float = 1.0) -> Tensor:
    """Mean of the four absolute differences, in widths and heights of the teacher's box: (...), boxes (..., 4) xyxy.

    Relative to the box, so that levels and image sizes weigh alike, as with IoU. A teacher's box counts as at least `least` pixels
    wide and high.
    """
    size = (teacher[..., 2:] - teacher[..., :2]).clamp_min(least)
    return ((student - teacher).abs() / torch.cat([size, size], dim=-1)).mean(-1)


def _overlap(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and union in square pixels. The union is at least 1e-6, which only boxes without area notice."""
    inner = (torch.minimum(student[..., 2:], teacher[..., 2:]) - torch.maximum(student[..., :2], teacher[..., :2])).clamp_min(0).prod(-1)
    union = (_area(student) + _area(teacher) - inner).clamp_min(1e-6)
    return inner / union, union


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def box_iou(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - IoU of boxes (..., 4) xyxy: (...), from 0 to 1; without gradient where the boxes do not touch."""
    return 1 - _overlap(student, teacher)[0]


def box_giou(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - GIoU of boxes (..., 4) xyxy: (...), from 0 to 2 (Rezatofighi et al. 2019)."""
    iou, union = _overlap(student, teacher)
    hull = (torch.maximum(student[..., 2:], teacher[..., 2:]) - torch.minimum(student[..., :2], teacher[..., :2])).prod(-1).clamp_min(1e-6)
    return 1 - iou + (hull - union).clamp_min(0) / hull


BOX_DISTANCES: Mapping[str, BoxDistance] = {"l1": box_l1, "iou": box_iou, "giou": box_giou}


def edge_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL between the distributions of each box side over its bins, mean over the four sides: (B, H*W) (LD, Zheng et al. 2022).

    student, teacher: raw scores (B, 4*(R+1), H, W), side-major.
    """
    B, channels = student.shape[:2]
    if channels % 4:
        raise ValueError(f"edge distributions need 4*(R+1) channels, got {channels}")
    student, teacher = (x.view(B, 4, channels // 4, -1) / temperature for x in (student, teacher))  # (B, 4, R+1, H*W)
    divergence = F.kl_div(student.log_softmax(2), teacher.log_softmax(2), reduction="none", log_target=True)
    return divergence.sum(2).mean(1) * temperature**2


def box_certainty(logits: Tensor, boxes: Tensor) -> Tensor:
    """The class score of the likeliest class for each decoded box: (B, H*W*A). 0 where a box has no area: it is no candidate.

    logits: (B, A*K, H, W) raw, anchor-major; boxes: (B, H*W*A, 4), cell-major. How many anchors there are follows from the two.
    """
    B, channels, H, W = logits.shape
    anchors, rest = divmod(boxes.shape[1], H * W)
    if rest or not anchors or channels % anchors:
        raise ValueError(f"{boxes.shape[1]} boxes and {channels} class scores on a map of {H} x {W} cells fit no number of anchors")
    scores = logits.view(B, anchors, channels // anchors, H, W).amax(2).sigmoid()  # (B, A, H, W)
    return scores.permute(0, 2, 3, 1).flatten(1) * (_area(boxes) > 0)


def weighted_mean(distances: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Sum of weight * distance over sum of weight. 0 without candidates.

    Over all levels together, so that a level on which the teacher sees nothing has no say.
    """
    total = sum((w.sum() for w in weights), start=weights[0].new_zeros(()))
    loss = sum(((w * d).sum() for w, d in zip(weights, distances, strict=True)), start=total.new_zeros(()))
    return loss / total.clamp_min(torch.finfo(total.dtype).tiny)
