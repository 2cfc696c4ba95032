"""What a search needs to know of the policies it may propose: a pair's own space, a table's, or a synthetic one's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Protocol

from detkds_core.policy import Policy, Term


class Space(Protocol):
    """`policy.SearchSpace` is one. Terms are legal and canonical."""

    @property
    def knowledge(self) -> tuple[str, ...]:
        """The islands that it has terms for."""
        ...

    @property
    def balanced(self) -> bool:
        """Whether its weights are ratios of gradients."""
        ...

    def weights(self, knowledge: str) -> Sequence[float]:
        """The weights to choose from."""
        ...

    def terms(self, knowledge: str) -> Iterator[Term]:
        """Every formula with every weight, in a fixed order."""
        ...

    def sample(self, rng: Random, knowledge: str) -> Term:
        """A formula and a weight."""
        ...

    def mutate(self, rng: Random, term: Term) -> Term:
        """Another term with one gene changed, or two. Raises ValueError when there is none."""
        ...

    def crossover(self, rng: Random, a: Term, b: Term) -> Term:
        """A term with each gene from a or b. Raises ValueError where there is none."""
        ...

    def has(self, term: Term) -> bool:
        """Whether a term, hand-designed ones included, may be proposed."""
        ...

    def admits(self, policy: Policy) -> Policy | None:
        """The policy in canonical form if it may be proposed; None if not."""
        ...

    def key(self, policy: Policy) -> str:
        """Equal for equal policies."""
        ...
