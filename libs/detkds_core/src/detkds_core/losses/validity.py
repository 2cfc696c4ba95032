"""Whether a formula is a proper loss, tried on toy tensors before anything is trained.

A proper loss is finite, not negative, 0 where student and teacher agree, and has a gradient for the student alone where they do not, in
every precision; and what claims to look at each image for itself does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from detkds_core.losses.attention import DRAWS
from detkds_core.losses.policy import policy_losses
from detkds_core.losses.signals import Scene, Signals
from detkds_core.losses.toys import each_tensor, image_of, tensors_of, toy_scene, toy_signals
from detkds_core.policy import Policy, Term, unscheduled
from detkds_core.policy.meaning import OF_IMAGES, WEIGHTED
from detkds_core.policy.vocabulary import OVER_IMAGES, STATISTICS

OVER_BATCH = ("natt", *DRAWS, *OVER_IMAGES, *STATISTICS, "mm", "min_max_normalize")  # the transforms of a whole batch, or its draws
HALVES = (torch.float16, torch.bfloat16)
# A share of the loss, since area weights and softmaxes over a map make some losses small; and what a cosine of 1 rounds by.
NO_LOSS, ROUNDING = 1e-5, 1e-6
NO_SLOPE = 1e-5  # of a loss
SAME_MEAN = 1e-4  # share by which a mean over images may differ

FAULTS = (
    "cannot be computed",
    "not finite",
    "negative",
    "not 0 at identity",
    "no gradient",
    "the teacher learns",
    "not finite in half precision",
    "depends on the other images",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is improper about a formula: {one of FAULTS: figures}. per_image: its loss of a batch is the mean of its images' losses."""

    faults: Mapping[str, str]
    per_image: bool

    @property
    def proper(self) -> bool:
        return not self.faults


def claims_images(term: Term) -> bool:
    """Whether the formula should look at each image for itself, when every image has as many boxes and proposals."""
    weighted = term.knowledge == "localization" or term.region in WEIGHTED  # a mean over the cells of all images
    return not weighted and not set(term.transforms) & set(OVER_BATCH) and term.distance not in OF_IMAGES


def classify(term: Term, images: int = 2) -> Verdict:
    """Try a formula on batches of so many images. Options that wait or end are left out: a term in warm-up is nothing yet."""
    term = replace(unscheduled(term), auto=False, balanced=False)
    student, teacher, halves = _toys(images)
    scene = toy_scene(images)
    try:
        value, slope, taught = figures(term, student, teacher, scene)
        if slope == 0 and set(term.transforms) & set(DRAWS):  # on a map of a few cells nothing may be left of a draw
            value, slope, taught = figures(term, student, teacher, replace(scene, seed=1))
        same = figures(term, teacher, teacher, scene)[0]
    except (ValueError, RuntimeError, IndexError) as error:
        return Verdict({"cannot be computed": str(error)}, False)
    faults: dict[str, str] = {}
    if not _finite(value, slope, same):
        faults["not finite"] = f"loss {value}, gradient {slope}, at identity {same}"
    if min(value, same) < -ROUNDING:
        faults["negative"] = f"loss {value}, at identity {same}"
    if abs(same) > max(NO_LOSS * value, ROUNDING):
        faults["not 0 at identity"] = f"{same}, {value} apart"
    if value <= 0 or slope < NO_SLOPE * value:
        faults["no gradient"] = f"{slope} of a loss of {value}"
    if taught:
        faults["the teacher learns"] = "it has a gradient"
    for dtype, (half_student, half_teacher) in halves.items():
        half = figures(term, half_student, half_teacher, scene)
        if not _finite(*half[:2]):
            faults["not finite in half precision"] = f"loss {half[0]}, gradient {half[1]} in {dtype}"
    per_image = _is_mean_of_images(term, value, images)
    if claims_images(term) and not per_image:
        faults["depends on the other images"] = f"{value} is not the mean of the images' losses"
    return Verdict(faults, per_image)


def figures(term: Term, student: Signals, teacher: Signals, scene: Scene) -> tuple[float, float, bool]:
    """The loss of a term, the length of the student's gradient, and whether the teacher got one. All tensors ask for a gradient."""
    (loss,) = policy_losses(Policy((term,)), student, teacher, scene).values()
    ours, theirs = tensors_of(student), tensors_of(teacher)
    gradients = torch.autograd.grad(loss, [*ours, *(x for x in theirs if student is not teacher)], allow_unused=True)
    slopes = [x.double().norm() for x in gradients[: len(ours)] if x is not None]
    slope = torch.stack(slopes).norm().item() if slopes else 0.0
    return loss.item(), slope, any(x is not None for x in gradients[len(ours) :])


def _finite(*numbers: float) -> bool:
    return all(abs(number) < float("inf") for number in numbers)  # NaN is not less


def _is_mean_of_images(term: Term, value: float, images: int) -> bool:
    student, teacher, _ = _toys(images)
    scene = toy_scene(images)
    each = []
    for image in range(images):
        alone = replace(scene, boxes=scene.boxes[image : image + 1])
        try:
            with torch.no_grad():
                (loss,) = policy_losses(Policy((term,)), image_of(student, image), image_of(teacher, image), alone).values()
        except (ValueError, RuntimeError, IndexError):  # an operation over images
            return False
        each.append(loss.item())
    return abs(sum(each) / images - value) <= SAME_MEAN * abs(value)


@cache
def _toys(images: int) -> tuple[Signals, Signals, Mapping[torch.dtype, tuple[Signals, Signals]]]:
    """Student, teacher, and both in each half precision."""
    student, teacher = in_dtype(toy_signals(1, images), torch.float32), in_dtype(toy_signals(0, images), torch.float32)
    return student, teacher, {dtype: (in_dtype(student, dtype), in_dtype(teacher, dtype)) for dtype in HALVES}


def in_dtype(given: Signals, dtype: torch.dtype) -> Signals:
    """The signals in a precision, as tensors that ask for a gradient."""
    return each_tensor(given, lambda x: x.detach().to(dtype, copy=True).requires_grad_())


# --- extreme inputs --------------------------------------------------------------------------------------------------

Change = Callable[[Tensor], Tensor]


def _huge(size: float) -> Change:
    """The largest number becomes `size`."""
    return lambda x: x * (size / x.abs().max())


# What a student and a teacher can say at worst: how the toy signals of each are changed, and the precisions that can hold it.
EXTREMES: Mapping[str, tuple[Change, Change, tuple[torch.dtype, ...]]] = {
    "random": (torch.clone, torch.clone, (torch.float32, *HALVES)),
    "constant": (lambda x: torch.full_like(x, 0.75), lambda x: torch.full_like(x, -0.5), (torch.float32, *HALVES)),
    "constant student": (lambda x: torch.full_like(x, 0.75), torch.clone, (torch.float32, *HALVES)),
    "zero": (torch.zeros_like, torch.zeros_like, (torch.float32, *HALVES)),
    "zero student": (torch.zeros_like, torch.clone, (torch.float32, *HALVES)),
    "zero teacher": (torch.clone, torch.zeros_like, (torch.float32, *HALVES)),
    "6e4": (_huge(6e4), _huge(6e4), (torch.float32, *HALVES)),
    "1e6": (_huge(1e6), _huge(1e6), (torch.float32, torch.bfloat16)),
    "no boxes": (torch.clone, torch.clone, (torch.float32, *HALVES)),
}
CASES = tuple((kind, dtype) for kind, (_, _, dtypes) in EXTREMES.items() for dtype in dtypes)


def extreme_fault(term: Term, kind: str, dtype: torch.dtype, images: int = 3) -> str | None:
    """What is wrong with the loss of a formula on an extreme input: not finite, or negative beyond rounding; None where it is proper."""
    student, teacher, scene = _extreme(kind, dtype, images)
    value, slope, _ = figures(term, student, teacher, scene)
    if not _finite(value, slope):
        return f"loss {value}, gradient {slope} on {kind} in {dtype}"
    return f"loss {value} on {kind} in {dtype}" if value < -ROUNDING else None


@cache
def _extreme(kind: str, dtype: torch.dtype, images: int) -> tuple[Signals, Signals, Scene]:
    ours, theirs, _ = EXTREMES[kind]
    student, teacher = each_tensor(toy_signals(1, images), ours), each_tensor(toy_signals(0, images), theirs)
    return in_dtype(student, dtype), in_dtype(teacher, dtype), toy_scene(images, empty=kind == "no boxes")
