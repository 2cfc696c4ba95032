"""Which teacher suits which student, on what data, trained how; and what a pair can exchange."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from detkds_core.catalogue.detectors import DETECTORS, DetectorEntry
from detkds_core.policy.vocabulary import KNOWLEDGE

CHECKPOINTS = Path(__file__).parent / "checkpoints"
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("one_cycle", "steps")
AUGMENTATIONS = ("none", "flip", "dihedral", "aerial")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a detector is trained and measured. Iterations are optimisation steps; sizes are pixels of the longer image side."""

    iterations: int = 300
    batch: int = 8
    lr: float = 2e-3  # peak
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    schedule: str = "one_cycle"  # "steps": MMDetection's 1x, warm-up 500, tenfold down at 8/12 and 11/12
    image_size: int = 128
    augment: str = "flip"  # "dihedral": 8 symmetries, for pictures without an up; "aerial": also zoom and light
    clip: float = 35.0  # largest gradient norm
    train_images: int | None = None  # the first n images of a seeded permutation; None: all
    eval_images: int | None = None  # the first n selection images by id; the report always uses all

    @classmethod
    def from_json(cls, data: Mapping[str, Any], base: "Recipe | None" = None) -> Self:
        """Read a recipe over the defaults of `base`. Raises ValueError that names every wrong field."""
        known = {field.name for field in fields(cls)}
        errors = [f"recipe.{key}: not a field; one of {', '.join(sorted(known))}" for key in data if key not in known]
        if errors:
            raise ValueError("; ".join(errors))
        recipe = replace(base, **data) if base is not None else cls(**data)
        if errors := recipe.errors():
            raise ValueError("; ".join(errors))
        return recipe  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def errors(self) -> list[str]:
        """What is wrong with it, one sentence a field."""
        found = []
        for name, low, high in (("iterations", 1, 10_000_000), ("batch", 1, 4096), ("image_size", 32, 4096)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                found.append(f"recipe.{name}: {value!r} is not an integer from {low} to {high}")
        for name in ("train_images", "eval_images"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                found.append(f"recipe.{name}: {value!r} is not a positive integer or null (all)")
        for name, high_rate in (("lr", 10.0), ("clip", 1e6)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= high_rate:
                found.append(f"recipe.{name}: {value!r} is not a number above 0 and at most {high_rate}")
        if not isinstance(self.weight_decay, int | float) or not 0 <= self.weight_decay <= 1:
            found.append(f"recipe.weight_decay: {self.weight_decay!r} is not a number from 0 to 1")
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augment", AUGMENTATIONS)):
            if getattr(self, name) not in choices:
                found.append(f"recipe.{name}: {getattr(self, name)!r} is not known; one of {', '.join(choices)}")
        return found


@dataclass(frozen=True, slots=True)
class Pair:
    """A teacher, a student and the schedules that suit them on a dataset.

    teaching: how the teacher was trained; proxy: how a candidate of a search is measured; full: how the final student is trained.
    """

    name: str
    title: str
    dataset: str
    teacher: str
    teacher_checkpoint: str
    student: str
    teaching: Recipe
    proxy: Recipe
    full: Recipe


PAIRS: Mapping[str, Pair] = {
    pair.name: pair
    for pair in (
        Pair(
            name="digits_gfl",
            title="GFL ResNet-18 of width 32 teaches width 16 to find handwritten digits on photographs",
            dataset="digits",
            teacher="gfl_r18w32_fpn32",
            teacher_checkpoint="digits_gfl_r18w32_fpn32",
            student="gfl_r18w16_fpn32",
            teaching=Recipe(iterations=4000, augment="none"),
            proxy=Recipe(iterations=120, augment="none", eval_images=200),
            full=Recipe(iterations=300, augment="none"),
        ),
        Pair(
            name="trees_gfl",
            title="GFL ResNet-18 of width 32 teaches width 16 to find tree crowns from the air",
            dataset="trees",
            teacher="gfl_r18w32_fpn32",
            teacher_checkpoint="trees_gfl_r18w32_fpn32",
            student="gfl_r18w16_fpn32",
            teaching=Recipe(iterations=2500, batch=4, image_size=256, augment="aerial"),
            proxy=Recipe(iterations=120, batch=4, image_size=256, augment="aerial"),
            full=Recipe(iterations=300, batch=4, image_size=256, augment="aerial"),
        ),
    )
}


def builtin_checkpoint(name: str) -> Path | None:
    """The file of a checkpoint that ships with the project, or None."""
    path = CHECKPOINTS / f"{name}.safetensors"
    return path if name.replace("_", "").isalnum() and path.is_file() else None


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a teacher can hand to a student: the knowledge kinds, and for each kind left out the reason."""

    strides: tuple[int, ...]
    knowledge: tuple[str, ...]
    excluded: Mapping[str, str]
    has_edges: bool


def exchange(teacher: DetectorEntry, student: DetectorEntry) -> Exchange:
    """What this pair can exchange. Levels are matched by stride; logits and boxes need equal dense heads."""
    strides = tuple(stride for stride in student.strides if stride in teacher.strides)
    excluded: dict[str, str] = {}
    if not strides:
        reason = f"no pyramid level in common: teacher has strides {list(teacher.strides)}, student {list(student.strides)}"
        return Exchange((), (), dict.fromkeys(KNOWLEDGE, reason), False)
    if teacher.scores != student.scores:
        excluded["logits"] = f"the teacher's dense head scores {teacher.scores}, the student's {student.scores}"
    elif teacher.anchors != student.anchors:
        excluded["logits"] = f"the teacher has {teacher.anchors} predictions a cell, the student {student.anchors}"
    if teacher.anchors != student.anchors:
        excluded["localization"] = f"the teacher has {teacher.anchors} predictions a cell, the student {student.anchors}"
    knowledge = tuple(kind for kind in KNOWLEDGE if kind not in excluded)
    has_edges = teacher.reg_max is not None and teacher.reg_max == student.reg_max
    return Exchange(strides, knowledge, excluded, has_edges)


def detector(name: str) -> DetectorEntry:
    """Look a detector up. Raises ValueError that lists what is known."""
    if name not in DETECTORS:
        raise ValueError(f"{name!r} is not a known detector; one of {', '.join(DETECTORS)}")
    return DETECTORS[name]
