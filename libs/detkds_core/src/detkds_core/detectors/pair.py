"""A teacher and its students: one forward each, the same images, levels matched by stride, channels by adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detkds_core.catalogue import DetectorEntry, exchange
from detkds_core.detectors.tap import Tap, dense_head
from detkds_core.losses.signals import Signals
from detkds_core.policy import Policy

RESPONSES = frozenset({"logits", "boxes", "edges"})


class PairError(ValueError):
    """Two detectors that cannot be distilled into one another, and why."""


@dataclass(frozen=True)
class Levels:
    """Which pyramid levels of each detector face each other, as indices, fine to coarse."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]


def match_levels(teacher: DetectorEntry, student: DetectorEntry) -> Levels:
    """Match pyramid levels by stride. Raises PairError when there is none in common."""
    common = exchange(teacher, student).strides
    if not common:
        raise PairError(
            f"{teacher.name} (strides {list(teacher.strides)}) and {student.name} (strides {list(student.strides)}) share no pyramid level"
        )
    return Levels(tuple(teacher.strides.index(s) for s in common), tuple(student.strides.index(s) for s in common))


def check_policy(policy: Policy, teacher: DetectorEntry, student: DetectorEntry) -> None:
    """Raise PairError when the policy asks for knowledge that this pair cannot exchange."""
    offer = exchange(teacher, student)
    for i, term in enumerate(policy.terms):
        if term.knowledge in offer.excluded:
            where = f"policy.terms[{i}].knowledge: {term.knowledge!r} cannot pass from {teacher.name} to {student.name}"
            raise PairError(f"{where}: {offer.excluded[term.knowledge]}")
        if term.distance == "kl_edges" and not offer.has_edges:
            raise PairError(f"policy.terms[{i}].distance: 'kl_edges' needs edge distributions with as many bins on both sides (GFL)")


class Teacher:
    """A frozen detector in evaluation mode. Not a module, so that no optimizer, checkpoint or `.train()` can reach it."""

    def __init__(self, model: nn.Module, levels: Sequence[int]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.levels = tuple(levels)
        self.tap = Tap(model)

    @torch.no_grad()
    def signals(self, inputs: Tensor, needs: frozenset[str]) -> Signals:
        """One forward of backbone and neck, and of the dense head only if a response is needed. inputs: (B, 3, H, W), normalised."""
        if not needs:
            return Signals(features=())
        features = self.model.extract_feat(inputs)
        if needs & RESPONSES:
            dense_head(self.model)(features)
        signals = self.tap.signals(needs, self.levels)
        self.tap.clear()
        return signals


class Student:
    """A detector that learns. `adapters` are 1x1 convolutions to the teacher's channels; they train with it and are never exported."""

    def __init__(self, model: nn.Module, levels: Sequence[int], adapters: nn.ModuleList | None = None) -> None:
        self.model = model
        self.levels = tuple(levels)
        self.adapters = adapters
        self.tap = Tap(model)

    def losses(self, inputs: Tensor, samples: Sequence[Any], needs: frozenset[str]) -> tuple[Mapping[str, Tensor], Signals]:
        """The detector's own losses and, from the same forward, its signals with features in the teacher's channels."""
        losses = self.model.loss(inputs, samples)
        signals = self.tap.signals(needs, self.levels) if needs else Signals(features=())
        self.tap.clear()
        if self.adapters is not None and "features" in needs:
            features = tuple(adapter(level) for adapter, level in zip(self.adapters, signals.features, strict=True))
            signals = Signals(features, signals.logits, signals.boxes, signals.edges)
        return losses, signals

    def parameters(self) -> list[nn.Parameter]:
        own = [p for p in self.model.parameters() if p.requires_grad]
        return own + (list(self.adapters.parameters()) if self.adapters is not None else [])


def make_adapters(teacher: DetectorEntry, student: DetectorEntry, levels: int) -> nn.ModuleList | None:
    """1x1 convolutions from the student's channels to the teacher's, one a level; None where the channels agree."""
    if teacher.channels == student.channels:
        return None
    return nn.ModuleList(nn.Conv2d(student.channels, teacher.channels, 1) for _ in range(levels))
