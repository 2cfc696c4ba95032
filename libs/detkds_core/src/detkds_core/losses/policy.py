"""The loss of a policy: each of its terms compares a student's signals with a teacher's."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import cos, pi

import torch
from torch import Tensor

from detkds_core.losses.comparisons import Part, parts_of
from detkds_core.losses.looks import Looks, read
from detkds_core.losses.signals import LATE, Scene, Signals
from detkds_core.losses.slopes import with_slopes
from detkds_core.policy import Distiller, Policy, Term
from detkds_core.policy.distillers import signals_of
from detkds_core.policy.meaning import OF_IMAGES
from detkds_core.policy.signals import needed, signal_of


def comes_early(one: Term | Distiller) -> bool:
    """Whether it is computed from what a student says before its own loss."""
    return not LATE & (needed(one) if isinstance(one, Term) else signals_of(one))


def policy_losses(
    policy: Policy,
    student: Signals,
    teacher: Signals,
    scene: Scene,
    scales: Mapping[str, float] | None = None,
    only: Callable[[Term], bool] = lambda _term: True,
) -> dict[str, Tensor]:
    """The weighted loss of each term of the policy, {"distill/0_global": scalar, ...}. Their sum is the distillation loss.

    Levels are summed within a term. Computed in float32 whatever comes in, also under autocast. The teacher gets no gradient. The gradient
    of the sum is computed here, see `slopes`. scales: what multiplies the weight of an `auto` or `balanced` term, by its loss's
    name; 1 where missing. only: of the terms for which it holds.
    Where there is nothing to compare (no boxes, no proposals, no cell that counts) a term is 0 and still a function of the student; so it
    is at the start of its warm-up and after its stop.
    Raises ValueError, which names the term, when signals are missing or do not fit each other, or when an operation cannot act on them.
    """
    names = {index: f"distill/{index}_{term.knowledge}" for index, term in enumerate(policy.terms) if only(term)}
    if not names:
        return {}
    keys: dict[tuple[int | None, str], None] = {}  # of the student's tensors that the policy compares
    weights: dict[int, float] = {}
    parts: list[Part] = []
    for index, name in names.items():
        term = policy.terms[index]
        with _naming(index, term):
            compared = _compared(term, student, teacher)
            now = schedule(term, scene.step, scene.total_steps)
            if term.weight * now > 0 and _has_something(term, student, scene):
                parts += parts_of(index, term, compared, student, teacher, scene)
            keys |= dict.fromkeys(compared)
            weights[index] = found_weight(term, (scales or {}).get(name)) * now
    sources = [read(student, *key) for key in keys]
    device = sources[0].device

    def work(factors: Sequence[Tensor] | None) -> tuple[list[Tensor], list[Tensor | None]]:
        learn = factors is not None or torch.is_grad_enabled()
        each = weights if factors is None else {index: weights[index] * factor for index, factor in zip(names, factors, strict=True)}
        with torch.autocast(device.type, enabled=False), torch.set_grad_enabled(learn):
            looks = Looks(student, teacher, scene, [path for part in parts for path in part.paths], learn)
            values = _add_up(policy, parts, looks, each)
        return [values.get(index, torch.zeros((), device=device)) for index in names], [looks.gradient(*key) for key in keys]

    return dict(zip(names.values(), with_slopes(work, sources), strict=True))


@contextmanager
def _naming(index: int, term: Term) -> Iterator[None]:
    """Let what cannot be computed say which term it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"policy.terms[{index}] ({term.knowledge}): {error}") from error


def _add_up(policy: Policy, parts: Sequence[Part], looks: Looks, weights: Mapping[int, float | Tensor]) -> dict[int, Tensor]:
    """The value of each term that has parts. Their gradients are left in the leaves of looks, a level at a time."""
    losses: defaultdict[tuple[int, float], list[Tensor]] = defaultdict(list)  # by term and share, before they are weighted
    factors: dict[tuple[int, float], Tensor] = {}
    for level in dict.fromkeys(part.level for part in parts):
        for part in parts:
            if part.level != level:
                continue
            with _naming(part.term, policy.terms[part.term]):
                loss = part.compare(looks)
            key = part.term, part.share
            if key not in factors:
                weight = part.share * weights[part.term]
                factors[key] = weight.to(loss) if isinstance(weight, Tensor) else loss.new_full((), weight)
            if loss.requires_grad:
                loss.backward(factors[key])  # weighted from here, which spares a product forth and back
            losses[key].append(loss.detach())
        looks.forget(level)
    values: dict[int, Tensor] = {}
    for (term, share), each in losses.items():
        value = factors[term, share] * (torch.stack(each).sum() if len(each) > 1 else each[0])
        values[term] = values[term] + value if term in values else value
    return values


def found_weight(one: Term | Distiller, scale: float | None) -> float:
    """What a term weighs before its schedule, or a distiller: its own weight, times the scale that was found where that is a ratio.

    A weight that was found has four significant digits, so that it can be said, and a policy that says it trains the same to the bit.
    """
    of_ratio = one.balanced or (isinstance(one, Term) and one.auto)
    return float(f"{one.weight * scale:.4g}") if scale is not None and of_ratio else one.weight


def stopped(one: Term | Distiller, step: int, total_steps: int) -> bool:
    """Whether it counts nothing from this step on."""
    return one.stop < 1 and step >= one.stop * total_steps


def without_stopped(policy: Policy, step: int, total_steps: int) -> Policy:
    """What of a policy has not stopped."""
    return Policy(*(tuple(one for one in parts if not stopped(one, step, total_steps)) for parts in (policy.terms, policy.distillers)))


def schedule(one: Term | Distiller, step: int, total_steps: int) -> float:
    """What multiplies its weight at a step.

    Linear from 0 over `warm_up` steps; 0 from `stop` * total_steps on; from 1 to `decay` at the end of the training, along half a cosine.
    """
    if stopped(one, step, total_steps):
        return 0.0
    risen = min(1.0, step / one.warm_up) if one.warm_up else 1.0
    return risen * (one.decay + (1 - one.decay) * (1 + cos(pi * min(1.0, step / total_steps))) / 2)


def _compared(term: Term, student: Signals, teacher: Signals) -> list[tuple[int | None, str]]:
    """The level and the name of each tensor in which the term compares the detectors, after a look at whether they can be."""
    signal = signal_of(term)
    if signal != "features" and term.region in ("proposals", "masks"):
        for side, who in ((student, "student"), (teacher, "teacher")):
            if side.rois is None or getattr(side.rois, signal) is None:
                raise ValueError(f"it needs {signal} of shared proposals, which the {who} does not give")
        _check_shapes(f"{signal} of proposals", getattr(student.rois, signal), getattr(teacher.rois, signal))
        return [(None, signal)]
    ours, theirs = getattr(student, signal), getattr(teacher, signal)
    if not ours or not theirs:
        raise ValueError(f"it needs {signal}, which the {'teacher' if ours else 'student'} does not give")
    if len(ours) != len(theirs):
        raise ValueError(f"{signal} has {len(ours)} levels at the student and {len(theirs)} at the teacher; align the levels of the pair")
    for level, (s, t) in enumerate(zip(ours, theirs, strict=True)):
        _check_shapes(f"{signal} of level {level}", s, t)
    return [(level, signal) for level in range(len(ours))]


def _check_shapes(what: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"{what} is {tuple(student.shape)} at the student and {tuple(teacher.shape)} at the teacher; adapt the student")


def _has_something(term: Term, student: Signals, scene: Scene) -> bool:
    """Whether there is anything to compare, as far as shapes tell: boxes, proposals, positive proposals."""
    if term.region in ("proposals", "masks"):
        if student.rois is None:
            raise ValueError("it needs shared proposals, which the student does not give")
        compared = student.rois.masks if term.region == "masks" else student.rois.regions
        return len(compared) >= (3 if term.distance in OF_IMAGES else 1)
    at_boxes = term.knowledge in ("fgbg", "instance") or term.region == "foreground"
    return not at_boxes or any(len(boxes) for boxes in scene.boxes)
