"""Stage 2: which terms together, and with which weights (a term that is left out has weight 0).

The choices are the best two formulas of every island. It opens with the combinations among the seeds, then with hand-made ones (all terms
with damped weights, the best pairs, ...), and then mutates the best candidates seen: a weight, a term on or off, the other formula of an
island, all weights together.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from detkds_core.evolution.history import History, Measured, halved_and_doubled, no_distillation, only_term, tournament
from detkds_core.evolution.spec import Candidate
from detkds_core.policy import Policy, Term

FORMULAS = 2  # choices of every island
ELITE = 8  # how many of the best candidates breed
TOURNAMENT = 3
ATTEMPTS = 50
OPENING = 12  # combinations made by hand before mutation
ENUMERATED = 5_000  # combinations looked through when draws find nothing new
DAMPING = 0.5  # two to five terms add up: their gradients together stay near that of one (1 / sqrt(2) .. 1 / sqrt(5))


def propose_combination(history: History, rng: random.Random) -> Candidate | None:
    """The next candidate of stage 2, or None when every combination of the choices has been proposed."""
    for seed in history.spec.seeds:
        if len(seed.terms) > 1 and (candidate := combination(history, seed.terms, (), "warm")) is not None:
            return candidate
    choices = best_formulas(history)
    if not choices:
        return None
    if opening_count(history) < OPENING:
        for terms, parents in opening_moves(history, choices):
            if (candidate := combination(history, terms, parents, "combine")) is not None:
                return candidate
    for _ in range(ATTEMPTS):
        terms, parents, operator = mutation(history, choices, rng)
        if (candidate := combination(history, terms, parents, operator)) is not None:
            return candidate
    for terms, parents in itertools.islice(every_combination(history, choices), ENUMERATED):
        if (candidate := combination(history, terms, parents, "enumerate")) is not None:
            return candidate
    return None


def opening_count(history: History) -> int:
    return sum(one.operator == "combine" for one in (*history.candidates, *history.drafts))


def combination(history: History, terms: Sequence[Term], parents: tuple[int, ...], operator: str) -> Candidate | None:
    """The candidate of these terms, or None when they are illegal together or known already."""
    policy = history.spec.space.admits(Policy(tuple(terms))) if terms else None
    if policy is None or not history.is_new(policy):
        return None
    return Candidate(history.count, policy, "stage2", None, tuple(sorted(set(parents))), operator)


Choice = tuple[Term, int]  # a term with the weight that served it best, and the candidate that it comes from
Move = tuple[list[Term], tuple[int, ...]]


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
    all gradients together near that of one. Then the best with each other island, and fewer and more of all.
    """
    best = [formulas[0] for formulas in choices.values()]  # one of each island, the best first
    helping = [choice for choice in best if gains(history, choice[1])]
    groups = [group for group in (helping, best) if len(group) > 1]
    for group in groups:
        yield together(group, len(group) ** -0.5)
    for other in best[1:]:
        yield together([best[0], other], 2**-0.5)
    for size in range(3, len(best)):
        yield together(best[:size], size**-0.5)
    for other in best[1:]:
        yield together([best[0]], 1.0, [other], DAMPING)
    for group in groups:
        yield together(group, 1.0)
    for weight in halved_and_doubled(best[0][0].weight):
        yield [replace(best[0][0], weight=weight)], (best[0][1],)


def gains(history: History, index: int) -> bool:
    """Whether a candidate is better than no distillation at the highest rung that both were seen at; true where none is."""
    mine = history.values.get(index, {})
    for rung in sorted(mine, reverse=True):
        if (alone := no_distillation(history, rung)) is not None:
            return sum(mine[rung]) / len(mine[rung]) > alone
    return True


def together(first: Sequence[Choice], scale: float, second: Sequence[Choice] = (), second_scale: float = 1.0) -> Move:
    """All terms, those of `first` with their weights times `scale`, those of `second` times `second_scale`."""
    terms = [replace(term, weight=term.weight * scale) for term, _ in first]
    terms += [replace(term, weight=term.weight * second_scale) for term, _ in second]
    return terms, tuple(index for _, index in (*first, *second))


def mutation(history: History, choices: dict[str, list[Choice]], rng: random.Random) -> tuple[list[Term], tuple[int, ...], str]:
    """One change to one of the best candidates. It may be illegal or known already; the caller draws again."""
    terms, index = parent(history, choices, rng)
    place = rng.randrange(len(terms))
    changed = terms[place]
    absent = [island for island in choices if island not in {term.knowledge for term in terms}]
    luck = rng.random()
    if luck < 0.30 and absent:
        term, origin = rng.choice(choices[rng.choice(absent)])
        return [*terms, replace(term, weight=term.weight * rng.choice((DAMPING, 1.0)))], (index, origin), "toggle"
    if luck < 0.40 and len(terms) > 1:
        return terms[:place] + terms[place + 1 :], (index,), "toggle"
    if luck < 0.55:
        term, origin = rng.choice(choices.get(changed.knowledge, [(changed, index)]))
        return [*terms[:place], term, *terms[place + 1 :]], (index, origin), "swap"
    if luck < 0.65:
        scale = rng.choice((0.5, 2.0))
        return [replace(term, weight=term.weight * scale) for term in terms], (index,), "scale"
    listed = history.spec.space.weights(changed.knowledge) if changed.balanced == history.spec.space.balanced else ()
    weights = [*halved_and_doubled(changed.weight)] * 2 + [*listed]
    terms[place] = replace(changed, weight=rng.choice(weights))
    return terms, (index,), "weight"


def parent(history: History, choices: dict[str, list[Choice]], rng: random.Random) -> tuple[list[Term], int]:
    """The terms of the winner among a few of the elite; of any choice, where no result is visible yet.

    A policy with a distiller breeds nothing: what it is worth is not its terms' alone.
    """
    islands = set(history.spec.knowledge)

    def found() -> list[Measured]:
        terms = ((one, one.candidate.policy.terms) for one in history.ranked if not one.candidate.policy.distillers)
        able = (one for one, mine in terms if mine and {term.knowledge for term in mine} <= islands)
        return list(itertools.islice(able, ELITE))

    elite = history.remembered("elite", found)
    if elite:
        winner = tournament(rng, elite, TOURNAMENT).candidate
        return list(winner.policy.terms), winner.index
    term, index = rng.choice([choice for formulas in choices.values() for choice in formulas])
    return [term], index


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
        yield [term for term, _ in kept], tuple(index for _, index in kept)
