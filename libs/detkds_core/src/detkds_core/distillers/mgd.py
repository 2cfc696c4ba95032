"""Masked generative distillation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkds_core.distillers.levels import absolute_error, adapters, aligned, squared_error
from detkds_core.losses.attention import draw_mask
from detkds_core.losses.signals import Scene, Signals


class MGDLevel(nn.Module):
    """The generator of one level."""

    def __init__(self, channels: int, l1: bool) -> None:
        super().__init__()
        self.error = absolute_error if l1 else squared_error
        self.generation = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, masked: Tensor, teacher: Tensor) -> Tensor:
        return self.error(self.generation(masked), teacher)


class MGD(nn.Module):
    """Masked generative distillation (MGD, Yang et al., ECCV 2022).

    The student's features lose a share `mask_ratio` of their positions, and two 3x3 convolutions must generate the teacher's from the rest.
    One-stage detectors use alpha 2e-5 and mask_ratio 0.65, two-stage ones 5e-7 and 0.45. l1: absolute differences for squared ones, as
    DetKDS declares (published configurations of its Cascade Mask R-CNN pairs).
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        alpha: float = 2e-5,
        mask_ratio: float = 0.65,
        l1: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio: {mask_ratio} is not a share of positions to mask; from 0 to below 1")
        self.alpha, self.mask_ratio = alpha, mask_ratio
        self.align = adapters(student_channels, teacher_channels)
        self.levels = nn.ModuleList(MGDLevel(c, l1) for c in teacher_channels)

    def forward(self, student: Signals, teacher: Signals, scene: Scene) -> dict[str, Tensor]:
        """{"distill/mgd_generation": weighted scalar}, summed over levels. Seed, step, level and the place of an image decide its mask."""
        with torch.autocast(student.features[0].device.type, enabled=False):
            losses = []
            for level, (s, t) in enumerate(aligned(self.align, student, teacher)):
                keep = draw_mask(s, (scene.seed, scene.step, 0, level), scene.place, 1 - self.mask_ratio)
                losses.append(self.levels[level](s * keep, t))
            return {"distill/mgd_generation": self.alpha * torch.stack(losses).sum()}
