"""What a decision may look at: everything asked for before it, and only the results that the lag lets through."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

from detkds_core.evolution.spec import Candidate, Job, Outcome, Spec
from detkds_core.policy import Policy, Term
from detkds_core.policy.vocabulary import MAX_WEIGHT

T = TypeVar("T")
CROWD = 8  # candidates at a rung before it ranks above lower ones
TELLING = 1.0  # COCO's AP, in percent, that half of a rung has where it orders better than the lenient one (docs/benchmarks.md)


class History:
    """The view of the next job: all jobs and candidates before it, and the results of the jobs that it may see, folded one by one.

    jobs, candidates: all so far. outcomes: by candidate, (rung, replicate, outcome) of every visible measurement. original: whose
    measurements count for a candidate that turned out to do the same as an earlier one. refused: the candidates that a gate refused, those
    that an audit measured all the same included, and those that could not be trained. values: by candidate and rung, the AP of each
    visible replicate, or the lenient AP; of candidates that are nobody's double and that nothing refused. means: of these, by candidate and
    rung. entered: by rung, who is or was measured there.
    spent: student iterations that the jobs cost; of what was refused or a double only the look. drafts: of the job that is being decided.
    budget, limit: iterations that may be spent and candidates that may be proposed by now: those of the spec until the search is extended.
    since: what had been spent when the budget last grew.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.jobs: list[Job] = []
        self.candidates: list[Candidate] = []
        self.drafts: list[Candidate] = []
        self.outcomes: dict[int, list[tuple[int, int, Outcome]]] = {}
        self.original: dict[int, int] = {}
        self.refused: set[int] = set()
        self.values: dict[int, dict[int, list[float]]] = {}
        self.means: dict[int, dict[int, float]] = {}
        self.entered: list[set[int]] = [set() for _ in spec.rungs]
        self._telling = [0 for _ in spec.rungs]  # by rung, how many more measurements have an AP of TELLING than have less
        self.visible: set[int] = set()
        self.spent = 0.0
        self.budget = spec.budget
        self.limit = spec.candidates
        self.since = 0.0
        self._keys: set[str] = set()
        self._singles: Counter[str] = Counter()
        self._tried: set[str] = set()  # islands of which a single term was proposed, references included
        self._measured: dict[int, Measured] = {}
        self._members: dict[str, dict[int, None]] = {island: {} for island in spec.knowledge}
        self._cache: dict[Any, Any] = {}
        self._kept: dict[Any, Any] = {}

    def asked(self, job: Job) -> None:
        """A job was decided."""
        self.drafts.clear()
        self.jobs.append(job)
        for one in job.new:
            self.candidates.append(one)
            self._keys.add(self.spec.space.key(one.policy))
            if (term := only_term(one)) is not None:
                self._tried.add(term.knowledge)
            if one.stage == "stage1" and one.island is not None:
                self._singles[one.island] += 1
        self.entered[job.rung] |= set(job.members)
        self.spent += self.spec.rungs[job.rung] * len(job.members) + self.spec.look * len(job.new)

    def told(self, number: int, outcomes: Mapping[int, Outcome]) -> None:
        """The result of a job becomes visible."""
        job = self.jobs[number]
        self.visible.add(number)
        self._weigh(job.rung, outcomes)
        for index, outcome in sorted(outcomes.items()):
            self.outcomes.setdefault(index, []).append((job.rung, job.replicate, outcome))
            if outcome.ap is None and outcome.failure is None:
                self.spent -= self.spec.rungs[job.rung]
            if outcome.same_as is not None:
                self.original[index] = self.original.get(outcome.same_as, outcome.same_as)
            elif outcome.rejected is not None or outcome.ap is None:
                self.refused.add(index)
                self.values.pop(index, None)
                self.means.pop(index, None)
                self._measured.pop(index, None)
                for members in self._members.values():
                    members.pop(index, None)
            if index not in self.refused and index not in self.original and outcome.ap is not None:
                mine = self.values.setdefault(index, {})
                mine.setdefault(job.rung, []).append(self.worth(job.rung, outcome))
                top = max(mine)
                means = self.means.setdefault(index, {})
                means[job.rung] = fmean(mine[job.rung])
                self._measured[index] = Measured(self.candidates[index], top, means[top], len(mine[top]))
                term = only_term(self.candidates[index])
                if term is not None and term.knowledge in self._members:
                    self._members[term.knowledge][index] = None
        self._cache.clear()

    def worth(self, rung: int, outcome: Outcome) -> float:
        """What a measured candidate is ordered by at a rung: its AP; below the full proxy the lenient one, where the search wants that and
        AP does not tell candidates apart yet."""
        assert outcome.ap is not None, "a candidate that was measured"
        lenient = self.spec.lenient and rung < self.spec.top and self._telling[rung] < 0
        return outcome.lenient_ap if lenient and outcome.lenient_ap is not None else outcome.ap

    def _weigh(self, rung: int, outcomes: Mapping[int, Outcome]) -> None:
        """Count which AP tells the measurements of a rung apart; where that has changed, all of them are ordered anew."""
        before = self._telling[rung] < 0
        self._telling[rung] += sum(1 if one.ap >= TELLING else -1 for one in outcomes.values() if one.ap is not None)
        if (self._telling[rung] < 0) == before:
            return
        for index, mine in self.values.items():
            if rung in mine:
                mine[rung] = [self.worth(rung, one) for at, _, one in self.outcomes[index] if at == rung and one.ap is not None]
                self.means[index][rung] = fmean(mine[rung])
                if rung == max(mine):
                    self._measured[index] = replace(self._measured[index], fitness=self.means[index][rung])

    def extended(self, budget: int, limit: int | None) -> None:
        """From here on the search may spend more. All results are visible."""
        self.budget, self.limit, self.since = budget, limit, self.spent

    def remembered(self, what: Any, found: Callable[[], T], *, forever: bool = False) -> T:
        """What `found` gives, worked out once until another result becomes visible: it follows from visible results alone.

        forever: it follows from the spec alone.
        """
        cache = self._kept if forever else self._cache
        if what not in cache:
            cache[what] = found()
        kept: T = cache[what]
        return kept

    @property
    def measured(self) -> list[Measured]:
        """The candidates with a visible measurement, in index order."""
        return self.remembered("measured", lambda: [one for _, one in sorted(self._measured.items())])

    @property
    def ranked(self) -> list[Measured]:
        """The same as they are worth breeding from (`earned`), best first."""
        return self.remembered("ranked", lambda: sorted(map(self.earned, self.measured), key=lambda one: one.rank))

    def order(self, rung: int) -> list[int]:
        """The candidates that were measured at a rung, the best first."""

        def found() -> list[int]:
            at = {index: mine[rung] for index, mine in self.means.items() if rung in mine}
            return sorted(at, key=lambda index: (-at[index], index))

        return self.remembered(("order", rung), found)

    def earned(self, one: Measured) -> Measured:
        """A candidate at the highest rung that it is compared at: its own, unless few others are there, or it climbed without merit.

        A search that is small, or young, has a handful at the full proxy, and they climbed before better ones were proposed: these must not
        rank behind them. And a calibrator passes all rungs; it belongs where it is among the best.
        """
        index = one.candidate.index
        mine = self.means[index]

        def belongs(rung: int) -> bool:
            others = self.order(rung)
            merit = index >= self.spec.calibrators or index in others[: len(others) // self.spec.eta]
            return merit and len(others) >= CROWD

        rung = next((rung for rung in sorted(mine, reverse=True) if belongs(rung)), min(mine))
        return Measured(one.candidate, rung, mine[rung], len(self.values[index][rung]))

    def own_term(self, one: Measured) -> Term:
        """The term of a one-term candidate, to breed from: with the weight that the space would give it.

        In a space of ratios a hand-designed term's fixed weight becomes the ratio that was seen at the fork.
        """
        (term,) = one.candidate.policy.terms
        space = self.spec.space
        if not space.balanced or term.balanced:
            return term
        seen = (outcome.ratio for _, _, outcome in self.outcomes[one.candidate.index])
        ratio = rounded(next((ratio for ratio in seen if ratio is not None), 0.0))
        return replace(term, weight=ratio, balanced=True, auto=False) if 0 < ratio <= MAX_WEIGHT else term

    def members(self, island: str) -> list[Measured]:
        """The measured one-term candidates of an island as they are worth breeding from, in the order of their first results."""
        return self.remembered(("members", island), lambda: [self.earned(self._measured[index]) for index in self._members[island]])

    @property
    def count(self) -> int:
        """How many candidates are proposed, those of the job that is being decided included."""
        return len(self.candidates) + len(self.drafts)

    def singles(self, island: str) -> int:
        """How many stage 1 candidates of an island have been proposed."""
        return self._singles[island] + sum(one.stage == "stage1" and one.island == island for one in self.drafts)

    @property
    def untried(self) -> list[str]:
        """The islands of which no single term was proposed, drafts and references included."""
        drafted = {term.knowledge for term in map(only_term, self.drafts) if term is not None}
        return [island for island in self.spec.knowledge if island not in self._tried and island not in drafted]

    def is_new(self, policy: Policy) -> bool:
        """Whether no earlier candidate is canonically equal."""
        key = self.spec.space.key(policy)
        return key not in self._keys and all(self.spec.space.key(one.policy) != key for one in self.drafts)

    @property
    def idle(self) -> bool:
        """Whether the results of all jobs are visible."""
        return len(self.visible) == len(self.jobs)


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate at the highest rung that it was seen at, and its mean AP over the replicates there."""

    candidate: Candidate
    rung: int
    fitness: float
    replicates: int = 1

    @property
    def rank(self) -> tuple[int, float, int]:
        """Sorts best first: the higher rung, the higher fitness, the lower index."""
        return (-self.rung, -self.fitness, self.candidate.index)


def only_term(candidate: Candidate) -> Term | None:
    """The term of a one-term policy, else None. A one-term reference lives on its island like any other candidate."""
    policy = candidate.policy
    return policy.terms[0] if len(policy.terms) == 1 and not policy.distillers else None


def no_distillation(history: History, rung: int) -> float | None:
    """The AP without distillation at a rung, where it was measured."""
    alone = next((one.index for one in history.candidates if one.policy == Policy(())), None)
    return history.means.get(alone, {}).get(rung) if alone is not None else None


def tournament(rng: random.Random, population: Sequence[Measured], size: int) -> Measured:
    """The best of `size` members drawn without replacement (all, where there are fewer)."""
    return min(rng.sample(population, min(size, len(population))), key=lambda one: one.rank)


def generator(seed: int, *place: int | str) -> random.Random:
    """The random numbers of one decision: a function of its place alone, so that none depends on how often another drew."""
    text = " ".join(map(str, ("detkds evolution", seed, *place)))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def halved_and_doubled(weight: float) -> Iterator[float]:
    """The two neighbours of a weight on its own scale, those that are legal weights."""
    for scaled in (rounded(weight * 0.5), rounded(weight * 2.0)):
        if 0 < scaled <= MAX_WEIGHT:
            yield scaled


def rounded(weight: float) -> float:
    """A weight to three significant digits: no search can tell more of them apart, and a reader can say them.

    >>> rounded(2 / 3)
    0.667
    """
    return float(f"{weight:.3g}")
