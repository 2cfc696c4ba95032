"""What each kind of knowledge compares, part by part: where it looks, after which steps, by which distance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from detkds_core.losses.attention import DRAWS
from detkds_core.losses.distances import DISTANCES, VALUES, Distance, divergences, kl_divergence, kl_sigmoid, squares_of_units
from detkds_core.losses.localization import (
    BOX_DISTANCES,
    box_l1,
    delta_l1,
    edge_divergence,
    has_area,
    hulls,
    likeliest_boxes,
    likeliest_scores,
    point_l1,
)
from detkds_core.losses.looks import Looks, Path
from detkds_core.losses.regions import PROPOSAL_SIZE, Samples, cells_of, cut_proposals, proposal_samples
from detkds_core.losses.signals import Scene, Signals, full
from detkds_core.losses.slopes import with_slopes
from detkds_core.losses.transforms import POOL, SOFTMAX_DIMS, several_images
from detkds_core.policy import Term
from detkds_core.policy.meaning import ANGLES, IN_PLACE, OF_IMAGES, WEIGHTED
from detkds_core.policy.signals import OF_STUDENT, reads_scores
from detkds_core.policy.vocabulary import ELEMENTWISE, FEATURES, GRAMS, OVER_CHANNELS, OVER_IMAGES, POINTWISE, RECTIFIERS

RAW = ("kl", "kl_sigmoid")  # the distances that read scores as they are
UNCHANGED = ("none", "scale_r1")  # a pool of one cell is none
# The transforms of features under which what comes of a position depends on its own channels alone.
ITS_OWN = (("none", "mask", "drop"), IN_PLACE, ("none", "norm_C", "softmax_C", "logsoftmax_C", *POINTWISE))
# By which power of a factor >= 0 of a position the distance there grows; 0: not at all, but that it is 0 where the factor is.
DEGREE = {"l1": 1, "l2": 2, **dict.fromkeys(ANGLES, 0)}


@dataclass(frozen=True)
class Part:
    """One comparison of a term. level: that it looks at; None for the proposals, or several levels at once. paths: what it will look at."""

    term: int
    level: int | None
    paths: tuple[Path, ...]
    compare: Callable[[Looks], Tensor]
    share: float = 1.0  # what multiplies it within the term


def parts_of(
    index: int, term: Term, compared: Sequence[tuple[int | None, str]], student: Signals, teacher: Signals, scene: Scene
) -> list[Part]:
    """The parts whose sum is the loss of a term before its weight. compared: level and name of the tensors that it compares."""
    images = len(scene.boxes)
    if term.knowledge in ("fgbg", "instance") or term.region == "foreground":
        batch = len(student.features[0] if term.knowledge in FEATURES else teacher.logits[0])
        if images != batch:
            raise ValueError(f"the scene has boxes for {images} images, the batch {batch}")
    levels = [level for level, _ in compared if level is not None]
    if reads_scores(term) and levels and len(teacher.logits) != len(levels):
        raise ValueError(f"it needs the teacher's logits on {len(levels)} levels, got {len(teacher.logits)}")
    if term.knowledge == "localization":
        return _of_boxes(index, term, compared, student, teacher, scene)
    if term.knowledge == "instance" and term.region == "proposals":
        return [_of_proposals(index, term, levels, student, scene)]
    if _weighs_positions(term):
        return [_of_positions(index, term, level) for level in levels]
    predictions = _predictions_of(student, teacher) if term.knowledge == "logits" and term.region not in ("proposals", "masks") else None
    paths = [path for level, signal in compared for path in _paths_of(index, term, level, signal, predictions)]
    shares = [term.background if "background" in path else 1.0 for path in paths]
    return [Part(index, path[0], (path,), partial(_of_maps, term, path, levels), share) for path, share in zip(paths, shares, strict=True)]


# --- features and logits ---------------------------------------------------------------------------------------------


def _predictions_of(student: Signals, teacher: Signals) -> tuple[int, int] | None:
    """How many predictions a cell has, and how many classes each scores; None for one prediction, or where that is not known."""
    channels, classes = student.logits[0].shape[1], student.classes
    if classes is None or classes != teacher.classes or channels == classes:
        return None
    return channels // classes, classes


def _paths_of(index: int, term: Term, level: int | None, signal: str, predictions: tuple[int, int] | None) -> list[Path]:
    """What a term of features or logits looks at on a level: one path, or those of foreground and background.

    predictions: `_predictions_of` the dense head whose scores are compared.
    """
    steps = _steps(index, term)
    if predictions is not None:
        return [(level, signal, *_of_predictions(term, steps, *predictions))]
    if term.knowledge == "fgbg":
        # Masks weigh both sides before the transforms, as in DetKDS.
        regions = ("foreground", "background") if term.background else ("foreground",)
        return [(level, signal, region, *steps) for region in regions]
    if term.knowledge == "instance":
        # Boxes are scaled to the map after its scale transform.
        cut = ("crop", POOL.get(term.transforms[1], 1))
        return [(level, signal, *steps, cut)]
    return [(level, signal, *steps)]


def _weighs_positions(term: Term) -> bool:
    """Whether each position of a term of features counts for itself, weighted by the term's regions or its mask.

    Foreground and background have no position in common, and where a position's weight is 0, both sides are equal: so both are computed in
    one pass, and a weight whose power the distance has multiplies the distance, not the maps.
    """
    if term.knowledge not in ("global", "fgbg"):
        return False
    kept = all(name in names for name, names in zip(term.transforms, ITS_OWN, strict=True))
    at_each = term.distance in VALUES or (term.distance == "kl" and term.transforms[-1] == "softmax_C")
    masked = term.transforms[0] == "mask" and _degree(term) is not None
    return term.region == "all" and kept and at_each and (term.knowledge == "fgbg" or masked)


def _degree(term: Term) -> int | None:
    """The term's `DEGREE`; None where a factor of a position is no factor of the distance."""
    _, scale, norm = term.transforms
    if scale not in UNCHANGED:
        return None
    if norm == "norm_C":
        return 0
    return DEGREE.get(term.distance) if norm in ("none", *RECTIFIERS) else None


def _of_positions(index: int, term: Term, level: int) -> Part:
    """The distance of a term that `_weighs_positions` on a level, over foreground and background at once."""
    steps, degree, of_regions = _steps(index, term), _degree(term), term.knowledge == "fgbg"
    masks = [step for step in steps if step[0] == "mask"]
    if degree is None:
        path: Path = (level, "features", "both", *steps)
    else:
        path = (level, "features", *(step for step in steps if step not in masks))

    def weights(looks: Looks) -> Tensor:
        """(B, H, W)."""
        like, found = looks.teacher.features[level], []
        if of_regions:
            found.append(torch.where(looks.masks(level, "features")[0] > 0, 1.0, term.background))
        if of_regions and degree:
            found.append(looks.factor(level, "features", "both", like) ** degree)
        if degree is not None:
            found += [looks.factor(level, "features", step, like) for step in masks]  # of 0 and 1
        return prod(found[1:], start=found[0])[:, 0]

    def compare(looks: Looks) -> Tensor:
        student, teacher = looks.pair(path)
        loss = (_values(term, student, teacher) * looks.once((level, "weights", index), lambda: weights(looks))).mean()
        return loss * (_count(term, student) / len(looks.scene.boxes)) if term.reduction == "sum" else loss

    return Part(index, level, (path,), compare)


def _steps(index: int, term: Term) -> Path:
    """The steps of a term's transforms. `kl` takes the softmax itself, with the log on the student's side.

    Class scores pass the sigmoid, as detectors read them, those of proposals the softmax over classes; not under `kl` and `kl_sigmoid`: a
    softmax of the raw scores is the distribution that Hinton's KD and CWD on class maps compare, one of probabilities nearly uniform.
    """
    *first, norm = term.transforms
    last = () if norm in UNCHANGED or term.distance == "kl" or _of_units(term) else (norm,)
    if term.knowledge == "logits":
        reading = () if term.distance in RAW else ("softmax_C",) if term.region == "proposals" else ("sigmoid",)
        return (*reading, *last)
    attention, scale = first
    if term.shared_attention:
        attend: Path = ((attention, "teacher"),)
    elif attention in DRAWS:
        attend = ((attention, index),)
    else:
        attend = () if attention in UNCHANGED else (attention,)
    return (*attend, *(() if scale in UNCHANGED else (scale,)), *last)


def _of_predictions(term: Term, steps: Path, anchors: int, classes: int) -> Path:
    """The steps, where a cell has several predictions: what looks along classes looks at those of one prediction.

    Nor does a cell that counts for one of its predictions count for the others. Where a prediction has one score alone, those of a cell are
    taken for its classes, as DetKDS does with a region proposal network's.
    """
    norm, apart = term.transforms[-1], ("apart", classes)
    along = norm not in ("batch", *GRAMS) and (term.distance in ANGLES or _of_units(term) or (term.distance, norm) == ("kl", "softmax_C"))
    weighed, over_classes = term.region in OF_STUDENT, bool(steps) and steps[-1] in OVER_CHANNELS
    if classes == 1:
        return (*steps, apart) if weighed and not along and not over_classes else steps
    # Before what acts alike wherever a score lies, as what the dense head says can be looked at apart without a copy.
    place = len(steps) - (bool(steps) and steps[-1] in (*OVER_CHANNELS, *OVER_IMAGES, *POINTWISE))
    if along or weighed:
        return (*steps[:place], apart, *steps[place:])
    return (*steps[:place], apart, *steps[place:], ("together", anchors)) if over_classes else steps


def _of_units(term: Term) -> bool:
    """Whether the distance is told by an angle, and makes both sides unit vectors itself.

    Not of an instance, which is cut from those. Nor where `scale` makes all vectors nearly equal: an angle rounds at 1e-7.
    """
    return term.knowledge != "instance" and term.distance == "l2" and term.transforms[-1] == "norm_C" and "scale" not in term.transforms


def _of_maps(term: Term, path: Path, levels: Sequence[int], looks: Looks) -> Tensor:
    """The distance at the end of the path."""
    if term.region not in WEIGHTED:
        return _distance(term, *looks.pair(path), images=len(looks.scene.boxes))
    level, apart = path[0], any(step[0] == "apart" for step in path[2:])
    if term.region == "teacher_score":  # each level for itself, as FRS has it
        weights = looks.once((level, "score"), lambda: full(looks.teacher.logits[level].amax(1)).sigmoid())
        total = looks.once((level, "score", "total"), lambda: _positive(weights.sum()))
    else:  # all levels together, so that one without objects has no say
        key = ("all", term.region, apart)
        each = looks.once(key, lambda: [_cells(term.region, looks, one, apart) for one in levels])
        weights, total = each[level], looks.once((*key, "total"), lambda: _total(each))
    values = _values(term, *looks.pair(path))  # (B, H, W), or (B, H, W*A) of predictions apart
    if apart and term.region not in OF_STUDENT:
        values = values.unflatten(2, (weights.shape[2], -1)).mean(-1)
    if weights.shape != values.shape:
        raise ValueError(f"region {term.region!r} weighs {tuple(weights.shape)} cells, {term.knowledge} has {tuple(values.shape)}")
    return (values * weights).sum() / total


def _cells(region: str, looks: Looks, level: int, apart: bool = False) -> Tensor:
    """How much each cell of the region counts, 0 for others, (B, H, W): 1, or of `OF_STUDENT` the most of its predictions.

    apart: of `OF_STUDENT` each prediction, as `predictions_apart` has them: (B, H, W*A).
    """
    B, _, H, W = looks.teacher.logits[level].shape
    if region == "foreground":
        return (looks.masks(level, "logits")[0][:, 0] > 0).float()
    each = _of_student(region, looks, level)
    return each.view(B, H, -1) if apart else each.view(B, H, W, -1).amax(-1)


def _of_student(region: str, looks: Looks, level: int) -> Tensor:
    """How much each prediction of a level counts: (B, H*W*A)."""
    student = looks.student
    if not all(getattr(student, signal) for signal in OF_STUDENT[region]):
        raise ValueError(f"it looks at {region!r} cells, which the student does not give")
    if region == "assigned_score":
        scores = likeliest_scores(student.logits[level], student.assigned[level].shape[1])
        return full(scores).sigmoid() * student.assigned[level]
    return full(getattr(student, region)[level])


def _total(weights: Sequence[Tensor]) -> Tensor:
    return _positive(torch.stack([one.sum() for one in weights]).sum())


def _positive(total: Tensor) -> Tensor:
    """A sum of weights to divide by; without any, what it divides is 0."""
    return total.clamp_min(torch.finfo(total.dtype).tiny)


def _distance(term: Term, student: Tensor, teacher: Tensor, images: int) -> Tensor:
    """The mean distance of two tensors after all steps, or their sum over all but the images."""
    norm = term.transforms[-1]
    if term.distance == "kl":
        loss = kl_divergence(_of_several(student, norm), teacher, SOFTMAX_DIMS[norm], term.temperature)
    else:
        loss = _mean_distance(term)(student, teacher)
    return loss * (_count(term, student) / images) if term.reduction == "sum" else loss


def _mean_distance(term: Term) -> Distance:
    if _of_units(term):
        return lambda student, teacher: squares_of_units(student, teacher).mean()
    return kl_sigmoid if term.distance == "kl_sigmoid" else DISTANCES[term.distance]


def _count(term: Term, student: Tensor) -> int:
    """How many values the mean of a distance is over."""
    if term.distance in ELEMENTWISE:
        return student.numel()
    if term.distance not in RAW:
        raise ValueError(f"{term.distance!r} has no sum; reduction 'mean'")
    dims = SOFTMAX_DIMS[term.transforms[-1]] if term.distance == "kl" else (1,)
    return student.numel() // prod(student.shape[dim] for dim in dims)


def _of_several(student: Tensor, norm: str) -> Tensor:
    return several_images(student, norm) if norm == "softmax_N" else student


def _values(term: Term, student: Tensor, teacher: Tensor) -> Tensor:
    """The distance at each position: (B, H, W)."""
    if term.distance == "kl" and term.transforms[-1] == "softmax_C":
        return divergences(student, teacher, (1,), term.temperature)
    if term.distance not in VALUES or student.dim() != 4:
        formula = f"{term.distance} after {term.transforms[-1]}"
        raise ValueError(f"region {term.region!r} weighs positions, and {formula} has no value at each")
    return (squares_of_units if _of_units(term) else VALUES[term.distance])(student, teacher)


# --- proposals -------------------------------------------------------------------------------------------------------


def _of_proposals(index: int, term: Term, levels: Sequence[int], student: Signals, scene: Scene) -> Part:
    """The transformed maps inside each proposal, cut from the level that suits its size; mean over proposals.

    There are hundreds, which overlap: together they can be several times the pyramid. So as many are cut at once as have no more cells than
    it; all of them only where the distance is over proposals.
    """
    steps, pool = _steps(index, term), POOL.get(term.transforms[1], 1)
    paths = tuple((level, "features", *steps) for level in levels)
    shapes = [tuple(student.features[level].shape[2:]) for level in levels]
    together = term.distance in OF_IMAGES or (term.distance == "kl" and term.transforms[-1] == "softmax_N")
    cells = len(student.features[0]) * sum(H * W for H, W in shapes)
    go = len(student.rois.regions) if together else max(1, cells // PROPOSAL_SIZE**2)

    def compare(looks: Looks) -> Tensor:
        def samples() -> Samples:
            return proposal_samples(student.rois.regions, len(student.features[0]), shapes, scene.batch_shape, pool)

        read = looks.once((None, "proposals", pool), samples)
        pairs = [looks.pair(path) for path in paths]
        ours = cells_of([here for here, _ in pairs])
        with torch.no_grad():
            theirs = cells_of([there for _, there in pairs])

        def work(factors: Sequence[Tensor] | None) -> tuple[list[Tensor], list[Tensor | None]]:
            leaf, values = ours.detach().requires_grad_(ours.requires_grad), []
            for some in map(Samples, *(torch.split(x, go * PROPOSAL_SIZE**2) for x in read)):
                there = cut_proposals(theirs, some)
                loss = _distance(term, cut_proposals(leaf, some), there, images=len(scene.boxes))
                if term.reduction == "mean":
                    loss = loss * (len(some.cells) / len(read.cells))
                if loss.requires_grad:
                    loss.backward(None if factors is None else factors[0])
                values.append(loss.detach())
            return [torch.stack(values).sum()], [leaf.grad]

        return with_slopes(work, [ours])[0]

    return Part(index, None, paths, compare)


# --- localization ----------------------------------------------------------------------------------------------------


def _of_boxes(
    index: int, term: Term, compared: Sequence[tuple[int | None, str]], student: Signals, teacher: Signals, scene: Scene
) -> list[Part]:
    """Distance of the boxes of each cell and anchor, or proposal, mean weighted by how much each counts, over all levels together.

    A box counts by the teacher's best class score; under `foreground` at cells inside ground-truth boxes alone, under `assigned` as 1 at
    the cells of the student's own loss, under `assigned_score` by the student's best class score there, under `valuable` by the IoU of
    those that nearly were. A proposal's box is that of the teacher's likeliest class, and counts by its probability.
    """
    if term.region == "proposals":
        if student.rois.regions.shape[0] != len(student.rois.boxes) or teacher.rois.scores is None:
            raise ValueError("it needs a box of each proposal, and the teacher's scores of them")
        return [Part(index, None, ((None, "boxes"),), partial(_proposed_boxes, term))]
    levels, (_, signal) = [level for level, _ in compared], compared[0]
    if signal == "edges":  # large enough to be compared a level at a time
        return [Part(index, level, ((level, signal),), partial(_edges_of_level, term, levels, level)) for level in levels]
    return [Part(index, None, tuple((level, signal) for level in levels), partial(_boxes_of_levels, term, levels, signal))]


def _edges_of_level(term: Term, levels: Sequence[int], level: int, looks: Looks) -> Tensor:
    each = looks.once(("all", "edges", term.region), lambda: [_weights_of_edges(term.region, looks, one) for one in levels])
    total = looks.once(("all", "edges", term.region, "total"), lambda: _total(each))
    return (each[level] * edge_divergence(*looks.pair((level, "edges")), term.temperature)).sum() / total


def _weights_of_edges(region: str, looks: Looks, level: int) -> Tensor:
    """How much each cell of a level counts: (B, H*W)."""
    if region in OF_STUDENT:
        return _of_student(region, looks, level)
    certainty = full(looks.teacher.logits[level].amax(1)).sigmoid().flatten(1)
    return certainty * _cells(region, looks, level).flatten(1) if region == "foreground" else certainty


def _boxes_of_levels(term: Term, levels: Sequence[int], signal: str, looks: Looks) -> Tensor:
    """All levels at once: boxes are small beside maps, and what compares them is many small operations."""
    pairs = [looks.pair((level, signal)) for level in levels]
    theirs = looks.once(("all", signal), lambda: torch.cat([there for _, there in pairs], dim=1))
    counts = [there.shape[1] for _, there in pairs]
    weights = looks.once(("all", signal, term.region), lambda: _weights_of_boxes(term.region, looks, levels, counts, theirs))
    total = looks.once(("all", signal, term.region, "total"), lambda: _positive(weights.sum()))
    # A box counts as at least one cell of its level, else a sliver would have the largest loss.
    cells = looks.once(("all", signal, "cells"), lambda: _cell_sides(looks, levels, counts, theirs))
    return (weights * _box_distance(term, torch.cat([here for here, _ in pairs], dim=1), theirs, cells)).sum() / total


def _cell_sides(looks: Looks, levels: Sequence[int], counts: Sequence[int], like: Tensor) -> Tensor:
    """Pixels of a cell for each box of all levels: (boxes, 1)."""
    logits, width = looks.teacher.logits, looks.scene.batch_shape[1]
    return torch.cat([like.new_full((count, 1), width / logits[level].shape[3]) for level, count in zip(levels, counts, strict=True)])


def _box_distance(term: Term, student: Tensor, teacher: Tensor, cell: float | Tensor) -> Tensor:
    if term.distance == "points":
        distance = point_l1(student, teacher, cell)
    else:
        distance = box_l1(student, teacher, cell) if term.distance == "l1" else BOX_DISTANCES[term.distance](student, teacher)
    return distance.square() if term.transforms[0] == "pow2" else distance


def _weights_of_boxes(region: str, looks: Looks, levels: Sequence[int], counts: Sequence[int], theirs: Tensor) -> Tensor:
    """How much each box of all levels counts: (B, boxes). counts: boxes of an image on each level."""
    candidates = has_area(hulls(theirs) if theirs.shape[-1] == 2 else theirs)
    if region in OF_STUDENT:
        return torch.cat([_of_student(region, looks, level) for level in levels], dim=1) * candidates
    scores = [likeliest_scores(looks.teacher.logits[level], count) for level, count in zip(levels, counts, strict=True)]
    certainty = full(torch.cat(scores, dim=1)).sigmoid() * candidates
    if region == "foreground":
        cells = [_cells(region, looks, level).flatten(1) for level in levels]  # (B, H*W) each, and as many boxes a cell as anchors
        each = [one[..., None].expand(-1, -1, count // one.shape[1]).flatten(1) for count, one in zip(counts, cells, strict=True)]
        certainty = certainty * torch.cat(each, dim=1)
    return certainty


def _proposed_boxes(term: Term, looks: Looks) -> Tensor:
    """The boxes of the proposals."""
    here, there = looks.pair((None, "boxes"))
    certainty, ours, theirs = likeliest_boxes(full(looks.teacher.rois.scores.detach()), here, there)
    weights = certainty * has_area(theirs)
    if term.distance == "deltas":
        distance = delta_l1(ours, theirs, looks.student.rois.regions[:, 1:].float())
        distance = distance.square() if term.transforms[0] == "pow2" else distance
    else:
        distance = _box_distance(term, ours, theirs, 1.0)
    return (weights * distance).sum() / _positive(weights.sum())
