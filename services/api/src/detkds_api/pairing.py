"""What searches and distillations share: dataset, teacher, student and recipe, named by the request, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field
from sqlalchemy.orm import Session

from detkds_api import checkpoints
from detkds_api.datasets import find_dataset
from detkds_api.fields import Body, Name, PathText
from detkds_api.problems import FieldError, InvalidInput, invalid, pointer, pointer_of_path
from detkds_api.service import Running
from detkds_core.catalogue import DETECTORS, PAIRS, DetectorEntry, Exchange, Pair, Recipe, base_recipe, exchange, pair_facts
from detkds_core.catalogue import detector as detector_entry
from detkds_core.catalogue.recipe import AUGMENTATIONS, OPTIMIZERS, PRECISIONS, SCHEDULES, WHOLE, WITH_NULL, recipe_faults, size_warning
from detkds_core.catalogue.schedules import SMALL
from detkds_core.names import meant
from detkds_core.policy import PairFacts, Policy
from detkds_core.policy.distillers import learns_first
from detkds_core.policy.named import cannot_run
from detkds_core.store import jobs
from detkds_core.store.ids import is_id
from detkds_core.store.models import Search


def among(names: Sequence[str]) -> Callable[[str], str]:
    """A check of a field's value, so that what is wrong is told with what is wrong in other fields."""

    def known(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text!r} is not known; one of {', '.join(names)}")
        return text

    return known


def one_of(names: Sequence[str]) -> str:
    """For a description: the names that a field may carry."""
    return "one of " + ", ".join(f"`{name}`" for name in names)


NOT_KNOWN = (
    "how {} is trained is not known: what you do not give of its recipe has the defaults for small detectors on small images; bring it "
    "anew (`detkds detectors add` reads it off the configuration), or give the whole recipe"
)
OF_IMAGES = ("train_images", "eval_images")  # of a search's recipe: on what a candidate is measured
OF_CANDIDATES = ("iterations", "epochs", "milestones", "eval_every", *OF_IMAGES)  # and for how long, with what is counted along that
UNSEGMENTED = "learns masks too: no training annotation of this dataset has a segmentation"


class TeacherChoice(Body):
    """A trained detector: its catalogue name and its weights, by built-in name, id, or path on the service's machine."""

    detector: Name = Field(description="of `GET /detectors`")
    checkpoint: PathText = Field(description="a built-in name, the id of an uploaded one, or an absolute path below a data root")


class StudentChoice(Body):
    """A detector to train: its catalogue name, and weights to start from if there are any: its own, or of its backbone alone."""

    detector: Name = Field(description="of `GET /detectors`")
    checkpoint: PathText | None = Field(default=None, description="weights to start from, of all or of the backbone; default: none")


def recipe_field(name: str, what: str = "", **bounds: Any) -> Any:
    """A field of a recipe, described with what it is where nothing else says it."""
    default = getattr(SMALL, name)
    if name in WHOLE:
        bounds["ge"], bounds["le"] = WHOLE[name]
    told = f"default: {'null' if default is None else str(default).lower() if isinstance(default, bool) else default}"
    return Field(default=None, description=f"{what}; {told}" if what else told, **bounds)


class RecipeChoice(Body):
    """How to train and measure. What is left out comes from the pair; without one from MMDetection's configuration of the student
    (`training` of `GET /detectors`), shortened for a search; for a student without such a configuration it is the default of the field.

    There a step is as many forwards as a usual GPU needs for its images, unless `batch` or `accumulate` is given.

    `spec` of the answer has the whole recipe, `spec.recipe_from` where it is from. What would have no effect is refused.
    """

    iterations: int | None = recipe_field("iterations", "optimisation steps")
    epochs: float | None = recipe_field("epochs", "passes over the training images, in place of iterations", gt=0, le=100_000)
    batch: int | None = recipe_field("batch", "images of one forward, over all devices")
    accumulate: int | None = recipe_field("accumulate", "forwards of one optimisation step")
    devices: int | None = recipe_field("devices", "processes, a device each, that share each batch")
    precision: Annotated[Name, AfterValidator(among(PRECISIONS))] | None = recipe_field("precision", one_of(PRECISIONS))
    lr: float | None = recipe_field("lr", "peak learning rate; given without base_batch, it is not scaled", gt=0, le=10)
    auto_scale_lr: bool | None = recipe_field("auto_scale_lr", "scale lr from base_batch images a step to those there are")
    base_batch: int | None = recipe_field("base_batch", "images a step that lr is for")
    optimizer: Annotated[Name, AfterValidator(among(OPTIMIZERS))] | None = recipe_field("optimizer", one_of(OPTIMIZERS))
    momentum: float | None = recipe_field("momentum", "of sgd", ge=0, lt=1)
    weight_decay: float | None = recipe_field("weight_decay", ge=0, le=1)
    bias_lr_factor: float | None = recipe_field("bias_lr_factor", "of biases outside of norms", gt=0, le=100)
    bias_decay_factor: float | None = recipe_field("bias_decay_factor", "of the same, under sgd", ge=0, le=100)
    schedule: Annotated[Name, AfterValidator(among(SCHEDULES))] | None = recipe_field("schedule", one_of(SCHEDULES))
    warm_up: int | None = recipe_field("warm_up", "iterations, of steps, fewer than the run; null: 500, or a twentieth of a short run")
    milestones: list[int] | None = recipe_field(
        "milestones", "of steps, in epochs or iterations as the length; null: 8/12, 11/12", max_length=20
    )
    clip: float | None = recipe_field("clip", "largest gradient norm; null: any", gt=0, le=1e6)
    ema: float | None = recipe_field("ema", "decay of averaged weights, which are measured and exported; null: none", gt=0, lt=1)
    eval_every: int | None = recipe_field(
        "eval_every", "measure so often (in the unit of the length) and keep the best; null: at the end alone"
    )
    image_size: int | None = recipe_field("image_size", "pixels of the longer side; another one than inherited drops inherited short sides")
    short_side: int | None = recipe_field("short_side", "largest shorter side, pixels; null: any")
    train_short_sides: list[int] | None = recipe_field(
        "train_short_sides", "multi-scale training: each image draws one; null: short_side", max_length=64
    )
    augment: Annotated[Name, AfterValidator(among(AUGMENTATIONS))] | None = recipe_field("augment", one_of(AUGMENTATIONS))
    train_images: int | None = recipe_field("train_images", "null: all")
    eval_images: int | None = recipe_field("eval_images", "null: all")


class Origin(NamedTuple):
    """Where a recipe is from. base: what it goes over, for people; given: fields of requests over that; notes: what to say of it;
    published: a step of the base is one forward, as it was published."""

    base: str
    given: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    published: bool = False


class Pairing(NamedTuple):
    """What a request resolved to. pair: the catalogue's, when it was named; exchange: what teacher and student can exchange; origin: of the
    recipe."""

    dataset: dict[str, Any]
    teacher: dict[str, Any]
    student: dict[str, Any]
    recipe: Recipe
    exchange: Exchange
    pair: Pair | None
    origin: Origin
    resize: bool = False

    @property
    def facts(self) -> PairFacts:
        """What decides which terms have a meaning on this pair."""
        images = max(1, self.recipe.batch // self.recipe.devices)
        return pair_facts(self.exchange, DETECTORS[self.student["detector"]], len(self.dataset["classes"]), images)

    @property
    def iterations(self) -> int:
        """Student iterations of the recipe, also where it is in epochs."""
        return self.resolved[0].iterations

    @property
    def resolved(self) -> tuple[Recipe, list[str]]:
        return self.recipe.resolved(self.dataset["train"]["count"] or 0)

    @property
    def warnings(self) -> list[str]:
        """What has to be said before the recipe runs."""
        size = size_warning(self.recipe, self.dataset["train"].get("sides"))
        return [*self.origin.notes, *self.resolved[1], *([size] if size else [])]

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
        return {
            "dataset": self.dataset,
            "teacher": self.teacher,
            "student": self.student,
            "recipe": self.recipe.to_json(),
            "recipe_from": {"base": self.origin.base, "given": list(self.origin.given)},
            **({"warnings": self.warnings} if self.warnings else {}),
            **({"resize": True} if self.resize else {}),
        }


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
    search: Search | None = None,
    resize: bool = False,
) -> Pairing:
    """Look everything up and check that it fits together.

    schedule: which recipe the request's fields go over, "proxy" or "full"; search: whose winner is trained, and whose request's recipe
    they go over without a pair.
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
    images = data["train"]["count"] if data else 0
    base, origin = None, Origin("")
    if chosen:
        base, origin = chosen.proxy if schedule == "proxy" else chosen.full, Origin(f"the pair {chosen.name}")
    elif student_json is not None:
        base, origin = base_of(DETECTORS[student_json["detector"]], images, schedule, search)
    given = asked(recipe)
    merged = merged_recipe(given, base, images, errors)
    if errors or base is None or data is None or teacher_json is None or student_json is None or merged is None:
        raise invalid(errors)
    origin = with_given(origin, given, base, merged)
    if origin.published and not {"batch", "accumulate"} & {*origin.given}:
        merged = merged.in_forwards()
    if data["train"].get("masks") == 0 and DETECTORS[student_json["detector"]].masks:
        advice = f"{student_json['detector']} {UNSEGMENTED}; give a detector without masks, or a dataset with segmentations"
        raise invalid([FieldError("/student/detector", advice)])
    common = exchange(DETECTORS[teacher_json["detector"]], DETECTORS[student_json["detector"]], resize)
    if not common.knowledge:
        reason = next(iter(common.excluded.values()))
        raise invalid([FieldError("/student/detector", f"this teacher and this student can exchange nothing: {reason}")])
    return Pairing(data, teacher_json, student_json, merged, common, chosen, origin, resize)


def named_pair(name: str | None, errors: list[FieldError]) -> Pair | None:
    if name is not None and name not in PAIRS:
        errors.append(FieldError("/pair", f"{name!r} is not a pair of the catalogue; {meant(name, PAIRS)}"))
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
            service.settings.data_roots,
            service.settings.own_roots,
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


def base_of(student: DetectorEntry, images: int, schedule: str, search: Search | None) -> tuple[Recipe, Origin]:
    """What a request's recipe goes over where no pair is named. search: whose winner is trained."""
    if search is not None and "recipe_from" not in search.spec:  # of a version that had no other recipe
        return Recipe.from_json(search.spec["recipe"]), Origin(f"the search {search.id}")
    base, source = base_recipe(student, images, schedule)
    notes = (NOT_KNOWN.format(student.name),) if student.own and student.training is None else ()
    origin = Origin(source, notes=notes, published=True)
    return (base, origin) if search is None else of_winner(search, base, images, origin)


def of_winner(search: Search, base: Recipe, images: int, origin: Origin) -> tuple[Recipe, Origin]:
    """What the recipe of a search's winner goes over: the student's, with what the search was given over that.

    How long candidates are trained and on which images (OF_CANDIDATES) stays theirs, as with a pair, whose winner has the pair's full
    recipe; unless they were given a greater length than the student's.
    """
    measured = Recipe.from_json(search.spec["recipe"])
    given = {name: search.spec["recipe"][name] for name in search.spec["recipe_from"]["given"]}

    def without(left: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
        kept = {name: value for name, value in given.items() if name not in left}
        whole = given.keys() == base.to_json().keys()
        return Recipe.from_json({**base.to_json(), **kept} if whole else kept, base, images), kept

    try:
        recipe, kept = without(OF_CANDIDATES)
        as_long = (measured.epochs, measured.iterations) == (recipe.epochs, recipe.iterations)
        longer = measured.resolved(images)[0].iterations > recipe.resolved(images)[0].iterations
        if as_long or (longer and {"iterations", "epochs"} & given.keys()):
            recipe, kept = without(OF_IMAGES)
    except ValueError as error:  # the student's configuration is another by now
        note = f"what search {search.id} was given does not go over {origin.base} ({error}), so this training has the search's own recipe"
        return measured, Origin(f"the search {search.id}", tuple(given), (*origin.notes, note))
    notes = origin.notes
    if lost := [name for name, value in given.items() if recipe.to_json()[name] != value]:
        notes += (
            f"of the recipe that search {search.id} was given, {', '.join(lost)} stays with its candidates; give here what of that this "
            "training is to have",
        )
    return recipe, origin._replace(given=tuple(kept), notes=notes)


def asked(choice: RecipeChoice | None) -> dict[str, Any]:
    """The fields that a request gives; null leaves out one that cannot be null."""
    given = choice.model_dump(exclude_unset=True) if choice else {}
    return {name: value for name, value in given.items() if value is not None or name in WITH_NULL}


def with_given(origin: Origin, given: Mapping[str, Any], base: Recipe, recipe: Recipe) -> Origin:
    """With the fields that a request gives, and what has to be said of those that it leaves as they were: nothing where it gives all."""
    notes = origin.notes if given.keys() < recipe.to_json().keys() else ()
    if "optimizer" in given and "lr" not in given and recipe.optimizer != base.optimizer:
        notes += (
            f"the learning rate of {recipe.lr:g} is that of {base.optimizer}, and the optimizer is {recipe.optimizer} now; give lr too",
        )
    return origin._replace(given=tuple(sorted({*origin.given, *given})), notes=notes)


def merged_recipe(given: Mapping[str, Any], base: Recipe | None, images: int, errors: list[FieldError]) -> Recipe | None:
    """The catalogue's recipe with the request's fields over it, or None with what is wrong added to `errors`."""
    try:
        return Recipe.from_json(given, base, images)
    except ValueError as error:
        for sentence in recipe_faults(error):
            path, _, message = sentence.partition(": ")
            errors.append(FieldError(pointer_of_path(path), message))
        return None
