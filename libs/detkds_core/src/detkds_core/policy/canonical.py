"""One form for all policies that compute the same loss, so that equal policies are equal strings.

Every fold below is an identity of the losses up to rounding, for every student and teacher.
"""

from collections.abc import Callable
from dataclasses import replace
from math import fsum

from detkds_core.policy.terms import Policy, Term
from detkds_core.policy.vocabulary import DIVERGENCES, FEATURES, KNOWLEDGE, MAX_TEMPERATURE, SHAREABLE

ELEMENTWISE = ("l1", "l2", "smooth_l1")
ALONG_CHANNELS = ("pear", "cos")  # blind to a positive factor of each vector along dim 1; `pear` to a constant added to it as well
POOLED = ("none", "scale_r2", "multi_scale_r4", "local_s2", "local_s4")  # a positive factor of a channel passes through

Fold = Callable[[Term], Term]


def canonical(policy: Policy) -> Policy:
    """The canonical form of a legal policy: no-ops folded, unused options at their default, terms sorted, equal terms merged.

    Terms that differ in weight alone become one, and their weights add up; under `mask` that is the same loss on average over masks.
    """
    groups: dict[Term, list[float]] = {}
    for term in policy.terms:
        folded = canonical_term(term)
        groups.setdefault(replace(folded, weight=1.0), []).append(folded.weight)
    return Policy(tuple(replace(formula, weight=fsum(groups[formula])) for formula in sorted(groups, key=_order)))


def same_formula(policy: Policy) -> list[tuple[list[int], float]]:
    """Places of the terms that `canonical` makes one of, with their weight together, in the order of the last place."""
    groups: dict[Term, list[int]] = {}
    folded = [canonical_term(term) for term in policy.terms]
    for place, term in enumerate(folded):
        groups.setdefault(replace(term, weight=1.0), []).append(place)
    return sorted(((places, fsum(folded[place].weight for place in places)) for places in groups.values()), key=lambda one: one[0][-1])


def canonical_term(term: Term) -> Term:
    """The canonical form of a legal term. Folds are repeated until none applies."""
    folded = _plain_numbers(term)
    folds = FEATURE_FOLDS if term.knowledge in FEATURES else RESPONSE_FOLDS
    before = None
    while folded != before:
        before = folded
        for fold in folds:
            folded = fold(folded)
    return folded


def _order(term: Term) -> tuple[object, ...]:
    options = (term.temperature, term.shared_attention, term.background, term.warm_up, term.stop)
    return (KNOWLEDGE.index(term.knowledge), term.transforms, term.distance, *options)


def _plain_numbers(term: Term) -> Term:
    """Numbers of one type each, so that 2 and 2.0, 0.0 and -0.0 are the same text."""
    return replace(
        term,
        transforms=tuple(term.transforms),
        weight=float(term.weight),
        temperature=float(term.temperature),
        background=float(term.background) + 0.0,
        warm_up=int(term.warm_up),
        stop=float(term.stop),
    )


def _fold_normalisation(term: Term) -> Term:
    """Normalisations that change nothing that the distance sees."""
    *first, norm = term.transforms
    # An instance is cut from the normalised map, and cutting mixes positions: one factor of each position does not cancel there.
    on_map = term.knowledge != "instance"
    pearson, cosine = term.distance == "pear", term.distance == "cos"
    if (
        norm == "channel"  # (N, C, H*W) has the channels along dim 1 as before
        or (norm == "batch" and term.distance in ELEMENTWISE)  # a mean over elements does not see their layout
        or (norm == "norm_C" and (pearson or cosine) and on_map)  # a factor of each vector
        or (norm == "logsoftmax_C" and pearson)  # subtracts one number from each vector
        or (norm == "min_max_normalize" and pearson)  # one factor and one summand for the whole tensor
    ):
        return replace(term, transforms=(*first, "none"))
    return term


def _fold_scale(term: Term) -> Term:
    """Scales that change nothing, or the weight alone."""
    attention, scale, norm = term.transforms
    if scale == "scale_r1":  # a pool of one cell
        return replace(term, transforms=(attention, "none", norm))
    if scale == "local_s1":
        # It moves every position to the channels: a permutation, unless the normalisation or the distance look along channels.
        elementwise = term.distance in ELEMENTWISE and norm in ("none", "norm_N", "softmax_N", "logsoftmax_N", "min_max_normalize")
        if elementwise or (term.distance == "kl" and norm == "softmax_N"):
            return replace(term, transforms=(attention, "none", norm))
        if term.distance in ALONG_CHANNELS and norm in ("none", "batch"):
            return replace(term, transforms=(attention, "none", "batch"))
    if scale in ("local_s2", "local_s4") and norm == "batch" and term.distance == "cos":  # a permutation, and zeros that add nothing
        return replace(term, transforms=(attention, "none", norm))
    if scale == "scale":  # (f + 1) / 2
        without = (attention, "none", norm)
        if norm == "min_max_normalize" or (term.distance == "pear" and norm in ("none", "batch")):
            return replace(term, transforms=without)
        factor = {"l1": 0.5, "l2": 0.25}.get(term.distance, 0.0) if norm == "none" else 0.0  # |a/2| and (a/2)^2
        if term.weight * factor > 0:
            return replace(term, transforms=without, weight=term.weight * factor)
        # softmax(f / 2T + constant) is softmax at twice the temperature, and the loss is times the temperature's square.
        halved = term.distance == "kl" and term.knowledge != "instance" and 2 * term.temperature <= MAX_TEMPERATURE
        if halved and term.weight / 4 > 0:
            return replace(term, transforms=without, weight=term.weight / 4, temperature=2 * term.temperature)
    return term


def _fold_attention(term: Term) -> Term:
    """Attentions that the next step divides away again: a positive factor of each position (satt) or of each channel (catt)."""
    attention, scale, norm = term.transforms
    positions = norm == "norm_C" or (norm == "none" and term.distance in ALONG_CHANNELS and term.knowledge != "instance")
    channels = norm == "norm_HW"
    if (attention == "satt" and scale == "none" and positions) or (attention == "catt" and scale in POOLED and channels):
        return replace(term, transforms=("none", scale, norm))
    return term


def _fold_options(term: Term) -> Term:
    """Options that do nothing take their default."""
    return replace(
        term,
        temperature=term.temperature if term.distance in DIVERGENCES else 1.0,
        shared_attention=term.shared_attention and term.transforms[0] in SHAREABLE,
        background=term.background if term.knowledge == "fgbg" else 0.5,
    )


FEATURE_FOLDS: tuple[Fold, ...] = (_fold_normalisation, _fold_scale, _fold_attention, _fold_options)
RESPONSE_FOLDS: tuple[Fold, ...] = (_fold_normalisation, _fold_options)
