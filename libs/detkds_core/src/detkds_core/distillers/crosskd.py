"""Cross-head distillation: the student's head features, seen through the teacher's head."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkds_core.distillers.context import HeadTail
from detkds_core.losses.localization import box_giou, box_iou, edge_divergence
from detkds_core.losses.signals import Scene, Signals

STYLE_EPS = 1e-6  # on the standard deviation
LEAST_IOU = 1e-6  # whose logarithm is finite

Towers = Sequence[tuple[Tensor, Tensor]]  # features of the class and of the box branch, a pair a level


class CrossKD(nn.Module):
    """CrossKD (Wang et al., CVPR 2024).

    Features inside the student's dense head take the teacher's mean and spread, channel by channel, and go through the rest of the
    teacher's head; what comes out is compared with what the teacher itself predicts, so that no head serves two masters.
    classes: |σ_s - σ_t| * binary cross-entropy, sum over all, over the number of cells that the student's loss takes for objects;
    boxes: weighted by the teacher's best class score; KL of the edge distributions over the sum of weights (GFL), else 1 - GIoU, or
    without `giou` -ln IoU, as published for FCOS, over the number of those cells.
    layer: the convolution of a branch after which features change heads, from 1 on; 3 of 4 as published, for FCOS 2.
    Where the heads differ in width, 1x1 convolutions adapt the student's features; they are the only learned part.
    """

    def __init__(
        self,
        head_tail: HeadTail,
        tower_channels: tuple[int, int] | None = None,
        classes: float = 1.0,
        boxes: float = 1.0,
        temperature: float = 1.0,
        giou: bool = True,
        layer: int = 3,
    ) -> None:
        super().__init__()
        self.head_tail, self.classes, self.boxes, self.temperature = head_tail, classes, boxes, temperature
        self.layer, self.box_distance = layer, box_giou if giou else box_log_iou
        same = tower_channels is None or tower_channels[0] == tower_channels[1]
        self.adapt = nn.ModuleList(nn.Identity() if same else nn.Conv2d(*tower_channels, 1) for _ in range(2))  # class, box branch

    def forward(self, student: Signals, teacher: Signals, scene: Scene) -> dict[str, Tensor]:
        """{"distill/crosskd_classes", "distill/crosskd_boxes"}, weighted scalars, summed over levels."""
        ours, theirs = (side.towers.get(self.layer, ()) for side in (student, teacher))
        if not ours or len(ours) != len(theirs):
            raise ValueError(f"crosskd needs features of both heads after layer {self.layer}, got {len(ours)} and {len(theirs)} levels")
        if not student.assigned:
            raise ValueError("crosskd needs the cells that the student's own loss takes for objects, and got none")
        objects = torch.stack([a.sum() for a in student.assigned]).sum().clamp_min(1).float()
        with torch.autocast(objects.device.type, enabled=False):
            classes, boxes, weights, edges = [], [], [], False
            for (s_logits, s_boxes), (t_logits, t_boxes) in self._through_teacher(ours, theirs):
                edges = t_boxes.ndim == 4
                classes.append(quality_focal(s_logits, t_logits).sum())
                weight = best_score(t_logits, 1 if edges else t_boxes.shape[1] // t_logits[0, 0].numel())
                distance = edge_divergence(s_boxes, t_boxes, self.temperature) if edges else self.box_distance(s_boxes, t_boxes)
                boxes.append((weight * distance).sum())
                weights.append(weight.sum())
            by = torch.stack(weights).sum().clamp_min(1e-6) if edges else objects
            return {
                "distill/crosskd_classes": self.classes * torch.stack(classes).sum() / objects,
                "distill/crosskd_boxes": self.boxes * torch.stack(boxes).sum() / by,
            }

    def _through_teacher(self, student: Towers, teacher: Towers) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
        """Class scores and box outputs of each level: from the student's features, and from the teacher's own."""
        for level, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
            own = [t.detach().float() for t in theirs]
            seen = [restyle(adapt(s.float()), t) for adapt, s, t in zip(self.adapt, ours, own, strict=True)]
            with torch.no_grad():
                answer = self.head_tail(own[0], own[1], level, self.layer)
            yield self.head_tail(seen[0], seen[1], level, self.layer), answer


def restyle(feat: Tensor, like: Tensor) -> Tensor:
    """feat with the mean and the unbiased standard deviation of `like`, channel by channel over images and positions. (N, C, H, W).

    A channel of one value has no spread and takes that of `like`, as a constant one does.
    """
    freedom = min(1, feat[:, 0].numel() - 1)
    (std, mean), (wanted_std, wanted_mean) = (torch.std_mean(x, (0, 2, 3), correction=freedom, keepdim=True) for x in (feat, like))
    return (feat - mean) / (std + STYLE_EPS) * wanted_std + wanted_mean


def quality_focal(student: Tensor, teacher: Tensor) -> Tensor:
    """|σ(student) - σ(teacher)| * binary cross-entropy, element by element; 0 where they agree."""
    target = teacher.sigmoid()
    return F.binary_cross_entropy_with_logits(student, target, reduction="none") * (student.sigmoid() - target).abs()


def box_log_iou(student: Tensor, teacher: Tensor) -> Tensor:
    """-ln IoU of boxes (..., 4) xyxy: (...), at most 13.8; without gradient where the boxes do not touch."""
    return -(1 - box_iou(student, teacher)).clamp_min(LEAST_IOU).log()


def best_score(logits: Tensor, anchors: int) -> Tensor:
    """The score of the likeliest class of each prediction: (B, H*W*A), cell-major, of (B, A*K, H, W) raw, anchor-major."""
    B, channels, H, W = logits.shape
    return logits.view(B, anchors, channels // anchors, H, W).amax(2).sigmoid().permute(0, 2, 3, 1).flatten(1)
