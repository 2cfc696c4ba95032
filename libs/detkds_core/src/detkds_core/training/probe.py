"""What a policy does where its training would start, before anything is trained under it: its loss, its gradient beside the task's.

All policies are looked at on the same few batches from one forward a batch, so that a look costs a backward pass a part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from detkds_core.losses import needs
from detkds_core.losses.policy import found_weight
from detkds_core.losses.signals import Rois, Scene, Signals
from detkds_core.policy import Policy
from detkds_core.training.batches import Batches
from detkds_core.training.group import Start, view
from detkds_core.training.learner import Learner
from detkds_core.training.pull import BATCHES, NO_GRADIENT, Pull, balance, fixed, names_of, parts_of, pulls, undisturbed


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a policy where its training would start; means over the batches.

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


@dataclass(frozen=True)
class Finding:
    """A look at a policy and what followed from it. scales: of its `balanced` terms. first_loss: its loss on the first batch."""

    policy: Policy
    look: Look
    scales: Mapping[str, float]
    first_loss: float

    @property
    def resolved(self) -> Policy:
        """The policy with the weights that were found."""
        return fixed(self.policy, self.scales)


@dataclass(frozen=True)
class Still:
    """A batch that was looked at, without its graph. pyramid: the student's own maps, all levels, before any adapter."""

    inputs: Tensor
    samples: list[Any]
    scene: Scene
    signals: Signals
    said: Signals
    pyramid: tuple[Tensor, ...]


def probe(start: Start, learner: Learner, batches: Batches, policies: Sequence[Policy]) -> tuple[list[Finding], list[Still]]:
    """Look at policies of terms (none with distillers) where a learner stands, on the first batches. Nothing is changed by it.

    Terms count with their weights and without their schedules. The student runs in training mode, as it will.
    """
    wanted = frozenset().union(*map(needs, policies))
    parts = [parts_of(policy) for policy in policies]
    found: list[list[Pull]] = [[] for _ in policies]
    stills: list[Still] = []
    student = learner.student
    pyramids: list[tuple[Tensor, ...]] = []
    source = student.model.neck if getattr(student.model, "with_neck", False) else student.model.backbone
    hook = source.register_forward_hook(lambda _module, _inputs, output: pyramids.append(tuple(level.detach() for level in output)))
    half = batches.recipe.precision == "fp16"
    try:
        with undisturbed(student.model):
            for index in range(BATCHES):
                seen = view(start, student, batches, index, wanted)
                stills.append(Still(seen.inputs, seen.samples, seen.scene, _detached(seen.signals), seen.said, pyramids[-1]))
                own = [[part for _, part in one] for one in parts]
                for pull, pulled in zip(pulls(student, seen.task, seen.signals, seen.said, seen.scene, own, half=half), found, strict=True):
                    pulled.append(pull)
    finally:
        hook.remove()
    return [_finding(policy, one, pulled) for policy, one, pulled in zip(policies, parts, found, strict=True)], stills


def _finding(policy: Policy, parts: Sequence[tuple[str | None, Policy]], pulled: Sequence[Pull]) -> Finding:
    terms = dict(zip(names_of(policy), policy.terms, strict=True))
    scales = {name: scale for name, scale in balance(parts, pulled).items() if terms[name].balanced}
    failure = _failure([name for name, _ in parts], [name for name, term in terms.items() if term.balanced and name not in scales], pulled)
    if failure is not None:
        return Finding(policy, Look(0.0, 0.0, 0.0, (), failure), scales, 0.0)
    weights = torch.tensor([_weight(name, place, terms, scales, pulled) for place, (name, _) in enumerate(parts)], dtype=torch.float64)
    rows = [_summed(weights, pull) for pull in pulled]
    loss, ratio, agreement = (fmean(row[place] for row in rows) for place in range(3))  # type: ignore[misc]
    if not (math.isfinite(loss) and math.isfinite(ratio)):
        detail = f"the loss is {loss} and its gradient {ratio} times the task's at the first batches"
        return Finding(policy, Look(0.0, 0.0, 0.0, (), {"kind": "not_finite", "detail": detail}), scales, 0.0)
    if ratio < NO_GRADIENT:
        no_gradient = {"kind": "no_gradient", "detail": "the policy does not move the student"}
        return Finding(policy, Look(loss, ratio, agreement, (), no_gradient), scales, rows[0][0])
    whole = torch.stack([row[3] / row[3].norm() for row in rows if row[3].norm() > 0]).sum(0)
    direction = tuple(round(x, 6) for x in (whole / whole.norm()).tolist())
    return Finding(policy, Look(loss, ratio, agreement, direction), scales, rows[0][0])


def _failure(names: Sequence[str | None], missing: Sequence[str], pulled: Sequence[Pull]) -> dict[str, str] | None:
    """Why a policy cannot be trained with, as far as one of its parts alone tells."""
    for pull in pulled:
        if pull.error is not None:
            return {"kind": "not_computable", "detail": pull.error}
        for name, loss, square in zip(names, pull.losses, pull.products.diagonal().tolist(), strict=True):
            if not (math.isfinite(loss) and math.isfinite(square)):
                what = name or "the policy"
                return {"kind": "not_finite", "detail": f"{what}: the loss is {loss} and its gradient {square**0.5} at the first batches"}
    if missing:
        return {"kind": "no_gradient", "detail": f"{missing[0]} does not move the student, so that no weight balances it with the task"}
    return None


def _weight(name: str | None, place: int, terms: Mapping[str, Any], scales: Mapping[str, float], pulled: Sequence[Pull]) -> float:
    """What a part's loss is multiplied by: weights that are known are in it; an `auto` term's is its ratio to the task's first loss."""
    if name is None:
        return 1.0
    if name in scales:
        return found_weight(terms[name], scales[name])
    return next((terms[name].weight * pull.task[0] / pull.losses[place] for pull in pulled if pull.losses[place] > 0), 0.0)


def _summed(weights: Tensor, pull: Pull) -> tuple[float, float, float, Tensor]:
    """Loss, length over the task's, cosine with it and sketch of the whole policy's gradient on a batch."""
    loss = torch.dot(weights, torch.tensor(pull.losses, dtype=torch.float64)).item()
    length = max(0.0, (weights @ pull.products @ weights).item()) ** 0.5
    own = pull.task[1]
    agreement = torch.dot(weights, pull.along).item() / (length * own) if length and own else 0.0
    return loss, length / own if own else math.nan, agreement, weights @ pull.sketches


def _detached(signals: Signals) -> Signals:
    levels = {name: tuple(x.detach() for x in getattr(signals, name)) for name in ("features", "logits", "boxes", "edges", "points")}
    rois = signals.rois
    if rois is not None:
        own = {one.name: getattr(rois, one.name) for one in fields(Rois)}
        rois = Rois(**{name: None if x is None else x.detach() for name, x in own.items()})
    return replace(signals, **levels, towers={}, rois=rois)
