"""The search itself: a pure fold over (spec, results in index order), asked and told.

Divide and conquer: the references first, then one-term candidates on islands (`islands`), then combinations of the best terms
(`combinations`). Nothing here keeps state of its own: proposal n is a function of the spec, of the proposals before n and of the results
of candidates with index < n - parallelism. So a search that is interrupted, replayed or served by any number of workers at any speed
proposes the same policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detkds_core.evolution.combinations import propose_combination
from detkds_core.evolution.history import History
from detkds_core.evolution.islands import propose_term
from detkds_core.evolution.spec import Proposal, Result, Spec
from detkds_core.evolution.summary import summarize
from detkds_core.policy import canonical, canonical_json


class Evolution:
    """A search in progress: `ask` for the next candidate, `tell` what one is worth.

    >>> evolution = Evolution(spec)
    >>> while not evolution.finished:
    ...     while (proposal := evolution.ask()) is not None:
    ...         start(proposal)
    ...     evolution.tell(*next_result())
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._proposals: list[Proposal] = []
        self._results: dict[int, Result] = {}
        self._told = 0  # results 0 .. _told - 1 are there: the prefix that proposals may look at
        self._keys: set[str] = set()
        self._exhausted = False

    @property
    def proposals(self) -> tuple[Proposal, ...]:
        """All candidates asked for so far, in index order."""
        return tuple(self._proposals)

    @property
    def results(self) -> dict[int, Result]:
        """All results told so far, by index."""
        return dict(sorted(self._results.items()))

    @property
    def exhausted(self) -> bool:
        """Whether the search ran out of new policies before its budget was spent. Known once `ask` has come so far."""
        return self._exhausted

    @property
    def finished(self) -> bool:
        """Whether no candidate is left to ask for, and every result has been told."""
        return len(self._results) == len(self._proposals) and (self._exhausted or len(self._proposals) == self.spec.candidates)

    def ask(self) -> Proposal | None:
        """The next candidate, or None: results are missing (tell some and ask again), or the search has no more candidates.

        Candidate n waits until all results with index < n - parallelism have been told, and looks at those only.
        """
        n = len(self._proposals)
        visible = max(0, n - self.spec.parallelism)
        if self._exhausted or n == self.spec.candidates or self._told < visible:
            return None
        history = History(self.spec, self._proposals, [self._results[index] for index in range(visible)], self._keys)
        proposal = propose(history)
        if proposal is None:
            self._exhausted = True
            return None
        self._proposals.append(proposal)
        self._keys.add(canonical_json(proposal.policy))
        return proposal

    def tell(self, index: int, result: Result) -> None:
        """Record what a candidate is worth. Any order is fine: a result is looked at once all before it are there.

        Telling the same again changes nothing. Raises ValueError for a candidate that was not asked for, and for a different result.
        """
        if not 0 <= index < len(self._proposals):
            raise ValueError(f"candidate {index} has not been asked for; told so far: {self._told}, asked for: {len(self._proposals)}")
        if index in self._results and self._results[index] != result:
            raise ValueError(f"candidate {index} was told {self._results[index]} before, and now {result}; a result does not change")
        self._results[index] = result
        while self._told in self._results:
            self._told += 1

    def best(self, n: int) -> list[Proposal]:
        """The n candidates with the highest fitness, ties by the lower index: feasible ones that the search itself proposed."""
        found = [
            (-fitness, index)
            for index, result in self._results.items()
            if (fitness := result.fitness) is not None and self._proposals[index].stage != "reference"
        ]
        return [self._proposals[index] for _, index in sorted(found)[:n]]

    def summary(self) -> dict[str, Any]:
        """What has happened so far, as JSON; see `summarize`."""
        return summarize(self.spec, self._proposals, self._results) | {"finished": self.finished, "exhausted": self.exhausted}


def propose(history: History) -> Proposal | None:
    """The proposal that follows a history, or None when no new policy is left: the one decision that everything else serves."""
    spec, n = history.spec, len(history.proposals)
    if n < len(spec.references):
        return Proposal(n, canonical(spec.references[n]), "reference")
    stages = [propose_term, propose_combination]
    if n >= len(spec.references) + spec.stage1_candidates:
        stages.reverse()
    # A stage with nothing new left hands its budget to the other one.
    return stages[0](history) or stages[1](history)


def replay(spec: Spec, results: Mapping[int, Result], asked: int) -> Evolution:
    """The search as it stood after `asked` candidates were asked for and `results` were told: how a process resumes one.

    Raises ValueError when the results could not have led to so many candidates, or belong to one that was not asked for.
    """
    evolution = Evolution(spec)
    for index in sorted(results):
        while len(evolution.proposals) <= index and evolution.ask() is not None:
            pass
        evolution.tell(index, results[index])
    while len(evolution.proposals) < asked:
        if evolution.ask() is None:
            raise ValueError(
                f"{asked} candidates cannot have been asked for: with {len(results)} results only {len(evolution.proposals)} can"
            )
    return evolution
