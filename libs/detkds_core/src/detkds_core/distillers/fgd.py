"""Focal and global distillation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkds_core.distillers.levels import adapters, aligned, squared_error
from detkds_core.losses.attention import channel_weights, spatial_weights
from detkds_core.losses.regions import region_masks
from detkds_core.losses.signals import Scene, Signals


def global_context(feat: Tensor, conv_mask: nn.Module, channel_add_conv: nn.Module) -> Tensor:
    """FGD's GcBlock: add to every position what the attended image as a whole says. (N, C, H, W) in and out."""
    attention = conv_mask(feat).flatten(2).softmax(2)  # (N, 1, H*W)
    context = (feat.flatten(2) @ attention.transpose(1, 2))[..., None]  # (N, C, 1, 1)
    added: Tensor = channel_add_conv(context)
    return feat + added


class FGDLevel(nn.Module):
    """The learned parts of FGD on one level: a GcBlock for the student and one for the teacher."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_mask_s, self.conv_mask_t = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)
        self.channel_add_conv_s, self.channel_add_conv_t = (
            nn.Sequential(
                nn.Conv2d(channels, channels // 2, 1),
                nn.LayerNorm([channels // 2, 1, 1]),
                nn.ReLU(),
                nn.Conv2d(channels // 2, channels, 1),
            )
            for _ in range(2)
        )
        for conv in (self.conv_mask_s, self.conv_mask_t):
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
        # Both blocks start as the identity, so that the relation loss starts as plain mimicking.
        for block in (self.channel_add_conv_s, self.channel_add_conv_t):
            for parameter in block[3].parameters():
                nn.init.zeros_(parameter)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        ours = global_context(student, self.conv_mask_s, self.channel_add_conv_s)
        theirs = global_context(teacher, self.conv_mask_t, self.channel_add_conv_t)
        return squared_error(ours, theirs)


class FGD(nn.Module):
    """Focal and global distillation (FGD, Yang et al., CVPR 2022).

    focal: squared error weighted by the teacher's spatial and channel attention, alpha over foreground and beta over background;
    attention: gamma times the L1 distance of both attentions; relation: lambda_ times the squared error after a GcBlock on either side.
    Sums over elements, mean over images, so the weights belong to features of 256 channels on 800-pixel images.
    An image without boxes is all background.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        temperature: float = 0.5,
        alpha: float = 1e-3,
        beta: float = 5e-4,
        gamma: float = 5e-4,
        lambda_: float = 5e-6,
    ) -> None:
        super().__init__()
        self.temperature, self.alpha, self.beta, self.gamma, self.lambda_ = temperature, alpha, beta, gamma, lambda_
        self.align = adapters(student_channels, teacher_channels)
        self.levels = nn.ModuleList(FGDLevel(c) for c in teacher_channels)

    def forward(self, student: Signals, teacher: Signals, scene: Scene) -> dict[str, Tensor]:
        """{"distill/fgd_focal", "distill/fgd_attention", "distill/fgd_relation"}, weighted scalars, summed over levels."""
        with torch.autocast(student.features[0].device.type, enabled=False):
            return self._losses(student, teacher, scene)

    def _losses(self, student: Signals, teacher: Signals, scene: Scene) -> dict[str, Tensor]:
        focal, attention, relation = [], [], []
        boxes = [b.to(student.features[0].device) for b in scene.boxes]
        for level, (s, t) in enumerate(aligned(self.align, student, teacher)):
            N, _, H, W = t.shape
            foreground, background = region_masks(boxes, (H, W), scene.batch_shape)
            spatial_s, channel_s = spatial_weights(s, self.temperature), channel_weights(s, self.temperature)
            spatial_t, channel_t = spatial_weights(t, self.temperature), channel_weights(t, self.temperature)
            error = ((s - t).square() * channel_t).sum(1, keepdim=True)  # (N, 1, H, W)
            focal.append((error * spatial_t * (self.alpha * foreground + self.beta * background)).sum() / N)
            attention.append(((channel_s - channel_t).abs().sum() + (spatial_s - spatial_t).abs().sum()) / N)
            relation.append(self.levels[level](s, t))
        return {
            "distill/fgd_focal": torch.stack(focal).sum(),
            "distill/fgd_attention": self.gamma * torch.stack(attention).sum(),
            "distill/fgd_relation": self.lambda_ * torch.stack(relation).sum(),
        }
