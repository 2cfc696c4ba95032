"""MasKD's first stage: receptive tokens that learn, on a frozen teacher, where to look."""

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detkds_core.datasets.kept import take
from detkds_core.distillers.maskd import MaskTokens
from detkds_core.training.steps import seed_step, total_loss

PEAK, FLOOR, DECAY = 1e-2, 1e-6, 1e-3  # learning rate along a cosine, weight decay: MasKD's released configurations

Inputs = Callable[[int], tuple[Tensor, list[Any]]]  # step -> inputs (B, 3, H, W), normalised as the teacher wants them, and its samples
Report = Callable[[int, int], None]


def learn_tokens(
    teacher: nn.Module,
    levels: Sequence[int],
    channels: Sequence[int],
    inputs: Inputs,
    *,
    tokens: int,
    steps: int,
    seed: int,
    report: Report | None = None,
) -> dict[str, Tensor]:
    """Tokens of the teacher's pyramid levels: the state of `MasKD.mask_modules`, on the CPU (MasKD, Huang et al., ICLR 2023).

    The teacher keeps its weights and sees its own pyramid through the tokens' masks. They learn from its detection loss, so that they look
    at what it needs, and from the likeness of the masks of a level, so that each looks at something else. channels: of each of `levels`.
    The same inputs and seed give the same tokens. The teacher is in evaluation mode again afterwards.
    Raises RuntimeError when they come to something that is not finite.
    """
    device = next(teacher.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = nn.ModuleList(MaskTokens(c, tokens) for c in channels).to(device)
    optimizer = torch.optim.Adam(modules.parameters(), lr=PEAK, weight_decay=DECAY)
    likeness: list[Tensor] = []

    def look_through(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        pyramid = list(output)
        for module, level in zip(modules, levels, strict=True):
            pyramid[level], alike = module(pyramid[level])
            likeness.append(alike)
        return tuple(pyramid)

    pyramid = teacher.neck if getattr(teacher, "with_neck", False) else teacher.backbone
    hook = pyramid.register_forward_hook(look_through)
    in_training = _training_with_kept_statistics(teacher)
    try:
        for step in range(steps):
            images, samples = inputs(step)
            seed_step(seed, step)
            for group in optimizer.param_groups:
                group["lr"] = FLOOR + (PEAK - FLOOR) * (1 + math.cos(math.pi * step / steps)) / 2
            likeness.clear()
            task = total_loss(in_training.loss(images, copy.deepcopy(samples)))
            optimizer.zero_grad(set_to_none=True)
            (task + torch.stack(likeness).sum()).backward()
            optimizer.step()
            if report is not None:
                report(step + 1, steps)
    finally:
        hook.remove()
        teacher.eval()
    state = {name: value.detach().cpu().contiguous() for name, value in modules.state_dict().items()}
    if not all(value.isfinite().all() for value in state.values()):
        raise RuntimeError(
            "MasKD's tokens are not finite after their training on the teacher; is the teacher trained, and its checkpoint whole?"
        )
    return state


def _training_with_kept_statistics(teacher: nn.Module) -> nn.Module:
    """The teacher ready to compute its own loss, which some heads do in training mode alone, while its norms keep their statistics."""
    teacher.train()
    for module in teacher.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return teacher


def cached_tokens(folder: Path, facts: Mapping[str, Any], learn: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tokens from the folder's file of these facts; learned and kept there when there is none.

    facts: all that the tokens follow from, as plain JSON values: digests of the teacher and of the dataset, settings, recipe, seed.
    Processes that learn the same at once each write the whole file, and the last one stands.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path = folder / f"maskd_{key[:32]}.safetensors"
    if take(path):
        return load_file(path)
    state = learn()
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(state, partial, metadata={"facts": json.dumps(facts, sort_keys=True)})
    os.replace(partial, path)
    return state
