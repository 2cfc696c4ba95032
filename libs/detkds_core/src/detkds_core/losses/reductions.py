"""Sums over maps, in one pass over memory where torch has a kernel for it: what maps cost on a GPU is how often they are read and written.

torch.linalg.vector_norm reads a map once and writes nothing of its size; on a CPU it takes ten times as long where dim is not the last.
"""

import torch
from torch import Tensor

Dims = tuple[int, ...]


def sum_of_squares(x: Tensor, dims: Dims, out: Tensor | None = None) -> Tensor:
    """Over dims, which stay as 1."""
    if x.device.type != "cpu":
        return torch.linalg.vector_norm(x, 2, dims, keepdim=True, out=out).square_()
    return torch.sum(x.square(), dims, keepdim=True, out=out)


def mean_of_abs(x: Tensor, dims: Dims, out: Tensor | None = None) -> Tensor:
    """Over dims, which stay as 1."""
    if x.device.type != "cpu":
        sums = torch.linalg.vector_norm(x, 1, dims, keepdim=True, out=out)
        return sums.div_(x.numel() // sums.numel())
    return torch.mean(x.abs(), dims, keepdim=True, out=out)
