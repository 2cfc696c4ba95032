"""What a distillation loss is computed from: the signals of a detector and the scene they were taken on."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Signals:
    """What one forward of a detector gave, a tensor a level, fine to coarse.

    A tuple is empty when the detector has no such signal or when nobody asked for it.
    """

    features: tuple[Tensor, ...]  # (B, C, H, W) of the neck
    logits: tuple[Tensor, ...] = ()  # (B, A*K, H, W) raw class scores, anchor-major
    boxes: tuple[Tensor, ...] = ()  # (B, H*W*A, 4) decoded, xyxy in pixels of the padded batch image, cell-major (H, W, A)
    edges: tuple[Tensor, ...] = ()  # (B, 4*(R+1), H, W) raw scores of GFL's edge distributions


@dataclass(frozen=True, slots=True)
class Scene:
    """What both detectors looked at, and when in the training."""

    boxes: tuple[Tensor, ...]  # ground truth of each image, (n_i, 4) xyxy in pixels of the padded batch image; n_i may be 0
    batch_shape: tuple[int, int]  # height, width in pixels of the padded batch image
    step: int = 0  # training step, from 0
    seed: int = 0  # of everything that a loss draws at random
    total_steps: int = 1  # length of the training
