"""Stage 1: each knowledge on an island of its own, searched by aging evolution for the formula and weight that work alone.

Mutation-based aging evolution after Real et al. 2018 (arXiv 1802.01548): a parent is the best of a few drawn from the last
results of its island, so that a lucky measurement is forgotten in time. Three things are ours: sub-genes migrate between the feature
islands, which share a vocabulary, budget flows to the islands that earn it, and of a few drafts the one is trained whose genes did best.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import fmean, pstdev

from detkds_core.evolution.effects import expected
from detkds_core.evolution.history import History, Measured, halved_and_doubled, tournament
from detkds_core.evolution.rungs import climbed
from detkds_core.evolution.spec import Candidate
from detkds_core.policy import Policy, Term, named_policies
from detkds_core.policy.vocabulary import FEATURES

ATTEMPTS = 50  # draws before the island's formulas are enumerated
OPENING = 6  # terms of seeds, hand-designed and random ones before an island evolves, at most
OPENED = 0.1  # share of the budget that all openings together may take, at the lowest rung; two terms each they have anyway
SAMPLE, MIGRATE, SEED, WEIGHT = 0.10, 0.10, 0.05, 0.20  # shares of an island's proposals; the rest mutates transforms and distance
DRAFTS = 8  # of which the most promising is proposed
STALE = 40  # an island without a new best among so many proposals is finished


def propose_term(history: History, rng: random.Random, *, finished: bool = False) -> Candidate | None:
    """The next one-term candidate of an island that goes on, or of one that is finished; None where all formulas have been proposed."""
    for island in islands_by_claim(history, finished=finished):
        candidate = propose_on(history, island, rng)
        if candidate is not None:
            return candidate
    return None


def islands_by_claim(history: History, *, finished: bool = False) -> list[str]:
    """The islands, the one with the best claim to the next candidate first; equal claims keep the order of spec.knowledge.

    Islands below their opening or their floor come first, the smallest before the others. Then the upper confidence bound of what an
    island earns: the mean of its best three + the spread of all results * sqrt(ln(total) / count), both at the lowest rung that is in
    use. Counts include candidates whose results are still out, so that parallel proposals do not all go to one island.
    finished: those that stop, since they have not improved for long and are not below their floor; else those that go on.
    """
    spec = history.spec
    counts = {island: history.singles(island) for island in spec.knowledge}
    total = sum(counts.values())
    lowest = {island: first_values(history, island) for island in spec.knowledge}
    seen = [value for values in lowest.values() for value in values]
    spread = history.remembered("spread of first values", lambda: pstdev(seen) if len(seen) > 1 else 1.0)
    first = opening(history)
    floor = max(first, math.ceil(spec.floor * (total + len(spec.knowledge))))
    smallest = min(counts.values())

    def claim(island: str) -> tuple[int, float]:
        if counts[island] < floor and counts[island] <= smallest + first // 2:
            return (0, counts[island])
        earned = fmean(sorted(lowest[island], reverse=True)[:3]) if lowest[island] else min(seen, default=0.0)
        bound = earned + spread * math.sqrt(math.log(total + 1) / (counts[island] + 1))
        return (2 if is_finished(history, island) else 1, -bound)

    claims = {island: claim(island) for island in spec.knowledge}
    return sorted((island for island in claims if (claims[island][0] == 2) == finished), key=lambda island: claims[island])


def opening(history: History) -> int:
    """How many terms every island begins with: fewer in a small search, which would end before it evolves."""
    spec = history.spec
    paid = OPENED * spec.budget / spec.rungs[0] / len(spec.knowledge)
    return max(2, min(OPENING, int(paid)))


def first_values(history: History, island: str) -> list[float]:
    """AP of an island's candidates at the lowest rung that is in use; of those that passed it."""

    def found() -> list[float]:
        lowest = climbed(history)[0]
        each = (history.means[one.candidate.index] for one in history.members(island))
        return [rungs[lowest] for rungs in each if lowest in rungs]

    return history.remembered(("first values", island), found)


def is_finished(history: History, island: str) -> bool:
    """Whether the last STALE results of an island brought nothing better than what was there before."""
    values = first_values(history, island)
    return len(values) > STALE and max(values[-STALE:]) <= max(values[:-STALE])


def propose_on(history: History, island: str, rng: random.Random) -> Candidate | None:
    """A new term of one island, or None when all of its formulas have been proposed."""
    space = history.spec.space
    drafts: list[Candidate] = []
    wanted = DRAFTS if history.singles(island) >= opening(history) else 1
    for _ in range(ATTEMPTS):
        term, parents, operator = draw(history, island, rng)
        if space.has(term) and (policy := space.admits(Policy((term,)))) is not None and history.is_new(policy):
            drafts.append(Candidate(history.count, policy, "stage1", island, parents, operator))
            if len(drafts) == wanted or operator in ("warm", "seed"):
                break
    if drafts:
        return max(drafts, key=lambda one: expected(history, one.policy.terms[0]))
    for term in space.terms(island):
        if (policy := space.admits(Policy((term,)))) is not None and history.is_new(policy):
            return Candidate(history.count, policy, "stage1", island, (), "enumerate")
    return None


def draw(history: History, island: str, rng: random.Random) -> tuple[Term, tuple[int, ...], str]:
    """One draw: (term, parents, operator). It may be illegal or known already; the caller draws again."""
    spec = history.spec
    count = history.singles(island)
    if count < opening(history):
        known = unproposed(history, island) if count % 2 == 0 else None
        return (known[0], (), known[1]) if known else (spec.space.sample(rng, island), (), "sample")
    population = history.members(island)[-spec.population :]
    luck = rng.random()
    if luck < SAMPLE or not population:
        return spec.space.sample(rng, island), (), "sample"
    if luck < SAMPLE + SEED and (known := unproposed(history, island)):
        return known[0], (), known[1]
    parent = tournament(rng, population, spec.tournament)
    term = history.own_term(parent)
    if luck < SAMPLE + SEED + MIGRATE and (migrants := neighbours(history, island)):
        migrant = tournament(rng, migrants, spec.tournament)
        gene = replace(history.own_term(migrant), knowledge=island)
        try:
            return spec.space.crossover(rng, term, gene), (parent.candidate.index, migrant.candidate.index), "migrate"
        except ValueError:
            return spec.space.sample(rng, island), (), "sample"
    if luck < SAMPLE + SEED + MIGRATE + WEIGHT:
        # A formula's weight is looked for on its own scale too, beyond the space's list.
        listed = spec.space.weights(island) if term.balanced == spec.space.balanced else ()
        weights = [*halved_and_doubled(term.weight), *listed]
        return replace(term, weight=rng.choice(weights)), (parent.candidate.index,), "weight"
    try:
        return spec.space.mutate(rng, term), (parent.candidate.index,), "mutate"
    except ValueError:
        return spec.space.sample(rng, island), (), "sample"


def neighbours(history: History, island: str) -> list[Measured]:
    """The last results of the other feature islands, whose vocabulary is the same; none for a response island."""
    if island not in FEATURES:
        return []
    return [
        one
        for other in history.spec.knowledge
        if other in FEATURES and other != island
        for one in history.members(other)[-history.spec.population :]
    ]


def unproposed(history: History, island: str) -> tuple[Term, str] | None:
    """The first of the known terms that nobody has proposed, and which kind it is."""
    return next((one for one in known_terms(history, island) if history.is_new(Policy((one[0],)))), None)


def known_terms(history: History, island: str) -> Iterator[tuple[Term, str]]:
    """The terms of this knowledge that the pair can run in the seeds, the references and the named policies, in that order, and whether
    they are `warm` or a hand-designed `seed`."""
    spec = history.spec
    by_hand: Iterable[Policy] = (*spec.references, *(named.policy for named in named_policies().values()))
    for policies, operator in ((spec.seeds, "warm"), (by_hand, "seed")):
        for policy in policies:
            for term in policy.terms:
                if term.knowledge == island and spec.space.has(term):
                    yield term, operator
