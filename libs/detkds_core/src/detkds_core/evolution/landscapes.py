"""A synthetic search: a space of millions of policies whose worth is known, to try searchers on in seconds.

Made after what was measured of the real space: a quarter of the formulas are bad, two or three of them do the same, weights matter by
their order of magnitude, short trainings order policies as long ones do only in part, and seeds differ.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from statistics import fmean
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

from detkds_core.evolution.search import Evolution
from detkds_core.evolution.space import Space
from detkds_core.evolution.spec import Job, Outcome, Spec
from detkds_core.policy import Policy, Term
from detkds_core.policy.vocabulary import FEATURES

SIZES = {"global": (5, 8, 14, 7), "fgbg": (5, 8, 14, 7), "instance": (5, 8, 14, 7), "logits": (12, 7), "localization": (2, 4)}
WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0)
BAD, HARM = 0.27, -2.0  # share of the formulas that are bad, and what they are worth
CAUGHT, FALSE_ALARM = 0.95, 0.02  # share of the bad, and of the good formulas, that a gate refuses
SPREAD = 0.5  # standard deviation of what formulas are worth
WEIGHT_WIDTH = 0.6  # in powers of ten


@dataclass(frozen=True)
class Landscape:
    """What each policy is worth, and what a training of it would show. A `Space` as well.

    taus: about the rank correlation of each rung below the full proxy with it. noise: standard deviation between seeds, by rung.
    together: what a combination is worth: "sum" (terms add up, the next best by half), its "best" term, or the "mean" of its terms, which
    is what those of the measured table follow.
    """

    seed: int
    taus: tuple[float, ...] = (0.35, 0.55, 0.75)
    noise: tuple[float, ...] = (0.4, 0.35, 0.3, 0.2)
    knowledge: tuple[str, ...] = tuple(SIZES)
    balanced: bool = False
    together: Literal["sum", "best", "mean"] = "sum"
    _worth: dict[Term, float] = field(default_factory=dict, compare=False, repr=False)
    _seen: WeakKeyDictionary[Evolution, dict[str, int]] = field(default_factory=WeakKeyDictionary, compare=False, repr=False)

    # --- the space

    def weights(self, knowledge: str) -> Sequence[float]:
        """The same for every knowledge."""
        return WEIGHTS

    def terms(self, knowledge: str) -> Iterator[Term]:
        """Every formula with every weight."""
        for genes in product(*map(range, SIZES[knowledge])):
            for weight in WEIGHTS:
                yield _term(knowledge, genes, weight)

    def sample(self, rng: random.Random, knowledge: str) -> Term:
        """Any formula and weight."""
        return _term(knowledge, tuple(rng.randrange(size) for size in SIZES[knowledge]), rng.choice(WEIGHTS))

    def mutate(self, rng: random.Random, term: Term) -> Term:
        """One gene changed (80 %), or two; the weight is one."""
        genes, weight = list(_genes(term)), term.weight
        sizes = SIZES[term.knowledge]
        for place in rng.sample(range(len(genes) + 1), 2 if rng.random() < 0.2 else 1):
            if place == len(genes):
                weight = rng.choice([other for other in WEIGHTS if other != weight])
            else:
                genes[place] = (genes[place] + rng.randrange(1, sizes[place])) % sizes[place]
        return _term(term.knowledge, tuple(genes), weight)

    def crossover(self, rng: random.Random, a: Term, b: Term) -> Term:
        """Each gene from a or b."""
        genes = tuple(rng.choice(pair) for pair in zip(_genes(a), _genes(b), strict=True))
        return _term(a.knowledge, genes, rng.choice((a.weight, b.weight)))

    def has(self, term: Term) -> bool:
        """Only terms of its own; hand-designed ones are real."""
        return term.distance.startswith("d") and term.distance[1:].isdigit()

    def admits(self, policy: Policy) -> Policy | None:
        """At most a term of each knowledge."""
        islands = [term.knowledge for term in policy.terms]
        if len(set(islands)) < len(islands):
            return None
        return Policy(tuple(sorted(policy.terms, key=lambda term: self.knowledge.index(term.knowledge))))

    def key(self, policy: Policy) -> str:
        """Its terms, weights included."""
        return " ".join(f"{term.knowledge} {_genes(term)} {term.weight:g}" for term in policy.terms)

    # --- what policies are worth

    @cached_property
    def effects(self) -> Mapping[str, list[list[float]]]:
        """What each value of each gene adds, by knowledge; the transforms of feature knowledge act alike to a part."""
        rng = random.Random(f"effects {self.seed}")
        shared = [[rng.gauss(0, 1) for _ in range(size)] for size in SIZES["global"]]
        found = {}
        for knowledge, sizes in SIZES.items():
            own = [[rng.gauss(0, 1) for _ in range(size)] for size in sizes]
            if knowledge in FEATURES:
                own = [[0.7 * a + 0.7 * b for a, b in zip(one, other, strict=True)] for one, other in zip(own, shared, strict=True)]
            found[knowledge] = own
        return found

    @cached_property
    def levels(self) -> Mapping[str, float]:
        """What an average formula of each knowledge gains."""
        rng = random.Random(f"levels {self.seed}")
        return {knowledge: rng.gauss(0.0, 0.4) for knowledge in self.knowledge}

    def worth(self, policy: Policy) -> float:
        """The true gain of a policy over no distillation; of a sum its best term, half of the next, ..., and in full what harms."""
        gains = sorted((self.gain(term) for term in policy.terms), reverse=True)
        if self.together == "best":
            return max(gains, default=0.0)
        if self.together == "mean":
            return fmean(gains) if gains else 0.0
        total = sum(gain * 0.5**place if gain > 0 else gain for place, gain in enumerate(gains))
        return total + (self._normal(policy, "together") * 0.15 if len(gains) > 1 else 0.0)

    def gain(self, term: Term) -> float:
        """The true gain of one term, at its weight."""
        if term not in self._worth:
            formula = double_of(term)
            rng = random.Random(f"term {self.seed} {formula.knowledge} {_genes(formula)}")
            if rng.random() < BAD:
                self._worth[term] = HARM * min(1.0, term.weight)
            else:
                genes, effects = _genes(formula), self.effects[term.knowledge]
                additive = sum(effects[place][gene] for place, gene in enumerate(genes)) / len(genes) ** 0.5
                pairwise = sum(self._pair(formula.knowledge, i, genes[i], j, genes[j]) for i in range(len(genes)) for j in range(i))
                pairwise /= max(1, len(genes) * (len(genes) - 1) / 2) ** 0.5
                best = self.levels[term.knowledge] + SPREAD * (0.75 * additive + 0.5 * pairwise + 0.43 * rng.gauss(0, 1))
                away = math.log10(term.weight) - rng.gauss(-0.3, 0.4)
                self._worth[term] = best * math.exp(-((away / WEIGHT_WIDTH) ** 2) / 2) - 0.3 * max(0.0, away)
        return self._worth[term]

    def _pair(self, knowledge: str, i: int, a: int, j: int, b: int) -> float:
        return random.Random(f"pair {self.seed} {knowledge} {i} {a} {j} {b}").gauss(0, 1)

    def _normal(self, policy: Policy, what: str) -> float:
        doubles = [(double_of(term), term.weight) for term in policy.terms]
        text = " ".join(f"{term.knowledge} {_genes(term)} {weight:g}" for term, weight in doubles)
        return random.Random(f"{what} {self.seed} {text}").gauss(0, 1)

    def is_bad(self, policy: Policy) -> bool:
        """Whether one of its formulas is bad."""
        return any(self.gain(term) == HARM * min(1.0, term.weight) for term in policy.terms)

    # --- what trainings show

    def measurement(self, policy: Policy, rung: int, rungs: int, replicate: int) -> float:
        """The AP of a training: what the policy is worth, distorted at low rungs (half of that alike in all), and noise of its seed."""
        below = rungs - 1 - rung  # rungs below the full proxy count from the end, however many there are
        noise = self.noise[-1 - below]
        worth = self.worth(policy)
        if below:
            rho = math.sin(math.pi / 2 * self.taus[-below])
            wanted = SPREAD**2 * (1 / rho**2 - 1)
            distortion = math.sqrt(max(0.0, wanted - noise**2))
            worth += distortion * (self._normal(policy, "short") + self._normal(policy, f"rung {below}")) / 2**0.5
        return worth + noise * self._normal(policy, f"seed {below} {replicate}")

    def measured(self, evolution: Evolution, job: Job, *, gates: bool, doubles: bool) -> dict[int, Outcome]:
        """What a trainer would tell of a job. gates, doubles: whether new candidates pass the rejection cascade, or are compared, first."""
        found = {}
        for index in job.members:
            candidate = evolution.candidates[index]
            policy = candidate.policy
            new = any(one.index == index for one in job.new)
            rejected = None
            if doubles and new and policy.terms and (double := self._doubles(evolution, index)) is not None:
                found[index] = Outcome(None, same_as=double)
                continue
            if gates and new and policy.terms:
                luck = (1 + math.erf(self._normal(policy, "gate") / 2**0.5)) / 2
                rejected = "descent" if luck < (CAUGHT if self.is_bad(policy) else FALSE_ALARM) else None
            if rejected and not candidate.audit:
                found[index] = Outcome(None, rejected=rejected)
            else:
                found[index] = Outcome(self.measurement(policy, job.rung, len(evolution.spec.rungs), job.replicate), rejected=rejected)
        return found

    def _doubles(self, evolution: Evolution, index: int) -> int | None:
        mine = self.key(Policy(tuple(map(double_of, evolution.candidates[index].policy.terms))))
        known = self._seen.setdefault(evolution, {})
        return None if known.setdefault(mine, index) == index else known[mine]


def double_of(term: Term) -> Term:
    """The formula that stands for all that compute the same: under half of the distances three of the scales do nothing, and two norms."""
    if len(term.transforms) < 3:
        return term
    attention, scale, norm, distance = _genes(term)
    if distance < 4:
        scale = 0 if scale < 4 else scale
        norm = 0 if norm < 3 else norm
    return _term(term.knowledge, (attention, scale, norm, distance), term.weight)


class World(Space, Protocol):
    """A space whose policies have been measured, or may be without training: a `Landscape`, or a `Table`."""

    def worth(self, policy: Policy) -> float:
        """What a policy is truly worth."""
        ...

    def measured(self, evolution: Evolution, job: Job, *, gates: bool, doubles: bool) -> dict[int, Outcome]:
        """What a trainer would tell of a job."""
        ...


def search(world: World, spec: Spec, *, gates: bool, doubles: bool) -> Evolution:
    """Run a whole search on a world."""
    evolution = Evolution(replace(spec, space=world))
    while not evolution.finished:
        job = evolution.ask()
        if job is None:
            break
        evolution.tell(job.index, world.measured(evolution, job, gates=gates, doubles=doubles))
    return evolution


def found(world: World, evolution: Evolution) -> float:
    """What the policy that a search recommends is truly worth; that of no distillation where it recommends none."""
    best = evolution.best(1)
    return world.worth(best[0].candidate.policy if best else Policy(()))


def _term(knowledge: str, genes: tuple[int, ...], weight: float) -> Term:
    *transforms, distance = genes
    return Term(knowledge, tuple(f"t{gene}" for gene in transforms), f"d{distance}", weight)


def _genes(term: Term) -> tuple[int, ...]:
    return (*(int(name[1:]) for name in term.transforms), int(term.distance[1:]))
