"""Which terms a search may try on a pair, and how one term comes from another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import combinations, product
from operator import attrgetter
from random import Random
from typing import Any, Self

from detkds_core.policy.canonical import canonical, canonical_term
from detkds_core.policy.pair import EVERYWHERE, PairFacts, pair_legality
from detkds_core.policy.rules import check, legality, unknown
from detkds_core.policy.schema import canonical_json
from detkds_core.policy.terms import Policy, Reason, Term
from detkds_core.policy.vocabulary import (
    BREADTHS,
    DISTANCES,
    DIVERGENCES,
    FEATURES,
    KNOWLEDGE,
    REGIONS,
    SHAREABLE,
    SLOTS,
    UNPUBLISHED,
    UNSEARCHED,
)

TWO_GENES = 0.2  # share of the mutations that change two genes
KEPT = 1 << 14  # terms and policies whose forms are remembered: the longer a search, the more of what it draws was drawn before

Genes = tuple[str | float, ...]  # the transforms, the distance, the region, the weight


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The legal terms of a pair. Every term that it gives is legal and canonical.

    knowledge: what the pair can exchange. breadth: what may be tried of it, "published" (the official names, `standardize` and `ssim`, each
    at its own place) or "full" (everything that the language has, at every region that the pair can look at but the `UNSEARCHED`).
    balanced: weights are ratios of gradients, see `Term`. The other fields are the facts of the pair, see `PairFacts`.
    """

    knowledge: tuple[str, ...] = KNOWLEDGE
    images_per_batch: int = 2
    has_edges: bool = False
    feature_weights: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0)  # DetKDS' own
    response_weights: tuple[float, ...] = (0.1, 1.0, 2.0)
    score_channels: int | None = None
    breadth: str = "published"
    has_points: bool = False
    roi_channels: int | None = None
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)
    balanced: bool = False

    def __post_init__(self) -> None:
        for place, name in enumerate(self.knowledge):
            if name not in KNOWLEDGE:
                raise ValueError(f"space.knowledge[{place}]: {unknown(name, 'kind of knowledge', KNOWLEDGE)}")
        if self.images_per_batch < 1:
            raise ValueError(f"space.images_per_batch: {self.images_per_batch} images; at least 1")
        for name in ("feature_weights", "response_weights"):
            weights = getattr(self, name)
            if not weights or len(set(weights)) < len(weights):
                raise ValueError(f"space.{name}: {list(weights)} is not a list of different weights")
            for place, weight in enumerate(weights):
                if reasons := legality(Term("localization", ("none",), "l1", weight)):
                    raise ValueError(f"space.{name}[{place}]: {reasons[0].message}")
        if self.breadth not in BREADTHS:
            raise ValueError(f"space.breadth: {unknown(self.breadth, 'breadth', BREADTHS)}")
        for knowledge, regions in self.regions.items():
            if knowledge not in KNOWLEDGE:
                raise ValueError(f"space.regions.{knowledge}: {unknown(knowledge, 'kind of knowledge', KNOWLEDGE)}")
            for region in regions:
                if region not in REGIONS[knowledge]:
                    raise ValueError(f"space.regions.{knowledge}: {unknown(region, f'region of {knowledge}', REGIONS[knowledge])}")

    @classmethod
    def of(cls, facts: PairFacts, **values: Any) -> Self:
        """The space of a pair: its facts, and values of the other fields."""
        return cls(**{one.name: getattr(facts, one.name) for one in fields(PairFacts)}, **values)

    @property
    def facts(self) -> PairFacts:
        """What the rules need to know of the pair."""
        return PairFacts(**{one.name: getattr(self, one.name) for one in fields(PairFacts)})

    def weights(self, knowledge: str) -> tuple[float, ...]:
        """The weights to choose from."""
        return self.feature_weights if knowledge in FEATURES else self.response_weights

    def contains(self, term: Term) -> list[Reason]:
        """Why this pair cannot train with the term; empty if it can. Weights and options are free: a hand-designed term has its own."""
        if term.knowledge not in self.knowledge and term.knowledge in KNOWLEDGE:
            return [Reason("knowledge", f"this pair cannot exchange {term.knowledge!r}; one of {', '.join(self.knowledge)}")]
        return legality(term) or pair_legality(term, self.facts)

    def has(self, term: Term) -> bool:
        """Whether this pair can train with the term."""
        return self._form(term) is not None

    def admits(self, policy: Policy) -> Policy | None:
        """The policy in canonical form, if it is legal and this pair can train with all of its terms; else None."""
        form = _policy_form(policy)
        return form if form is not None and all(map(self.has, policy.terms)) else None

    def key(self, policy: Policy) -> str:
        """Equal for equal policies."""
        return _policy_key(policy)

    def formulas(self, knowledge: str) -> tuple[Term, ...]:
        """All terms of a knowledge that are different losses, with weight 1 and in a fixed order. Raises ValueError if it has none here."""
        if knowledge not in self.knowledge:
            raise ValueError(f"{knowledge!r} is not in the search space; one of {', '.join(self.knowledge)}")
        return _formulas(knowledge, self.breadth, _NUMBERS(self), regions_of(knowledge, self.breadth, self.facts))

    def size(self, knowledge: str) -> int:
        """How many different formulas a knowledge has, weights aside."""
        return len(self.formulas(knowledge))

    def terms(self, knowledge: str) -> Iterator[Term]:
        """Every formula with every weight, in a fixed order."""
        for term in self.formulas(knowledge):
            for weight in self.weights(knowledge):
                yield replace(term, weight=weight, balanced=self.balanced)

    def sample(self, rng: Random, knowledge: str) -> Term:
        """A formula and a weight, each as likely as any other."""
        return replace(rng.choice(self.formulas(knowledge)), weight=rng.choice(self.weights(knowledge)), balanced=self.balanced)

    def mutate(self, rng: Random, term: Term) -> Term:
        """Change one gene (80 %) or two (20 %) of a term that the pair can train with: transforms, distance, region, weight.

        Never an equal term.

        Raises ValueError when the space holds no other term.
        """
        term = self._own(term)
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
        a, b = self._own(a), self._own(b)
        children = [child for genes in product(*zip(_genes(a), _genes(b), strict=True)) if (child := self._legal(a, genes)) is not None]
        if not children:
            raise ValueError(f"neither parent is legal: {'; '.join(str(reason) for reason in self.contains(a))}")
        parents = (canonical_term(a), canonical_term(b))
        return rng.choice([child for child in children if child not in parents] or children)

    def _own(self, term: Term) -> Term:
        """The term with a weight of this space's kind: one of another kind says nothing of its children's weights."""
        return term if term.balanced == self.balanced else replace(term, weight=1.0, balanced=self.balanced, auto=False)

    def _choices(self, term: Term) -> list[Sequence[str | float]]:
        """What each gene of a term can be."""
        regions = regions_of(term.knowledge, self.breadth, self.facts)
        return [*names_of(term.knowledge, self.breadth), regions, self.weights(term.knowledge)]

    def _legal(self, term: Term, genes: Genes) -> Term | None:
        """The canonical term with these genes and the options of `term` that they can use; None if the pair cannot train with it."""
        return self._form(_child(term, genes))

    def _form(self, term: Term) -> Term | None:
        """The canonical form of a term; None if the pair cannot train with it."""
        if term.knowledge not in self.knowledge:
            return None
        return _form(term, _NUMBERS(self), self.regions.get(term.knowledge, EVERYWHERE))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal space back."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["regions"] = {knowledge: list(regions) for knowledge, regions in self.regions.items()}
        values["lacking"] = dict(self.lacking)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises ValueError that names a key that is not known."""
        for key in data:
            if key not in cls.__slots__:
                raise ValueError(f"space.{key}: not known; one of {', '.join(cls.__slots__)}")
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        if "regions" in values:
            values["regions"] = {knowledge: tuple(regions) for knowledge, regions in values["regions"].items()}
        return cls(**values)


def names_of(knowledge: str, breadth: str) -> list[tuple[str, ...]]:
    """The choices of each transform and of the distance."""
    everything = [*(choices for _, choices in SLOTS[knowledge]), DISTANCES[knowledge]]
    if breadth == "full":
        return everything
    return [tuple(name for name in choices if name not in UNPUBLISHED) for choices in everything]


def regions_of(knowledge: str, breadth: str, facts: PairFacts) -> tuple[str, ...]:
    """Where a search on a pair may look."""
    if breadth == "published":
        return EVERYWHERE
    return tuple(region for region in facts.regions_of(knowledge) if region not in UNSEARCHED)


def combinations_of(knowledge: str, breadth: str, regions: Sequence[str]) -> Iterator[Term]:
    """All combinations of names, legal or not, with weight 1 and in a fixed order."""
    for region in regions:
        for *transforms, distance in product(*names_of(knowledge, breadth)):
            yield Term(knowledge, tuple(transforms), distance, 1.0, region=region)


Numbers = tuple[int, bool, int | None, bool, int | None]
_NUMBERS: Callable[[SearchSpace], Numbers] = attrgetter("images_per_batch", "has_edges", "score_channels", "has_points", "roi_channels")


@lru_cache(maxsize=KEPT)
def _form(term: Term, numbers: Numbers, regions: tuple[str, ...]) -> Term | None:
    """The canonical form of a term; None if it is illegal on any pair, or on one with these facts."""
    illegal = legality(term) or pair_legality(term, PairFacts(*numbers, regions={term.knowledge: regions}))
    return None if illegal else canonical_term(term)


@lru_cache(maxsize=KEPT)
def _child(term: Term, genes: Genes) -> Term:
    """A term with these genes and the options of `term` that they can use."""
    *transforms, distance, region, weight = genes
    child = replace(
        term,
        transforms=tuple(transforms),  # type: ignore[arg-type]
        distance=distance,  # type: ignore[arg-type]
        region=region,  # type: ignore[arg-type]
        weight=weight,  # type: ignore[arg-type]
        temperature=term.temperature if distance in DIVERGENCES else 1.0,
        shared_attention=term.shared_attention and transforms[0] in SHAREABLE,
    )
    if child.reduction != "mean" and any(reason.field == "reduction" for reason in legality(child)):
        child = replace(child, reduction="mean")
    return child


@lru_cache(maxsize=KEPT)
def _policy_form(policy: Policy) -> Policy | None:
    """The canonical form of a policy; None if it is illegal on any pair."""
    return None if check(policy) else canonical(policy)


@lru_cache(maxsize=KEPT)
def _policy_key(policy: Policy) -> str:
    return canonical_json(policy)


@lru_cache(maxsize=64)
def _formulas(knowledge: str, breadth: str, numbers: Numbers, regions: tuple[str, ...]) -> tuple[Term, ...]:
    """The different losses among all combinations of names. A search asks for them at every proposal, hence the cache."""
    pair = PairFacts(*numbers, regions={knowledge: regions})
    found: dict[Term, None] = {}
    for term in combinations_of(knowledge, breadth, regions):
        if not legality(term) and not pair_legality(term, pair):
            found[replace(canonical_term(term), weight=1.0)] = None
    return tuple(found)


def _genes(term: Term) -> Genes:
    return (*term.transforms, term.distance, term.region, term.weight)


def _replaced(genes: Genes, places: Sequence[int], values: Sequence[str | float]) -> Genes:
    changed = list(genes)
    for place, value in zip(places, values, strict=True):
        changed[place] = value
    return tuple(changed)
