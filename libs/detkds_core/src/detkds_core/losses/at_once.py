"""For functions of several maps of one shape, which do what is a number a channel or a position for all at once."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch import Tensor


def each(feats: tuple[Tensor, ...], dims: tuple[int, ...]) -> Tensor:
    """Place for a number of each of several maps of one shape along dims: (maps, ...), those dims 1."""
    shape = list(feats[0].shape)
    for dim in dims:
        shape[dim] = 1
    return feats[0].new_empty(len(feats), *shape)


def keep(ctx: Any, feats: tuple[Tensor, ...], outs: Sequence[Tensor], *of_each: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Save for the backward what those maps need that learn; the other outputs get no gradient. feats: the last inputs."""
    ctx.learns = ctx.needs_input_grad[-len(feats) :]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(out for out, learns in zip(outs, ctx.learns, strict=True) if not learns))
    learning = [place for place, learns in enumerate(ctx.learns) if learns]
    ctx.save_for_backward(*(one[place] for place in learning for one in (feats, *of_each)))
    return tuple(outs)


def gradients(ctx: Any, aboves: tuple[Tensor | None, ...], slope: Callable[..., Tensor]) -> Iterator[Tensor | None]:
    """The gradient of each map, by slope(above, feat, *what else was kept of it)."""
    kept = iter(ctx.saved_tensors)
    count = len(ctx.saved_tensors) // max(1, sum(ctx.learns))
    for above, learns in zip(aboves, ctx.learns, strict=True):
        own = list(islice(kept, count)) if learns else []
        yield slope(above, *own) if learns and above is not None else None
