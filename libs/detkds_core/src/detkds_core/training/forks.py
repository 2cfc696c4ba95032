"""Rungs that start from one student: a trunk trained without distillation, and branches that fork from where it stands.

A branch learns for a few steps with a rate that falls to nothing, so that branches of one length end comparable. What it starts from
costs its search once, whatever number of candidates forks there.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from detkds_core.catalogue import Recipe
from detkds_core.datasets.kept import take
from detkds_core.policy import Policy
from detkds_core.training import parallel
from detkds_core.training.group import Start, batches_for, new_learner, state_digest, train
from detkds_core.training.learner import Learner

BRANCHES_APART = 500_009  # between the seed of a trunk and that of its branches, which see other batches
MEASURED = ("eval_every", "eval_images", "ema")  # fields of a recipe that a trunk does not follow from
HEX = 64  # characters of the digest that a kept trunk begins with


@dataclass(frozen=True)
class Fork:
    """Where branches start. weights: the student's state. moments: what its optimizer keeps of each parameter, by the parameter's name."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    steps: int

    def to_device(self, device: torch.device) -> "Fork":
        """The same fork on a device; the numbers that an optimizer keeps on the CPU stay there."""

        def moved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {key: value.to(device) if value.ndim else value for key, value in state.items()}

        moments = {name: moved(state) for name, state in self.moments.items()}
        return Fork({name: value.to(device) for name, value in self.weights.items()}, moments, self.steps)


def cached_trunk(start: Start, recipe: Recipe, steps: int, seed: int, folder: Path) -> tuple[Fork, bool]:
    """The trunk from the folder's file of all that it follows from, or grown and kept there; and whether it was grown.

    A file that is damaged is made again. Raises RuntimeError as `grow_trunk`.
    """
    path = folder / f"trunk_{_key(start, recipe, steps, seed)}.fork"
    kept = _read(path, steps)
    found = parallel.gathered([{"kept": kept is not None}])
    if kept is not None and all(one["kept"] for one in found):  # all processes take it, or all grow it: growing needs them all
        return kept.to_device(start.device), False
    fork = grow_trunk(start, recipe, steps, seed)
    if parallel.rank() == 0:
        _write(path, fork)
    return fork, True


def _key(start: Start, recipe: Recipe, steps: int, seed: int) -> str:
    facts = {
        "student": start.student_entry.name,
        "weights": state_digest(start.weights),
        "dataset": start.dataset_digest or (start.train or {}).get("annotations"),
        "recipe": {name: value for name, value in recipe.to_json().items() if name not in MEASURED},
        "steps": steps,
        "seed": seed,
        "torch": torch.__version__,
        "device": start.device.type,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def _write(path: Path, fork: Fork) -> None:
    """A digest, then the tensors."""
    tensors = {f"weights/{name}": value for name, value in fork.weights.items()}
    tensors |= {f"moments/{name}/{key}": value for name, state in fork.moments.items() for key, value in state.items()}
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(hashlib.sha256(content).hexdigest().encode() + content)
    os.replace(partial, path)


def _read(path: Path, steps: int) -> Fork | None:
    """None where there is no whole file."""
    if not take(path):
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[HEX:]).hexdigest().encode() != content[:HEX]:
        return None
    weights: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in load(content[HEX:]).items():
        what, _, of = name.partition("/")
        if what == "weights":
            weights[of] = value
        else:
            parameter, _, key = of.rpartition("/")
            moments.setdefault(parameter, {})[key] = value
    return Fork(weights, moments, steps)


def grow_trunk(start: Start, recipe: Recipe, steps: int, seed: int) -> Fork:
    """Train a student without distillation for the first `steps` steps of a recipe. Raises RuntimeError when it does not stay finite."""
    assert start.train is not None
    learner = new_learner(start, Policy(()), recipe, seed)
    train([learner], start, batches_for(learner, start.train, recipe, seed), last_step=steps)
    if learner.failure is not None:
        raise RuntimeError(f"the student fails without distillation: {learner.failure['detail']}")
    parallel.share_buffers(learner.student.model)
    names = {id(parameter): name for name, parameter in learner.student.model.named_parameters()}
    moments = {
        names[id(parameter)]: {key: value.detach().clone() for key, value in state.items() if value is not None}
        for parameter, state in learner.optimizer.state.items()
        if id(parameter) in names
    }
    weights = {name: value.detach().clone() for name, value in learner.student.model.state_dict().items()}
    return Fork(weights, moments, steps)


def branch(start: Start, fork: Fork, policy: Policy, recipe: Recipe, seed: int, **options: Any) -> Learner:
    """A learner at the fork: the trunk's weights and moments, and its average there; adapters and distillers are new.

    options: of `new_learner`. Raises PairError when the pair cannot exchange what the policy asks for.
    """
    learner = new_learner(start, policy, recipe, seed, **options)
    model = learner.student.model
    model.load_state_dict(fork.weights)
    for name, parameter in model.named_parameters():
        if name in fork.moments:
            learner.optimizer.state[parameter] = {key: value.clone() for key, value in fork.moments[name].items()}
    if learner.averaged is not None:
        learner.averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return learner


def branch_recipe(recipe: Recipe, steps: int) -> Recipe:
    """The recipe of a branch: as that of the trunk, with a rate that falls from the peak to nothing."""
    return replace(recipe, iterations=steps, epochs=None, milestones=None, eval_every=None, schedule="anneal")


def branch_seed(seed: int) -> int:
    """The seed of a branch's batches."""
    return seed + BRANCHES_APART
