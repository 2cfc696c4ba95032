"""Rungs that start from one student: a trunk trained without distillation, and branches that fork from where it stands.

A branch learns for a few steps with a rate that falls to nothing, so that branches of one length end comparable. What it starts from
costs its search once, whatever number of candidates forks there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detkds_core.catalogue import Recipe
from detkds_core.policy import Policy
from detkds_core.training.group import Start, batches_for, new_learner, train
from detkds_core.training.learner import Learner

BRANCHES_APART = 500_009  # between the seed of a trunk and that of its branches, which see other batches


@dataclass(frozen=True)
class Fork:
    """Where branches start. weights: the student's state. moments: what its optimizer keeps of each parameter, by the parameter's name."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Any]]
    steps: int

    def to_device(self, device: torch.device) -> "Fork":
        """The same fork on a device."""
        moments = {name: {key: _moved(value, device) for key, value in state.items()} for name, state in self.moments.items()}
        return Fork({name: value.to(device) for name, value in self.weights.items()}, moments, self.steps)


def grow_trunk(start: Start, recipe: Recipe, steps: int, seed: int) -> Fork:
    """Train a student without distillation for the first `steps` steps of a recipe. Raises RuntimeError when it does not stay finite."""
    assert start.train is not None
    learner = new_learner(start, Policy(()), recipe, seed)
    train([learner], start, batches_for(learner, start.train, recipe, seed), last_step=steps)
    if learner.failure is not None:
        raise RuntimeError(f"the student fails without distillation: {learner.failure['detail']}")
    names = {id(parameter): name for name, parameter in learner.student.model.named_parameters()}
    moments = {
        names[id(parameter)]: {key: _copied(value) for key, value in state.items()}
        for parameter, state in learner.optimizer.state.items()
        if id(parameter) in names
    }
    weights = {name: value.detach().clone() for name, value in learner.student.model.state_dict().items()}
    return Fork(weights, moments, steps)


def branch(start: Start, fork: Fork, policy: Policy, recipe: Recipe, seed: int) -> Learner:
    """A learner at the fork: the trunk's weights and moments; adapters and distillers are new.

    Raises PairError when the pair cannot exchange what the policy asks for.
    """
    learner = new_learner(start, policy, recipe, seed)
    learner.student.model.load_state_dict(fork.weights)
    for name, parameter in learner.student.model.named_parameters():
        if name in fork.moments:
            learner.optimizer.state[parameter] = {key: _copied(value) for key, value in fork.moments[name].items()}
    return learner


def branch_recipe(recipe: Recipe, steps: int) -> Recipe:
    """The recipe of a branch: as that of the trunk, with a rate that falls from the peak to nothing."""
    return replace(recipe, iterations=steps, epochs=None, milestones=None, eval_every=None, schedule="anneal")


def branch_seed(seed: int) -> int:
    """The seed of a branch's batches."""
    return seed + BRANCHES_APART


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) and value.ndim else value
