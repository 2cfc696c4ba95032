"""What a teacher can hand to a student, and why not the rest: decided once, for the API, the search space, the trainer and the doctor."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import log2

from detkds_core.catalogue.entry import DetectorEntry
from detkds_core.policy import PairFacts
from detkds_core.policy.distillers import TOWERS
from detkds_core.policy.vocabulary import KNOWLEDGE, REGIONS


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a pair can exchange.

    levels: places of the pyramid levels that face each other, (teacher, student), fine to coarse; strides: the student's there.
    excluded: for each knowledge left out the reason. regions: where the pair can look for each knowledge; lacking: why it cannot look
    elsewhere (`logits.proposals`), and why a signal is missing (`edges`, `points`, `towers`, ...). resized: levels whose strides differ, so
    that the teacher's maps take the student's size.
    """

    levels: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    knowledge: tuple[str, ...]
    excluded: Mapping[str, str]
    has_edges: bool = False
    has_points: bool = False
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)
    resized: bool = False


def exchange(teacher: DetectorEntry, student: DetectorEntry, resize: bool = False) -> Exchange:
    """What this pair can exchange. Levels are matched by stride; with `resize`, those left over by the nearest stride."""
    levels = match_strides(teacher.strides, student.strides, resize)
    if not levels:
        reason = (
            f"no pyramid level in common: teacher has strides {list(teacher.strides)}, student {list(student.strides)}; "
            "with resize the nearest are matched"
        )
        return Exchange((), (), (), dict.fromkeys(KNOWLEDGE, reason))
    resized = any(teacher.strides[t] != student.strides[s] for t, s in levels)
    excluded = dict(_excluded(teacher, student, resized))
    knowledge = tuple(kind for kind in KNOWLEDGE if kind not in excluded)
    lacking = dict(_lacking(teacher, student, resized))
    regions = {kind: tuple(_regions(kind, lacking)) for kind in knowledge}
    return Exchange(
        levels=levels,
        strides=tuple(student.strides[s] for _, s in levels),
        knowledge=knowledge,
        excluded=excluded,
        has_edges="edges" not in lacking,
        has_points="points" not in lacking,
        regions=regions,
        lacking=lacking,
        resized=resized,
    )


def match_strides(teacher: tuple[int, ...], student: tuple[int, ...], resize: bool) -> tuple[tuple[int, int], ...]:
    """Places of the levels that face each other, (teacher, student), fine to coarse: equal strides, and if asked the nearest of those left.

    Only levels between the same neighbours are matched, for a map finer than another's finer neighbour shows other things: strides
    4 8 16 and 8 16 32 share 8 and 16, and neither 4 nor 32 has a partner.
    """
    pairs = [(teacher.index(stride), place) for place, stride in enumerate(student) if stride in teacher]
    if resize:
        for place in range(len(student)):
            if place not in {s for _, s in pairs}:
                low = max((t for t, s in pairs if s < place), default=-1)
                high = min((t for t, s in pairs if s > place), default=len(teacher))
                if free := range(low + 1, high):
                    pairs.append((min(free, key=lambda t: abs(log2(teacher[t] / student[place]))), place))
    return tuple(sorted(pairs, key=lambda pair: pair[1]))


def _excluded(teacher: DetectorEntry, student: DetectorEntry, resized: bool) -> Iterator[tuple[str, str]]:
    """(knowledge, why) for what needs equal predictions at equal cells."""
    for kind in ("logits", "localization"):
        if reason := _cells_differ(teacher, student, resized):
            yield kind, reason
        elif kind == "logits" and teacher.scores != student.scores:
            yield kind, f"the teacher's dense head scores {teacher.scores}, the student's {student.scores}"


def _cells_differ(teacher: DetectorEntry, student: DetectorEntry, resized: bool) -> str | None:
    for role, entry in (("teacher", teacher), ("student", student)):
        if entry.scores == "queries":
            return f"the {role} predicts from queries, which belong to no cell"
    if teacher.anchors != student.anchors:
        return f"the teacher has {teacher.anchors} prediction{'s' * (teacher.anchors > 1)} a cell, the student {student.anchors}"
    if teacher.anchors > 1 and _anchors(teacher) != _anchors(student):
        return f"the teacher's anchors are {_anchors(teacher)}, the student's {_anchors(student)}"
    if resized:
        return "levels of different strides have different cells"
    return None


def _anchors(entry: DetectorEntry) -> str:
    """The boxes that the predictions of a cell start from, in their order."""
    scales, ratios = (", ".join(f"{value:.3g}" for value in values) for values in (entry.anchor_scales, entry.anchor_ratios))
    return f"of scales {scales} and ratios {ratios}"


def _lacking(teacher: DetectorEntry, student: DetectorEntry, resized: bool) -> Iterator[tuple[str, str]]:
    """(region or signal, why) for what this pair cannot look at."""
    no_cells = _cells_differ(teacher, student, resized)
    if teacher.scores == "queries":  # the student's own predictions do not matter here
        yield "global.teacher_score", "the teacher predicts from queries, which belong to no cell"
    elif resized:
        yield "global.teacher_score", "levels of different strides have different cells"
    if student.stages < 2:
        yield "instance.proposals", "the student is a one-stage detector and makes no proposals"
    both_propose = _both("has no RoI head", "has a RoI head", teacher, student, lambda entry: entry.stages == 2)
    both_mask = _both("predicts no masks", "predicts masks", teacher, student, lambda entry: entry.masks)
    if both_propose:
        yield "logits.proposals", both_propose
        yield "localization.proposals", both_propose
    if both_mask:
        yield "logits.masks", both_mask
    if student.scores == "queries":
        for region in ("assigned", "assigned_score"):
            yield region, "the student assigns objects to queries, not to cells"
    if not student.overlaps:
        yield "valuable", "the student does not assign objects to anchors by how much these overlap them"
    branches = "branches that another head can finish"
    towers = no_cells or _both(f"has no {branches}", f"has {branches}", teacher, student, lambda entry: entry.family in TOWERS)
    if towers:
        yield "towers", towers
    if edges := _counts_differ("edge distributions (GFL)", "bins an edge", teacher.bins, student.bins) or no_cells:
        yield "edges", edges
    if points := _counts_differ("point sets (RepPoints)", "points a set", teacher.points, student.points) or no_cells:
        yield "points", points


def _both(lacks: str, has: str, teacher: DetectorEntry, student: DetectorEntry, holds: Callable[[DetectorEntry], bool]) -> str | None:
    """Why not both have it, None when they have."""
    missing = [role for role, entry in (("teacher", teacher), ("student", student)) if not holds(entry)]
    return None if not missing else f"neither {has}" if len(missing) == 2 else f"the {missing[0]} {lacks}"


def _counts_differ(what: str, of: str, teacher: int, student: int) -> str | None:
    """Why two detectors cannot compare what each has so many of a prediction, 0 without; None where they can."""
    if teacher and student:
        return None if teacher == student else f"the teacher has {teacher} {of}, the student {student}"
    return f"neither predicts {what}" if teacher == student else f"the {'student' if teacher else 'teacher'} predicts no {what}"


ASKED: Mapping[str, tuple[str, ...]] = {
    "global": ("teacher_score",),
    "instance": ("proposals",),
    "logits": ("teacher_score", "foreground", "assigned", "assigned_score", "valuable", "proposals", "masks"),
    "localization": ("foreground", "assigned", "assigned_score", "valuable", "proposals"),
}


def _regions(kind: str, lacking: Mapping[str, str]) -> Iterator[str]:
    """Where a pair can look for a knowledge that it can exchange."""
    yield "all"
    for region in ASKED.get(kind, ()):
        if f"{kind}.{region}" not in lacking and region not in lacking:
            yield region


def lacking_regions(kind: str, offer: Exchange) -> dict[str, str]:
    """Where the pair cannot look for a knowledge that it exchanges, and why; nothing for one that it does not exchange."""
    if kind in offer.excluded:
        return {}
    refused = (region for region in REGIONS[kind] if region not in offer.regions[kind])
    return {region: offer.lacking.get(f"{kind}.{region}") or offer.lacking[region] for region in refused}


def pair_facts(offer: Exchange, student: DetectorEntry, classes: int, images_per_batch: int) -> PairFacts:
    """What the rules of the policy language need to know of a pair on a dataset. images_per_batch: on one device."""
    return PairFacts(
        images_per_batch=images_per_batch,
        has_edges=offer.has_edges,
        score_channels=classes if student.scores == "classes" and classes > 1 else student.anchors,
        has_points=offer.has_points,
        roi_channels=classes + 1,
        regions=offer.regions,
        lacking=offer.lacking,
    )
