"""Masked knowledge distillation, and the receptive tokens that it looks with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkds_core.distillers.levels import adapters, aligned
from detkds_core.losses.signals import Scene, Signals


class MaskTokens(nn.Module):
    """Receptive tokens of one level: each gives a mask over positions, and the feature says how much each counts."""

    def __init__(self, channels: int, num_tokens: int = 6) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(0.01 * torch.randn(num_tokens, channels))
        self.prob = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, num_tokens, 1))

    def masks(self, feat: Tensor) -> Tensor:
        """sigmoid(token . feat) at each position: (N, T, H, W) in 0 to 1."""
        return torch.einsum("tc,nchw->nthw", self.mask_token, feat).sigmoid()

    def weights(self, feat: Tensor) -> Tensor:
        """How much each token counts for each image: (N, T), sum 1."""
        scores: Tensor = self.prob(feat)
        return scores.flatten(1).softmax(1)

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """What the tokens are learned with: the feature seen through weighted masks (N, C, H, W), and how alike the masks are (scalar).

        A frozen teacher that must still detect from the masked feature, plus the likeness (mean dice coefficient of different masks),
        teaches the tokens to look at what matters, each at something else.
        """
        masks = self.masks(feat)
        seen = feat * torch.einsum("nt,nthw->nhw", self.weights(feat), masks)[:, None]
        flat = masks.flatten(2)  # (N, T, H*W)
        energy = flat.square().sum(2)
        dice = 2 * (flat @ flat.transpose(1, 2)) / (energy[:, :, None] + energy[:, None, :] + 1e-12)  # (N, T, T)
        T = flat.shape[1]
        others = dice.sum((1, 2)) - dice.diagonal(dim1=1, dim2=2).sum(1)
        return seen, (others / max(T * (T - 1), 1)).mean()


class MasKD(nn.Module):
    """Masked knowledge distillation with learned receptive tokens (MasKD, Huang et al., ICLR 2023).

    For each token: squared error under its mask, divided by the mask's area, mean over channels; the tokens' losses are averaged by the
    weights that the teacher's feature gives them. With custom_mask, from step masks_from on, the masks that the tokens give on the
    student's feature multiply the teacher's.

    Tokens are not trained by this loss, which they could lower by looking away: they carry no gradient here. They are learned on the
    teacher beforehand, with `MaskTokens.forward` after `requires_grad_(True)`, and loaded with `load_state_dict`; fresh tokens give masks
    of about 1/2 everywhere, which is plain mimicking.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        num_tokens: int = 6,
        weight_mask: bool = True,
        custom_mask: bool = True,
        masks_from: int = 1000,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight_mask, self.custom_mask, self.masks_from, self.weight = weight_mask, custom_mask, masks_from, weight
        self.align = adapters(student_channels, teacher_channels)
        self.mask_modules = nn.ModuleList(MaskTokens(c, num_tokens) for c in teacher_channels)
        self.mask_modules.requires_grad_(False)

    def forward(self, student: Signals, teacher: Signals, scene: Scene) -> dict[str, Tensor]:
        """{"distill/maskd_feature": weighted scalar}, summed over levels."""
        with torch.autocast(student.features[0].device.type, enabled=False):
            losses = []
            for level, (s, t) in enumerate(aligned(self.align, student, teacher)):
                tokens = self.mask_modules[level]
                assert isinstance(tokens, MaskTokens)
                with torch.no_grad():
                    masks = tokens.masks(t)  # (N, T, H, W)
                    if self.custom_mask and scene.step >= self.masks_from:
                        masks = masks * tokens.masks(s)
                    N, T = masks.shape[:2]
                    # Without weights each token counts alike.
                    share = tokens.weights(t) if self.weight_mask else masks.new_full((N, T), 1 / T)
                    # The token's loss is a weighted sum over positions, so all tokens together are one weight a position.
                    position = torch.einsum("nt,nthw->nhw", share / masks.sum((2, 3)).clamp_min(1e-12), masks.square())
                losses.append(((s - t).square().mean(1) * position).sum() / N)
            return {"distill/maskd_feature": self.weight * torch.stack(losses).sum()}
