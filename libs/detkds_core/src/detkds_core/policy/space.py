"""Which terms a search may try on a pair, and how one term comes from another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import combinations, product
from random import Random
from typing import Any, Self

from detkds_core.policy.canonical import canonical_term
from detkds_core.policy.rules import legality, pair_legality, unknown
from detkds_core.policy.terms import Reason, Term
from detkds_core.policy.vocabulary import DISTANCES, DIVERGENCES, FEATURES, KNOWLEDGE, SHAREABLE, SLOTS

TWO_GENES = 0.2  # share of the mutations that change two genes

Genes = tuple[str | float, ...]  # the transforms, the distance, the weight


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The legal terms of a pair. Every term that it gives is legal and canonical.

    knowledge: what the pair can exchange. images_per_batch: what a training step sees. has_edges: both detectors predict edge
    distributions (GFL). score_channels: class scores a cell (anchors times classes), None where they are not known.
    """

    knowledge: tuple[str, ...] = KNOWLEDGE
    images_per_batch: int = 2
    has_edges: bool = False
    feature_weights: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0)  # DetKDS' own
    response_weights: tuple[float, ...] = (0.1, 1.0, 2.0)
    score_channels: int | None = None

    def __post_init__(self) -> None:
        for place, name in enumerate(self.knowledge):
            if name not in KNOWLEDGE:
                raise ValueError(f"space.knowledge[{place}]: {unknown(name, 'kind of knowledge', KNOWLEDGE)}")
        if self.images_per_batch < 1:
            raise ValueError(f"space.images_per_batch: {self.images_per_batch} images; at least 1")
        for field in ("feature_weights", "response_weights"):
            weights = getattr(self, field)
            if not weights or len(set(weights)) < len(weights):
                raise ValueError(f"space.{field}: {list(weights)} is not a list of different weights")
            for place, weight in enumerate(weights):
                if reasons := legality(Term("localization", ("none",), "l1", weight)):
                    raise ValueError(f"space.{field}[{place}]: {reasons[0].message}")

    def weights(self, knowledge: str) -> tuple[float, ...]:
        """The weights to choose from."""
        return self.feature_weights if knowledge in FEATURES else self.response_weights

    def contains(self, term: Term) -> list[Reason]:
        """Why this pair cannot train with the term; empty if it can. Weights and options are free: a hand-designed term has its own."""
        if term.knowledge not in self.knowledge and term.knowledge in KNOWLEDGE:
            return [Reason("knowledge", f"this pair cannot exchange {term.knowledge!r}; one of {', '.join(self.knowledge)}")]
        return legality(term) or pair_legality(term, self.images_per_batch, self.has_edges, self.score_channels)

    def formulas(self, knowledge: str) -> tuple[Term, ...]:
        """All terms of a knowledge that are different losses, with weight 1 and in a fixed order. Raises ValueError if it has none here."""
        if knowledge not in self.knowledge:
            raise ValueError(f"{knowledge!r} is not in the search space; one of {', '.join(self.knowledge)}")
        return _formulas(knowledge, self.images_per_batch, self.has_edges, self.score_channels)

    def size(self, knowledge: str) -> int:
        """How many different formulas a knowledge has, weights aside."""
        return len(self.formulas(knowledge))

    def terms(self, knowledge: str) -> Iterator[Term]:
        """Every formula with every weight, in a fixed order."""
        for term in self.formulas(knowledge):
            for weight in self.weights(knowledge):
                yield replace(term, weight=weight)

    def sample(self, rng: Random, knowledge: str) -> Term:
        """A formula and a weight, each as likely as any other."""
        return replace(rng.choice(self.formulas(knowledge)), weight=rng.choice(self.weights(knowledge)))

    def mutate(self, rng: Random, term: Term) -> Term:
        """Change one gene (80 %) or two (20 %) of a term that the pair can train with: transforms, distance, weight. Never an equal term.

        Raises ValueError when the space holds no other term.
        """
        genes, old = _genes(term), canonical_term(term)
        alternatives = [[other for other in choices if other != gene] for gene, choices in zip(genes, self._choices(term), strict=True)]
        changes: list[tuple[int, ...]] = [(place,) for place in range(len(genes))]
        pairs: list[tuple[int, ...]] = list(combinations(range(len(genes)), 2))
        rng.shuffle(changes)
        rng.shuffle(pairs)
        # Where no change of the wished number is legal, one of the other number is taken.
        for places in (*pairs, *changes) if rng.random() < TWO_GENES else (*changes, *pairs):
            children = [
                child
                for values in product(*(alternatives[place] for place in places))
                if (child := self._legal(term, _replaced(genes, places, values))) is not None and child != old
            ]
            if children:
                return rng.choice(children)
        raise ValueError(f"the search space holds no other term of {term.knowledge!r}")

    def crossover(self, rng: Random, a: Term, b: Term) -> Term:
        """A term with each gene from a or b, different from both where there is one. Options come from the first parent.

        Raises ValueError for parents of different knowledge. One parent may be illegal here, as a migrant is; not both.
        """
        if a.knowledge != b.knowledge:
            raise ValueError(f"a child of {a.knowledge!r} and {b.knowledge!r} has no knowledge; both parents need the same")
        children = [child for genes in product(*zip(_genes(a), _genes(b), strict=True)) if (child := self._legal(a, genes)) is not None]
        if not children:
            raise ValueError(f"neither parent is legal: {'; '.join(str(reason) for reason in self.contains(a))}")
        parents = (canonical_term(a), canonical_term(b))
        return rng.choice([child for child in children if child not in parents] or children)

    def _choices(self, term: Term) -> list[Sequence[str | float]]:
        """What each gene of a term can be."""
        return [*(choices for _, choices in SLOTS[term.knowledge]), DISTANCES[term.knowledge], self.weights(term.knowledge)]

    def _legal(self, term: Term, genes: Genes) -> Term | None:
        """The canonical term with these genes and the options of `term` that they can use; None if the pair cannot train with it."""
        *transforms, distance, weight = genes
        child = replace(term, transforms=tuple(transforms), distance=distance, weight=weight)  # type: ignore[arg-type]
        if distance not in DIVERGENCES:
            child = replace(child, temperature=1.0)
        if transforms[0] not in SHAREABLE:
            child = replace(child, shared_attention=False)
        return None if self.contains(child) else canonical_term(child)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal space back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises ValueError that names a key that is not known."""
        for key in data:
            if key not in cls.__slots__:
                raise ValueError(f"space.{key}: not known; one of {', '.join(cls.__slots__)}")
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        return cls(**values)


@lru_cache(maxsize=64)
def _formulas(knowledge: str, images_per_batch: int, has_edges: bool, score_channels: int | None) -> tuple[Term, ...]:
    """The different losses among all combinations of names. A search asks for them at every proposal, hence the cache."""
    found: dict[Term, None] = {}
    for *transforms, distance in product(*(choices for _, choices in SLOTS[knowledge]), DISTANCES[knowledge]):
        term = Term(knowledge, tuple(transforms), distance, 1.0)
        if not legality(term) and not pair_legality(term, images_per_batch, has_edges, score_channels):
            found[replace(canonical_term(term), weight=1.0)] = None
    return tuple(found)


def _genes(term: Term) -> Genes:
    return (*term.transforms, term.distance, term.weight)


def _replaced(genes: Genes, places: Sequence[int], values: Sequence[str | float]) -> Genes:
    changed = list(genes)
    for place, value in zip(places, values, strict=True):
        changed[place] = value
    return tuple(changed)
