"""Which terms have a meaning: every rule refuses a loss that could not teach, with its reason, before anything runs.

A legal term is finite, not negative, about 0 where student and teacher agree, and has a gradient where they do not.
"""

from collections.abc import Iterator

from detkds_core.policy.canonical import same_formula
from detkds_core.policy.terms import Policy, Reason, Term
from detkds_core.policy.vocabulary import (
    DISTANCES,
    DIVERGENCES,
    FEATURES,
    KNOWLEDGE,
    MAX_BACKGROUND,
    MAX_NAME,
    MAX_TEMPERATURE,
    MAX_TERMS,
    MAX_WARM_UP,
    MAX_WEIGHT,
    MIN_TEMPERATURE,
    NOT_OFFERED,
    SHAREABLE,
    SLOTS,
)

OVER_IMAGES = ("norm_N", "softmax_N", "logsoftmax_N")
OVER_POSITIONS = ("norm_HW", "softmax_HW", "logsoftmax_HW")
FLATTENING = ("batch", "channel", "softmax_HW", "logsoftmax_HW")
STATISTICS = ("batchnorm", "standardize")


def legality(term: Term) -> list[Reason]:
    """Everything that is wrong with a term on any pair; empty for a legal one."""
    reasons = list(_names(term))
    if not reasons:  # rules about meaning would stumble over unknown names
        reasons = [*_transform_rules(term), *_distance_rules(term)]
    return [*reasons, *_number_rules(term)]


def check(policy: Policy) -> list[tuple[str, str]]:
    """Everything that is wrong with a policy on any pair, as (path, message); empty for a legal one."""
    errors = [(f"policy.terms[{place}].{one.field}", one.message) for place, term in enumerate(policy.terms) for one in legality(term)]
    if len(policy.terms) > MAX_TERMS:
        errors.append(("policy.terms", f"{len(policy.terms)} terms; at most {MAX_TERMS}"))
    if not errors:
        for places, weight in same_formula(policy):
            if weight > MAX_WEIGHT:
                others = ", ".join(f"terms[{place}]" for place in places[:-1])
                message = f"the same loss as {others}, and together they weigh {weight:g}; at most {MAX_WEIGHT:g}"
                errors.append((f"policy.terms[{places[-1]}].weight", message))
    return errors


def unknown(name: object, what: str, choices: tuple[str, ...]) -> str:
    """The message for a name that is not in its vocabulary."""
    why = f" ({NOT_OFFERED[name]})" if isinstance(name, str) and name in NOT_OFFERED else ""
    article = "an" if what[0] in "aeiou" else "a"
    text = name if not isinstance(name, str) or len(name) <= MAX_NAME else name[:MAX_NAME] + "..."  # a request may hold megabytes
    return f"{text!r} is not {article} {what}{why}; one of {', '.join(choices)}"


def _names(term: Term) -> Iterator[Reason]:
    if term.knowledge not in KNOWLEDGE:
        yield Reason("knowledge", unknown(term.knowledge, "kind of knowledge", KNOWLEDGE))
        return
    slots = SLOTS[term.knowledge]
    if len(term.transforms) != len(slots):
        wanted = f"{len(slots)} ({', '.join(slot for slot, _ in slots)})"
        yield Reason("transforms", f"{term.knowledge!r} has {wanted}, got {len(term.transforms)}; 'none' does nothing")
    for place, (name, (slot, choices)) in enumerate(zip(term.transforms, slots, strict=False)):
        if name not in choices:
            yield Reason(f"transforms[{place}]", unknown(name, slot, choices))
    if term.distance not in DISTANCES[term.knowledge]:
        yield Reason("distance", unknown(term.distance, f"distance of {term.knowledge}", DISTANCES[term.knowledge]))


def _transform_rules(term: Term) -> Iterator[Reason]:
    if term.shared_attention and term.transforms[0] not in SHAREABLE:
        yield Reason("shared_attention", "only 'satt' and 'catt' have an attention of the teacher that both sides can share; false here")
    if term.knowledge not in FEATURES:
        return
    _, scale, norm = term.transforms
    if scale == "local_s1" and norm in OVER_POSITIONS:
        yield Reason("transforms[2]", f"{norm!r} is constant after 'local_s1', which leaves one position; use norm_C or softmax_C")
    if scale == "local_s1" and norm in STATISTICS:
        yield Reason("transforms[2]", f"{norm!r} after 'local_s1' sees one value a channel and image, which has no spread; use local_s2")
    if term.knowledge == "instance":
        if scale.startswith("local_"):
            yield Reason("transforms[1]", f"{scale!r} moves positions to channels, and 'instance' needs the places of its boxes")
        # The softmax of `kl` is taken inside each region, after RoIAlign, so it flattens no map.
        if norm in FLATTENING and term.distance != "kl":
            yield Reason("transforms[2]", f"{norm!r} flattens the map, and 'instance' cuts its boxes from a map; use norm_C or norm_HW")


def _distance_rules(term: Term) -> Iterator[Reason]:
    norm, last = term.transforms[-1], f"transforms[{len(term.transforms) - 1}]"
    if term.distance == "kl" and norm.startswith("logsoftmax_"):
        yield Reason(last, f"'kl' takes the logarithm itself, on the student's side alone; use {norm.removeprefix('log')}")
    elif term.distance == "kl" and not norm.startswith("softmax_"):
        yield Reason(last, f"'kl' compares distributions, which {norm!r} does not give; one of softmax_N, softmax_C, softmax_HW")
    elif term.distance == "kl" and norm == "softmax_N" and term.knowledge == "instance":
        yield Reason(last, "'softmax_N' would run over unrelated boxes, of which there may be one; use softmax_C or softmax_HW")


def _number_rules(term: Term) -> Iterator[Reason]:
    if not 0 < term.weight <= MAX_WEIGHT:  # also refuses NaN
        yield Reason("weight", f"{term.weight!r} is not a number above 0 and at most {MAX_WEIGHT:g}")
    if not MIN_TEMPERATURE <= term.temperature <= MAX_TEMPERATURE:
        yield Reason("temperature", f"{term.temperature!r} is not a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}")
    elif term.temperature != 1 and term.distance not in DIVERGENCES:
        yield Reason("temperature", f"only {' and '.join(DIVERGENCES)} have a temperature, {term.distance!r} does not; leave it out")
    if not 0 <= term.background <= MAX_BACKGROUND:
        yield Reason("background", f"{term.background!r} is not a number from 0 to {MAX_BACKGROUND:g}")
    elif term.background != 0.5 and term.knowledge != "fgbg":
        yield Reason("background", f"only 'fgbg' has a background, {term.knowledge!r} does not; leave it out")
    if not 0 <= term.warm_up <= MAX_WARM_UP:
        yield Reason("warm_up", f"{term.warm_up!r} is not a number of steps from 0 to {MAX_WARM_UP}")
    if not 0 < term.stop <= 1:
        yield Reason("stop", f"{term.stop!r} is not a share of the training, above 0 and at most 1")


def pair_legality(term: Term, images_per_batch: int, has_edges: bool, score_channels: int | None = None) -> list[Reason]:
    """Why a legal term has no meaning on this pair.

    images_per_batch: what a training step sees on one device. has_edges: both detectors predict edge distributions (GFL).
    score_channels: class scores a cell (anchors times classes); None where they are not known, and taken for several.
    """
    return list(_pair_rules(term, images_per_batch, has_edges, score_channels))


def _pair_rules(term: Term, images_per_batch: int, has_edges: bool, score_channels: int | None) -> Iterator[Reason]:
    if images_per_batch < 2:
        for place, name in enumerate(term.transforms):
            if name == "natt" or name in OVER_IMAGES:
                message = f"{name!r} compares the images of a batch and is constant on one image; train with a batch of at least 2"
                yield Reason(f"transforms[{place}]", message)
    if term.distance == "kl_edges" and not has_edges:
        yield Reason("distance", "'kl_edges' needs edge distributions of both detectors (GFL); one of l1, iou, giou")
    if term.knowledge == "logits" and score_channels == 1:
        name = term.transforms[0]
        if name in ("norm_C", "softmax_C", "logsoftmax_C"):
            yield Reason("transforms[0]", f"{name!r} is constant on a single class score; use norm_HW or softmax_HW")
        elif term.distance in ("pear", "cos") and name != "batch":
            yield Reason("distance", f"{term.distance!r} over a single class score is constant; flatten with 'batch', or use l1 or l2")
    if term.knowledge == "logits" and score_channels == 2 and term.distance == "pear" and term.transforms[0] != "batch":
        yield Reason("distance", "'pear' over two class scores is 0 or 2, without gradient; flatten with 'batch', or use cos or l1")
