"""The loss of a policy: each of its terms compares a student's signals with a teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detkds_core.losses.distances import DISTANCES, kl_divergence
from detkds_core.losses.localization import BOX_DISTANCES, box_certainty, box_l1, edge_divergence, weighted_mean
from detkds_core.losses.regions import crop, ground_truth_regions, region_masks
from detkds_core.losses.signals import Scene, Signals
from detkds_core.losses.transforms import ATTENTION, NORMALISATION, POOL, SCALE, SOFTMAX_DIMS, draw_mask, several_images
from detkds_core.policy import Policy, Term

GROUND_TRUTH = ("fgbg", "instance")  # the knowledge that is read at ground-truth boxes


def needs(policy: Policy) -> frozenset[str]:
    """Which of features, logits, boxes and edges the policy is computed from: what must be captured."""
    compared = {_compared(term) for term in policy.terms}
    # Boxes and edges are weighted by the teacher's class scores.
    return frozenset(compared | ({"logits"} if compared & {"boxes", "edges"} else set()))


def _compared(term: Term) -> str:
    """The signal in which the term compares student and teacher."""
    if term.knowledge == "localization":
        return "edges" if term.distance == "kl_edges" else "boxes"
    return "logits" if term.knowledge == "logits" else "features"


def policy_losses(policy: Policy, student: Signals, teacher: Signals, scene: Scene) -> dict[str, Tensor]:
    """The weighted loss of each term of the policy, {"distill/0_global": scalar, ...}. Their sum is the distillation loss.

    Levels are summed within a term. Computed in float32 whatever comes in, also under autocast. The teacher gets no gradient.
    A term over ground truth is 0 when the batch has no boxes; a term is 0 at the start of its warm-up and after its stop.
    Raises ValueError, which names the term, when signals are missing or do not fit each other, or when an operation cannot act on them.
    """
    losses = {}
    for index, term in enumerate(policy.terms):
        try:
            losses[f"distill/{index}_{term.knowledge}"] = _term_loss(index, term, student, teacher, scene)
        except ValueError as error:
            raise ValueError(f"policy.terms[{index}] ({term.knowledge}): {error}") from error
    return losses


def schedule(term: Term, step: int, total_steps: int) -> float:
    """What multiplies a term's weight at a step: linear from 0 over `warm_up` steps, and 0 from `stop` * total_steps on."""
    if term.stop < 1 and step >= term.stop * total_steps:
        return 0.0
    return min(1.0, step / term.warm_up) if term.warm_up else 1.0


def _term_loss(index: int, term: Term, student: Signals, teacher: Signals, scene: Scene) -> Tensor:
    signal = _compared(term)
    ours, theirs = getattr(student, signal), getattr(teacher, signal)
    _check_fit(signal, ours, theirs)
    weight = term.weight * schedule(term, scene.step, scene.total_steps)
    if weight == 0 or (term.knowledge in GROUND_TRUTH and not any(len(boxes) for boxes in scene.boxes)):
        return _sum([s[:0].sum().float() for s in ours])  # 0, and still a function of the student
    with torch.autocast(ours[0].device.type, enabled=False):
        pairs = [(s.float(), t.detach().float()) for s, t in zip(ours, theirs, strict=True)]
        if term.knowledge == "localization":
            loss = _localization(term, pairs, teacher.logits, scene)
        elif term.knowledge == "logits":
            loss = _sum([_logits(term, s, t) for s, t in pairs])
        else:
            loss = _features(index, term, pairs, scene)
        return weight * loss


def _sum(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()


def _check_fit(signal: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    if not student or not teacher:
        raise ValueError(f"it needs {signal}, which the {'teacher' if student else 'student'} does not give")
    if len(student) != len(teacher):
        raise ValueError(
            f"{signal} has {len(student)} levels at the student and {len(teacher)} at the teacher; align the levels of the pair"
        )
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if s.shape != t.shape:
            raise ValueError(
                f"{signal} of level {level} is {tuple(s.shape)} at the student and {tuple(t.shape)} at the teacher; adapt the student"
            )


def _features(index: int, term: Term, pairs: Sequence[tuple[Tensor, Tensor]], scene: Scene) -> Tensor:
    boxes = [b.to(pairs[0][0].device) for b in scene.boxes]
    images = len(pairs[0][0])
    if term.knowledge in GROUND_TRUTH and len(boxes) != images:
        raise ValueError(f"the scene has boxes for {len(boxes)} images, the batch {images}")
    losses = []
    for level, (s, t) in enumerate(pairs):
        # One mask a term and level, whatever it is applied to: student and teacher, foreground and background.
        mask = draw_mask(s, (scene.seed, scene.step, index, level)) if term.transforms[0] == "mask" else None
        if term.knowledge == "global":
            losses.append(_compare(term, *_attend_and_scale(term, s, t, mask)))
        elif term.knowledge == "fgbg":
            losses.append(_fgbg(term, s, t, mask, boxes, scene.batch_shape))
        else:
            losses.append(_instance(term, s, t, mask, boxes, scene.batch_shape))
    return _sum(losses)


def _attend_and_scale(term: Term, student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first two transforms on both sides. mask is given for `mask` alone, and shared like the teacher's attention."""
    attend, scale = ATTENTION[term.transforms[0]], SCALE[term.transforms[1]]
    guide = teacher if term.shared_attention else mask
    return scale(attend(student, guide)), scale(attend(teacher, guide))


def _compare(term: Term, student: Tensor, teacher: Tensor) -> Tensor:
    """The last transform on both sides, then the distance. `kl` takes the softmax itself, with log on the student's side."""
    name = term.transforms[-1]
    if term.distance == "kl":
        if name == "softmax_N":
            several_images(student, name)
        return kl_divergence(student, teacher, SOFTMAX_DIMS[name], term.temperature)
    normalise = NORMALISATION[name]
    return DISTANCES[term.distance](normalise(student), normalise(teacher))


def _fgbg(
    term: Term, student: Tensor, teacher: Tensor, mask: Tensor | None, boxes: Sequence[Tensor], batch_shape: tuple[int, int]
) -> Tensor:
    """Foreground plus `background` times background: both sides are weighted by FGD's masks before the transforms, as in DetKDS."""
    H, W = student.shape[2:]
    foreground, background = region_masks(boxes, (H, W), batch_shape)
    inside, outside = (_compare(term, *_attend_and_scale(term, student * m, teacher * m, mask)) for m in (foreground, background))
    return inside + term.background * outside


def _instance(
    term: Term, student: Tensor, teacher: Tensor, mask: Tensor | None, boxes: Sequence[Tensor], batch_shape: tuple[int, int]
) -> Tensor:
    """The transformed maps inside each ground-truth box, mean over boxes.

    The boxes are scaled to the map after its scale transform. `kl` takes its softmax within each region: a softmax of the map, cut out and
    interpolated, is no distribution.
    """
    H, W = student.shape[2:]
    student, teacher = _attend_and_scale(term, student, teacher, mask)
    regions = ground_truth_regions(boxes, (H, W), batch_shape, POOL.get(term.transforms[1], 1))
    if term.distance == "kl":
        return _compare(term, crop(student, regions), crop(teacher, regions))
    normalise = NORMALISATION[term.transforms[2]]
    return DISTANCES[term.distance](crop(normalise(student), regions), crop(normalise(teacher), regions))


def _logits(term: Term, student: Tensor, teacher: Tensor) -> Tensor:
    """Class scores (B, A*K, H, W) under the sigmoid, as detectors read them, then normalisation and distance, as in DetKDS.

    `kl` takes the raw scores: softmax(z / T) over its axis, the distribution that Hinton's KD and CWD on class maps compare. Under the
    sigmoid all scores would lie within 1 of each other and the softmax be nearly uniform, whatever the detector says.
    """
    if term.distance == "kl":
        return _compare(term, student, teacher)
    return _compare(term, student.sigmoid(), teacher.sigmoid())


def _localization(term: Term, pairs: Sequence[tuple[Tensor, Tensor]], logits: Sequence[Tensor], scene: Scene) -> Tensor:
    """Distance of the boxes of each cell and anchor, mean weighted by the teacher's best class score, over all levels together."""
    if len(logits) != len(pairs):
        raise ValueError(f"it needs the teacher's logits on {len(pairs)} levels, got {len(logits)}")
    scores = [z.detach().float() for z in logits]
    if term.distance == "kl_edges":
        distances = [edge_divergence(s, t, term.temperature) for s, t in pairs]
        return weighted_mean(distances, [z.amax(1).sigmoid().flatten(1) for z in scores])
    certainty = [box_certainty(z, t) for z, (_, t) in zip(scores, pairs, strict=True)]
    if term.distance == "l1":
        # A box counts as at least one cell of its level, else a sliver would have the largest loss.
        cells = [scene.batch_shape[1] / z.shape[3] for z in scores]
        return weighted_mean([box_l1(s, t, cell) for (s, t), cell in zip(pairs, cells, strict=True)], certainty)
    return weighted_mean([BOX_DISTANCES[term.distance](s, t) for s, t in pairs], certainty)
