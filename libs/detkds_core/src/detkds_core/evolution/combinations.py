"""Stage 2: which terms together, and with which weights (a term that is left out has weight 0).

The choices are the best two formulas of every island. It opens with hand-made combinations (all terms with damped weights, the best
pairs, ...) and then mutates the best candidates seen: a weight, a term on or off, the other formula of an island, all weights together.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from detkds_core.evolution.history import History, Measured, generator, halved_and_doubled, is_new, measured, only_term, tournament
from detkds_core.evolution.spec import Proposal
from detkds_core.policy import Policy, Term, canonical, check

FORMULAS = 2  # choices of every island
ELITE = 8  # how many of the best candidates breed
TOURNAMENT = 3
ATTEMPTS = 50
OPENING_SHARE = 0.5  # at most this part of stage 2 is hand-made
DAMPING = 0.5  # two to five terms add up: their gradients together stay near that of one (1 / sqrt(2) .. 1 / sqrt(5))


def propose_combination(history: History) -> Proposal | None:
    """The next candidate of stage 2, or None when every combination of the choices has been proposed."""
    choices = best_formulas(history)
    if not choices:
        return None
    rng = generator(history.spec.seed, len(history.proposals))
    done = sum(proposal.stage == "stage2" for proposal in history.proposals)
    if done < max(1, round(OPENING_SHARE * history.spec.stage2_candidates)):
        for terms, parents in opening_moves(history, choices):
            if (proposal := combination(history, terms, parents, "combine")) is not None:
                return proposal
    for _ in range(ATTEMPTS):
        terms, parents, operator = mutation(history, choices, rng)
        if (proposal := combination(history, terms, parents, operator)) is not None:
            return proposal
    for terms, parents in every_combination(history, choices):
        if (proposal := combination(history, terms, parents, "enumerate")) is not None:
            return proposal
    return None


def combination(history: History, terms: Sequence[Term], parents: tuple[int, ...], operator: str) -> Proposal | None:
    """The proposal of these terms, or None when they are illegal together or known already."""
    policy = Policy(tuple(terms))
    if not terms or check(policy) or not is_new(history, policy):
        return None
    return Proposal(len(history.proposals), canonical(policy), "stage2", None, tuple(sorted(set(parents))), operator)


Choice = tuple[Term, int]  # a term with the weight that served it best, and the candidate that it comes from
Move = tuple[list[Term], tuple[int, ...]]


def best_formulas(history: History) -> dict[str, list[Choice]]:
    """The best two formulas of every island that has any, the island with the best term first.

    A formula is a term without its weight; of one formula the best weight counts. Ties go to the lower index. Candidates whose results
    are still out come after all measured ones; an island whose candidates all turned out infeasible gives nothing.
    """
    ranked: list[tuple[float, int, Term]] = []
    for index, proposal in enumerate(history.proposals):
        term = only_term(proposal)
        if term is None or term.knowledge not in history.spec.knowledge:
            continue
        if index >= len(history.results):
            ranked.append((float("inf"), index, term))
        elif (fitness := history.results[index].fitness) is not None:
            ranked.append((-fitness, index, term))
    choices: dict[str, list[Choice]] = {}
    known: set[Term] = set()
    for _, index, term in sorted(ranked, key=lambda one: one[:2]):
        formula = replace(term, weight=1.0)  # canonical, as every proposal is
        mine = choices.setdefault(term.knowledge, [])
        if formula not in known and len(mine) < FORMULAS:
            known.add(formula)
            mine.append((term, index))
    return choices


def opening_moves(history: History, choices: dict[str, list[Choice]]) -> Iterator[Move]:
    """The combinations worth trying before any mutation, in the order of their promise."""
    best = [formulas[0] for formulas in choices.values()]  # one of each island, the best first
    alone = no_distillation(history)
    fitness = {one.proposal.index: one.fitness for one in measured(history)}
    helping = [choice for choice in best if alone is None or fitness.get(choice[1], alone + 1) > alone]
    groups = [group for group in (helping, best) if len(group) > 1]
    for group in groups:
        yield together(group, DAMPING)
    for other in best[1:]:
        yield together([best[0], other], 1.0)
    for other in best[1:]:
        yield together([best[0]], 1.0, [other], DAMPING)
    for group in groups:
        yield together(group, 1.0)
    for weight in halved_and_doubled(best[0][0].weight):
        yield [replace(best[0][0], weight=weight)], (best[0][1],)


def together(first: Sequence[Choice], scale: float, second: Sequence[Choice] = (), second_scale: float = 1.0) -> Move:
    """All terms, those of `first` with their weights times `scale`, those of `second` times `second_scale`."""
    terms = [replace(term, weight=term.weight * scale) for term, _ in first]
    terms += [replace(term, weight=term.weight * second_scale) for term, _ in second]
    return terms, tuple(index for _, index in (*first, *second))


def no_distillation(history: History) -> float | None:
    """The fitness of the candidate without distillation, where it was measured."""
    return next((one.fitness for one in measured(history) if one.proposal.policy == Policy(())), None)


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
    weights = [*halved_and_doubled(changed.weight)] * 2 + [*history.spec.space.weights(changed.knowledge)]
    terms[place] = replace(changed, weight=rng.choice(weights))
    return terms, (index,), "weight"


def parent(history: History, choices: dict[str, list[Choice]], rng: random.Random) -> tuple[list[Term], int]:
    """The terms of the winner among a few of the elite; of any choice, where no result is visible yet.

    A policy with a distiller breeds nothing: what it is worth is not its terms' alone.
    """
    islands = set(history.spec.knowledge)
    candidates = [
        one
        for one in measured(history)
        if (policy := one.proposal.policy).terms and not policy.distillers and {term.knowledge for term in policy.terms} <= islands
    ]
    elite: list[Measured] = sorted(candidates, key=lambda one: one.rank)[:ELITE]
    if elite:
        winner = tournament(rng, elite, TOURNAMENT).proposal
        return list(winner.policy.terms), winner.index
    term, index = rng.choice([choice for formulas in choices.values() for choice in formulas])
    return [term], index


def every_combination(history: History, choices: dict[str, list[Choice]]) -> Iterator[Move]:
    """Every subset of the islands, formula of each and weight of each (the space's list, and the best one halved, kept and doubled)."""
    options: list[list[Choice | None]] = []
    for island, formulas in choices.items():
        mine: list[Choice | None] = [None]
        for term, index in formulas:
            weights = {term.weight, *halved_and_doubled(term.weight), *history.spec.space.weights(island)}
            mine += [(replace(term, weight=weight), index) for weight in sorted(weights)]
        options.append(mine)
    for chosen in itertools.product(*options):
        kept = [choice for choice in chosen if choice is not None]
        yield [term for term, _ in kept], tuple(index for _, index in kept)
