"""Distances between a student's and a teacher's boxes, at cells or of proposals, and how sure the teacher is of an object there."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

BoxDistance = Callable[[Tensor, Tensor], Tensor]


def box_l1(student: Tensor, teacher: Tensor, least: float | Tensor = 1.0) -> Tensor:
    """Mean of the four absolute differences, in widths and heights of the teacher's box: (...), boxes (..., 4) xyxy.

    Relative to the box, so that levels and image sizes weigh alike, as with IoU. A teacher's box counts as at least `least` pixels
    wide and high, a number or one for each box (..., 1).
    """
    low, high = _corners(teacher)
    apart = (student - teacher).abs().unflatten(-1, (2, 2))
    return (apart / (high - low).clamp_min(least)[..., None, :]).mean((-2, -1))


Corners = tuple[Tensor, Tensor]  # (..., 2) each, xy: the least and the largest of a box


def _corners(boxes: Tensor) -> Corners:
    """As views, of which the backward is one copy; that of a slice fills a whole tensor."""
    low, high = boxes.unflatten(-1, (2, 2)).unbind(-2)
    return low, high


def _product(sides: Tensor) -> Tensor:
    """Width times height, (..., 2). The backward of torch's `prod` counts zeros, for which the host waits."""
    width, height = sides.unbind(-1)
    return width * height


def _overlap(student: Corners, teacher: Corners) -> tuple[Tensor, Tensor]:
    """Intersection over union, and union in square pixels. The union is at least 1e-6, which only boxes without area notice."""
    inner = _product((torch.minimum(student[1], teacher[1]) - torch.maximum(student[0], teacher[0])).clamp_min(0))
    union = (_area(student) + _area(teacher) - inner).clamp_min(1e-6)
    return inner / union, union


def _hull(student: Corners, teacher: Corners) -> Tensor:
    """Width and height of the box around both, (..., 2)."""
    return torch.maximum(student[1], teacher[1]) - torch.minimum(student[0], teacher[0])


def _area(corners: Corners) -> Tensor:
    return _product((corners[1] - corners[0]).clamp_min(0))


def box_iou(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - IoU of boxes (..., 4) xyxy: (...), from 0 to 1; without gradient where the boxes do not touch."""
    return 1 - _overlap(_corners(student), _corners(teacher))[0]


def box_giou(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - GIoU of boxes (..., 4) xyxy: (...), from 0 to 2 (Rezatofighi et al. 2019)."""
    both = _corners(student), _corners(teacher)
    iou, union = _overlap(*both)
    hull = _product(_hull(*both)).clamp_min(1e-6)
    return 1 - iou + (hull - union).clamp_min(0) / hull


def box_diou(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - IoU + the squared distance of the centres over the squared diagonal of the hull: (...), from 0 to 2 (Zheng et al. 2020)."""
    both = _corners(student), _corners(teacher)
    (s_low, s_high), (t_low, t_high) = both
    apart = (s_low + s_high - (t_low + t_high)) / 2
    return 1 - _overlap(*both)[0] + apart.square().sum(-1) / _hull(*both).square().sum(-1).clamp_min(1e-6)


BOX_DISTANCES: Mapping[str, BoxDistance] = {"l1": box_l1, "iou": box_iou, "giou": box_giou, "diou": box_diou}


def point_l1(student: Tensor, teacher: Tensor, least: float | Tensor = 1.0) -> Tensor:
    """Mean absolute difference of the points of each set, in widths and heights of the box around the teacher's: (...).

    Points (..., P, 2) xy. The box counts as at least `least` pixels wide and high, a number or one for each set (..., 1).
    """
    low, high = teacher.aminmax(dim=-2)
    return ((student - teacher).abs() / (high - low).clamp_min(least)[..., None, :]).mean(dim=(-2, -1))


def hulls(points: Tensor) -> Tensor:
    """The boxes around point sets (..., P, 2): (..., 4) xyxy."""
    return torch.cat(points.aminmax(dim=-2), dim=-1)


def delta_l1(student: Tensor, teacher: Tensor, proposals: Tensor, least: float = 1.0) -> Tensor:
    """Mean absolute difference of (dx / w, dy / h, log dw, log dh), relative to proposals of width w and height h: (...).

    All boxes (..., 4) xyxy. A box and a proposal count as at least `least` pixels wide and high.
    """
    (low, high), (s_low, s_high), (t_low, t_high) = map(_corners, (proposals, student, teacher))
    apart = (s_low + s_high - (t_low + t_high)) / 2 / (high - low).clamp_min(least)
    s, t = (s_high - s_low).clamp_min(least).log(), (t_high - t_low).clamp_min(least).log()
    return torch.cat([apart, s - t], dim=-1).abs().mean(-1)


def edge_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL between the distributions of each box side over its bins, mean over the four sides: (B, H*W) (LD, Zheng et al. 2022).

    student, teacher: raw scores (B, 4*(R+1), H, W), side-major.
    """
    B, channels = student.shape[:2]
    if channels % 4:
        raise ValueError(f"edge distributions need 4*(R+1) channels, got {channels}")
    student, teacher = (x.reshape(B, 4, channels // 4, -1) / temperature for x in (student, teacher))  # (B, 4, R+1, H*W)
    divergence = F.kl_div(student.log_softmax(2), teacher.log_softmax(2), reduction="none", log_target=True)
    return divergence.sum(2).mean(1) * temperature**2


def box_certainty(logits: Tensor, boxes: Tensor) -> Tensor:
    """The class score of the likeliest class for each decoded box: (B, H*W*A). 0 where a box has no area: it is no candidate.

    logits: (B, A*K, H, W) raw, anchor-major; boxes: (B, H*W*A, 4), cell-major. How many anchors there are follows from the two.
    """
    return likeliest_scores(logits, boxes.shape[1]).sigmoid() * has_area(boxes)


def likeliest_scores(logits: Tensor, boxes: int) -> Tensor:
    """The raw score of the likeliest class for each of so many boxes an image, as `box_certainty`: (B, H*W*A)."""
    B, channels, H, W = logits.shape
    anchors, rest = divmod(boxes, H * W)
    if rest or not anchors or channels % anchors:
        raise ValueError(f"{boxes} boxes and {channels} class scores on a map of {H} x {W} cells fit no number of anchors")
    scores = logits.reshape(B, anchors, channels // anchors, H, W).amax(2)  # (B, A, H, W)
    return scores.permute(0, 2, 3, 1).flatten(1)


def likeliest_boxes(scores: Tensor, *boxes: Tensor) -> tuple[Tensor, ...]:
    """How sure a detector is of each proposal's likeliest foreground class, (R,), and from each of `boxes` the box of that class, (R, 4).

    scores: (R, K+1) raw, background last; boxes: (R, K, 4) for each class, or (R, 1, 4) for all.
    """
    certainty, best = scores.softmax(1)[:, :-1].max(1)
    rows = torch.arange(len(best), device=best.device)
    return certainty, *(x[rows, best if x.shape[1] > 1 else 0] for x in boxes)


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes (..., 4) have an area. One without is no candidate."""
    return _area(_corners(boxes)) > 0
