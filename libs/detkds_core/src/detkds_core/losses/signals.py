"""What a distillation loss is computed from: the signals of a detector and the scene they were taken on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# What a student says only in its own loss: what it makes of proposals, which the teacher is asked about then, and which cells it took for
# objects, which a detector that learns alone has.
OF_ROIS = frozenset({"rois", "roi_scores", "roi_boxes", "roi_masks"})
STUDENT_ALONE = frozenset({"assigned", "valuable"})
LATE = OF_ROIS | STUDENT_ALONE


def full(x: Tensor) -> Tensor:
    """x in float32, in which losses are computed; float64 stays, which tells rounding from a difference."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True, slots=True)
class Rois:
    """What a two-stage detector says of proposals that teacher and student share: those that the student's RoI head trains on."""

    regions: Tensor  # (R, 5): image index, then xyxy in pixels of the padded batch image
    scores: Tensor | None = None  # (R, K+1) raw class scores, background last
    boxes: Tensor | None = None  # (R, K, 4) decoded for each class; xyxy in pixels of the padded batch image
    masks: Tensor | None = None  # (P, 1, h, w) raw mask scores of the positive proposals, for the class that the student's loss assigned
    positive: Tensor | None = None  # (P, 5): those proposals, as regions
    labels: Tensor | None = None  # (P,) the classes assigned to them


@dataclass(frozen=True, slots=True)
class Signals:
    """What one forward of a detector gave, a tensor a level, fine to coarse.

    A tuple is empty when the detector has no such signal or when nobody asked for it.
    """

    features: tuple[Tensor, ...]  # (B, C, H, W) of the neck
    logits: tuple[Tensor, ...] = ()  # (B, A*K, H, W) raw class scores, anchor-major
    boxes: tuple[Tensor, ...] = ()  # (B, H*W*A, 4) decoded, xyxy in pixels of the padded batch image, cell-major (H, W, A)
    edges: tuple[Tensor, ...] = ()  # (B, 4*(R+1), H, W) raw scores of GFL's edge distributions
    points: tuple[Tensor, ...] = ()  # (B, H*W, P, 2) RepPoints' refined point sets, xy in pixels of the padded batch image
    assigned: tuple[Tensor, ...] = ()  # (B, H*W*A) bool: cells that the student's own loss takes for objects; the student's alone
    valuable: tuple[Tensor, ...] = ()  # (B, H*W*A): IoU of cells that nearly became an object's with it, 0 of others; the student's alone
    # CrossKD: features inside the dense head, of its class and of its box branch, a pair a level; by the layer that they come from
    towers: Mapping[int, tuple[tuple[Tensor, Tensor], ...]] = field(default_factory=dict)
    rois: Rois | None = None
    classes: int | None = None  # K, that each of the A predictions of a cell scores; None: not known, and all channels are taken for one's


@dataclass(frozen=True, slots=True)
class Scene:
    """What both detectors looked at, and when in the training."""

    boxes: tuple[Tensor, ...]  # ground truth of each image, (n_i, 4) xyxy in pixels of the padded batch image; n_i may be 0
    batch_shape: tuple[int, int]  # height, width in pixels of the padded batch image
    step: int = 0  # training step, from 0
    seed: int = 0  # of everything that a loss draws at random
    total_steps: int = 1  # length of the training
    place: int = 0  # of the first image among all of the step, which several forwards or devices may share
