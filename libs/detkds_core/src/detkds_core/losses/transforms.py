"""The transforms of a feature term: attention, then scale, then normalisation (DetKDS `operations.py`, `_TRANS_FUNC1` to `_TRANS_FUNC3`).

Every transform takes float32 maps of shape (N, C, H, W). Attentions and scales return maps; a normalisation may return (N, M) or (N, C, M).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ATTENTION_TEMPERATURE = 0.5  # DetKDS and FGD
MASK_KEEP_SHARE = 0.35  # DetKDS keeps 35 % of the positions
UNIT_EPS = 1e-12  # F.normalize's; below it a vector counts as zero
MIN_MAX_EPS = 1e-9  # these three survive because losses are computed in float32
BATCHNORM_EPS = 1e-5
STANDARDIZE_EPS = 1e-6  # PKD adds it to the standard deviation

Attention = Callable[..., Tensor]  # (feat) or (feat, guide)
Transform = Callable[[Tensor], Tensor]


def identity(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    return feat


# --- attention -------------------------------------------------------------------------------------------------------


def spatial_weights(feat: Tensor, temperature: float = ATTENTION_TEMPERATURE) -> Tensor:
    """H*W * softmax over positions of mean_C |feat| / temperature: (N, 1, H, W), mean 1 (FGD; DetKDS `satt`)."""
    N, _, H, W = feat.shape
    strength = feat.abs().mean(dim=1).flatten(1)  # (N, H*W)
    return (H * W * (strength / temperature).softmax(dim=1)).view(N, 1, H, W)


def channel_weights(feat: Tensor, temperature: float = ATTENTION_TEMPERATURE) -> Tensor:
    """C * softmax over channels of mean_HW |feat| / temperature: (N, C, 1, 1), mean 1 (FGD; DetKDS `catt`)."""
    C = feat.shape[1]
    strength = feat.abs().mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    return C * (strength / temperature).softmax(dim=1)


def spatial_attention(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    """Scale each position by the root of its attention, taken from guide (default: from feat itself)."""
    return feat * spatial_weights(feat if guide is None else guide).sqrt()


def channel_attention(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    """Scale each channel by the root of its attention, taken from guide (default: from feat itself)."""
    return feat * channel_weights(feat if guide is None else guide).sqrt()


def batch_attention(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    """N * softmax over images of feat / 0.5. It replaces the feature, so there is no attention that another could be scaled by."""
    if guide is not None:
        raise ValueError("'natt' replaces the feature by its attention and cannot be shared; one of satt, catt can")
    return several_images(feat, "natt").shape[0] * (feat / ATTENTION_TEMPERATURE).softmax(dim=0)


def random_mask(feat: Tensor, guide: Tensor | None = None) -> Tensor:
    """Zero the positions that guide, a (N, 1, H, W) mask of 0 and 1 from `draw_mask`, does not keep."""
    if guide is None:
        raise ValueError("'mask' needs the mask that student and teacher share; draw_mask draws it")
    return feat * guide


def draw_mask(feat: Tensor, seeds: Sequence[int], keep_share: float = MASK_KEEP_SHARE) -> Tensor:
    """Keep each position of each image with the chance keep_share: (N, 1, H, W) of 0 and 1, the same for the same seeds on every device.

    It is drawn on the CPU, where torch's generator gives the same numbers for every machine with a GPU or without.
    """
    N, _, H, W = feat.shape
    # SeedSequence mixes, so that (seed, step) = (0, 1) and (1, 0) give unrelated masks; it wants non-negative words.
    seed = int(np.random.SeedSequence([word & 0xFFFFFFFFFFFFFFFF for word in seeds]).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(seed >> 1)
    keep = torch.rand(N, 1, H, W, generator=generator) < keep_share
    return keep.to(feat.device, feat.dtype)


ATTENTION: Mapping[str, Attention] = {
    "none": identity,
    "satt": spatial_attention,
    "natt": batch_attention,
    "catt": channel_attention,
    "mask": random_mask,
}


# --- scale -----------------------------------------------------------------------------------------------------------


def pad_to_multiple(feat: Tensor, n: int) -> Tensor:
    """Append zeros on the right and at the bottom until H and W are multiples of n."""
    H, W = feat.shape[2:]
    if H % n == 0 and W % n == 0:
        return feat
    return F.pad(feat, (0, -W % n, 0, -H % n))


def max_pool(feat: Tensor, n: int) -> Tensor:
    """n x n max pooling after zero padding: (N, C, ceil(H/n), ceil(W/n)). The zeros take part, as in DetKDS."""
    return F.max_pool2d(pad_to_multiple(feat, n), n)


def local_patches(feat: Tensor, n: int) -> Tensor:
    """Move the position inside each of n x n patches to the channels: (N, C*H/n*W/n, n, n) after zero padding."""
    feat = pad_to_multiple(feat, n)
    N, C, H, W = feat.shape
    h, w = H // n, W // n
    return feat.view(N, C, h, n, w, n).permute(0, 1, 2, 4, 3, 5).reshape(N, C * h * w, n, n)


def half_shift(feat: Tensor) -> Tensor:
    """(feat + 1) / 2: DetKDS calls it `scale`; it is affine and bounds nothing."""
    return (feat + 1) / 2


SCALE: Mapping[str, Transform] = {
    "none": identity,
    "scale_r1": identity,  # a pool of one cell
    "scale_r2": lambda feat: max_pool(feat, 2),
    "multi_scale_r4": lambda feat: max_pool(feat, 4),
    "local_s1": lambda feat: local_patches(feat, 1),
    "local_s2": lambda feat: local_patches(feat, 2),
    "local_s4": lambda feat: local_patches(feat, 4),
    "scale": half_shift,
}

POOL: Mapping[str, int] = {"scale_r2": 2, "multi_scale_r4": 4}  # cells of the map in a cell of the scaled map; 1 for the others


# --- normalisation ---------------------------------------------------------------------------------------------------


def several_images(feat: Tensor, name: str) -> Tensor:
    """feat itself. Raises ValueError for a batch of one image, where an operation over the images is constant."""
    if feat.shape[0] < 2:
        raise ValueError(f"{name!r} compares the images of a batch and is constant on one image; train with a batch of at least 2")
    return feat


def unit(feat: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Divide by the Euclidean norm over dim. A zero vector stays zero and gets no gradient (F.normalize would give it 1e12)."""
    norm = torch.linalg.vector_norm(feat, dim=dim, keepdim=True)
    return feat * torch.where(norm > UNIT_EPS, 1 / norm.clamp_min(UNIT_EPS), 0)


def min_max(feat: Tensor) -> Tensor:
    """Map the smallest value of the whole tensor to 0 and the largest to 1. A constant tensor gives 0."""
    low, high = feat.aminmax()
    return (feat - low) / (high - low + MIN_MAX_EPS)


def several_values(feat: Tensor, name: str) -> Tensor:
    """feat itself. Raises ValueError where a channel has one value, which has no spread."""
    if feat.shape[0] * feat.shape[2] * feat.shape[3] < 2:
        raise ValueError(f"{name!r} needs more than one value a channel, got a tensor of shape {tuple(feat.shape)}")
    return feat


def batchnorm(feat: Tensor) -> Tensor:
    """Per channel, over images and positions: zero mean and unit biased variance, eps 1e-5 inside the root."""
    return F.batch_norm(several_values(feat, "batchnorm"), None, None, training=True, eps=BATCHNORM_EPS)


def standardize(feat: Tensor) -> Tensor:
    """Per channel, over images and positions: zero mean and unit unbiased standard deviation, eps 1e-6 on it (PKD)."""
    std, mean = torch.std_mean(several_values(feat, "standardize"), dim=(0, 2, 3), keepdim=True)
    return (feat - mean) / (std + STANDARDIZE_EPS)


NORMALISATION: Mapping[str, Transform] = {
    "none": identity,
    "batch": lambda feat: feat.flatten(1),
    "channel": lambda feat: feat.flatten(2),
    "norm_HW": lambda feat: unit(feat, (2, 3)),
    "norm_C": lambda feat: unit(feat, 1),
    "norm_N": lambda feat: unit(several_images(feat, "norm_N"), 0),
    "softmax_N": lambda feat: several_images(feat, "softmax_N").softmax(0),
    "softmax_C": lambda feat: feat.softmax(1),
    "softmax_HW": lambda feat: feat.flatten(2).softmax(2),
    "logsoftmax_N": lambda feat: several_images(feat, "logsoftmax_N").log_softmax(0),
    "logsoftmax_C": lambda feat: feat.log_softmax(1),
    "logsoftmax_HW": lambda feat: feat.flatten(2).log_softmax(2),
    "min_max_normalize": min_max,
    "batchnorm": batchnorm,
    "standardize": standardize,
}

SOFTMAX_DIMS: Mapping[str, tuple[int, ...]] = {"softmax_N": (0,), "softmax_C": (1,), "softmax_HW": (2, 3)}  # of a map (N, C, H, W)
