"""One optimisation step of one student, and the schedules around it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detkds_core.catalogue import Recipe
from detkds_core.detectors.pair import Teacher
from detkds_core.distillers import distiller_losses
from detkds_core.losses.policy import comes_early, found_weight, policy_losses, schedule, stopped
from detkds_core.losses.signals import LATE, Scene, Signals
from detkds_core.policy import Distiller, Term
from detkds_core.training import parallel
from detkds_core.training.learner import DTYPES, Learner, average
from detkds_core.training.streams import beside

WARM_UP_START = 0.001  # share of the learning rate that a warm-up starts from, MMDetection's


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of a step, a function of the step alone, so that a resumed run needs no scheduler state.

    one_cycle: from lr/25 up by a cosine over the first 30 %, then down to lr/10,000. steps: linear warm-up from lr/1000 over the recipe's
    `warm_up` (500 steps, or a twentieth of a short run), then tenfold down at each milestone (8/12 and 11/12 of the run). anneal: from lr
    along a cosine to lr/10,000.
    """
    total = recipe.iterations
    if recipe.schedule == "steps":
        warm_up = recipe.warm_up if recipe.warm_up is not None else min(500, max(1, total // 20))
        rise = WARM_UP_START + (1 - WARM_UP_START) * min(1.0, step / warm_up) if warm_up else 1.0
        milestones = recipe.milestones if recipe.milestones is not None else (total * 8 / 12, total * 11 / 12)
        return recipe.lr * rise * 0.1 ** sum(step >= milestone for milestone in milestones)
    if recipe.schedule == "anneal":
        return _cosine(recipe.lr, recipe.lr / 1e4, step / max(1, total - 1))
    peak = max(1.0, 0.3 * total)
    if step < peak:
        return _cosine(recipe.lr / 25, recipe.lr, step / peak)
    return _cosine(recipe.lr, recipe.lr / 1e4, (step - peak) / max(1.0, total - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def seed_step(seed: int, step: int, place: int = 0) -> None:
    """Seed the global generators that MMDetection's samplers and dropout draw from: the same draws for every candidate of a step.

    place: of a forward's first image among all of the step; forwards draw unlike each other.
    """
    key = int(np.random.Generator(np.random.Philox(key=seed, counter=[step, place, 0, 3])).integers(2**31))
    torch.manual_seed(key)
    np.random.seed(key)


def in_precision(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Forwards in the recipe's precision."""
    return torch.autocast(device.type, DTYPES[recipe.precision], enabled=recipe.precision != "fp32")


def study(
    learner: Learner, inputs: Tensor, samples: list[Any], said: Signals, scene: Scene, recipe: Recipe, teacher: Teacher | None, part: int
) -> None:
    """Forward and backward of one part of a step: the detector's loss and the policy's from one forward, their gradient added up.

    said: the teacher's signals on these inputs. part: which of the step's `accumulate` forwards this is.
    """
    seed_step(scene.seed, scene.step, scene.place)
    with in_precision(recipe, inputs.device):
        task, distill = losses_of(learner, inputs, samples, said, scene, teacher)
    own = total_loss(task)
    distill = scaled(learner, own, distill, scene)
    total = own + sum(distill.values(), torch.zeros((), device=inputs.device))
    learner.scaler.scale(total / recipe.accumulate).backward()
    finite, losses = torch.isfinite(total), {"task": own, **distill}
    if part == 0:
        learner.finite, learner.losses = finite, {name: value.detach() / recipe.accumulate for name, value in losses.items()}
    else:
        learner.finite = learner.finite & finite
        learner.losses = {name: learner.losses[name] + value.detach() / recipe.accumulate for name, value in losses.items()}


def losses_of(
    learner: Learner, inputs: Tensor, samples: list[Any], said: Signals, scene: Scene, teacher: Teacher | None
) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """The detector's own losses and those of the policy, from one forward of the student.

    What the policy compares of the pyramid and the dense head is launched before the detector's own loss and runs beside it: in that, small
    operations on the boxes of each image keep the host busy and a GPU mostly idle.
    """
    policy, needs = learner.policy, learner.needs_at(scene.step, scene.total_steps)
    over = [stopped(term, scene.step, scene.total_steps) for term in policy.terms]  # of which nobody may have asked what they compare
    found = {f"distill/{i}_{term.knowledge}": torch.zeros((), device=inputs.device) for i, term in enumerate(policy.terms) if over[i]}
    joins: list[Callable[[], None]] = []

    def compare(signals: Signals, said: Signals, early: bool) -> None:
        def due(one: Term | Distiller) -> bool:
            return comes_early(one) == early and not stopped(one, scene.step, scene.total_steps)

        found.update(policy_losses(policy, signals, said, scene, learner.scales, due))
        found.update(distiller_losses(policy, learner.distillers, signals, said, scene, learner.scales, due))

    def meanwhile(signals: Signals) -> None:
        with beside(inputs.device) as join:
            joins.append(join)
            compare(signals, said, early=True)

    try:
        task, signals = learner.student.losses(inputs, samples, needs, meanwhile if needs else None)
    finally:
        for join in joins:
            join()
    if needs & LATE:
        if signals.rois is not None and teacher is not None:
            said = replace(said, rois=teacher.regard(signals.rois, needs))
        compare(signals, said, early=False)
    return task, found


def scaled(learner: Learner, task: Tensor, distill: Mapping[str, Tensor], scene: Scene) -> dict[str, Tensor]:
    """The losses with each `auto` term scaled; a term without a scale yet gets it here, once its loss is positive and finite.

    The scale makes weight * scale * raw equal weight * task at that step, before the term's own schedule; over all devices' means.
    A term that waits for its scale counts nothing.
    """
    auto = {f"distill/{i}_{term.knowledge}": term for i, term in enumerate(learner.policy.terms) if term.auto}
    waiting = [name for name in auto if name not in learner.scales]
    if not waiting:
        return dict(distill)
    values = torch.stack([task.detach(), *(distill[name].detach() for name in waiting)])
    own, *raws = parallel.mean_over_devices(values).tolist()
    for name, value in zip(waiting, raws, strict=True):
        weight = auto[name].weight * schedule(auto[name], scene.step, scene.total_steps)
        if weight > 0 and 0 < value < math.inf and 0 < own < math.inf:
            scale = own / (value / weight)
            learner.scales[name] = found_weight(auto[name], scale) / auto[name].weight
    return {name: value * learner.scales.get(name, 0.0) if name in waiting else value for name, value in distill.items()}


def update(learner: Learner, step: int, recipe: Recipe) -> None:
    """Let the gathered gradient move the weights, clipped.

    A loss or a gradient that is not finite ends the learner with a failure and changes no weight. Under fp16 a gradient that overflowed
    only skips the step and halves the loss's scale; it is a failure when nothing is scaled any more.
    """
    parameters = learner.parameters()
    parallel.average_gradients(parameters)
    learner.scaler.unscale_(learner.optimizer)
    if recipe.clip is not None:
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    assert learner.finite is not None
    # the only wait for the device in a step
    finite = parallel.mean_over_devices(torch.stack([learner.finite, torch.isfinite(norm)]).float())
    finite_loss, finite_gradient = (finite == 1).tolist()
    if not finite_loss:
        named = learner.read_losses()
        total = sum(value for name, value in named.items() if name != "ratio")
        learner.failure = {"kind": "not_finite", "detail": f"the loss is {total} at iteration {step}: {named}"}
    elif finite_gradient:
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step) * group["lr_factor"]
        learner.optimizer.step()
        if learner.averaged is not None:
            average(learner, recipe.ema, step)
    elif not learner.scaler.is_enabled() or learner.scaler.get_scale() < 1:
        learner.failure = {"kind": "not_finite", "detail": f"the gradient's norm is {norm.item()} at iteration {step}"}
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)


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
