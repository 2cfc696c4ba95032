"""What each gene of a term seems to add, from the results so far: advice on which of a few drafts is worth a training.

An additive model of the lowest rung in use, which every candidate passes whatever it is worth: the AP of a one-term policy is that of its
island and a sum of what its transforms, its distance and its weight add. Effects are shrunken to 0 by PRIOR results without any, so that a
gene seen once says little. Feature islands share a vocabulary, hence part of an effect; where genes tell nothing, so does the advice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from functools import lru_cache
from statistics import fmean

from detkds_core.evolution.history import History
from detkds_core.evolution.rungs import climbed
from detkds_core.policy import Term
from detkds_core.policy.vocabulary import FEATURES

PRIOR = 6.0
SWEEPS = 4  # of coordinate descent; the effects change little after


@lru_cache(maxsize=1 << 13)
def genes(term: Term) -> tuple[Hashable, ...]:
    """What may matter to a term's worth: its island, and each gene on the island and, of transforms, on all feature islands."""
    placed = [(place, name) for place, name in enumerate(term.transforms)]
    own = [*placed, ("distance", term.distance), ("weight", term.balanced, round(2 * math.log10(term.weight)))]
    shared = [("features", *one) for one in own] if term.knowledge in FEATURES else []
    return (term.knowledge, *((term.knowledge, *one) for one in own), *shared)


def effects(history: History) -> Mapping[Hashable, float]:
    """What each gene seems to add to AP at the lowest rung that is in use."""

    def found() -> Mapping[Hashable, float]:
        lowest = climbed(history)[0]
        rows = [
            (genes(one.candidate.policy.terms[0]), history.means[one.candidate.index][lowest])
            for island in history.spec.knowledge
            for one in history.members(island)
            if lowest in history.means[one.candidate.index]
        ]
        if not rows:
            return {}
        middle = fmean(value for _, value in rows)
        left = [value - middle for _, value in rows]  # what the effects so far leave unexplained
        places: dict[Hashable, list[int]] = defaultdict(list)
        for row, (mine, _) in enumerate(rows):
            for gene in mine:
                places[gene].append(row)
        adds = dict.fromkeys(places, 0.0)
        for _ in range(SWEEPS):
            for gene, where in places.items():
                before = adds[gene]
                after = adds[gene] = (sum([left[row] for row in where]) + before * len(where)) / (len(where) + PRIOR)
                change = after - before
                for row in where:
                    left[row] -= change
        return adds

    return history.remembered("effects", found)


def expected(history: History, term: Term) -> float:
    """What its genes seem to add up to, above the mean of all results."""
    adds = effects(history)
    return sum(adds.get(gene, 0.0) for gene in genes(term))
