"""Stage 1: each knowledge on an island of its own, searched by aging evolution for the formula and weight that work alone.

Mutation-based aging evolution after Real et al. 2018 (arXiv 1802.01548): a parent is the best of a few drawn from the last
results of its island, so that a lucky measurement is forgotten in time. Two things are ours: sub-genes migrate between the feature
islands, which share a vocabulary, and budget flows to the islands that earn it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import fmean, pstdev

from detkds_core.evolution.history import History, Measured, generator, halved_and_doubled, is_new, island_members, tournament
from detkds_core.evolution.spec import Proposal
from detkds_core.policy import Policy, Term, canonical, named_policies
from detkds_core.policy.vocabulary import FEATURES

ATTEMPTS = 50  # draws before the island's formulas are enumerated
OPENING = 6  # at most so many hand-designed and random terms before an island evolves
SAMPLE, MIGRATE, SEED, WEIGHT = 0.10, 0.10, 0.05, 0.25  # shares of an island's proposals; the rest mutates transforms and distance


def propose_term(history: History) -> Proposal | None:
    """The next one-term candidate, or None when every formula of every island has been proposed."""
    rng = generator(history.spec.seed, len(history.proposals))
    for island in islands_by_claim(history):
        proposal = propose_on(history, island, rng)
        if proposal is not None:
            return proposal
    return None


def islands_by_claim(history: History) -> list[str]:
    """The islands, the one with the best claim to the next candidate first; equal claims keep the order of spec.knowledge.

    Islands below their opening or their floor come first, the smallest before the others. Then the upper confidence bound of what an
    island earns: the mean of its best three + the spread of all results * sqrt(ln(total) / count). Counts include candidates whose
    results are still out, so that parallel proposals do not all go to one island.
    """
    spec = history.spec
    counts = {island: stage1_count(history, island) for island in spec.knowledge}
    total = sum(counts.values())
    fitness = {island: [one.fitness for one in island_members(history, island)] for island in spec.knowledge}
    failed = {proposal.island for proposal, result in zip(history.proposals, history.results, strict=False) if result.fitness is None}
    seen = [value for values in fitness.values() for value in values]
    spread = pstdev(seen) if len(seen) > 1 else 1.0
    # Looked at one round ahead, so that all islands have their floor when stage 1 ends.
    floor = max(opening(history), math.ceil(spec.floor * min(total + len(spec.knowledge), spec.stage1_candidates)))

    def claim(island: str) -> tuple[int, float]:
        if counts[island] < floor:
            return (0, counts[island])
        if fitness[island]:
            earned = fmean(sorted(fitness[island], reverse=True)[:3])
        else:  # as good as the best while all its results are out, as bad as the worst once they turned out infeasible
            earned = min(seen, default=0.0) if island in failed else max(seen, default=0.0)
        return (1, -(earned + spread * math.sqrt(math.log(total + 1) / (counts[island] + 1))))

    return sorted(spec.knowledge, key=claim)


def stage1_count(history: History, island: str) -> int:
    """How many stage 1 candidates of an island have been proposed."""
    return sum(proposal.stage == "stage1" and proposal.island == island for proposal in history.proposals)


def opening(history: History) -> int:
    """How many candidates open an island: half of an equal share of stage 1, at least 1, at most OPENING."""
    spec = history.spec
    return max(1, min(OPENING, spec.stage1_candidates // (2 * len(spec.knowledge))))


def propose_on(history: History, island: str, rng: random.Random) -> Proposal | None:
    """A new term of one island, or None when all of its formulas have been proposed."""
    spec = history.spec
    for _ in range(ATTEMPTS):
        term, parents, operator = draw(history, island, rng)
        if not spec.space.contains(term) and is_new(history, Policy((term,))):
            return island_proposal(history, term, parents, operator)
    for term in spec.space.terms(island):
        if is_new(history, Policy((term,))):
            return island_proposal(history, term, (), "enumerate")
    return None


def island_proposal(history: History, term: Term, parents: tuple[int, ...], operator: str) -> Proposal:
    return Proposal(len(history.proposals), canonical(Policy((term,))), "stage1", term.knowledge, parents, operator)


def draw(history: History, island: str, rng: random.Random) -> tuple[Term, tuple[int, ...], str]:
    """One draw: (term, parents, operator). It may be illegal or known already; the caller draws again."""
    spec = history.spec
    count = stage1_count(history, island)
    seeds = [term for term in hand_designed(history, island) if is_new(history, Policy((term,)))]
    if count < opening(history):
        return (seeds[0], (), "seed") if seeds and count % 2 == 0 else (spec.space.sample(rng, island), (), "sample")
    population = island_members(history, island)[-spec.population :]
    luck = rng.random()
    if luck < SAMPLE or not population:
        return spec.space.sample(rng, island), (), "sample"
    if luck < SAMPLE + SEED and seeds:
        return seeds[0], (), "seed"
    parent = tournament(rng, population, spec.tournament)
    term = parent.proposal.policy.terms[0]
    if luck < SAMPLE + SEED + MIGRATE and (migrants := neighbours(history, island)):
        migrant = tournament(rng, migrants, spec.tournament)
        gene = replace(migrant.proposal.policy.terms[0], knowledge=island)
        return spec.space.crossover(rng, term, gene), (parent.proposal.index, migrant.proposal.index), "migrate"
    if luck < SAMPLE + SEED + MIGRATE + WEIGHT or spec.space.size(island) == 1:
        # A formula's loss scale is its own, so its weight is looked for on its own scale too, beyond the space's list.
        weights = [*halved_and_doubled(term.weight), *spec.space.weights(island)]
        return replace(term, weight=rng.choice(weights)), (parent.proposal.index,), "weight"
    return spec.space.mutate(rng, term), (parent.proposal.index,), "mutate"


def neighbours(history: History, island: str) -> list[Measured]:
    """The last results of the other feature islands, whose vocabulary is the same; none for a response island."""
    if island not in FEATURES:
        return []
    return [
        one
        for other in history.spec.knowledge
        if other in FEATURES and other != island
        for one in island_members(history, other)[-history.spec.population :]
    ]


def hand_designed(history: History, island: str) -> Iterator[Term]:
    """The terms of this knowledge in the references and the named policies that the pair can run, in that order."""
    policies: Iterable[Policy] = (*history.spec.references, *(named.policy for named in named_policies().values()))
    for policy in policies:
        for term in policy.terms:
            if term.knowledge == island and not history.spec.space.contains(term):
                yield term
