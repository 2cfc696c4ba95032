"""Losses whose gradient is computed with them, so that nothing between a detector's signals and its losses is kept for the backward.

Autograd would hold what every term put between the maps and its value until the detector's own backward: several times the maps. Here each
term's graph lives until its gradient is in the buffer of the map that it belongs to, one buffer a map for all terms.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# What losses are worth and their gradient for each source (None: none), the losses being multiplied by factors before they are added up.
Work = Callable[[Sequence[Tensor] | None], tuple[list[Tensor], list[Tensor | None]]]


def with_slopes(work: Work, sources: Sequence[Tensor]) -> list[Tensor]:
    """The losses as functions of the sources: scalars that backward from like any other, once or several times, alone or together.

    The gradient of their sum is at hand. Another one, of some of them or with factors that differ, has to be computed again: terms that
    should weigh differently are cheaper weighted inside. A gradient of a gradient there is not.
    """
    values, gradients = work(None)
    if not (torch.is_grad_enabled() and any(source.requires_grad for source in sources)):
        return values
    return list(_Known.apply(values, gradients, work, *sources))


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: list[Tensor], gradients: list[Tensor | None], work: Work, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.gradients, ctx.work = gradients, work
        ctx.sources = [(source.shape, source.dtype, source.requires_grad) for source in sources]
        ctx.set_materialize_grads(False)
        return tuple(value.detach() for value in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *factors: Tensor | None) -> tuple[Tensor | None, ...]:
        some = next(factor for factor in factors if factor is not None)
        if ctx.gradients is not None and _same(factors):
            # Handed over, so that there is no second buffer of this size; a second backward computes them again.
            gradients, ctx.gradients = ctx.gradients, None
            if found := [gradient for gradient in gradients if gradient is not None]:
                torch._foreach_mul_(found, some)  # of all levels at once
        else:
            _, gradients = ctx.work([torch.zeros_like(some) if factor is None else factor for factor in factors])
        return None, None, None, *(_like(gradient, source, some) for gradient, source in zip(gradients, ctx.sources, strict=True))


def _same(factors: Sequence[Tensor | None]) -> bool:
    """All losses count alike, as in their sum. On a GPU two tensors are compared by their place in memory first, for which nobody waits."""
    first = factors[0]
    return first is not None and all(
        other is not None and (other is first or other.data_ptr() == first.data_ptr() or torch.equal(other, first)) for other in factors[1:]
    )


def _like(gradient: Tensor | None, source: tuple[torch.Size, torch.dtype, bool], some: Tensor) -> Tensor | None:
    shape, dtype, wanted = source
    if not wanted:
        return None
    return some.new_zeros((), dtype=dtype).expand(shape) if gradient is None else gradient.to(dtype)
