"""How strongly each part of a policy pulls at a student beside the student's own task, on a batch, from one forward for all of them.

A part is a term or a distiller whose weight follows from its pull, or all the terms whose weights are known. Gradients are summed up as
soon as they are there: their lengths, the angles between them and a sketch are all that is kept, for a gradient is as large as the student.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from detkds_core.detectors.pair import Student
from detkds_core.distillers.losses import distiller_losses, scale_name
from detkds_core.losses.policy import found_weight, policy_losses
from detkds_core.losses.signals import Scene, Signals
from detkds_core.policy import Policy, Term, unscheduled
from detkds_core.training import parallel

BATCHES = 2  # that are looked at where a training starts
BUCKETS = 16  # of the sketch of a gradient
NO_GRADIENT = 1e-12  # of the task's length: below it a loss does nothing, whatever its weight
HALF_SCALE = 1024.0  # of a loss under fp16, whose gradients would vanish without


@dataclass(frozen=True)
class Pull:
    """Of a policy of n parts on one batch.

    losses: the parts' values. products: inner products of their gradients, (n, n). along: inner products with the task's gradient, (n,).
    sketches: of their gradients, (n, BUCKETS); all three in float64. task: the task's loss and the length of its gradient.
    error: why it could not be computed, None where it could.
    """

    losses: tuple[float, ...]
    products: Tensor
    along: Tensor
    sketches: Tensor
    task: tuple[float, float]
    error: str | None = None


def parts_of(policy: Policy, all_terms: bool = True) -> list[tuple[str | None, Policy]]:
    """The parts of a policy: the name of a scale that is to be found, and its term or distiller alone with weight 1; then the rest (None).

    all_terms: without, only those of what is `balanced`. Terms keep their places, by which their masks are drawn; all lose their schedules.
    The rest are terms: distillers that are not balanced are in no part.
    """
    plain = [replace(unscheduled(term), auto=False, balanced=False) for term in policy.terms]
    wanted = [term.balanced or (term.auto and all_terms) for term in policy.terms]
    parts: list[tuple[str | None, Policy]] = []
    for place, name in enumerate(names_of(policy)):
        if wanted[place]:
            parts.append((name, _with_weights(plain, [float(other == place) for other in range(len(plain))])))
    for one in policy.distillers:
        if one.balanced:
            parts.append((scale_name(one), Policy((), (replace(unscheduled(one), weight=1.0, balanced=False),))))
    if all_terms and not all(wanted):
        parts.append((None, _with_weights(plain, [0.0 if apart else one.weight for one, apart in zip(plain, wanted, strict=True)])))
    return parts


def _with_weights(terms: Sequence[Term], weights: Sequence[float]) -> Policy:
    """A term of weight 0 is no legal one; `policy_losses` skips it."""
    return Policy(tuple(replace(term, weight=weight) for term, weight in zip(terms, weights, strict=True)))


def fixed(policy: Policy, scales: Mapping[str, float]) -> Policy:
    """The policy whose terms and distillers weigh what was found (`losses.policy.found_weight`); what has no scale is as it was."""
    terms = tuple(
        replace(term, weight=found_weight(term, scales[name]), auto=False, balanced=False) if name in scales else term
        for name, term in zip(names_of(policy), policy.terms, strict=True)
    )
    distillers = tuple(
        replace(one, weight=found_weight(one, scales[name]), balanced=False) if (name := scale_name(one)) in scales else one
        for one in policy.distillers
    )
    return Policy(terms, distillers)


def balanced_names(policy: Policy) -> list[str]:
    """The names of the scales that are ratios of gradients: of terms, and of distillers."""
    terms = [name for name, term in zip(names_of(policy), policy.terms, strict=True) if term.balanced]
    return terms + [scale_name(one) for one in policy.distillers if one.balanced]


def names_of(policy: Policy) -> list[str]:
    """The names of the terms' losses."""
    return [f"distill/{place}_{term.knowledge}" for place, term in enumerate(policy.terms)]


def pulls(
    student: Student,
    task: Tensor,
    signals: Signals,
    said: Signals,
    scene: Scene,
    policies: Sequence[Sequence[Policy]],
    *,
    half: bool,
    modules: Sequence[Mapping[str, nn.Module]] = (),
) -> list[Pull]:
    """The pull of each policy, given as its parts, at the student's signals and its own loss of one forward, whose graph is kept.

    Gradients are on backbone and neck, means over all devices. half: the forward ran in fp16. modules: of each policy, by the names of its
    distillers; none where no part is a distiller.
    """
    shared, factor = shared_parameters(student.model), HALF_SCALE if half else 1.0
    own = flat_gradient(task, shared, factor)
    value, length = parallel.mean_over_devices(task.detach().clone()).item(), _inner(own, own) ** 0.5
    found = []
    for parts, built in zip(policies, modules or [{}] * len(policies), strict=True):
        losses, gradients, error = [], [], None
        for part in parts:
            try:
                each = policy_losses(part, signals, said, scene)
                each |= distiller_losses(part, [built[one.name] for one in part.distillers], signals, said, scene)
                loss = torch.stack(list(each.values())).sum()
            except ValueError as fault:
                error, loss = str(fault), own.new_tensor(math.nan)
            gradients.append(flat_gradient(loss, shared, factor) if error is None else _mean_of_nothing(own))
            losses.append(parallel.mean_over_devices(loss.detach().clone()).item())
        products = torch.tensor([[_inner(a, b) for b in gradients] for a in gradients], dtype=torch.float64).reshape(len(parts), -1)
        along = torch.tensor([_inner(one, own) for one in gradients], dtype=torch.float64)
        sketches = torch.stack([sketch(one) for one in gradients]) if gradients else torch.zeros(0, BUCKETS, dtype=torch.float64)
        found.append(Pull(tuple(losses), products, along, sketches, (value, length), error))
    return found


def _mean_of_nothing(like: Tensor) -> Tensor:
    """What could not be computed on this device cannot be on any, and each of them waits for the others."""
    return parallel.mean_over_devices(torch.full_like(like, math.nan))


def _inner(a: Tensor, b: Tensor) -> float:
    return torch.dot(a.double(), b.double()).item()


def balance(parts: Sequence[tuple[str | None, Policy]], pulled: Sequence[Pull]) -> dict[str, float]:
    """The factors that make the parts' gradients as long as the task's, by loss name, over all batches' mean ratio.

    A part without a gradient, or with one that is not finite, has none.
    """
    scales = {}
    for place, (name, _) in enumerate(parts):
        if name is None:
            continue
        ratio = fmean(_ratio(one.products[place, place].item() ** 0.5, one.task[1]) for one in pulled)
        if NO_GRADIENT <= ratio < math.inf:
            scales[name] = 1 / ratio
    return scales


def _ratio(length: float, of: float) -> float:
    return length / of if of else math.nan


def shared_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What both losses move: the student's backbone and neck."""
    parts = [getattr(model, name) for name in ("backbone", "neck") if getattr(model, name, None) is not None]
    return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]


def flat_gradient(loss: Tensor, parameters: Sequence[nn.Parameter], factor: float = 1.0) -> Tensor:
    """The gradient of a loss as one vector, its mean over all devices; zeros where it does not depend on a parameter.

    The graph is kept. factor: what the loss is multiplied by on the way.
    """
    if not loss.requires_grad:
        return parallel.mean_over_devices(torch.cat([torch.zeros_like(p).flatten() for p in parameters]).float())
    found = torch.autograd.grad(loss * factor, parameters, retain_graph=True, allow_unused=True)
    flat = [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
    return parallel.mean_over_devices(torch.cat(flat).float() / factor)


def sketch(gradient: Tensor) -> Tensor:
    """The gradient added up in BUCKETS places with fixed random signs, in float64 on the CPU: equal gradients have equal sketches."""
    both = torch.bincount(_places(len(gradient)), gradient.cpu().double(), minlength=2 * BUCKETS)
    return both[:BUCKETS] - both[BUCKETS:]


@lru_cache(maxsize=1)
def _places(length: int) -> Tensor:
    """The place of each value, from BUCKETS on with a minus."""
    return torch.randint(2 * BUCKETS, (length,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Forwards of a model in training that leave no trace: statistics of its norms, gradients and random streams are as before."""
    kept = {name: value.detach().clone() for name, value in model.named_buffers()}
    states = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            with torch.no_grad():
                for name, value in model.named_buffers():
                    value.copy_(kept[name])
