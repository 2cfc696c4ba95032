"""A teacher and its students: one forward each, the same images, levels matched by stride, channels by adapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkds_core.catalogue import DetectorEntry, exchange
from detkds_core.detectors import rois
from detkds_core.detectors.tap import Tap, asks_dense_head
from detkds_core.losses.signals import LATE, STUDENT_ALONE, Rois, Signals
from detkds_core.policy import Policy
from detkds_core.policy.distillers import pair_faults


class PairError(ValueError):
    """Two detectors that cannot be distilled into one another, and why."""


@dataclass(frozen=True)
class Levels:
    """Which pyramid levels of each detector face each other, as indices, fine to coarse.

    strides: the student's, where the teacher's maps have to take its sizes; empty: they have them.
    """

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    strides: tuple[int, ...] = ()


def match_levels(teacher: DetectorEntry, student: DetectorEntry, resize: bool = False) -> Levels:
    """Match pyramid levels by stride, or by the nearest stride if `resize`. Raises PairError when there is none in common."""
    common = exchange(teacher, student, resize)
    if not common.levels:
        raise PairError(
            f"{teacher.name} (strides {list(teacher.strides)}) and {student.name} (strides {list(student.strides)}) share no pyramid level"
        )
    of_teacher, of_student = zip(*common.levels, strict=True)
    return Levels(of_teacher, of_student, common.strides if common.resized else ())


def check_policy(policy: Policy, teacher: DetectorEntry, student: DetectorEntry, resize: bool = False) -> None:
    """Raise PairError when the policy asks for knowledge that this pair cannot exchange, or for a distiller that it cannot run."""
    offer = exchange(teacher, student, resize)
    for i, term in enumerate(policy.terms):
        if term.knowledge in offer.excluded:
            where = f"policy.terms[{i}].knowledge: {term.knowledge!r} cannot pass from {teacher.name} to {student.name}"
            raise PairError(f"{where}: {offer.excluded[term.knowledge]}")
        if term.region not in offer.regions[term.knowledge]:
            why = offer.lacking.get(f"{term.knowledge}.{term.region}") or offer.lacking.get(term.region, "it is none of the pair's")
            raise PairError(f"policy.terms[{i}].region: {term.region!r}: {why}; one of {', '.join(offer.regions[term.knowledge])}")
        if term.distance == "kl_edges" and not offer.has_edges:
            raise PairError(f"policy.terms[{i}].distance: 'kl_edges' needs edge distributions on both sides: {offer.lacking['edges']}")
        if term.distance == "points" and not offer.has_points:
            raise PairError(f"policy.terms[{i}].distance: 'points' needs point sets on both sides: {offer.lacking['points']}")
    for i, distiller in enumerate(policy.distillers):
        if faults := pair_faults(distiller.name, offer, (teacher.family, student.family)):
            raise PairError(f"policy.distillers[{i}]: {'; '.join(faults)}")


class Teacher:
    """A frozen detector in evaluation mode. Not a module, so that no optimizer, checkpoint or `.train()` can reach it."""

    def __init__(self, model: nn.Module, levels: Sequence[int], strides: Sequence[int] = ()) -> None:
        """levels: the pyramid levels that count; strides: the student's at these levels, if maps have to take its sizes (`Levels`)."""
        self.model = model.eval().requires_grad_(False)
        self.levels = tuple(levels)
        self.strides = tuple(strides)
        self.tap = Tap(model)
        self.pyramid: tuple[Tensor, ...] = ()
        self.batch_shape = (0, 0)

    @torch.no_grad()
    def signals(self, inputs: Tensor, needs: frozenset[str]) -> Signals:
        """One forward of backbone and neck, and of the dense head only if a response is needed. inputs: (B, 3, H, W), normalised.

        The pyramid is kept for `regard` until the next call.
        """
        needs = needs - STUDENT_ALONE
        self.pyramid, self.batch_shape = (), tuple(inputs.shape[-2:])
        if not needs:
            return Signals(features=())
        self.tap.clear()
        self.tap.wanted = needs
        features = self.model.extract_feat(inputs)
        if asks_dense_head(needs) and self.tap.head is not None:
            self.tap.head(features)
        signals = self.tap.signals(needs, self.levels)
        self.pyramid, self.batch_shape = self.tap.features, tuple(inputs.shape[-2:])
        self.tap.clear()
        if self.strides:
            sizes = [(-(-inputs.shape[-2] // stride), -(-inputs.shape[-1] // stride)) for stride in self.strides]
            signals = replace(signals, features=tuple(map(resized, signals.features, sizes)))
        return signals

    @torch.no_grad()
    def regard(self, shared: Rois, needs: frozenset[str]) -> Rois:
        """What the RoI head says of a student's proposals on the images of the last `signals`, as far as `needs` asks for it."""
        said = rois.regard(getattr(self.model, "roi_head", None), self.pyramid, shared, needs, self.batch_shape)
        self.tap.clear()
        return said


def resized(feat: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (B, C, H, W) in another size, bilinearly; itself where it has the size."""
    if tuple(feat.shape[-2:]) == size:
        return feat
    return F.interpolate(feat, size=size, mode="bilinear", align_corners=False)


class Student:
    """A detector that learns. `adapters` are 1x1 convolutions to the teacher's channels; they train with it and are never exported."""

    def __init__(self, model: nn.Module, levels: Sequence[int], adapters: nn.ModuleList | None = None) -> None:
        self.model = model
        self.levels = tuple(levels)
        self.adapters = adapters
        self.tap = Tap(model)

    def losses(
        self, inputs: Tensor, samples: Sequence[Any], needs: frozenset[str], meanwhile: Callable[[Signals], None] | None = None
    ) -> tuple[Mapping[str, Tensor], Signals]:
        """The detector's own losses and, from the same forward, its signals with features in the teacher's channels.

        meanwhile: called once with the signals that come before the detector's own loss (all but `LATE`).
        """
        said: list[Signals] = []

        def speak() -> None:
            said.append(self._signals(needs - LATE))
            if meanwhile is not None:
                meanwhile(said[0])

        self.tap.clear()  # a prediction in between leaves its own signals
        self.tap.wanted, self.tap.then = needs, speak if needs else None
        try:
            losses = self.model.loss(inputs, samples)
        finally:
            self.tap.then = None
        signals = said[0] if said else Signals(features=())
        if needs & LATE:
            late = self.tap.signals(needs & LATE, self.levels)
            signals = replace(signals, assigned=late.assigned, valuable=late.valuable, rois=late.rois)
        self.tap.clear()
        return losses, signals

    def _signals(self, needs: frozenset[str]) -> Signals:
        signals = self.tap.signals(needs, self.levels)
        if self.adapters is None or "features" not in needs:
            return signals
        return replace(signals, features=tuple(adapter(level) for adapter, level in zip(self.adapters, signals.features, strict=True)))

    def parameters(self) -> list[nn.Parameter]:
        own = [p for p in self.model.parameters() if p.requires_grad]
        return own + (list(self.adapters.parameters()) if self.adapters is not None else [])


def make_adapters(teacher: DetectorEntry, student: DetectorEntry, levels: int) -> nn.ModuleList | None:
    """1x1 convolutions from the student's channels to the teacher's, one a level; None where the channels agree."""
    if teacher.channels == student.channels:
        return None
    return nn.ModuleList(nn.Conv2d(student.channels, teacher.channels, 1) for _ in range(levels))
