"""What keeps a candidate from being trained: cheap tests, where it would start, that a policy which can teach passes."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from detkds_core.catalogue import Recipe
from detkds_core.detectors.pair import Student
from detkds_core.losses import needs, policy_losses
from detkds_core.losses.signals import Signals
from detkds_core.policy import Policy, acts_throughout, unscheduled
from detkds_core.policy.vocabulary import FEATURES
from detkds_core.training import parallel
from detkds_core.training.probe import Finding, Still
from detkds_core.training.pull import undisturbed
from detkds_core.training.steps import in_precision, seed_step, total_loss

SAME_DIRECTION = 1e-3  # the largest distance of two sketches, which are of length 1, of the same gradient
SAME_RATIO = 0.01  # the largest relative difference of two ratios to the task that weigh the same
MAX_FIRST_LOSS = 100.0  # DetKDS' filter, of the weighted loss on the first batch
RESPONSES = ("logits", "boxes", "edges", "points")
OF_ROIS = ("scores", "boxes", "masks")
Tensors = dict[tuple[str, int], Tensor]  # by signal and level
STEPS = 50  # of a descent, by Adam
FIRST = 10  # of these, after which a policy that has come nearer needs no more
STEP = 0.02  # of a tensor's own standard deviation, its length at most
GROWTH = 0.01  # of a gap or a loss: less is none


@dataclass(frozen=True)
class Rejection:
    """Why a candidate is not trained. same_as: the index of the candidate that it repeats."""

    gate: str
    detail: str
    same_as: int | None = None

    def to_json(self) -> dict[str, str]:
        return {"gate": self.gate, "detail": self.detail}


@dataclass(frozen=True)
class Known:
    """An earlier candidate's look. ratio: its gradient's length over the task's; None where only the direction counts."""

    index: int
    sketch: tuple[float, ...]
    ratio: float | None = None


@dataclass(frozen=True)
class Descent:
    """Where a policy alone leads what it compares on a batch, before and after: of gaps, means over the tensors that moved.

    likeness: 1 - linear CKA with the teacher's; distance: L2 to the teacher's over its length. task: the frozen head's own loss on the
    student's maps; None for a policy that moves no maps, and for one that came nearer at once.
    """

    likeness: tuple[float, float]
    distance: tuple[float, float]
    task: tuple[float, float] | None

    @property
    def gap(self) -> tuple[float, float]:
        """Both measures added up, before and after. Neither tells alone: CKA takes the teacher's opposite for the teacher, and a loss that
        sees no scale may lengthen what it turns the right way."""
        return self.likeness[0] + self.distance[0], self.likeness[1] + self.distance[1]


def judge(
    finding: Finding, gates: Sequence[str], known: Sequence[Known], descents: Iterable[Descent]
) -> tuple[Rejection | None, dict[str, float]]:
    """The first of the gates that a policy does not pass, and the seconds that each gate took which it met.

    descents: of each batch, made as they are asked for, so that `descent` takes their time; all have to lead away.
    """
    took: dict[str, float] = {}
    for gate, refusal_by in CASCADE.items():
        if gate not in gates or (finding.look.failure is not None and gate not in OF_FAILED):
            continue
        began = time.perf_counter()
        refusal = refusal_by(finding, known, descents)
        took[gate] = time.perf_counter() - began
        if refusal is not None:
            return refusal, took
    return None, took


def not_finite(finding: Finding, _known: Sequence[Known], _descents: Iterable[Descent]) -> Rejection | None:
    failure = finding.look.failure
    return Rejection("finite", failure["detail"]) if failure is not None and failure["kind"] != "no_gradient" else None


def without_gradient(finding: Finding, _known: Sequence[Known], _descents: Iterable[Descent]) -> Rejection | None:
    failure = finding.look.failure
    return Rejection("gradient", failure["detail"]) if failure is not None and failure["kind"] == "no_gradient" else None


def repeated(finding: Finding, known: Sequence[Known], _descents: Iterable[Descent]) -> Rejection | None:
    same = duplicate_of(finding, known)
    return Rejection("duplicate", f"its gradient is that of candidate {same}", same) if same is not None else None


def too_large(finding: Finding, _known: Sequence[Known], _descents: Iterable[Descent]) -> Rejection | None:
    warms_up = any(part.warm_up for part in finding.policy.parts)  # from 0: the first batch of the training does not see the look's loss
    if finding.first_loss > MAX_FIRST_LOSS and not warms_up:
        return Rejection("first_loss", f"its loss on the first batch is {finding.first_loss:g}, above {MAX_FIRST_LOSS:g}")
    return None


def misleading(_finding: Finding, _known: Sequence[Known], descents: Iterable[Descent]) -> Rejection | None:
    why = None
    for one in descents:
        why = leads_away(one)
        if why is None:  # hardly a policy needs the second
            break
    return Rejection("descent", why) if why is not None else None


Gate = Callable[[Finding, Sequence[Known], Iterable[Descent]], Rejection | None]
CASCADE: Mapping[str, Gate] = {  # in the order of `evolution.spec.GATES`: what costs most comes last
    "finite": not_finite,
    "gradient": without_gradient,
    "duplicate": repeated,
    "first_loss": too_large,
    "descent": misleading,
}
OF_UNKNOWN = ("first_loss", "descent")  # gates that a policy meets of which nobody knows whether it can teach
OF_FAILED = ("finite", "gradient")  # gates that a look which failed can meet; the others have nothing to judge by


def duplicate_of(finding: Finding, known: Sequence[Known]) -> int | None:
    """The first of the known candidates whose gradient has the same direction and, where it is known, the same strength."""
    own, ratio = finding.look.sketch, finding.look.ratio
    if not own or not acts_throughout(finding.policy):  # a look leaves schedules out
        return None
    for one in known:
        apart = math.dist(own, one.sketch) if len(one.sketch) == len(own) else math.inf
        if apart <= SAME_DIRECTION and (one.ratio is None or abs(ratio - one.ratio) <= SAME_RATIO * max(ratio, one.ratio)):
            return one.index
    return None


def leads_away(descent: Descent) -> str | None:
    """Why a policy teaches the wrong thing: the gap to the teacher grows, and with it what the student's own head loses on the maps."""
    if not _grows(descent.gap):
        return None
    text = (
        f"alone it leads away from the teacher: 1 - CKA from {descent.likeness[0]:.4g} to {descent.likeness[1]:.4g}, "
        f"L2 from {descent.distance[0]:.4g} to {descent.distance[1]:.4g}"
    )
    if descent.task is None:
        return text
    return f"{text}, the detector's own loss from {descent.task[0]:.4g} to {descent.task[1]:.4g}" if _grows(descent.task) else None


def _grows(pair: tuple[float, float]) -> bool:
    """Also into something that is not a number."""
    return not pair[1] <= pair[0] * (1 + GROWTH)


def descent(policy: Policy, student: Student, still: Still, recipe: Recipe) -> Descent:
    """Let what a policy compares follow its gradient alone for `STEPS` steps: maps of the student, and responses as maps of their own.

    policy: of fixed weights. Nothing else moves, the backbone is not asked, and the head only for its loss at the end. One that has come
    nearer to the teacher, by more than nothing, after the `FIRST` steps goes no further.
    """
    plain = Policy(tuple(map(unscheduled, policy.terms)))
    on_maps = any(term.knowledge in FEATURES for term in plain.terms)
    before = tensors_of(plain, student, still)

    def loss(tensors: Tensors, step: int) -> Tensor:
        scene = replace(still.scene, step=still.scene.step + step)  # masks are drawn anew
        return torch.stack(list(policy_losses(plain, signals_of(tensors, student, still), still.said, scene).values())).sum()

    def means(values: Sequence[float]) -> list[float]:
        found = torch.tensor(values, dtype=torch.float64, device=still.inputs.device)
        return [float(value) for value in parallel.mean_over_devices(found).tolist()]

    def so_far(tensors: Tensors) -> Descent:
        was_unlike, unlike, was_apart, apart = means(gaps(before, tensors, student, still))
        return Descent((was_unlike, unlike), (was_apart, apart), None)

    def nearer(tensors: Tensors) -> bool:
        was, now = so_far(tensors).gap
        return now < was * (1 - GROWTH)

    after = descended(loss, before, enough=nearer)
    found = so_far(after)
    if not on_maps or not _grows(found.gap):
        return found
    was, now = means([frozen_loss(student, still, maps_of(tensors, still), recipe) for tensors in (before, after)])
    return replace(found, task=(was, now))


def descended(loss: Callable[[Tensors, int], Tensor], tensors: Tensors, *, enough: Callable[[Tensors], bool]) -> Tensors:
    """The tensors after `STEPS` steps of Adam down a loss (of them and the step's number); those without a gradient stay.

    enough: of the tensors after the `FIRST` steps, whether these will do. A step is as long as the tensor's spread makes it, and a gradient
    that is small beside the tensor's first is none: it is rounding.
    """
    moved = {key: value.clone().requires_grad_() for key, value in tensors.items()}
    groups = [{"params": [value], "lr": STEP * value.detach().std(correction=0).item()} for value in moved.values()]
    optimizer = torch.optim.Adam(groups)
    for step in range(STEPS):
        slopes = torch.autograd.grad(loss(moved, step), list(moved.values()), allow_unused=True)
        for group, value, slope in zip(optimizer.param_groups, moved.values(), slopes, strict=True):
            value.grad = slope
            if step == 0 and slope is not None:
                group["eps"] = max(1e-30, 1e-3 * slope.square().mean().sqrt().item())
        optimizer.step()
        if step + 1 == FIRST and enough({key: value.detach() for key, value in moved.items()}):
            break
    return {key: value.detach() for key, value in moved.items()}


def tensors_of(policy: Policy, student: Student, still: Still) -> Tensors:
    """What a policy may move, by signal and level: the student's own maps where it compares features, and the responses that it needs."""
    wanted, signals = needs(policy), still.signals
    found: Tensors = {(name, level): x for name in RESPONSES if name in wanted for level, x in enumerate(getattr(signals, name))}
    if any(term.knowledge in FEATURES for term in policy.terms):
        found |= {("maps", level): still.pyramid[level] for level in student.levels}
    if signals.rois is not None:
        rois = {name: getattr(signals.rois, name) for name in OF_ROIS if f"roi_{name}" in wanted}
        found |= {(f"roi_{name}", 0): x for name, x in rois.items() if x is not None}
    return {key: x.float() for key, x in found.items()}


def maps_of(tensors: Tensors, still: Still) -> tuple[Tensor, ...]:
    """The student's pyramid with what of it is in the tensors."""
    return tuple(tensors.get(("maps", level), own) for level, own in enumerate(still.pyramid))


def signals_of(tensors: Tensors, student: Student, still: Still) -> Signals:
    """The student's signals with what of them is in the tensors; features in the teacher's channels."""
    signals = still.signals
    responses = {name: tuple(tensors.get((name, level), x) for level, x in enumerate(getattr(signals, name))) for name in RESPONSES}
    rois = signals.rois
    if rois is not None:
        rois = replace(rois, **{name: tensors.get((f"roi_{name}", 0), getattr(rois, name)) for name in OF_ROIS})
    features = signals.features
    if any(name == "maps" for name, _ in tensors):
        maps = [tensors["maps", level] for level in student.levels]
        features = tuple(maps if student.adapters is None else [one(x) for one, x in zip(student.adapters, maps, strict=True)])
    return replace(signals, **responses, rois=rois, features=features)


@torch.no_grad()
def gaps(before: Tensors, after: Tensors, student: Student, still: Still) -> tuple[float, float, float, float]:
    """Likeness before and after, and distance before and after, of `Descent`; zeros where nothing moved."""
    first, last = signals_of(before, student, still), signals_of(after, student, still)
    rows = []
    for name, level in before:
        if torch.equal(before[name, level], after[name, level]):
            continue
        index = list(student.levels).index(level) if name == "maps" else level
        theirs, ours, moved = (_vectors(name, index, signals) for signals in (still.said, first, last))
        rows.append((_unlike(ours, theirs), _unlike(moved, theirs), _apart(ours, theirs), _apart(moved, theirs)))
    return tuple(fmean(column) for column in zip(*rows, strict=True)) if rows else (0.0, 0.0, 0.0, 0.0)  # type: ignore[return-value]


def _vectors(name: str, level: int, signals: Signals) -> Tensor:
    """A signal as rows (n, d): a row a cell, box, point set or proposal."""
    if name.startswith("roi_"):
        x = getattr(signals.rois, name.removeprefix("roi_"))
        return x.reshape(-1, 4 if name == "roi_boxes" else 1 if name == "roi_masks" else x.shape[-1]).double()
    x = getattr(signals, "features" if name == "maps" else name)[level]
    if name in ("boxes", "points"):
        return x.flatten(2).flatten(0, 1).double()
    return x.movedim(1, -1).flatten(0, -2).double()


def _unlike(ours: Tensor, theirs: Tensor) -> float:
    """1 - linear CKA (Kornblith et al., ICML 2019, equation 3) of rows (n, d) and (n, e); 1 where one of them is constant."""
    ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
    scale = (ours.T @ ours).norm() * (theirs.T @ theirs).norm()
    return 1 - ((theirs.T @ ours).norm() ** 2 / scale).item() if scale > 0 else 1.0


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-30)).item()


def frozen_loss(student: Student, still: Still, maps: Sequence[Tensor], recipe: Recipe) -> float:
    """The student's own loss when its neck gives these maps: head and ground truth as they are, the same draws each time."""
    model = student.model
    with undisturbed(model), torch.no_grad(), in_precision(recipe, still.inputs.device):
        seed_step(still.scene.seed, still.scene.step, still.scene.place)
        model.extract_feat = lambda *_args, **_options: tuple(maps)  # in place of the class's
        try:
            return total_loss(model.loss(still.inputs, copy.deepcopy(still.samples))).item()
        finally:
            del model.extract_feat
            student.tap.clear()
