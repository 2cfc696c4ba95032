"""Stage 2: which terms together, and with which weights (a term that is left out has weight 0).

The choices are the best two formulas of every island, and the hand-designed distillers with learned parts that were measured as
references. It opens with hand-made combinations (all terms with damped weights, the best pairs, ...),
and then mutates the best candidates seen, hand-designed policies among them: the weight of a term or of a distiller, either on or off, the
other formula of an island, where a term looks and when it or a distiller counts, all weights together.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from detkds_core.evolution.history import History, Measured, halved_and_doubled, no_distillation, only_term, rounded, tournament
from detkds_core.evolution.spec import Candidate
from detkds_core.policy import Distiller, Policy, Term
from detkds_core.policy.terms import Part

FORMULAS = 2  # choices of every island
ELITE = 8  # how many of the best candidates breed
TOURNAMENT = 3
ATTEMPTS = 50
OPENING = 12  # combinations made by hand before mutation
GRAFTED = 3  # hand-designed policies of several terms that they begin with, and terms that each is tried with
ENUMERATED = 5_000  # combinations looked through when draws find nothing new
DAMPING = 0.5  # two to five terms add up: their gradients together stay near that of one (1 / sqrt(2) .. 1 / sqrt(5))


def propose_combination(history: History, rng: random.Random) -> Candidate | None:
    """The next candidate of stage 2, or None when every combination of the choices has been proposed."""
    choices = best_formulas(history)
    if not choices:
        return None
    if opening_count(history) < OPENING:
        for move in opening_moves(history, choices):
            if (candidate := combination(history, move, "combine")) is not None:
                return candidate
    for _ in range(ATTEMPTS):
        if (candidate := combination(history, *mutation(history, choices, rng))) is not None:
            return candidate
    for move in itertools.islice(every_combination(history, choices), ENUMERATED):
        if (candidate := combination(history, move, "enumerate")) is not None:
            return candidate
    return None


def opening_count(history: History) -> int:
    return sum(one.operator == "combine" for one in (*history.candidates, *history.drafts))


Choice = tuple[Term, int]  # a term with the weight that served it best, and the candidate that it comes from
Move = tuple[Policy, tuple[int, ...]]  # and the candidates that it is made of


def combination(history: History, move: Move, operator: str) -> Candidate | None:
    """The candidate of a move, or None when its policy is empty, illegal or known already."""
    policy, parents = move
    if policy == Policy(()) or (admitted := history.spec.space.admits(policy)) is None or not history.is_new(admitted):
        return None
    return Candidate(history.count, admitted, "stage2", None, tuple(sorted(set(parents))), operator)


def best_formulas(history: History) -> dict[str, list[Choice]]:
    """The best two formulas of every island that has any, the island with the best term first.

    A formula is a term without its weight; of one formula the best weight counts, at the highest rung that it was seen at.
    """

    def found() -> dict[str, list[Choice]]:
        choices: dict[str, list[Choice]] = {}
        for one in history.ranked:
            term = only_term(one.candidate)
            if term is None or term.knowledge not in history.spec.knowledge:
                continue
            mine = choices.setdefault(term.knowledge, [])
            if len(mine) < FORMULAS and not any(same_formula(term, other) for other, _ in mine):
                mine.append((term, one.candidate.index))
            elif all(len(choices.get(island, ())) == FORMULAS for island in history.spec.knowledge):
                break
        return choices

    return history.remembered("best formulas", found)


def same_formula(a: Term, b: Term) -> bool:
    """Whether two terms, canonical as every proposal is, differ in their weights alone."""
    return replace(a, weight=1.0) == replace(b, weight=1.0)


def opening_moves(history: History, choices: dict[str, list[Choice]]) -> Iterator[Move]:
    """The combinations worth trying before any mutation, in the order of their promise.

    First what an additive model has for the best: every island that gains over no distillation, with weights that keep the length of
    all gradients together near that of one. Then the best with each other island, the best terms on the best hand-designed policies of
    several terms, and fewer and more of all.
    """
    best = [formulas[0] for formulas in choices.values()]  # one of each island, the best first
    helping = [choice for choice in best if gains(history, choice[1])]
    groups = [group for group in (helping, best) if len(group) > 1]
    for group in groups:
        yield together(group, len(group) ** -0.5)
    for other in best[1:]:
        yield together([best[0], other], 2**-0.5)
    yield from grafted(history, best)
    for size in range(3, len(best)):
        yield together(best[:size], size**-0.5)
    for other in best[1:]:
        yield together([best[0]], 1.0, [other], DAMPING)
    for group in groups:
        yield together(group, 1.0)
    for weight in halved_and_doubled(best[0][0].weight):
        yield Policy((replace(best[0][0], weight=weight),)), (best[0][1],)


def grafted(history: History, best: Sequence[Choice]) -> Iterator[Move]:
    """The best hand-designed policies of several terms, each with the best term of an island in place of its own, or beside it.

    Several, and whatever was combined before: a short rung orders them badly where detectors hardly detect yet.
    """
    designed = [one.candidate for one in history.ranked if one.candidate.stage == "reference" and len(one.candidate.policy.terms) > 1]
    for whole in designed[:GRAFTED]:
        for term, origin in best[:GRAFTED]:
            others = tuple(mine for mine in whole.policy.terms if mine.knowledge != term.knowledge)
            yield replace(whole.policy, terms=(*others, scaled(term, DAMPING))), (whole.index, origin)


def gains(history: History, index: int) -> bool:
    """Whether a candidate is better than no distillation at the highest rung that both were seen at; true where none is."""
    mine = history.values.get(index, {})
    for rung in sorted(mine, reverse=True):
        if (alone := no_distillation(history, rung)) is not None:
            return sum(mine[rung]) / len(mine[rung]) > alone
    return True


def together(first: Sequence[Choice], scale: float, second: Sequence[Choice] = (), second_scale: float = 1.0) -> Move:
    """All terms, those of `first` with their weights times `scale`, those of `second` times `second_scale`."""
    terms = [scaled(term, scale) for term, _ in first] + [scaled(term, second_scale) for term, _ in second]
    return Policy(tuple(terms)), tuple(index for _, index in (*first, *second))


def scaled(term: Term, scale: float) -> Term:
    return replace(term, weight=rounded(term.weight * scale))


def mutation(history: History, choices: dict[str, list[Choice]], rng: random.Random) -> tuple[Move, str]:
    """One change to one of the best candidates, and its name. It may be illegal or known already; the caller draws again."""
    policy, index = parent(history, choices, rng)
    terms = policy.terms
    if policy.distillers:
        luck = rng.random()
        if luck < 0.20:
            return (distiller_weighted(policy, rng), (index,)), "weight"
        if luck < 0.25 and (change := distiller_timed(history, policy, rng)) is not None:
            return (change[0], (index, *change[1])), "look"
    luck = rng.random()
    if (luck < 0.10 or not terms) and (change := distiller_changed(history, policy, rng)) is not None and (terms or rng.random() < 0.5):
        return (change[0], (index, *change[1])), "toggle"
    absent = [island for island in choices if island not in {term.knowledge for term in terms}]
    if (luck < 0.35 or not terms) and absent:
        term, origin = rng.choice(choices[rng.choice(absent)])
        added = scaled(term, rng.choice((DAMPING, 1.0)))
        return (replace(policy, terms=(*terms, added)), (index, origin)), "toggle"
    if not terms:  # a distiller beside which nothing can stand: there is no change
        return (policy, (index,)), "toggle"
    place = rng.randrange(len(terms))
    changed = terms[place]

    def instead(*others: Term) -> Policy:
        return replace(policy, terms=(*terms[:place], *others, *terms[place + 1 :]))

    if luck < 0.45 and len(terms) > 1:
        return (instead(), (index,)), "toggle"
    if luck < 0.55:
        term, origin = rng.choice(choices.get(changed.knowledge, [(changed, index)]))
        return (instead(term), (index, origin)), "swap"
    if luck < 0.60 and (known := lookers(history)):
        donor, origin = rng.choice(known)
        return (instead(looking_like(changed, donor)), (index, origin)), "look"
    if luck < 0.68:
        scale = rng.choice((0.5, 2.0))
        return (replace(policy, terms=tuple(scaled(term, scale) for term in terms)), (index,)), "scale"
    listed = history.spec.space.weights(changed.knowledge) if changed.balanced == history.spec.space.balanced else ()
    weights = [*halved_and_doubled(changed.weight)] * 2 + [*listed]
    return (instead(replace(changed, weight=rng.choice(weights))), (index,)), "weight"


def distiller_changed(history: History, policy: Policy, rng: random.Random) -> tuple[Policy, tuple[int, ...]] | None:
    """The policy without its distillers, or with those of a measured candidate, and that one; None if there are none."""
    if policy.distillers:
        return replace(policy, distillers=()), ()

    def found() -> list[tuple[tuple[Distiller, ...], int]]:
        able = (one.candidate for one in history.ranked if one.candidate.policy.distillers and gains(history, one.candidate.index))
        return [(one.policy.distillers, one.index) for one in itertools.islice(able, ELITE)]

    if donors := history.remembered("distillers", found):
        distillers, origin = rng.choice(donors)
        return replace(policy, distillers=distillers), (origin,)
    return None


def distiller_weighted(policy: Policy, rng: random.Random) -> Policy:
    """The policy with one of its distillers weighing half or twice as much as a whole."""
    place = rng.randrange(len(policy.distillers))
    changed = policy.distillers[place]
    return with_distiller(policy, place, replace(changed, weight=rng.choice(list(halved_and_doubled(changed.weight)))))


def distiller_timed(history: History, policy: Policy, rng: random.Random) -> tuple[Policy, tuple[int, ...]] | None:
    """The policy with the schedule of a measured term or distiller for one of its distillers, and that candidate; None if there is none."""

    def found() -> list[tuple[Term | Distiller, int]]:
        known: dict[tuple[object, ...], tuple[Term | Distiller, int]] = {}
        for one in history.measured:
            for part in one.candidate.policy.parts:
                known.setdefault((part.warm_up, part.stop, part.decay), (part, one.candidate.index))
        return list(known.values())

    place = rng.randrange(len(policy.distillers))
    changed = policy.distillers[place]
    donors = history.remembered("schedules", found)
    if others := [(timed, origin) for donor, origin in donors if (timed := timed_like(changed, donor)) != changed]:
        timed, origin = rng.choice(others)
        return with_distiller(policy, place, timed), (origin,)
    return None


def with_distiller(policy: Policy, place: int, distiller: Distiller) -> Policy:
    """The policy with another distiller at a place."""
    return replace(policy, distillers=(*policy.distillers[:place], distiller, *policy.distillers[place + 1 :]))


def lookers(history: History) -> list[Choice]:
    """The ways in which measured terms look (region, and schedule of the weight), each with the first term that has it."""

    def found() -> list[Choice]:
        known: dict[tuple[object, ...], Choice] = {}
        for one in history.measured:
            for term in one.candidate.policy.terms:
                known.setdefault((term.region, term.warm_up, term.stop, term.decay), (term, one.candidate.index))
        return list(known.values())

    return history.remembered("lookers", found)


def looking_like(term: Term, donor: Term) -> Term:
    """The term with the region of another one, its warm-up, and when it ends."""
    return replace(timed_like(term, donor), region=donor.region)


def timed_like(part: Part, donor: Term | Distiller) -> Part:
    """The part with the warm-up of another one, and when it ends."""
    return replace(part, warm_up=donor.warm_up, stop=donor.stop, decay=donor.decay)


def parent(history: History, choices: dict[str, list[Choice]], rng: random.Random) -> tuple[Policy, int]:
    """The policy of the winner among a few of the elite, and which that is; of any choice, where no result is visible yet."""
    islands = set(history.spec.knowledge)

    def found() -> list[Measured]:
        policies = ((one, one.candidate.policy) for one in history.ranked)
        able = (one for one, policy in policies if policy != Policy(()) and {term.knowledge for term in policy.terms} <= islands)
        return list(itertools.islice(able, ELITE))

    elite = history.remembered("elite", found)
    if elite:
        winner = tournament(rng, elite, TOURNAMENT).candidate
        return winner.policy, winner.index
    term, index = rng.choice([choice for formulas in choices.values() for choice in formulas])
    return Policy((term,)), index


def every_combination(history: History, choices: dict[str, list[Choice]]) -> Iterator[Move]:
    """Every subset of the islands, formula of each and weight of each (the space's list, and the best one halved, kept and doubled)."""
    options: list[list[Choice | None]] = []
    for island, formulas in choices.items():
        mine: list[Choice | None] = [None]
        for term, index in formulas:
            listed = history.spec.space.weights(island) if term.balanced == history.spec.space.balanced else ()
            weights = {term.weight, *halved_and_doubled(term.weight), *listed}
            mine += [(replace(term, weight=weight), index) for weight in sorted(weights)]
        options.append(mine)
    for chosen in itertools.product(*options):
        kept = [choice for choice in chosen if choice is not None]
        yield Policy(tuple(term for term, _ in kept)), tuple(index for _, index in kept)
