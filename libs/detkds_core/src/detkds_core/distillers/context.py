"""What a distiller with learned parts may need of the pair, beside the signals of every step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# (class features, box features, level, layer that they come from) -> (class scores (B, A*K, H, W) raw, box outputs): the rest of the
# teacher's dense head.
# Box outputs are raw edge distributions (B, 4*(R+1), H, W) where the head has them (GFL), decoded boxes (B, H*W*A, 4) elsewhere.
# Gradients pass to the features, none to the head.
HeadTail = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class DistillerContext:
    """The facts of a pair that `build` makes distillers from. Channels are those of the signals, a number a level, fine to coarse.

    student_channels: as the student's signals come; where the pair has adapters of its own, these are the teacher's.
    tower_channels: of the features in both dense heads (student, teacher), for CrossKD; None: equal.
    tokens: MasKD's receptive tokens, the state of `MasKD.mask_modules`, learned on this teacher beforehand.
    seed: of the first weights of what is learned.
    """

    student_channels: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    tower_channels: tuple[int, int] | None = None
    head_tail: HeadTail | None = None
    tokens: Mapping[str, Tensor] | None = None
    seed: int = 0
    device: torch.device | str = "cpu"
