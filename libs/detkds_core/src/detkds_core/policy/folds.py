"""Identities of the losses: what a fold gives computes the same as what it got, value and gradient, up to rounding.

A fold takes a legal term and gives back the very same object where it does not apply. Two things limit many of them. An instance is cut
from the normalised map, and cutting mixes positions: a factor of each position does not cancel there, and outside the map, where a box may
reach, a summand is missing. And a padded scale holds zeros that enter every mean over positions.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from detkds_core.policy.meaning import ANGLES, LOCAL, OF_IMAGES
from detkds_core.policy.terms import Term
from detkds_core.policy.vocabulary import (
    DIVERGENCES,
    ELEMENTWISE,
    MAX_TEMPERATURE,
    OVER_IMAGES,
    POINTWISE,
    RECTIFIERS,
    SHAREABLE,
    STATISTICS,
)

Fold = Callable[[Term], Term]

POOLED = ("none", "scale_r2", "multi_scale_r4", "local_s2", "local_s4")  # a positive factor of a channel passes through
HOMOGENEOUS = ("none", *RECTIFIERS, "pow2")  # a positive factor stays one; the fourth power of a small one would be nothing
SOFTMAXES = ("softmax_N", "softmax_C", "softmax_HW")
# What lies between 0 and 1 whatever comes in, and what does if nothing negative comes in, and if that is at most 1 as well.
UNIT = (*SOFTMAXES, "sigmoid", "min_max_normalize")
UNIT_OF_POSITIVE = (*UNIT, "tanh", "norm_C", "norm_HW", "norm_N")
UNIT_OF_UNIT = (*UNIT_OF_POSITIVE, "none", "batch", "channel", "pow2", "pow4", "sqrt", "swish", "mish", *RECTIFIERS)

# What a distance does not see: normalisations that multiply each of its vectors by a positive number and add one to it.
UNSEEN_ON_MAPS = {
    "pear": ("channel", "norm_C", "logsoftmax_C", "min_max_normalize"),
    "cos": ("channel", "norm_C"),
    "pear_HW": ("channel", "norm_HW", "logsoftmax_HW", "min_max_normalize", *STATISTICS),
    **dict.fromkeys(OF_IMAGES, ("channel", "batch", "norm_N", "logsoftmax_N", "min_max_normalize", *STATISTICS)),
    **dict.fromkeys(ELEMENTWISE, ("channel", "batch")),
}
UNSEEN_IN_CUTS = {"pear": ("logsoftmax_C", "min_max_normalize"), "pear_HW": ("norm_HW",)}
# exp(f) is softmax(f) but for one positive factor of each vector; softmax does not overflow.
SOFTMAX_OF_EXP = {**dict.fromkeys(ANGLES, "softmax_C"), "pear_HW": "softmax_HW", **dict.fromkeys(OF_IMAGES, "softmax_N")}


def fold_options(term: Term) -> Term:
    """Options that do nothing take their default."""
    temperature = term.temperature if term.distance in DIVERGENCES else 1.0
    shared = term.shared_attention and term.transforms[0] in SHAREABLE
    background = term.background if term.knowledge == "fgbg" else 0.5
    if (temperature, shared, background) == (term.temperature, term.shared_attention, term.background):
        return term
    return replace(term, temperature=temperature, shared_attention=shared, background=background)


def _with(term: Term, *transforms: str, factor: float = 1.0, distance: str | None = None, temperature: float | None = None) -> Term:
    """The term with other transforms and the weight times factor; a weight that is a ratio (`auto`, `balanced`) stays.

    The same term where its weight would be too small to be one.
    """
    weight = term.weight if term.auto or term.balanced else term.weight * factor
    if weight == 0:
        return term
    return replace(
        term,
        transforms=transforms,
        distance=distance or term.distance,
        weight=weight,
        temperature=term.temperature if temperature is None else temperature,
    )


def _normalisation(term: Term) -> Term:
    """Normalisations that change nothing that the distance sees."""
    *first, norm = term.transforms
    unseen: Collection[str] = (UNSEEN_IN_CUTS if term.knowledge == "instance" else UNSEEN_ON_MAPS).get(term.distance, ())
    if norm in unseen:
        return _with(term, *first, "none")
    softmax = SOFTMAX_OF_EXP.get(term.distance)
    lacking = term.knowledge == "instance" or (term.region == "proposals" and softmax == "softmax_N")
    if norm == "exp" and softmax and not lacking:
        return _with(term, *first, softmax)
    return term


def _smooth_l1(term: Term, unit: Collection[str]) -> Term:
    """Between values that are at most 1 apart, smooth_l1 is half of l2."""
    if term.distance == "smooth_l1" and term.transforms[-1] in unit:
        return _with(term, *term.transforms, factor=0.5, distance="l2")
    return term


def _scale(term: Term) -> Term:
    """Scales that change nothing, or the weight alone."""
    attention, scale, norm = term.transforms
    if scale == "scale_r1":  # a pool of one cell
        return _with(term, attention, "none", norm)
    if scale in LOCAL:
        return _local(term)
    if scale == "scale":
        return _half_shift(term)
    return term


def _local(term: Term) -> Term:
    """`local_s1` moves every position to the channels: a permutation, unless the normalisation or the distance look along channels.

    `local_s2` and `local_s4` do so with the patches, after they have appended zeros.
    """
    attention, scale, norm = term.transforms
    if norm == "mm":  # products over all of an image, to which zeros add nothing
        return _with(term, attention, "none", norm)
    each = norm in ("none", *POINTWISE, *OVER_IMAGES)  # acts on every element, or on every one over the images
    if scale == "local_s1":
        elementwise = term.distance in ELEMENTWISE and (each or norm == "min_max_normalize")
        if elementwise or (each and term.distance in OF_IMAGES) or (term.distance == "kl" and norm == "softmax_N"):
            return _with(term, attention, "none", norm)
        if term.distance in ANGLES and norm in ("none", "batch"):
            return _with(term, attention, "none", "batch")
        return term
    turned = norm == "batch" and term.distance == "cos"  # zeros turn no vector
    uncounted = term.distance in ELEMENTWISE and term.reduction == "sum"  # zeros are equal on both sides; a mean would count them
    if turned or (each and uncounted):
        return _with(term, attention, "none", norm)
    return term


def _half_shift(term: Term) -> Term:
    """`scale` is (f + 1) / 2."""
    attention, _, norm = term.transforms
    on_map = term.knowledge != "instance"
    if (
        norm in ("min_max_normalize", "standardize")  # but for the 1e-6 that a channel without spread is divided by
        or (term.distance == "pear" and norm in ("none", "batch"))
        or (term.distance in ("pear_HW", *OF_IMAGES) and norm == "none" and on_map)
    ):
        return _with(term, attention, "none", norm)
    if norm == "none" and term.distance in ("l1", "l2"):  # |a / 2| and (a / 2)^2
        return _with(term, attention, "none", norm, factor=0.5 if term.distance == "l1" else 0.25)
    # softmax(f / 2T + constant) is softmax at twice the temperature, and the loss is times the temperature's square.
    if term.distance == "kl" and on_map and 2 * term.temperature <= MAX_TEMPERATURE:
        return _with(term, attention, "none", norm, factor=0.25, temperature=2 * term.temperature)
    return term


def _attention(term: Term) -> Term:
    """Attentions that the next step divides away again, and what follows one that is positive."""
    attention, scale, norm = term.transforms
    along = norm == "norm_C" or (term.distance in ANGLES and norm in HOMOGENEOUS and term.knowledge != "instance")
    if attention == "satt" and scale == "none" and along:  # a positive factor of each position
        return _with(term, "none", scale, norm)
    along = norm == "norm_HW" or (term.distance == "pear_HW" and norm in HOMOGENEOUS)
    if attention == "catt" and scale in POOLED and along:  # a positive factor of each channel of each image
        return _with(term, "none", scale, norm)
    if attention == "natt":  # N * softmax_N(2 f)
        if norm in RECTIFIERS:
            return _with(term, attention, scale, "none")
        # Its root is exp(f), but for one factor over the images.
        if norm == "sqrt" and term.distance in OF_IMAGES and (scale == "none" or scale in LOCAL):
            return _with(term, "none", scale, "softmax_N")
    return term


def _smooth_l1_of_features(term: Term) -> Term:
    return _smooth_l1(term, UNIT_OF_POSITIVE if term.transforms[0] == "natt" else UNIT)


def _scores(term: Term) -> Term:
    """Class scores lie between 0 and 1: under the sigmoid, or the softmax of a proposal."""
    if term.transforms[0] in RECTIFIERS:
        return _with(term, "none")
    if term.region == "masks" and term.distance == "pear" and term.transforms[0] == "batch":  # one score: the vector is its positions
        return _with(term, "none", distance="pear_HW")
    return _smooth_l1(term, UNIT_OF_UNIT)


FEATURE_FOLDS: tuple[Fold, ...] = (_normalisation, _scale, _attention, _smooth_l1_of_features)
LOGITS_FOLDS: tuple[Fold, ...] = (_normalisation, _scores)
