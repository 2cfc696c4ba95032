"""A measured table of policies as a space to search: what a search would have found, without a training.

The table is what `benchmarks/tabular.py merge` writes. A term may be proposed if the table has it alone; a combination stands for the
table's member that it has most in common with, since no table holds all combinations.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import permutations, product
from statistics import fmean
from typing import Any
from weakref import WeakKeyDictionary

from detkds_core.evolution.rungs import kendall_tau
from detkds_core.evolution.search import Evolution
from detkds_core.evolution.spec import ETA, Job, Outcome
from detkds_core.policy import Policy, Term, canonical, canonical_json, from_json

NEAR = 6  # members drawn, of which the one with most genes in common is the mutant


class Table:
    """A space of the table's policies, and what trainings of them showed. Raises ValueError where a measurement is missing.

    Without the hand-designed ones, those with a name: who knows them need not search, and no policy drawn at random may beat them.
    """

    balanced = True

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.rungs: tuple[int, ...] = tuple(data["rungs"])
        self.seeds: tuple[int, ...] = tuple(data["seeds"])
        self.columns: Mapping[str, Sequence[Mapping[str, Any] | None]] = data["runs"]
        self._all = [canonical(from_json(row["policy"])) for row in data["policies"]]
        for name in (f"{rung} {seed}" for rung in self.rungs for seed in self.seeds):
            missing = sum(one is None for one in self.columns.get(name, [None] * len(self._all)))
            if missing:
                raise ValueError(f"runs[{name!r}]: {missing} of {len(self._all)} measurements are missing")
        names = [row.get("name", "none") for row in data["policies"]]
        self.rows = {_key(policy): row for row, policy in enumerate(self._all) if names[row] == "none"}
        self.policies = [self._all[row] for row in self.rows.values()]
        self._islands: dict[str, list[Term]] = {}
        for row, policy in zip(data["policies"], self._all, strict=True):
            if row.get("island"):
                self._islands.setdefault(row["island"], []).append(policy.terms[0])
        self._known: WeakKeyDictionary[Evolution, dict[int, int]] = WeakKeyDictionary()

    # --- the space

    @property
    def knowledge(self) -> tuple[str, ...]:
        """The islands of the table's single terms, in its order."""
        return tuple(self._islands)

    def weights(self, knowledge: str) -> Sequence[float]:
        """Every weight that one of its terms has."""
        return sorted({term.weight for term in self._islands[knowledge]})

    def terms(self, knowledge: str) -> Iterator[Term]:
        """The table's single terms, in its order."""
        return iter(self._islands[knowledge])

    def sample(self, rng: random.Random, knowledge: str) -> Term:
        """One of them."""
        return rng.choice(self._islands[knowledge])

    def mutate(self, rng: random.Random, term: Term) -> Term:
        """Of a few others, the one with most genes in common."""
        others = [other for other in self._islands[term.knowledge] if other != term]
        if not others:
            raise ValueError(f"{term.knowledge}: the table has no other term")
        return max(rng.sample(others, min(NEAR, len(others))), key=lambda other: in_common(term, other))

    def crossover(self, rng: random.Random, a: Term, b: Term) -> Term:
        """Of a few others than a, the one with most genes in common with both."""
        others = [other for other in self._islands[a.knowledge] if other not in (a, b)]
        if not others:
            raise ValueError(f"{a.knowledge}: the table has no other term")
        return max(rng.sample(others, min(NEAR, len(others))), key=lambda other: in_common(a, other) + in_common(b, other))

    def has(self, term: Term) -> bool:
        """Whether the table has it alone."""
        return _key(Policy((term,))) in self.rows

    def admits(self, policy: Policy) -> Policy | None:
        """The table's policy: this one, or of the combinations of the same knowledge the one with most genes in common.

        With a distiller, only this one."""
        islands = [term.knowledge for term in policy.terms]
        if len(set(islands)) < len(islands):
            return None
        if len(islands) < 2 or policy.distillers:
            row = self.rows.get(_key(policy))
            return None if row is None else self._all[row]
        wanted = {term.knowledge: term for term in policy.terms}

        def near(member: Policy) -> tuple[int, bool]:
            alike = [in_common(term, wanted[term.knowledge]) for term in member.terms]
            return sum(alike), all(term == wanted[term.knowledge] for term in member.terms)

        return max(self.combinations.get(frozenset(islands), []), key=near, default=None)

    def key(self, policy: Policy) -> str:
        """Its canonical JSON."""
        return _key(policy)

    @cached_property
    def combinations(self) -> Mapping[frozenset[str], list[Policy]]:
        """The table's policies of two and more terms and no distiller, by their knowledge."""
        found: dict[frozenset[str], list[Policy]] = {}
        for policy in self.policies:
            islands = frozenset(term.knowledge for term in policy.terms)
            if 1 < len(islands) == len(policy.terms) and not policy.distillers:
                found.setdefault(islands, []).append(policy)
        return found

    # --- what trainings showed

    def worth(self, policy: Policy) -> float:
        """Its AP at the full proxy, the mean of all seeds; 0 where it could not be trained."""
        return self.worth_of_row(self.rows[_key(policy)])

    def worth_of_row(self, row: int) -> float:
        """The same of a row of the table, the hand-designed policies included."""
        each = [self._cell(self.rungs[-1], seed, row)["ap"] for seed in self.seeds]
        return fmean(ap or 0.0 for ap in each)

    def gates(self) -> dict[str, tuple[int, int]]:
        """By gate, how often it refused a policy, once a seed, and how often one that is among the best third at the full proxy.

        The table trains what is refused, all of it; doubles are none of this gate's business. The hand-designed policies count too.
        """
        worths = [self.worth_of_row(row) for row in range(len(self._all))]
        good = sorted(worths, reverse=True)[len(worths) // ETA]
        counts: dict[str, tuple[int, int]] = {}
        for seed, row in product(self.seeds, range(len(self._all))):
            gate = self._cell(self.rungs[0], seed, row).get("rejected")
            if gate and gate != "duplicate":
                refused, falsely = counts.get(gate, (0, 0))
                counts[gate] = (refused + 1, falsely + (worths[row] >= good))
        return dict(sorted(counts.items()))

    def taus(self) -> dict[tuple[int, str], float]:
        """By rung and by what it is ordered by, Kendall's tau with the full proxy of another seed, the mean over all pairs of seeds.

        All policies count, the hand-designed ones too; one that could not be trained has an AP of 0. Raises ValueError with one seed.
        """
        if len(self.seeds) < 2:
            raise ValueError("seeds: one is no other; two at least")

        def aps(rung: int, seed: int, key: str) -> list[float]:
            return [self._cell(rung, seed, row).get(key) or 0.0 for row in range(len(self._all))]

        full = {seed: aps(self.rungs[-1], seed, "ap") for seed in self.seeds}
        wanted = [(rung, key) for rung in self.rungs for key in ("ap", "lenient_ap") if rung < self.rungs[-1] or key == "ap"]
        return {
            (rung, key): fmean(
                kendall_tau(list(zip(aps(rung, one, key), full[other], strict=True))) for one, other in permutations(self.seeds, 2)
            )
            for rung, key in wanted
        }

    def measured(self, evolution: Evolution, job: Job, *, gates: bool, doubles: bool) -> dict[int, Outcome]:
        """What the table has for a job. Replicate n is the seed n places after the search's own, as often as it takes."""
        spec = evolution.spec
        seed = self.seeds[(job.replicate + spec.seed) % len(self.seeds)]
        known = self._known.setdefault(evolution, {})
        found = {}
        for index in job.members:
            row = self.rows[_key(evolution.candidate(index).policy)]
            looked = self._cell(self.rungs[0], self.seeds[0], row)
            first = known.setdefault(row if looked.get("same_as") is None else looked["same_as"], index)
            cell = self._cell(spec.rungs[job.rung], seed, row)
            ap, lenient = cell["ap"], cell.get("lenient_ap")
            refused = looked.get("rejected") if gates and any(one.index == index for one in job.new) else None
            refused = None if refused == "duplicate" else refused  # that gate is `doubles`
            if doubles and first != index:
                found[index] = Outcome(None, same_as=first)
            elif refused and not evolution.candidate(index).audit:
                found[index] = Outcome(None, rejected=refused)
            else:
                found[index] = Outcome(ap, failure="not_finite" if ap is None else None, rejected=refused, lenient_ap=lenient)
        return found

    def _cell(self, rung: int, seed: int, row: int) -> Mapping[str, Any]:
        cell = self.columns[f"{rung} {seed}"][row]
        assert cell is not None
        return cell


@lru_cache(maxsize=1 << 16)
def _key(policy: Policy) -> str:
    """The canonical JSON of a legal policy. A hundred searches ask for those of a few hundred policies and what is drawn beside them."""
    return canonical_json(canonical(policy))


def in_common(a: Term, b: Term) -> int:
    """How many genes two terms share: transforms by their place, the distance, the weight."""
    transforms = sum(one == other for one, other in zip(a.transforms, b.transforms, strict=False))
    return transforms + (a.distance == b.distance) + (a.weight == b.weight)
