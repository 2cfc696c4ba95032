"""One optimisation step of one student, and the schedules around it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detkds_core.catalogue import Recipe
from detkds_core.detectors.pair import Student
from detkds_core.losses.policy import needs, policy_losses
from detkds_core.losses.signals import Scene, Signals
from detkds_core.policy import Policy


@dataclass
class Learner:
    """A student under a policy, on its way. failure: why it stopped learning, None while it does."""

    student: Student
    policy: Policy
    optimizer: torch.optim.Optimizer
    needs: frozenset[str] = field(default_factory=frozenset)
    failure: dict[str, str] | None = None
    losses: dict[str, float] = field(default_factory=dict)


def make_learner(student: Student, policy: Policy, recipe: Recipe) -> Learner:
    return Learner(student, policy, make_optimizer(student, recipe), needs(policy))


def make_optimizer(student: Student, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum 0.9. Biases and norms do not decay under AdamW; MMDetection's SGD decays all."""
    parameters = student.parameters()
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, foreach=True)


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of a step, a function of the step alone, so that a resumed run needs no scheduler state.

    one_cycle: from lr/25 up by a cosine over the first 30 %, then down to lr/10,000. steps: linear warm-up over 500 steps
    (or a twentieth of a short run) from lr/1000, then tenfold down at 8/12 and 11/12.
    """
    total = recipe.iterations
    if recipe.schedule == "steps":
        warm_up = min(500, max(1, total // 20))
        rise = 0.001 + (1 - 0.001) * min(1.0, step / warm_up)
        return recipe.lr * rise * 0.1 ** ((step >= total * 8 / 12) + (step >= total * 11 / 12))
    peak = max(1.0, 0.3 * total)
    if step < peak:
        return _cosine(recipe.lr / 25, recipe.lr, step / peak)
    return _cosine(recipe.lr, recipe.lr / 1e4, (step - peak) / max(1.0, total - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def seed_step(seed: int, step: int) -> None:
    """Seed the global generators that MMDetection's samplers and dropout draw from: the same draws for every candidate of a step."""
    key = int(np.random.Generator(np.random.Philox(key=seed, counter=[step, 0, 0, 3])).integers(2**31))
    torch.manual_seed(key)
    np.random.seed(key)


def learn(learner: Learner, inputs: Tensor, samples: list[Any], teacher: Signals, scene: Scene, recipe: Recipe) -> None:
    """One step: the detector's loss and the policy's from one forward, backward, clipped update.

    A loss or a gradient that is not finite ends the learner with a failure and changes no weight.
    """
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate(recipe, scene.step)
    seed_step(scene.seed, scene.step)
    task, signals = learner.student.losses(inputs, samples, learner.needs)
    distill = policy_losses(learner.policy, signals, teacher, scene) if learner.policy.terms else {}
    total = total_loss(task) + sum(distill.values(), torch.zeros((), device=inputs.device))
    if not torch.isfinite(total):
        learner.failure = {"kind": "not_finite", "detail": f"the loss is {total.item()} at iteration {scene.step}: {_named(task, distill)}"}
        return
    learner.optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = nn.utils.clip_grad_norm_(learner.student.parameters(), recipe.clip)
    if not torch.isfinite(norm):
        learner.failure = {"kind": "not_finite", "detail": f"the gradient's norm is {norm.item()} at iteration {scene.step}"}
        return
    learner.optimizer.step()
    learner.losses = _named(task, distill)


def total_loss(losses: Mapping[str, Any]) -> Tensor:
    """Sum of every entry whose name holds `loss`, each a tensor or a list of tensors, as MMDetection sums them."""
    return sum(
        (
            sum(part.mean() for part in value) if isinstance(value, list | tuple) else value.mean()
            for name, value in losses.items()
            if "loss" in name
        ),
        start=0.0,
    )


def _named(task: Mapping[str, Any], distill: Mapping[str, Tensor]) -> dict[str, float]:
    named = {"task": float(total_loss(task).detach())}
    return named | {name: float(value.detach()) for name, value in distill.items()}
