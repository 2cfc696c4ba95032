"""General instance distillation: where teacher and student differ most, whatever the ground truth says."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, nms, roi_align

from detkds_core.losses.localization import box_l1
from detkds_core.losses.signals import Scene, Signals

ROI_SIZE, SAMPLES = 10, 2  # cells a side of an instance, sampling points a side of a cell
SMALLEST = 1 / 80  # least side of an instance, of the image's longer one: the original's 10 pixels of 800
CANONICAL_SIZE, CANONICAL_STRIDE = 224, 16  # an instance of this many pixels is cut from the map of this stride (FPN)
MATCHED = 0.5  # least overlap of a prediction with the instance that it found


class Predictions(NamedTuple):
    """Every prediction of an image, all levels together: M of them."""

    logits: Tensor  # (B, M, K) raw class scores
    boxes: Tensor  # (B, M, 4) xyxy in pixels


class GID(nn.Module):
    """General instance distillation (GID, Dai et al., CVPR 2021).

    A prediction is told by how much the best class scores of teacher and student differ there, and its box is that of the surer one.
    Those that tell most and do not overlap are the general instances of an image. Three losses look at them:
    feature: squared difference of the maps cut out there, sum over channels, mean over positions and instances, the student's map after a
    3x3 adapter; relation: smooth L1 of the distances between instances, each side's in units of its mean (3 instances at least);
    response: binary cross-entropy of class scores (less the teacher's entropy, so that it is 0 at identity) and L1 of the boxes in units
    of the teacher's, sums over classes and sides, mean over the predictions whose box overlaps an instance by half. The original matches
    anchors instead, which not every detector has.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        feature: float = 5e-4,
        relation: float = 40.0,
        classes: float = 0.1,
        boxes: float = 1.0,
        instances: int = 10,
        candidates: int = 3000,
        iou: float = 0.3,
    ) -> None:
        super().__init__()
        self.feature, self.relation, self.classes, self.boxes = feature, relation, classes, boxes
        self.instances, self.candidates, self.iou = instances, candidates, iou
        channels = list(zip(student_channels, teacher_channels, strict=True))
        kinds = dict.fromkeys(channels)
        # One adapter serves all levels of the same channels, as in the original.
        self.adapt = nn.ModuleList(nn.Conv2d(s, t, 3, padding=1) for s, t in kinds)
        self.adapter_of = [list(kinds).index(one) for one in channels]

    def forward(self, student: Signals, teacher: Signals, scene: Scene) -> dict[str, Tensor]:
        """{"distill/gid_feature", "distill/gid_relation", "distill/gid_classes", "distill/gid_boxes"}, weighted scalars."""
        with torch.autocast(student.features[0].device.type, enabled=False):
            ours, theirs = predictions(student), predictions(teacher, detach=True)
            if ours.logits.shape != theirs.logits.shape:
                shapes = f"{tuple(ours.logits.shape)} at the student and {tuple(theirs.logits.shape)} at the teacher"
                raise ValueError(f"gid compares prediction with prediction: images, predictions and classes are {shapes}")
            boxes, telling = general_boxes(ours, theirs, scene.batch_shape)
            found = [self.select(b, d, scene.batch_shape) for b, d in zip(boxes, telling, strict=True)]  # per image (n, 4)
            adapted = [self.adapt[which](s.float()) for which, s in zip(self.adapter_of, student.features, strict=True)]
            s_roi = cut(adapted, found, scene.batch_shape)
            t_roi = cut([t.detach().float() for t in teacher.features], found, scene.batch_shape)
            classes, sides = responses(ours, theirs, boxes, found)
            return {
                "distill/gid_feature": self.feature * (s_roi - t_roi).square().sum() / max(1, len(s_roi) * ROI_SIZE**2),
                "distill/gid_relation": self.relation * relation(s_roi, t_roi),
                "distill/gid_classes": self.classes * classes,
                "distill/gid_boxes": self.boxes * sides,
            }

    def select(self, boxes: Tensor, telling: Tensor, batch_shape: tuple[int, int]) -> Tensor:
        """The general instances of an image, (n, 4), from its boxes (M, 4) and how telling each is (M,)."""
        size = boxes[:, 2:] - boxes[:, :2]
        telling = telling.masked_fill((size < SMALLEST * max(batch_shape)).any(1), 0)
        order = telling.topk(min(self.candidates, len(telling))).indices
        order = order[telling[order] > 0]
        kept = nms(boxes[order], telling[order], self.iou)
        return boxes[order[kept[: self.instances]]]


def predictions(signals: Signals, detach: bool = False) -> Predictions:
    """All levels' class scores, a row a prediction, and boxes of a detector."""
    if not signals.logits or len(signals.logits) != len(signals.boxes):
        raise ValueError(f"gid needs class scores and boxes a level, got {len(signals.logits)} and {len(signals.boxes)}")
    rows = []
    for logits, boxes in zip(signals.logits, signals.boxes, strict=True):
        B, channels, H, W = logits.shape
        anchors = boxes.shape[1] // (H * W)
        scores = logits.float().view(B, anchors, channels // anchors, H, W).permute(0, 3, 4, 1, 2)  # cell-major, as the boxes
        rows.append(scores.reshape(B, H * W * anchors, -1))
    together, boxes = torch.cat(rows, 1), torch.cat([b.float() for b in signals.boxes], 1)
    return Predictions(together.detach(), boxes.detach()) if detach else Predictions(together, boxes)


@torch.no_grad()
def general_boxes(ours: Predictions, theirs: Predictions, batch_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The box of the surer detector for every prediction, cut off at the image (B, M, 4), and how much the two differ (B, M)."""
    surer = theirs.logits.amax(2).sigmoid() - ours.logits.amax(2).sigmoid()
    boxes = torch.where(surer[..., None] > 0, theirs.boxes, ours.boxes)
    height, width = batch_shape
    return boxes.minimum(boxes.new_tensor([width, height, width, height])).clamp_min(0), surer.abs()


def cut(maps: Sequence[Tensor], boxes: Sequence[Tensor], batch_shape: tuple[int, int]) -> Tensor:
    """The instances cut out of the pyramid, each on the level that suits its size: (n, C, 10, 10), n of all images. Needs equal C."""
    strides = [batch_shape[0] / m.shape[2] for m in maps]
    together = torch.cat(list(boxes))
    image = torch.repeat_interleave(
        torch.arange(len(boxes), device=together.device), torch.tensor([len(b) for b in boxes], device=together.device)
    )
    rois = torch.cat([image[:, None].to(together.dtype), together], 1)
    size = (together[:, 2:] - together[:, :2]).prod(1).sqrt()
    wanted = torch.log2(size * CANONICAL_STRIDE / CANONICAL_SIZE + 1e-8).floor()
    octaves = torch.tensor([round(math.log2(stride)) for stride in strides], device=together.device)
    level = (wanted.clamp(octaves.min(), octaves.max())[:, None] - octaves).abs().argmin(1)
    regions = maps[0].new_zeros(len(rois), maps[0].shape[1], ROI_SIZE, ROI_SIZE)
    for place, (feat, stride) in enumerate(zip(maps, strides, strict=True)):
        here = (level == place).nonzero().squeeze(1)
        regions = regions.index_put((here,), roi_align(feat, rois[here], ROI_SIZE, 1 / stride, SAMPLES, aligned=True))
    return regions


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the pairwise distances of n instances, mean over ordered pairs; 0 for fewer than 3, whose distances say nothing."""
    n = len(student)
    if n < 3:
        return student.sum() * 0
    return F.smooth_l1_loss(_distances(student), _distances(teacher), reduction="sum") / (n * (n - 1))


def _distances(instances: Tensor) -> Tensor:
    """Euclidean distances between instances in units of their mean, (n, n)."""
    flat = instances.flatten(1)
    square = flat.square().sum(1)
    distance = (square[:, None] + square - 2 * flat @ flat.T).clamp_min(1e-12).sqrt()
    distance = distance * (1 - torch.eye(len(flat), device=flat.device))
    return distance / (distance.sum() / (len(flat) * (len(flat) - 1)))


def responses(ours: Predictions, theirs: Predictions, boxes: Tensor, found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Class and box loss over the predictions that found an instance; 0 where none did."""
    with torch.no_grad():
        matched = torch.stack([(box_iou(own, gi) >= MATCHED).any(1) for own, gi in zip(boxes, found, strict=True)])  # (B, M)
    count = matched.sum().clamp_min(1)
    raw, target = ours.logits[matched], theirs.logits[matched].sigmoid()
    entropy = F.binary_cross_entropy_with_logits(theirs.logits[matched], target, reduction="sum")
    classes = (F.binary_cross_entropy_with_logits(raw, target, reduction="sum") - entropy) / count
    return classes, 4 * box_l1(ours.boxes[matched], theirs.boxes[matched]).sum() / count
