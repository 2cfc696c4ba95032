"""What a formula does at a fork, before anything is trained under it: its loss, its gradient beside the task's, and how to tell it apart.

All formulas are looked at on the same few batches from one forward a batch, so that a look costs a backward pass.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from detkds_core.catalogue import Recipe
from detkds_core.losses.policy import needs, policy_losses
from detkds_core.losses.signals import Scene
from detkds_core.policy import Policy
from detkds_core.training.forks import Fork, branch
from detkds_core.training.group import Start, batches_for, model_inputs, teacher_signals
from detkds_core.training.steps import ROI_NEEDS, in_precision, seed_step, total_loss

BATCHES = 4  # that a formula is looked at on
BUCKETS = 64  # of the sketch of a gradient
NO_GRADIENT = 1e-12  # of the task's: below it a term does nothing, whatever its weight


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a policy at a fork; means over the batches.

    loss: the policy's, in the student's training mode. ratio: the length of its gradient on the shared parameters (backbone and neck)
    over that of the task's. agreement: the cosine between the two. sketch: the direction of its gradient, squeezed to a few numbers
    of length 1 such that equal directions have equal sketches. failure: why it cannot be trained with, None where it can.
    """

    loss: float
    ratio: float
    agreement: float
    sketch: tuple[float, ...]
    failure: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        return {"loss": self.loss, "ratio": self.ratio, "agreement": self.agreement, "sketch": list(self.sketch), "failure": self.failure}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Look":
        return cls(**{**data, "sketch": tuple(data["sketch"])})


def probe(start: Start, fork: Fork, policies: Sequence[Policy], recipe: Recipe, seed: int, batches: int = BATCHES) -> list[Look]:
    """Look at policies of terms (none with distillers) at a fork, on the first batches of `seed`. Nothing is changed by it.

    Terms count with their weights and without their warm-up. The student runs in training mode, as it will.
    """
    learner = branch(start, fork, Policy(()), recipe, seed)
    student = learner.student
    assert start.train is not None
    stream = batches_for(learner, start.train, recipe, seed)
    preprocess = student.model.data_preprocessor
    shared = shared_parameters(student.model)
    wanted = frozenset().union(*map(needs, policies)) if policies else frozenset()
    policies = [Policy(tuple(replace(term, warm_up=0, stop=1.0, decay=1.0, auto=False) for term in one.terms)) for one in policies]
    seen: list[list[tuple[float, float, float, Tensor]]] = [[] for _ in policies]
    failures: dict[int, dict[str, str]] = {}
    for step in range(batches):
        batch = stream[step]
        inputs, samples = model_inputs(preprocess, batch, start.device)
        scene = Scene(
            tuple(one.gt_instances.bboxes for one in samples), tuple(inputs.shape[-2:]), step=step, seed=seed, total_steps=batches
        )
        seed_step(seed, step)
        with in_precision(recipe, start.device):
            said = teacher_signals(start, preprocess, batch, inputs, wanted)
            task, signals = student.losses(inputs, copy.deepcopy(samples), wanted)
            if signals.rois is not None and start.teacher is not None and wanted & ROI_NEEDS:
                said = replace(said, rois=start.teacher.regard(signals.rois, wanted))
        own = flat_gradient(total_loss(task), shared)
        for place, policy in enumerate(policies):
            if place in failures:
                continue
            try:
                loss = torch.stack(list(policy_losses(policy, signals, said, scene).values())).sum()
            except ValueError as error:
                failures[place] = {"kind": "not_computable", "detail": str(error)}
                continue
            gradient = flat_gradient(loss, shared) if loss.requires_grad else torch.zeros_like(own)
            length, value = gradient.norm().item(), loss.item()
            if not (math.isfinite(value) and math.isfinite(length)):
                failures[place] = {"kind": "not_finite", "detail": f"the loss is {value} and its gradient {length} at the first batches"}
                continue
            agreement = torch.dot(gradient, own).item() / (length * own.norm().item()) if length else 0.0
            seen[place].append((value, length / own.norm().item(), agreement, sketch(gradient)))
    return [_summed(rows, failures.get(place)) for place, rows in enumerate(seen)]


def shared_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What both losses move: the student's backbone and neck."""
    parts = [getattr(model, name) for name in ("backbone", "neck") if getattr(model, name, None) is not None]
    return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]


def flat_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradient of a loss as one vector; zeros where it does not depend on a parameter. The graph is kept."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    flat = [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
    return torch.cat(flat).float()


def sketch(gradient: Tensor) -> Tensor:
    """The gradient added up in BUCKETS places with fixed random signs, in float64 on the CPU."""
    flat = gradient.cpu().double()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(BUCKETS, (len(flat),), generator=generator)
    signs = torch.randint(2, (len(flat),), generator=generator).double() * 2 - 1
    return torch.zeros(BUCKETS, dtype=torch.float64).index_add_(0, places, flat * signs)


def _summed(rows: Sequence[tuple[float, float, float, Tensor]], failure: dict[str, str] | None) -> Look:
    if failure is not None or not rows:
        return Look(0.0, 0.0, 0.0, (), failure)
    loss, ratio, agreement = (fmean(row[place] for row in rows) for place in range(3))  # type: ignore[misc]
    if ratio < NO_GRADIENT:
        return Look(loss, ratio, agreement, (), {"kind": "no_gradient", "detail": "the policy does not move the student"})
    whole = torch.stack([row[3] / row[3].norm() for row in rows if row[1] > 0]).sum(0)
    return Look(loss, ratio, agreement, tuple(round(x, 6) for x in (whole / whole.norm()).tolist()))
