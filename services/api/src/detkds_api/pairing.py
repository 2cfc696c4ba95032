"""What searches and distillations share: dataset, teacher, student and recipe, named by the request, checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field
from sqlalchemy.orm import Session

from detkds_api import checkpoints
from detkds_api.datasets import find_dataset
from detkds_api.fields import Body, Name, PathText
from detkds_api.problems import FieldError, InvalidInput, invalid, pointer, pointer_of_path
from detkds_api.service import Running
from detkds_core.catalogue import DETECTORS, PAIRS, Exchange, Pair, Recipe, exchange, pair_facts
from detkds_core.catalogue import detector as detector_entry
from detkds_core.catalogue.pairs import CHECKPOINTS
from detkds_core.catalogue.recipe import AUGMENTATIONS, OPTIMIZERS, PRECISIONS, SCHEDULES
from detkds_core.policy import PairFacts, Policy
from detkds_core.policy.distillers import learns_first
from detkds_core.policy.named import cannot_run
from detkds_core.store import jobs
from detkds_core.store.ids import is_id


def one_of(names: Sequence[str]) -> str:
    """For a description: the names that a field may carry."""
    return "one of " + ", ".join(f"`{name}`" for name in names)


UNSEGMENTED = "learns masks too: no training annotation of this dataset has a segmentation"


class TeacherChoice(Body):
    """A trained detector: its catalogue name and its weights, by built-in name, id, or path on the service's machine."""

    detector: Name = Field(description="of `GET /detectors`")
    checkpoint: PathText = Field(description="a built-in name, the id of an uploaded one, or an absolute path below a data root")


class StudentChoice(Body):
    """A detector to train: its catalogue name, and weights to start from if there are any: its own, or of its backbone alone."""

    detector: Name = Field(description="of `GET /detectors`")
    checkpoint: PathText | None = Field(default=None, description="weights to start from, of all or of the backbone; default: none")


class RecipeChoice(Body):
    """How to train and measure; what is left out comes from the pair, else from the defaults."""

    iterations: int | None = Field(default=None, ge=1, le=10_000_000, description="optimisation steps")
    epochs: float | None = Field(default=None, gt=0, le=100_000, description="passes over the training images, in place of iterations")
    batch: int | None = Field(default=None, ge=1, le=4096, description="images of one forward, over all devices")
    accumulate: int | None = Field(default=None, ge=1, le=1024, description="forwards of one optimisation step")
    devices: int | None = Field(default=None, ge=1, le=64, description="processes, a device each, that share each batch")
    precision: Name | None = Field(default=None, description=one_of(PRECISIONS))
    lr: float | None = Field(default=None, gt=0, le=10, description="peak learning rate")
    auto_scale_lr: bool | None = Field(default=None, description="scale lr from base_batch images a step to those there are")
    base_batch: int | None = Field(default=None, ge=1, le=65_536, description="images a step that lr was published for")
    optimizer: Name | None = Field(default=None, description=one_of(OPTIMIZERS))
    momentum: float | None = Field(default=None, ge=0, lt=1, description="of sgd")
    weight_decay: float | None = Field(default=None, ge=0, le=1)
    bias_lr_factor: float | None = Field(default=None, gt=0, le=100, description="of biases outside of norms")
    bias_decay_factor: float | None = Field(default=None, ge=0, le=100, description="of the same, under sgd")
    schedule: Name | None = Field(default=None, description=one_of(SCHEDULES))
    warm_up: int | None = Field(
        default=None, ge=0, le=10_000_000, description="iterations, of steps; null: 500, or a twentieth of a short run"
    )
    milestones: list[int] | None = Field(
        default=None, max_length=20, description="of steps, in epochs or iterations as the length; null: 8/12, 11/12"
    )
    clip: float | None = Field(default=None, gt=0, le=1e6, description="largest gradient norm; null: any")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of averaged weights, which are measured and exported; null: none"
    )
    eval_every: int | None = Field(
        default=None, ge=1, le=10_000_000, description="measure so often and keep the best; null: at the end alone"
    )
    image_size: int | None = Field(default=None, ge=32, le=4096, description="pixels of the longer side")
    short_side: int | None = Field(default=None, ge=32, le=4096, description="largest shorter side, pixels; null: any")
    train_short_sides: list[int] | None = Field(default=None, max_length=64, description="multi-scale training: each image draws one")
    augment: Name | None = Field(default=None, description=one_of(AUGMENTATIONS))
    train_images: int | None = Field(default=None, ge=1, description="null: all")
    eval_images: int | None = Field(default=None, ge=1, description="null: all")


class Pairing(NamedTuple):
    """What a request resolved to. pair: the catalogue's, when it was named; exchange: what teacher and student can exchange."""

    dataset: dict[str, Any]
    teacher: dict[str, Any]
    student: dict[str, Any]
    recipe: Recipe
    exchange: Exchange
    pair: Pair | None
    resize: bool = False

    @property
    def facts(self) -> PairFacts:
        """What decides which terms have a meaning on this pair."""
        images = max(1, self.recipe.batch // self.recipe.devices)
        return pair_facts(self.exchange, DETECTORS[self.student["detector"]], len(self.dataset["classes"]), images)

    @property
    def iterations(self) -> int:
        """Student iterations of the recipe, also where it is in epochs."""
        return self.recipe.resolved(self.dataset["train"]["count"] or 0)[0].iterations

    @property
    def families(self) -> tuple[str, str]:
        """Of teacher and student."""
        return DETECTORS[self.teacher["detector"]].family, DETECTORS[self.student["detector"]].family

    def inherits(self, wanted: bool | None) -> bool:
        """Whether the student starts from the teacher's neck and head: as asked, else as the pair says."""
        if wanted is not None:
            return wanted
        return self.pair.inherit if self.pair else True

    def cannot_run(self, policy: Policy) -> list[tuple[str, str]]:
        """Why this pair cannot be trained with a policy on this dataset, as (path, message)."""
        faults = cannot_run(policy, self.exchange, self.facts, self.families)
        if self.dataset["train"].get("masks") == 0 and DETECTORS[self.teacher["detector"]].masks:
            faults += [
                (f"policy.distillers[{place}]", f"{one.name!r} first learns with the teacher, which {UNSEGMENTED}")
                for place, one in enumerate(policy.distillers)
                if learns_first(one)
            ]
        return faults

    def spec(self) -> dict[str, Any]:
        """The part of a job's specification that all kinds share (docs/architecture.md)."""
        shared = {"dataset": self.dataset, "teacher": self.teacher, "student": self.student, "recipe": self.recipe.to_json()}
        return {**shared, "resize": True} if self.resize else shared


def resolve(
    session: Session,
    service: Running,
    *,
    pair: str | None,
    dataset: str | None,
    teacher: TeacherChoice | None,
    student: StudentChoice | None,
    recipe: RecipeChoice | None,
    schedule: str,
    base: Recipe | None = None,
    resize: bool = False,
) -> Pairing:
    """Look everything up and check that it fits together.

    schedule: which of a pair's recipes the request's fields go over, "proxy" or "full"; base: what they go over without a pair.
    resize: levels of different strides are matched too, and the teacher's maps take the student's sizes.

    Raises InvalidInput with every field that is wrong, and what would be right.
    """
    errors: list[FieldError] = []
    chosen = named_pair(pair, errors)
    dataset_name = dataset or (chosen.dataset if chosen else None)
    if chosen:
        teacher = teacher or TeacherChoice(detector=chosen.teacher, checkpoint=chosen.teacher_checkpoint)
        student = student or StudentChoice(detector=chosen.student)
    if pair is None and dataset is None and teacher is None and student is None:
        errors.append(FieldError("/pair", f"is required: one of {', '.join(PAIRS)}; or give dataset, teacher and student of your own"))
    elif pair is None:
        for name, value in (("dataset", dataset), ("teacher", teacher), ("student", student)):
            if value is None:
                errors.append(FieldError(pointer(name), "is required, unless 'pair' names one of " + ", ".join(PAIRS)))
    data = None
    if dataset_name is not None:
        try:
            data = find_dataset(session, service.settings, dataset_name)
        except InvalidInput as problem:
            errors.extend(problem.errors)
    classes = tuple(data["classes"]) if data else None
    teacher_json = checked_detector(session, service, "teacher", teacher, classes, errors) if teacher else None
    student_json = checked_detector(session, service, "student", student, classes, errors) if student else None
    if chosen:
        base = chosen.proxy if schedule == "proxy" else chosen.full
    merged = merged_recipe(recipe, base, errors)
    if errors or data is None or teacher_json is None or student_json is None or merged is None:
        raise invalid(errors)
    if data["train"].get("masks") == 0 and DETECTORS[student_json["detector"]].masks:
        advice = f"{student_json['detector']} {UNSEGMENTED}; give a detector without masks, or a dataset with segmentations"
        raise invalid([FieldError("/student/detector", advice)])
    common = exchange(DETECTORS[teacher_json["detector"]], DETECTORS[student_json["detector"]], resize)
    if not common.knowledge:
        reason = next(iter(common.excluded.values()))
        raise invalid([FieldError("/student/detector", f"this teacher and this student can exchange nothing: {reason}")])
    return Pairing(data, teacher_json, student_json, merged, common, chosen, resize)


def named_pair(name: str | None, errors: list[FieldError]) -> Pair | None:
    if name is not None and name not in PAIRS:
        errors.append(FieldError("/pair", f"{name!r} is not a pair of the catalogue; one of {', '.join(PAIRS)}"))
    return PAIRS.get(name) if name is not None else None


def checked_detector(
    session: Session,
    service: Running,
    role: str,
    choice: TeacherChoice | StudentChoice,
    classes: tuple[str, ...] | None,
    errors: list[FieldError],
) -> dict[str, Any] | None:
    """`{"detector", "checkpoint": path or None}`, or None with what is wrong added to `errors`."""
    before = len(errors)
    try:
        detector_entry(choice.detector)
    except ValueError as error:
        errors.append(FieldError(pointer(role, "detector"), str(error)))
    if choice.checkpoint is None:
        return {"detector": choice.detector, "checkpoint": None} if len(errors) == before else None
    where = pointer(role, "checkpoint")
    try:
        found = checkpoints.find(
            session,
            choice.checkpoint,
            (*service.settings.readable_roots, CHECKPOINTS),
            owner=service.caller.sees,
            seen=lambda path: seen(session, service, path),
        )
    except ValueError as error:
        errors.append(FieldError(where, str(error)))
        return None
    if found.backbone and role == "student":
        return {"detector": choice.detector, "checkpoint": found.place} if len(errors) == before else None
    if found.classes is None:
        errors.append(FieldError(where, f"{found.name} does not say which classes it knows; 'detkds convert' writes them into its header"))
    elif classes is not None and found.classes != classes:
        advice = "give a checkpoint that was trained on this dataset's classes, or a dataset with the checkpoint's"
        errors.append(FieldError(where, f"the {role} has {checkpoints.differing(found.classes, classes)}; {advice}"))
    if found.detector is not None and found.detector != choice.detector:
        errors.append(FieldError(where, f"{found.name} holds weights of {found.detector}, not of {choice.detector}"))
    return {"detector": choice.detector, "checkpoint": found.place} if len(errors) == before else None


def seen(session: Session, service: Running, path: Path) -> bool:
    """Whether a file is there for the caller: what a job has left belongs to the owner of that job."""
    folder = service.artifacts.folder
    if service.caller.sees is None or folder is None or not path.is_relative_to(folder):
        return True
    job_id = path.relative_to(folder).parts[0]
    return is_id(job_id) and jobs.seen(session, job_id, owner=service.caller.sees) is not None


def merged_recipe(choice: RecipeChoice | None, base: Recipe | None, errors: list[FieldError]) -> Recipe | None:
    """The catalogue's recipe with the request's fields over it, or None with what is wrong added to `errors`."""
    fields: Mapping[str, Any] = choice.model_dump(exclude_unset=True) if choice else {}
    try:
        return Recipe.from_json(fields, base)
    except ValueError as error:
        for sentence in re.split(r"; (?=recipe\.)", str(error)):
            path, _, message = sentence.partition(": ")
            errors.append(FieldError(pointer_of_path(path), message))
        return None
