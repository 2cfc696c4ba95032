"""One form for all policies that compute the same loss, so that equal policies are equal strings.

Every fold of `folds` is an identity of the losses up to rounding, for every student and teacher.
"""

from dataclasses import replace
from math import fsum

from detkds_core.policy.distillers import DISTILLERS
from detkds_core.policy.folds import FEATURE_FOLDS, LOGITS_FOLDS, fold_options
from detkds_core.policy.terms import Distiller, Part, Policy, Term
from detkds_core.policy.vocabulary import FEATURES, KNOWLEDGE


def canonical(policy: Policy) -> Policy:
    """The canonical form of a legal policy: no-ops folded, unused options at their default, all sorted, equal terms merged.

    Terms that differ in weight alone become one, and their weights add up; under `mask` and `drop` that is the same loss on average over
    what they draw. Settings of distillers at their default are left out. A
    distiller's weight stays apart from those among its settings: so a weight that a training found trains the same to the bit.
    """
    groups: dict[Term, list[float]] = {}
    for term in policy.terms:
        folded = canonical_term(term)
        groups.setdefault(replace(folded, weight=1.0), []).append(folded.weight)
    terms = tuple(replace(formula, weight=fsum(groups[formula])) for formula in sorted(groups, key=_order))
    return Policy(terms, tuple(sorted(map(canonical_distiller, policy.distillers), key=lambda one: one.name)))


def same_formula(policy: Policy) -> list[tuple[list[int], float]]:
    """Places of the terms that `canonical` makes one of, with their weight together, in the order of the last place."""
    groups: dict[Term, list[int]] = {}
    folded = [canonical_term(term) for term in policy.terms]
    for place, term in enumerate(folded):
        groups.setdefault(replace(term, weight=1.0), []).append(place)
    return sorted(((places, fsum(folded[place].weight for place in places)) for places in groups.values()), key=lambda one: one[0][-1])


def canonical_term(term: Term) -> Term:
    """The canonical form of a legal term. Folds are repeated until none applies."""
    plain = replace(
        _plain_numbers(term),
        transforms=tuple(term.transforms),
        temperature=float(term.temperature),
        background=float(term.background) + 0.0,
    )
    folded = fold_options(plain)
    folds = FEATURE_FOLDS if term.knowledge in FEATURES else LOGITS_FOLDS if term.knowledge == "logits" else ()
    before = None
    while folded is not before:  # a fold that does not apply gives back what it got
        before = folded
        for fold in folds:
            folded = fold(folded)
    return fold_options(folded)  # an option of what was folded away


def canonical_distiller(distiller: Distiller) -> Distiller:
    """The canonical form of a legal distiller."""
    known = DISTILLERS[distiller.name].settings
    settings = tuple(sorted((name, float(value)) for name, value in distiller.settings if value != known[name].default))
    return _plain_numbers(replace(distiller, settings=settings))


def _order(term: Term) -> tuple[object, ...]:
    options = (term.temperature, term.shared_attention, term.background, term.warm_up, term.stop, term.decay, term.reduction)
    return (KNOWLEDGE.index(term.knowledge), term.region, term.transforms, term.distance, *options, term.auto, term.balanced)


def _plain_numbers(part: Part) -> Part:
    """Weight and schedule with numbers of one type each, so that 2 and 2.0, 0.0 and -0.0 are the same text."""
    return replace(part, weight=float(part.weight), warm_up=int(part.warm_up), stop=float(part.stop), decay=float(part.decay) + 0.0)
