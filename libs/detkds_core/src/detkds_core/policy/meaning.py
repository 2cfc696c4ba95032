"""Which combinations of known names have a meaning on some pair. Every rule refuses losses that could not teach, and says what would.

A tensor on its way: a map (N, C, H, W); after `batch` (N, C*H*W), after `channel` and the softmaxes over positions (N, C, H*W), after
`bmm` (N, C, C), after `mm` (N, N). An instance is cut from the normalised map, (K, C, 14, 14) of K boxes. Class scores of R proposals are
(R, K+1), mask scores of P positive ones (P, 1, h, w).
"""

from collections.abc import Callable, Iterator, Mapping

from detkds_core.policy.terms import Reason, Term
from detkds_core.policy.vocabulary import (
    ELEMENTWISE,
    FEATURES,
    FLATTENING,
    GRAMS,
    OVER_CHANNELS,
    OVER_IMAGES,
    OVER_POSITIONS,
    STATISTICS,
)

Rule = Callable[[Term], Iterator[Reason]]

LOCAL = ("local_s1", "local_s2", "local_s4")
OF_IMAGES = ("pear_N", "cor")  # the distances that correlate over the images of a batch
ANGLES = ("pear", "cos")  # the distances over dim 1: channels, or all that `batch` and the grams put there
IN_PLACE = ("none", "scale_r1", "scale")  # the scales that leave every position where it is
WEIGHTED = ("teacher_score", "foreground", "assigned", "assigned_score", "valuable")  # the regions that are a weighted mean over positions
PER_POSITION = (*ELEMENTWISE, *ANGLES, "kl", "kl_sigmoid")  # the distances that have a value at each position


def last(term: Term) -> str:
    """The field of a term's last transform."""
    return f"transforms[{len(term.transforms) - 1}]"


def _softmax_of_kl(term: Term) -> Iterator[Reason]:
    norm = term.transforms[-1]
    if term.distance != "kl" or norm.startswith("softmax_"):
        return
    if norm.startswith("logsoftmax_"):
        yield Reason(last(term), f"'kl' takes the logarithm itself, on the student's side alone; use {norm.removeprefix('log')}")
    else:
        yield Reason(last(term), f"'kl' compares distributions, which {norm!r} does not give; one of softmax_N, softmax_C, softmax_HW")


def _raw_scores(term: Term) -> Iterator[Reason]:
    if term.distance == "kl_sigmoid" and term.transforms[0] != "none":
        yield Reason(
            "transforms[0]", f"'kl_sigmoid' takes the sigmoid of the raw scores itself, {term.transforms[0]!r} has no place there; none"
        )


def _square_root(term: Term) -> Iterator[Reason]:
    if term.transforms[-1] == "sqrt" and term.knowledge in FEATURES and term.transforms[0] != "natt":
        message = "'sqrt' has no value below 0, and features have both signs; use abs or log, or 'natt' before it, which is positive"
        yield Reason(last(term), message)


def _one_position(term: Term) -> Iterator[Reason]:
    if term.knowledge not in FEATURES or term.transforms[1] != "local_s1":
        return
    norm = term.transforms[2]
    if norm in OVER_POSITIONS:
        yield Reason("transforms[2]", f"{norm!r} is constant after 'local_s1', which leaves one position; use norm_C or softmax_C")
    if norm in STATISTICS:
        yield Reason("transforms[2]", f"{norm!r} after 'local_s1' sees one value a channel and image, which has no spread; use local_s2")
    if term.distance == "pear_HW":
        yield Reason("distance", "'pear_HW' is constant after 'local_s1', which leaves one position; use pear, which then sees them all")


def _gram_of_patches(term: Term) -> Iterator[Reason]:
    if term.knowledge in FEATURES and term.transforms[2] == "bmm" and term.transforms[1] in LOCAL:
        scale = term.transforms[1]
        message = f"'bmm' after {scale!r} holds the square of {_channels_after(scale)} values an image; use mm, or bmm of the map"
        yield Reason("transforms[2]", message)


def _channels_after(scale: str) -> str:
    return {"local_s1": "C*H*W", "local_s2": "C*H*W/4", "local_s4": "C*H*W/16"}[scale]


def _cut_from_a_map(term: Term) -> Iterator[Reason]:
    if term.knowledge != "instance":
        return
    _, scale, norm = term.transforms
    if scale in LOCAL:
        yield Reason("transforms[1]", f"{scale!r} moves positions to channels, and 'instance' needs the places of its boxes")
    # The softmax of `kl` is taken inside each region, after RoIAlign, so it flattens no map.
    if norm in FLATTENING and term.distance != "kl":
        yield Reason("transforms[2]", f"{norm!r} leaves no map, and 'instance' cuts its boxes from one; use norm_C or norm_HW")


def _unrelated_boxes(term: Term) -> Iterator[Reason]:
    norm = term.transforms[-1]
    if term.knowledge == "instance":
        if term.distance == "kl" and norm == "softmax_N":
            yield Reason(last(term), "'softmax_N' would run over unrelated boxes, of which there may be one; use softmax_C or softmax_HW")
        if term.distance in OF_IMAGES:
            yield Reason("distance", f"{term.distance!r} would run over unrelated boxes, of which there may be one; use pear or pear_HW")


def _images_of_a_gram(term: Term) -> Iterator[Reason]:
    if term.transforms[-1] == "mm" and term.distance in OF_IMAGES:
        yield Reason(
            "distance", f"both axes of 'mm' are the images, {term.distance!r} has none left to run over; use pear, over a row of it"
        )


def _maps_of_ssim(term: Term) -> Iterator[Reason]:
    if term.distance != "ssim":
        return
    if term.knowledge in FEATURES and term.transforms[1] in LOCAL:
        yield Reason("distance", f"'ssim' compares windows of a map, and {term.transforms[1]!r} leaves none of its size; use l2 or pear")
    if term.transforms[-1] in FLATTENING:
        yield Reason("distance", f"'ssim' compares windows of a map, which {term.transforms[-1]!r} flattens; use l2 or pear")


def _positions_of_pearson(term: Term) -> Iterator[Reason]:
    if term.distance == "pear_HW" and term.transforms[-1] in ("batch", *GRAMS):
        yield Reason("distance", f"'pear_HW' runs over positions, of which {term.transforms[-1]!r} leaves none; use pear")


def _scores_of_proposals(term: Term) -> Iterator[Reason]:
    if term.knowledge != "logits" or term.region != "proposals":
        return
    norm = term.transforms[0]
    if norm in OVER_POSITIONS or norm in ("batch", "channel", "bmm"):
        yield Reason(
            "transforms[0]", f"{norm!r} needs positions, and a proposal has one vector of class scores; use none, norm_C or softmax_C"
        )
    elif norm in OVER_IMAGES or norm in STATISTICS:
        message = f"{norm!r} would run over unrelated proposals, of which there may be one; use norm_C or softmax_C, or the distance pear_N"
        yield Reason("transforms[0]", message)
    elif norm == "mm":
        yield Reason("transforms[0]", "'mm' would be as large as the square of the number of proposals; the distance pear_N relates them")
    if term.distance in ("pear_HW", "ssim"):
        yield Reason("distance", f"{term.distance!r} needs positions, and a proposal has one vector of class scores; use pear or pear_N")
    if term.distance == "kl_sigmoid":
        yield Reason("distance", "the scores of a proposal are a softmax over classes and background; use kl(softmax_C(logits))")


def _scores_of_masks(term: Term) -> Iterator[Reason]:
    if term.knowledge != "logits" or term.region != "masks":
        return
    norm = term.transforms[0]
    yield from few_scores(term, 1, "mask score")
    if norm in OVER_IMAGES or norm == "mm":
        yield Reason("transforms[0]", f"{norm!r} would run over unrelated masks, of which there may be one; use norm_HW or softmax_HW")
    if term.distance in OF_IMAGES:
        yield Reason("distance", f"{term.distance!r} would run over unrelated masks, of which there may be one; use pear_HW")


def few_scores(term: Term, channels: int | None, what: str) -> Iterator[Reason]:
    """What has no meaning on so few scores a position; what: a score's name in the reason."""
    if channels is None or channels > 2:
        return
    name, flat = term.transforms[0], term.transforms[0] in ("batch", "mm")
    if channels == 1 and name in OVER_CHANNELS:
        yield Reason("transforms[0]", f"{name!r} is constant on a single {what}; use norm_HW or softmax_HW")
    elif channels == 1 and name == "bmm":
        yield Reason("transforms[0]", f"'bmm' of a single {what} is one number an image; use none or norm_HW")
    elif channels == 1 and term.distance in ANGLES and not flat:
        yield Reason("distance", f"{term.distance!r} over a single {what} is constant; flatten with 'batch', or use l1 or l2")
    elif channels == 2 and term.distance == "pear" and not flat:
        remedy = "use cos or l1" if term.region == "proposals" else "flatten with 'batch', or use cos or l1"
        yield Reason("distance", f"'pear' over two {what}s is 0 or 2, without gradient; {remedy}")


def _weighted_positions(term: Term) -> Iterator[Reason]:
    if term.region not in WEIGHTED or term.knowledge == "localization":
        return
    norm, region = term.transforms[-1], term.region
    if term.knowledge in FEATURES and term.transforms[1] not in IN_PLACE:
        message = f"{term.transforms[1]!r} moves positions, and region {region!r} weighs each where it is; use none, or region 'all'"
        yield Reason("transforms[1]", message)
    if term.distance == "kl":
        if norm in ("softmax_N", "softmax_HW"):
            message = (
                f"'kl' over {norm.removeprefix('softmax_')} has no value at each position for region {region!r} to weigh; use softmax_C"
            )
            yield Reason(last(term), message)
    elif norm in FLATTENING:
        yield Reason(
            last(term), f"{norm!r} leaves no map whose positions region {region!r} could weigh; use norm_HW or norm_C, or region 'all'"
        )
    if term.distance not in PER_POSITION:
        message = f"{term.distance!r} has no value at each position for region {region!r} to weigh; one of l1, l2, smooth_l1, pear, cos"
        yield Reason("distance", message)


def _places_of_boxes(term: Term) -> Iterator[Reason]:
    if term.knowledge != "localization":
        return
    if term.distance == "deltas" and term.region != "proposals":
        yield Reason("distance", "'deltas' are relative to a proposal; region 'proposals', or one of l1, iou, giou, diou")
    if term.distance in ("points", "kl_edges") and term.region == "proposals":
        yield Reason(
            "distance", f"{term.distance!r} are of the cells of a dense head, a proposal has a box; one of l1, iou, giou, diou, deltas"
        )
    if term.distance == "kl_edges" and term.transforms[0] == "pow2":
        yield Reason("transforms[0]", "'pow2' squares the distance of two boxes, 'kl_edges' compares distributions; none")


def _sum(term: Term) -> Iterator[Reason]:
    """A sum over elements grows with how many there are, as some published losses do. Where the count says nothing, it is refused."""
    if term.reduction != "sum":
        return
    if term.knowledge == "localization" or term.region in WEIGHTED:
        yield Reason("reduction", "the weights of the positions have no unit, so this is a weighted mean; 'mean', and a larger weight")
    elif term.knowledge == "instance" or term.region != "all":
        yield Reason("reduction", "a sum would grow with how many boxes there happen to be; 'mean', and a larger weight")
    elif term.distance not in (*ELEMENTWISE, "kl", "kl_sigmoid"):
        yield Reason(
            "reduction", f"{term.distance!r} is a likeness between fixed bounds, whose sum counts vectors; 'mean', and a larger weight"
        )
    elif term.distance == "kl" and term.transforms[-1] == "softmax_N":
        yield Reason("reduction", "'kl' over the images leaves none to take the mean over; 'mean', and a larger weight")


# By what a rule is about, which is how the census calls it.
RULES: Mapping[str, Rule] = {
    "kl needs a softmax": _softmax_of_kl,
    "kl_sigmoid reads raw scores": _raw_scores,
    "sqrt needs what is not negative": _square_root,
    "one position is left": _one_position,
    "a gram of patches is too large": _gram_of_patches,
    "instances are cut from a map": _cut_from_a_map,
    "boxes of an image are unrelated": _unrelated_boxes,
    "mm leaves no images": _images_of_a_gram,
    "ssim needs a map": _maps_of_ssim,
    "pear_HW needs positions": _positions_of_pearson,
    "a proposal is one vector of scores": _scores_of_proposals,
    "a mask is one score": _scores_of_masks,
    "a region weighs positions": _weighted_positions,
    "boxes at cells, or of proposals": _places_of_boxes,
    "a sum needs a fixed count": _sum,
}
