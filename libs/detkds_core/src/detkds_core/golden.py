"""`python -m detkds_core.golden FILE.json`: compare what we compute with figures of the official implementations.

FILE.json has the cases, FILE.npz beside it the float32 arrays `student`, `teacher`, `boxes_0` ... and whatever the cases name:

    {"img_shape": [96, 128], "cases": [{"kind": "global", "transforms": ["catt", "scale_r2", "norm_N"], "distance": "l1", "weight": 1.0,
                                        "value": 0.37, "grad_norm": 0.01}, ...]}

Kinds: transform, distance, global, fgbg, instance, logits, distiller; tests/golden/public.json has examples of all. Official names are
understood (`no`, `one_minus_cos`, `lambda_`). It says how many cases of each kind there are and the worst relative deviation, names every
case beyond the tolerance or that cannot be evaluated, and exits with 1 then; with 2 when there is nothing to evaluate.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from detkds_core.distillers.fgd import FGD
from detkds_core.distillers.maskd import MasKD
from detkds_core.distillers.mgd import MGD
from detkds_core.losses import Scene, Signals, policy_losses
from detkds_core.losses.attention import ATTENTION
from detkds_core.losses.distances import DISTANCES
from detkds_core.losses.regions import FAR
from detkds_core.losses.transforms import NORMALISATION, SCALE, SOFTMAX_DIMS, unit
from detkds_core.policy import Policy, Term
from detkds_core.policy.named import named_policies
from detkds_core.policy.vocabulary import DISTANCES as DISTANCES_OF
from detkds_core.policy.vocabulary import SLOTS

VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # relative
# What counts as nothing: rounding of a sum leaves so much where the figure itself is smaller.
NO_VALUE = 1e-7
NO_ANGLE = 0.02  # of `pear` and `cos`, at weight 1: one less something near one is itself rounded by 1e-7
NO_ELEMENT = 0.1  # of an array's largest element
NO_GRADIENT = 0.01  # of the figure over the norm of the student: what a loss that rises in proportion to the student has at least
OUR_NAMES = {"no": "none", "one_minus_cos": "cos", "cosine": "cos"}
RANDOM = ("mask", "drop")

# What the policy language refuses on one image, because it is constant there, has a figure all the same.
ONE_IMAGE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "natt": lambda feat: torch.ones_like(feat),
    "norm_N": lambda feat: unit(feat, (0,)),
    "softmax_N": lambda feat: torch.ones_like(feat),
    "logsoftmax_N": lambda feat: torch.zeros_like(feat),
}


class CaseError(ValueError):
    """A case that cannot be evaluated, and why."""


@dataclass(frozen=True)
class File:
    """A file of figures."""

    figures: Mapping[str, Any]
    arrays: Mapping[str, Tensor]

    @property
    def cases(self) -> list[Mapping[str, Any]]:
        return list(self.figures["cases"])


@dataclass(frozen=True)
class Outcome:
    """A case beside our figures. deviations: relative, of `value` and `grad_norm`; fault: why it could not be evaluated."""

    kind: str
    name: str
    deviations: Mapping[str, float] = field(default_factory=dict)
    fault: str | None = None

    @property
    def passed(self) -> bool:
        limits = {"value": VALUE_TOLERANCE, "grad_norm": GRADIENT_TOLERANCE}
        return self.fault is None and all(deviation <= limits[figure] for figure, deviation in self.deviations.items())

    def __str__(self) -> str:
        what = self.fault or ", ".join(f"{figure} is off by {deviation:.1e}" for figure, deviation in self.deviations.items())
        return f"{self.kind} {self.name}: {what}"


def read(path: Path) -> File:
    """A file of figures and its arrays. Raises CaseError when there is nothing to evaluate."""
    figures = _contents(path, lambda: json.loads(path.read_text()))
    if not isinstance(figures, dict) or not isinstance(figures.get("cases"), list) or not figures["cases"]:
        raise CaseError(f"{path}: holds no cases; an object whose 'cases' are a list of them")
    beside = path.with_suffix(".npz")
    return File(figures, _contents(beside, lambda: _arrays(beside)))


def _contents(path: Path, load: Callable[[], Any]) -> Any:
    """What load reads of the file. Raises CaseError, which names it."""
    try:
        return load()
    except OSError as error:
        raise CaseError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError, BadZipFile) as error:  # neither JSON nor arrays of numbers
        raise CaseError(f"{path}: cannot be read: {error}") from None


def _arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as stored:
        return {name: torch.from_numpy(np.array(array)).float() for name, array in stored.items()}


def evaluate(case: Mapping[str, Any], file: File) -> Outcome:
    """Our figures of a case beside those in the file."""
    if not isinstance(case, Mapping) or not isinstance(case.get("kind"), str):
        return Outcome("unknown", str(case)[:80], fault="says no kind")
    kind, transforms = case["kind"], case.get("transforms")
    parts = (case.get("name"), *(transforms if isinstance(transforms, list) else ()), case.get("distance"))
    name = " ".join(str(part) for part in parts if part is not None)
    name += "".join(f" {key}={case[key]}" for key in ("tau", "weight_mask", "custom_mask") if key in case)
    if kind not in KINDS:
        return Outcome(kind, name, fault=f"not a kind of case; one of {', '.join(KINDS)}")
    try:
        return Outcome(kind, name, KINDS[kind](case, file))
    except (ValueError, TypeError, LookupError, RuntimeError) as error:  # one odd case says so, and hides no other
        return Outcome(kind, name, fault=str(error) or type(error).__name__)


def evaluate_all(file: File) -> list[Outcome]:
    return [evaluate(case, file) for case in file.cases]


# --- one kind of case each: deviations by figure ---------------------------------------------------------------------


def transform(case: Mapping[str, Any], file: File) -> dict[str, float]:
    feat, wanted = array(case, "input", "student", file), array(case, "output", None, file)
    return {"value": elementwise_deviation(transform_named(text(case, "name"), case.get("stage"), feat)(feat), wanted)}


def transform_named(name: str, stage: object, feat: Tensor) -> Callable[[Tensor], Tensor]:
    """An operation by its official name; the stage decides where two have the same."""
    ours = our(name)
    if ours in RANDOM:
        raise CaseError(f"{name!r} draws at random, and has no figure")
    if len(feat) == 1 and ours in ONE_IMAGE:
        return ONE_IMAGE[ours]
    stages: tuple[Mapping[str, Callable[..., Tensor]], ...] = (ATTENTION, SCALE, NORMALISATION)
    first = (stages[stage - 1],) if isinstance(stage, int) and 1 <= stage <= len(stages) else ()
    for operations in (*first, *stages):
        if ours in operations:
            return operations[ours]
    raise CaseError(f"{name!r} is not a transform")


def distance(case: Mapping[str, Any], file: File) -> dict[str, float]:
    name = our(text(case, "name"))
    if name not in DISTANCES:
        raise CaseError(f"{case['name']!r} is not a distance; one of {', '.join(DISTANCES)}")
    student, teacher = pair(case, file)
    return deviations(case, DISTANCES[name](student, teacher), student)


def term(case: Mapping[str, Any], file: File) -> dict[str, float]:
    kind = text(case, "kind")
    named, slots = case.get("transforms"), SLOTS[kind]
    if not isinstance(named, list | tuple) or len(named) > len(slots):
        raise CaseError(f"transforms: {named!r} is not a list of at most {len(slots)}: {', '.join(slot for slot, _ in slots)}")
    distance = our(text(case, "distance"))
    # A case may leave out what does nothing.
    transforms = (*map(our, named), *("none",) * (len(slots) - len(named)))
    # Rules that refuse a combination do not count here: a figure may be of what the language leaves out for its size.
    choices = [(f"transforms[{i}]", one, known) for i, (one, (_, known)) in enumerate(zip(transforms, slots, strict=True))]
    for place, one, known in (*choices, ("distance", distance, DISTANCES_OF[kind])):
        if one not in known:
            raise CaseError(f"{place}: {one!r} is not known; one of {', '.join(known)}")
    if distance == "kl" and transforms[-1] not in SOFTMAX_DIMS:
        raise CaseError(f"transforms: 'kl' compares distributions, not {transforms[-1]!r}; last one of {', '.join(SOFTMAX_DIMS)}")
    wanted = Term(kind, transforms, distance, number(case, "weight", 1.0), temperature=number(case, "tau", 1.0))
    if set(transforms) & set(RANDOM):
        raise CaseError(f"{', '.join(transforms)} draws at random, and has no figure")
    return policy_deviations(case, Policy((wanted,)), file)


def distiller(case: Mapping[str, Any], file: File) -> dict[str, float]:
    name = text(case, "name")
    if name in ("pkd", "cwd", "fitnets"):
        (published,) = named_policies()[name].policy.terms
        # PKD's own factor of 1/2 is part of the policy's weight.
        weight = number(case, "loss_weight", 1.0) / (2 if name == "pkd" else 1)
        return policy_deviations(case, Policy((replace(published, weight=weight, temperature=number(case, "tau", 1.0)),)), file)
    if name not in MODULES:
        raise CaseError(f"{name!r} is not a distiller that has figures; one of pkd, cwd, fitnets, {', '.join(MODULES)}")
    student, teacher = maps(case, file)
    module = MODULES[name](student.shape[1], teacher.shape[1], case)
    load_parameters(module, case, file)
    losses = module(Signals((student,)), Signals((teacher,)), scene(case, file, len(student)))
    return deviations(case, torch.stack(list(losses.values())).sum(), student)


def _fgd(student: int, teacher: int, case: Mapping[str, Any]) -> nn.Module:
    names = {"temp": "temperature", "temperature": "temperature", "lambda": "lambda_", "lambda_": "lambda_", "lambda_fgd": "lambda_"}
    for name in ("alpha", "beta", "gamma"):
        names |= {name: name, f"{name}_fgd": name}
    # The official class has another gamma than its configurations, whose is ours.
    return FGD([student], [teacher], **{"gamma": 1e-3, **named_numbers(case, names)})


def _mgd(student: int, teacher: int, case: Mapping[str, Any]) -> nn.Module:
    for name in ("mask_ratio", "lambda_mgd"):
        if number(case, name, 0.0) != 0:
            raise CaseError(f"{name}: {case[name]} draws at random, and has no figure; 0")
    return MGD([student], [teacher], mask_ratio=0.0, **named_numbers(case, {"alpha": "alpha", "alpha_mgd": "alpha"}))


def _maskd(student: int, teacher: int, case: Mapping[str, Any]) -> nn.Module:
    settings = named_numbers(case, {"loss_weight": "weight"})
    switches = {name: switch(case, name) for name in ("weight_mask", "custom_mask") if name in case}
    # The student's masks have no warm-up in a figure, which has no steps.
    return MasKD([student], [teacher], num_tokens=int(number(case, "num_tokens", 6)), masks_from=0, **settings, **switches)


MODULES: Mapping[str, Callable[[int, int, Mapping[str, Any]], nn.Module]] = {"fgd": _fgd, "mgd": _mgd, "maskd": _maskd}

KINDS: Mapping[str, Callable[[Mapping[str, Any], File], dict[str, float]]] = {
    "transform": transform,
    "distance": distance,
    **dict.fromkeys(("global", "fgbg", "instance", "logits"), term),
    "distiller": distiller,
}


# --- what a case says ------------------------------------------------------------------------------------------------


def our(name: object) -> str:
    return OUR_NAMES.get(str(name), str(name))


def text(case: Mapping[str, Any], key: str) -> str:
    if not isinstance(case.get(key), str):
        raise CaseError(f"says no {key}")
    return str(case[key])


def number(case: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = case.get(key, default)
    if not isinstance(value, int | float):
        raise CaseError(f"{key}: {value!r} is not a number")
    return float(value)


def switch(case: Mapping[str, Any], key: str) -> bool:
    if case[key] not in (True, False):
        raise CaseError(f"{key}: {case[key]!r} is neither true nor false")
    return bool(case[key])


def named_numbers(case: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """Our settings by the case's names."""
    return {ours: number(case, theirs) for theirs, ours in names.items() if theirs in case}


def array(case: Mapping[str, Any], key: str, default: str | None, file: File) -> Tensor:
    return named_array(key, case.get(key, default), file)


def named_array(place: str, name: object, file: File) -> Tensor:
    if not isinstance(name, str) or name not in file.arrays:
        raise CaseError(f"{place}: the file of arrays has no {name!r}")
    return file.arrays[name]


def pair(case: Mapping[str, Any], file: File) -> tuple[Tensor, Tensor]:
    """The student's array, with a gradient, and the teacher's."""
    return array(case, "student", "student", file).clone().requires_grad_(), array(case, "teacher", "teacher", file)


def maps(case: Mapping[str, Any], file: File) -> tuple[Tensor, Tensor]:
    """A `pair` of maps."""
    student, teacher = pair(case, file)
    for who, one in (("student", student), ("teacher", teacher)):
        if one.dim() != 4:
            raise CaseError(f"{who}: has shape {list(one.shape)} instead of (N, C, H, W)")
    return student, teacher


def scene(case: Mapping[str, Any], file: File, images: int) -> Scene:
    """The ground truth that the case is about; images without boxes in the file have none, if the case does not name them."""
    shape = case.get("img_shape", file.figures.get("img_shape"))
    if shape is None:
        raise CaseError("neither it nor the file says its img_shape")
    sides = list(shape[:2]) if isinstance(shape, list | tuple) else []
    if len(sides) < 2 or not all(isinstance(side, int | float) and side >= 1 for side in sides):
        raise CaseError(f"img_shape: {shape!r} is not a height and a width in pixels")
    given = case.get("boxes")
    if isinstance(given, list | tuple):
        boxes = [named_array(f"boxes[{i}]", name, file) for i, name in enumerate(given)]
    else:
        boxes = [file.arrays.get(f"{given or 'boxes'}_{i}", torch.zeros(0, 4)) for i in range(images)]
    if len(boxes) != images:
        raise CaseError(f"boxes of {len(boxes)} images, and {images} images")
    for i, one in enumerate(boxes):
        if one.numel() and one.shape[-1:] != (4,):
            raise CaseError(f"boxes of image {i}: have shape {list(one.shape)} instead of (n, 4)")
    return Scene(tuple(one.reshape(-1, 4) for one in boxes), (int(sides[0]), int(sides[1])))


def all_background(where: Scene) -> Scene:
    """The scene; where no image has a box, with what makes it all background, as in DetKDS. The policy language counts it for nothing."""
    if any(len(boxes) for boxes in where.boxes):
        return where
    return replace(where, boxes=tuple(torch.full((1, 4), FAR) for _ in where.boxes))


def load_parameters(module: nn.Module, case: Mapping[str, Any], file: File) -> None:
    """Give the module the case's parameters; the reference's names are ours without the place of the level. All have to be given."""
    own = module.state_dict()
    given: dict[str, Tensor] = {}
    parameters = case.get("parameters", {})
    if not isinstance(parameters, Mapping):
        raise CaseError(f"parameters: {parameters!r} is no object of names of arrays")
    for theirs, name in parameters.items():
        places = (theirs, f"levels.0.{theirs}", f"mask_modules.0.{theirs}", theirs.replace("align.", "align.0."))
        place = next((place for place in places if place in own), None)
        if place is None:
            raise CaseError(f"parameters: {theirs!r} is not a parameter of {case['name']}; it has {', '.join(own)}")
        values = named_array(f"parameters.{theirs}", name, file)
        if values.numel() != own[place].numel():
            raise CaseError(f"parameters.{theirs}: {name!r} has shape {list(values.shape)} instead of {list(own[place].shape)}")
        given[place] = values.reshape(own[place].shape)
    # Without weights MasKD's tokens have no use for what weighs them.
    free = {name for name in own if ".prob." in name} if not case.get("weight_mask", True) else set()
    if missing := [name for name in own if name not in given and name not in free]:
        raise CaseError(f"parameters: {', '.join(missing)} not given")
    module.load_state_dict({**own, **given})


# --- deviations ------------------------------------------------------------------------------------------------------


def policy_deviations(case: Mapping[str, Any], policy: Policy, file: File) -> dict[str, float]:
    student, teacher = maps(case, file)
    # The arrays stand for features or for classification logits.
    ours, theirs = (Signals(features=(x,), logits=(x,)) for x in (student, teacher))
    knowledge = {one.knowledge for one in policy.terms}
    where = scene(case, file, len(student)) if knowledge & {"fgbg", "instance"} else Scene((), (1, 1))
    if "fgbg" in knowledge:
        where = all_background(where)
    return deviations(case, torch.stack(list(policy_losses(policy, ours, theirs, where).values())).sum(), student)


def deviations(case: Mapping[str, Any], loss: Tensor, student: Tensor) -> dict[str, float]:
    """Of the loss and, where the case has it, of the norm of its gradient in the student."""
    wanted = number(case, "fg") + number(case, "bg") if "fg" in case else number(case, "value")
    angle = our(case.get("distance", case.get("name"))) in ("pear", "cos")
    floor = NO_ANGLE * number(case, "weight", 1.0) if angle else NO_VALUE
    found = {"value": deviation(loss.item(), wanted, floor)}
    if "grad_norm" in case:
        (gradient,) = torch.autograd.grad(loss, student, allow_unused=True)
        norm = 0.0 if gradient is None else gradient.norm().item()
        floor = NO_GRADIENT * abs(wanted) / max(student.detach().norm().item(), 1e-12)
        found["grad_norm"] = deviation(norm, number(case, "grad_norm"), floor)
    return found


def deviation(found: float, wanted: float, floor: float) -> float:
    """Relative to the figure, which counts as at least `floor`. Infinite where one of them is not a number."""
    if not (math.isfinite(found) and math.isfinite(wanted)):
        return math.inf
    return abs(found - wanted) / max(abs(wanted), floor, 1e-30)


def elementwise_deviation(found: Tensor, wanted: Tensor) -> float:
    """The largest deviation of an element, relative to the element, which counts as at least a tenth of the array's largest.

    The same elements may be NaN or infinite in both, as roots of negative numbers are.
    """
    if found.shape != wanted.shape:
        raise CaseError(f"has shape {list(found.shape)} instead of {list(wanted.shape)}")
    found, wanted = found.detach().double(), wanted.double()
    finite = wanted.isfinite()
    if not torch.equal(found[~finite].nan_to_num(), wanted[~finite].nan_to_num()) or not found[finite].isfinite().all():
        return math.inf
    found, wanted = found[finite], wanted[finite]
    if not wanted.numel():
        return 0.0
    size = wanted.abs().clamp_min(max(NO_ELEMENT * wanted.abs().max().item(), NO_VALUE))
    return ((found - wanted).abs() / size).max().item()


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line a kind: how many cases, how far off at worst, how many failed."""
    lines = []
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.kind == kind]
        worst = {
            figure: max((one.deviations[figure] for one in own if figure in one.deviations), default=None)
            for figure in ("value", "grad_norm")
        }
        off = ", ".join(f"{figure} off by at most {most:.1e}" for figure, most in worst.items() if most is not None)
        failed = sum(not outcome.passed for outcome in own)
        lines.append(f"{kind:<12}{len(own):>5} cases" + (f"   {off}" if off else "") + (f"   {failed} FAILED" if failed else ""))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m detkds_core.golden", description="Compare our losses with official figures.")
    parser.add_argument("file", type=Path, help="cases as JSON; their arrays are in the .npz of the same stem beside it")
    try:
        file = read(parser.parse_args(arguments).file)
    except CaseError as error:
        print(error, file=sys.stderr)
        return 2
    outcomes = evaluate_all(file)
    print(summary(outcomes))
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        print(f"FAILED {outcome}")
    print(
        f"{len(outcomes)} cases, {len(failed)} failed; relative tolerances {VALUE_TOLERANCE:g} (values), {GRADIENT_TOLERANCE:g} (gradients)"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
