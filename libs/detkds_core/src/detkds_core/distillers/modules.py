"""Hand-designed distillers with learned parts: FGD, MGD and MasKD. PKD, CWD and mimicking are policies (`named_policies`)."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from detkds_core.losses.regions import region_masks
from detkds_core.losses.signals import Scene, Signals
from detkds_core.losses.transforms import channel_weights, draw_mask, spatial_weights


def adapters(student_channels: Sequence[int], teacher_channels: Sequence[int]) -> nn.ModuleList:
    """A 1x1 convolution for each level whose channels differ, the identity for the others."""
    if len(student_channels) != len(teacher_channels):
        raise ValueError(
            f"the student has {len(student_channels)} levels and the teacher {len(teacher_channels)}; align the levels of the pair"
        )
    pairs = zip(student_channels, teacher_channels, strict=True)
    return nn.ModuleList(nn.Identity() if s == t else nn.Conv2d(s, t, 1) for s, t in pairs)


def aligned(align: nn.ModuleList, student: Signals, teacher: Signals) -> Iterator[tuple[Tensor, Tensor]]:
    """The features of each level in float32, the student's adapted to the teacher's channels, the teacher's without gradient."""
    if not len(align) == len(student.features) == len(teacher.features):
        raise ValueError(
            f"features have {len(student.features)} levels at the student and {len(teacher.features)} at the teacher, "
            f"the distiller was built for {len(align)}"
        )
    for level, (adapt, s, t) in enumerate(zip(align, student.features, teacher.features, strict=True)):
        ours = adapt(s.float())
        if ours.shape != t.shape:
            raise ValueError(f"features of level {level} are {tuple(ours.shape)} at the student and {tuple(t.shape)} at the teacher")
        yield ours, t.detach().float()


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of squared differences over everything but images, mean over images."""
    return (student - teacher).square().sum() / len(student)


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
        gamma: float = 1e-3,
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


class MGDLevel(nn.Module):
    """The generator of one level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.generation = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, masked: Tensor, teacher: Tensor) -> Tensor:
        return squared_error(self.generation(masked), teacher)


class MGD(nn.Module):
    """Masked generative distillation (MGD, Yang et al., ECCV 2022).

    The student's features lose a share `mask_ratio` of their positions, and two 3x3 convolutions must generate the teacher's from the rest.
    One-stage detectors use alpha 2e-5 and mask_ratio 0.65, two-stage ones 5e-7 and 0.45.
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], alpha: float = 2e-5, mask_ratio: float = 0.65
    ) -> None:
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio: {mask_ratio} is not a share of positions to mask; from 0 to below 1")
        self.alpha, self.mask_ratio = alpha, mask_ratio
        self.align = adapters(student_channels, teacher_channels)
        self.levels = nn.ModuleList(MGDLevel(c) for c in teacher_channels)

    def forward(self, student: Signals, teacher: Signals, scene: Scene) -> dict[str, Tensor]:
        """{"distill/mgd": weighted scalar}, summed over levels. The mask follows from the scene's seed and step, and the level."""
        with torch.autocast(student.features[0].device.type, enabled=False):
            losses = []
            for level, (s, t) in enumerate(aligned(self.align, student, teacher)):
                keep = draw_mask(s, (scene.seed, scene.step, 0, level), 1 - self.mask_ratio)
                losses.append(self.levels[level](s * keep, t))
            return {"distill/mgd": self.alpha * torch.stack(losses).sum()}


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
    weights that the teacher's feature gives them. With custom_mask, from step custom_mask_warm_up on, the masks that the tokens give on the
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
        custom_mask_warm_up: int = 1000,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight_mask, self.custom_mask, self.custom_mask_warm_up, self.weight = weight_mask, custom_mask, custom_mask_warm_up, weight
        self.align = adapters(student_channels, teacher_channels)
        self.mask_modules = nn.ModuleList(MaskTokens(c, num_tokens) for c in teacher_channels)
        self.mask_modules.requires_grad_(False)

    def forward(self, student: Signals, teacher: Signals, scene: Scene) -> dict[str, Tensor]:
        """{"distill/maskd": weighted scalar}, summed over levels."""
        with torch.autocast(student.features[0].device.type, enabled=False):
            losses = []
            for level, (s, t) in enumerate(aligned(self.align, student, teacher)):
                tokens = self.mask_modules[level]
                assert isinstance(tokens, MaskTokens)
                with torch.no_grad():
                    masks = tokens.masks(t)  # (N, T, H, W)
                    if self.custom_mask and scene.step >= self.custom_mask_warm_up:
                        masks = masks * tokens.masks(s)
                    N, T = masks.shape[:2]
                    # Without weights each token counts alike.
                    share = tokens.weights(t) if self.weight_mask else masks.new_full((N, T), 1 / T)
                    # The token's loss is a weighted sum over positions, so all tokens together are one weight a position.
                    position = torch.einsum("nt,nthw->nhw", share / masks.sum((2, 3)), masks.square())
                losses.append(((s - t).square().mean(1) * position).sum() / N)
            return {"distill/maskd": self.weight * torch.stack(losses).sum()}


DISTILLERS: Mapping[str, type[nn.Module]] = {"fgd": FGD, "mgd": MGD, "maskd": MasKD}
