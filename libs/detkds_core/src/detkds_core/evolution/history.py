"""What a proposal may look at: everything proposed before it, and only the results that the lag lets through."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from detkds_core.evolution.spec import Proposal, Result, Spec
from detkds_core.policy import Policy, Term, canonical_json
from detkds_core.policy.vocabulary import MAX_WEIGHT


@dataclass(frozen=True, slots=True)
class History:
    """The view of proposal n = len(proposals).

    results: those of candidates 0 .. n - parallelism - 1, in index order. keys: the canonical text of every earlier policy.
    """

    spec: Spec
    proposals: Sequence[Proposal]
    results: Sequence[Result]
    keys: Container[str]


@dataclass(frozen=True, slots=True)
class Measured:
    """A feasible candidate and its fitness."""

    proposal: Proposal
    fitness: float

    @property
    def rank(self) -> tuple[float, int]:
        """Sorts best first, ties by the lower index."""
        return (-self.fitness, self.proposal.index)


def measured(history: History) -> list[Measured]:
    """The feasible candidates whose results are visible, in index order."""
    return [
        Measured(proposal, result.fitness)
        for proposal, result in zip(history.proposals, history.results, strict=False)  # results lag behind
        if result.fitness is not None
    ]


def only_term(proposal: Proposal) -> Term | None:
    """The term of a one-term policy, else None. A one-term reference lives on its island like any other candidate."""
    policy = proposal.policy
    return policy.terms[0] if len(policy.terms) == 1 and not policy.distillers else None


def island_members(history: History, island: str) -> list[Measured]:
    """The feasible one-term candidates of an island whose results are visible, in index order."""
    return [one for one in measured(history) if (term := only_term(one.proposal)) is not None and term.knowledge == island]


def is_new(history: History, policy: Policy) -> bool:
    """Whether no earlier candidate is canonically equal."""
    return canonical_json(policy) not in history.keys


def tournament(rng: random.Random, population: Sequence[Measured], size: int) -> Measured:
    """The best of `size` members drawn without replacement (all, where there are fewer)."""
    return min(rng.sample(population, min(size, len(population))), key=lambda one: one.rank)


def generator(seed: int, index: int) -> random.Random:
    """The random numbers of one proposal: a function of (seed, index) alone, so that no proposal depends on how often another drew."""
    return random.Random(int.from_bytes(hashlib.sha256(f"detkds evolution {seed} {index}".encode()).digest(), "big"))


def halved_and_doubled(weight: float) -> Iterator[float]:
    """The two neighbours of a weight on its own scale, those that are legal weights."""
    for scaled in (weight * 0.5, weight * 2.0):
        if 0 < scaled <= MAX_WEIGHT:
            yield scaled
