"""What a formula computes, as a short text: formulas that compute the same have the same, whatever they are called.

The canonical form knows the identities that somebody found; this one tries the loss on fixed tensors and finds those that nobody did.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import floor, log10

import torch
from torch import Tensor

from detkds_core.losses.policy import policy_losses
from detkds_core.losses.signals import Scene, Signals
from detkds_core.losses.toys import each_tensor, tensors_of, toy_scene, toy_signals
from detkds_core.policy import Policy, Term, unscheduled

IMAGES = 3
SHAPES = ((9, 11), (5, 6))  # odd, so that pools pad; two levels
# Added to each of the features' four channels, on the first tensors and on others: where all maxima are positive, some formulas are alike.
SHIFTS = ((0.0, 0.0, 0.0, 0.0), (0.0, -2.5, 1.0, -0.5))
DIRECTIONS = 3  # along which the gradient is looked at
DIGITS = 4  # significant; what is left out of an identity (an eps) is smaller


def fingerprint(of: Term | Policy) -> str:
    """16 hexadecimal digits that follow from values and gradients on fixed seeded tensors; the weight of a term makes no difference.

    Nor does a factor that all terms of a policy have in common. Computed in float64, where equal formulas agree far beyond the digits that
    are compared, so that two of them hardly ever lie on two sides of a rounding. When a term is active is no part of what it computes and
    is added as it is written.
    """
    terms = of.terms if isinstance(of, Policy) else (replace(of, weight=1.0),)
    policy = Policy(tuple(replace(unscheduled(term), auto=False, balanced=False) for term in terms))
    numbers = [number for place in range(len(SHIFTS)) for number in _figures(policy, place)]
    whole = numbers[0]  # the value on the first tensors, which everything is relative to
    texts = [_rounded(number / whole if whole else number) for number in numbers]
    when = sorted((term.warm_up, term.stop, term.decay, term.auto, term.balanced) for term in terms)
    if isinstance(of, Policy) and len(set(when)) > 1:  # then it matters which term waits
        texts += sorted(f"{fingerprint(term)}*{_rounded(term.weight / terms[0].weight)}" for term in terms)
    return hashlib.sha256(repr((texts, when)).encode()).hexdigest()[:16]


def _figures(policy: Policy, place: int) -> list[float]:
    """The loss, the length of its gradient, and its slope along fixed directions, as far as they stand out from the length."""
    student, teacher, scene = _toys(place)
    losses = policy_losses(policy, student, teacher, scene)
    ours = tensors_of(student)
    loss = torch.stack(list(losses.values())).sum() if losses else torch.zeros((), dtype=torch.float64)
    if not loss.requires_grad:
        return [loss.item(), 0.0, *[0.0] * DIRECTIONS]
    gradients = torch.autograd.grad(loss, ours, allow_unused=True)
    flat = torch.cat([torch.zeros_like(x).flatten() if g is None else g.flatten() for x, g in zip(ours, gradients, strict=True)])
    length = flat.norm()
    slopes = _directions(len(flat)) @ flat
    least = length * 10.0**-DIGITS
    slopes = torch.where(slopes.abs() > least, slopes, 0)
    return [loss.item(), length.item(), *slopes.tolist()]


def _rounded(number: float) -> str:
    """A number to so many significant digits."""
    if number == 0 or number != number or abs(number) == float("inf"):
        return repr(abs(number))
    place = floor(log10(abs(number)))
    return f"{round(number / 10.0 ** (place - DIGITS + 1))}e{place}"


@cache
def _toys(place: int) -> tuple[Signals, Signals, Scene]:
    ours, theirs = (toy_signals(2 * place + side, IMAGES, SHAPES, torch.float64) for side in (1, 2))
    shift = torch.tensor(SHIFTS[place], dtype=torch.float64).view(-1, 1, 1)
    ours, theirs = (replace(side, features=tuple(maps + shift for maps in side.features)) for side in (ours, theirs))
    return each_tensor(ours, lambda x: x.requires_grad_()), theirs, toy_scene(IMAGES, SHAPES[0])


@cache
def _directions(size: int) -> Tensor:
    return torch.randn(DIRECTIONS, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / size**0.5


def same(terms: Sequence[Term]) -> list[list[Term]]:
    """The terms that compute the same as another, in groups."""
    groups: dict[str, list[Term]] = {}
    for term in terms:
        groups.setdefault(fingerprint(term), []).append(term)
    return [group for group in groups.values() if len(group) > 1]
