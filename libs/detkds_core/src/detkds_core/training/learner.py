"""A student under a policy, on its way: what it learns with, what it has come to, and how both are kept and found again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detkds_core.catalogue import Recipe
from detkds_core.detectors.pair import Student
from detkds_core.losses import needs
from detkds_core.losses.policy import without_stopped
from detkds_core.policy import Policy
from detkds_core.training import parallel

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass
class Learner:
    """A student under a policy.

    distillers: the policy's losses with learned parts; they learn with the student and are never exported.
    scales: factors of `auto` terms by loss name, each fixed at the term's first step with a loss, and of all that is `balanced`, before it.
    averaged: moving average of the student's state, None without. losses: of the last step, means over its forwards, on the device.
    failure: why it stopped learning, None while it does. finite: whether every loss of the step so far is, on the device.
    """

    student: Student
    policy: Policy
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    distillers: nn.ModuleList = field(default_factory=nn.ModuleList)
    needs: frozenset[str] = field(default_factory=frozenset)
    scales: dict[str, float] = field(default_factory=dict)
    averaged: dict[str, Tensor] | None = None
    failure: dict[str, str] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    finite: Tensor | None = None

    def parameters(self) -> list[nn.Parameter]:
        return self.student.parameters() + [p for p in self.distillers.parameters() if p.requires_grad]

    def needs_at(self, step: int, total_steps: int) -> frozenset[str]:
        """The signals that a step compares: those of what has not stopped, so that the teacher is not asked for others."""
        return needs(without_stopped(self.policy, step, total_steps))

    def read_losses(self) -> dict[str, float]:
        """The last step's losses as numbers, means over all devices; `ratio`: distillation to task, where there is distillation.

        Waits for the device once, and for the other processes, which have to read as well.
        """
        if not self.losses:
            return {}
        values = parallel.mean_over_devices(torch.stack(list(self.losses.values())))
        named = dict(zip(self.losses, values.tolist(), strict=True))
        distill = [value for name, value in named.items() if name.startswith("distill/")]
        return named | ({"ratio": sum(distill) / named["task"]} if distill and named["task"] else {})


def make_learner(student: Student, policy: Policy, recipe: Recipe, distillers: nn.ModuleList | None = None) -> Learner:
    distillers = nn.ModuleList() if distillers is None else distillers
    device = next(student.model.parameters()).device
    if recipe.precision != "fp32":
        lose_in_fp32(student.model)
    return Learner(
        student,
        policy,
        make_optimizer([student.model, *([student.adapters] if student.adapters is not None else []), *distillers], recipe),
        # at 2^16 the first steps of a detector overflow and are skipped, as with every fp16 training
        torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16"),
        distillers,
        needs(policy),
        averaged={k: v.detach().clone() for k, v in student.model.state_dict().items()} if recipe.ema is not None else None,
    )


def make_optimizer(modules: Sequence[nn.Module], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or SGD over what learns in the modules. Biases and norms do not decay under AdamW; MMDetection's SGD decays all.

    Biases outside of norms have the recipe's factors on learning rate and, under SGD, decay, as MMDetection's `bias_lr_mult` and
    `bias_decay_mult`. `lr_factor` of a group multiplies the schedule's rate.
    """
    own_factors = (recipe.bias_lr_factor, recipe.bias_decay_factor) != (1, 1)
    biases = {id(bias) for bias in _biases(modules)} if own_factors else set()
    learnt = [p for module in modules for p in module.parameters() if p.requires_grad]
    of_bias = [p for p in learnt if id(p) in biases]
    others = [p for p in learnt if id(p) not in biases]
    decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        split = [(others, decay, 1.0), (of_bias, decay * recipe.bias_decay_factor, recipe.bias_lr_factor)]
    else:
        matrices, plain = [p for p in others if p.ndim > 1], [p for p in others if p.ndim <= 1]
        split = [(matrices, decay, 1.0), (plain, 0.0, 1.0), (of_bias, 0.0, recipe.bias_lr_factor)]
    groups = [{"params": params, "weight_decay": decay, "lr_factor": factor} for params, decay, factor in split if params]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.lr, foreach=True)


def _biases(modules: Sequence[nn.Module]) -> Iterator[nn.Parameter]:
    for module in (part for whole in modules for part in whole.modules()):
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter) and not isinstance(module, NORMS):
            yield bias


def lose_in_fp32(model: nn.Module) -> None:
    """Let a detector's heads hand out float32 and compute their losses in it, also under autocast.

    Half precision is for the convolutions; sums over a hundred thousand anchors, and boxes of a thousand pixels, do not survive it.
    """

    def in_fp32(function: Any) -> Any:
        def computed(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(next(model.parameters()).device.type, enabled=False):
                return function(*_as_float(args), **_as_float(kwargs))

        return computed

    for head in model.modules():
        steps = [name for name in ("loss_by_feat", "loss_and_target", "predict_by_feat") if hasattr(head, name)]
        for name in steps:
            setattr(head, name, in_fp32(getattr(head, name)))
        if steps:
            head.register_forward_hook(lambda _module, _inputs, output: _as_float(output), prepend=True)


def _as_float(value: Any) -> Any:
    """Half-precision tensors as float32, through lists, tuples and dictionaries; anything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: _as_float(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_as_float(one) for one in value)
    return value


@torch.no_grad()
def average(learner: Learner, decay: float, step: int) -> None:
    """Move the average towards the student after optimisation step `step` (from 0).

    Early steps count more, min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.
    """
    assert learner.averaged is not None
    kept = min(decay, (1 + step) / (10 + step))
    means: list[Tensor] = []
    values: list[Tensor] = []
    for name, value in learner.student.model.state_dict().items():
        if value.is_floating_point():
            means.append(learner.averaged[name])
            values.append(value)
        else:
            learner.averaged[name].copy_(value)
    torch._foreach_lerp_(means, values, 1 - kept)


@contextmanager
def final_weights(learner: Learner) -> Iterator[nn.Module]:
    """The student with the weights that are measured and exported: the average where there is one. It learns on with its own."""
    model = learner.student.model
    if learner.averaged is None:
        yield model
        return
    own = {key: value.detach().clone() for key, value in model.state_dict().items()}
    model.load_state_dict(learner.averaged)
    try:
        yield model
    finally:
        model.load_state_dict(own)


def state_of(learner: Learner) -> dict[str, Any]:
    """All that a learner needs to go on as if nothing had happened; tensors and plain containers only."""
    adapters = learner.student.adapters
    return {
        "model": learner.student.model.state_dict(),
        "adapters": adapters.state_dict() if adapters is not None else {},
        "distillers": learner.distillers.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "averaged": learner.averaged,
        "scales": learner.scales,
    }


def restore(learner: Learner, state: Mapping[str, Any]) -> None:
    learner.student.model.load_state_dict(state["model"])
    if learner.student.adapters is not None:
        learner.student.adapters.load_state_dict(state["adapters"])
    learner.distillers.load_state_dict(state["distillers"])
    learner.optimizer.load_state_dict(state["optimizer"])
    if learner.scaler.is_enabled():
        learner.scaler.load_state_dict(state["scaler"])
    if learner.averaged is not None:
        device = next(learner.student.model.parameters()).device
        learner.averaged = {key: value.to(device) for key, value in state["averaged"].items()}
    learner.scales = dict(state["scales"])
