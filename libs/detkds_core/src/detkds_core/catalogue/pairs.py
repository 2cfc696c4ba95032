"""Which teacher suits which student, on what data, trained how; and what a pair can exchange."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detkds_core.catalogue.detectors import DETECTORS, DetectorEntry
from detkds_core.catalogue.recipe import Recipe
from detkds_core.policy.vocabulary import KNOWLEDGE

CHECKPOINTS = Path(__file__).parent / "checkpoints"


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
