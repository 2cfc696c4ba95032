"""The search itself: a pure fold over a ledger of decisions and results, asked and told.

Nothing here keeps state of its own: job n is a function of the spec, of the jobs before it and of the results of the jobs that it may
see: those with index <= n - parallelism (`strict`), or those that were there when it was decided (`logged`, where the ledger says which).
So a strict search that is interrupted, replayed or served by any number of workers at any speed asks for the same measurements, and a
logged one can be replayed to the byte from its ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from detkds_core.evolution.history import History, Measured
from detkds_core.evolution.rungs import shrunken
from detkds_core.evolution.searchers import plan
from detkds_core.evolution.spec import Candidate, Job, Outcome, Spec
from detkds_core.evolution.summary import summarize


class Evolution:
    """A search in progress: `ask` for the next job, `tell` what its candidates are worth.

    >>> evolution = Evolution(spec)
    >>> while not evolution.finished:
    ...     while (job := evolution.ask()) is not None:
    ...         start(job)
    ...     evolution.tell(*next_results())
    """

    def __init__(self, spec: Spec, *, logged: bool = False) -> None:
        self.spec = spec
        self.logged = logged
        self._view = History(spec)  # of the next decision
        self._results: dict[int, dict[int, Outcome]] = {}
        self._ledger: list[Job | int | dict[str, Any]] = []  # what was asked, whose result was looked at, and how it was extended
        self._told = 0  # the results of jobs 0 .. _told - 1 are there
        self._open: set[int] = set()  # jobs without a result
        self._unseen: set[int] = set()  # jobs with a result that was not looked at yet
        self._news: list[int] = []  # jobs whose results were looked at since the last decision
        self._places: list[int] = []  # of each job in the ledger
        self._exhausted = False

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All jobs asked for so far, in index order."""
        return tuple(self._view.jobs)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates proposed so far, in index order."""
        return tuple(self._view.candidates)

    @property
    def results(self) -> dict[int, dict[int, Outcome]]:
        """All outcomes told so far, by job and candidate."""
        return {job: dict(outcomes) for job, outcomes in sorted(self._results.items())}

    @property
    def count(self) -> int:
        """How many candidates have been proposed so far."""
        return len(self._view.candidates)

    def candidate(self, index: int) -> Candidate:
        """One of them."""
        return self._view.candidates[index]

    def result(self, job: int) -> dict[int, Outcome] | None:
        """What a job found, by candidate; None: it was not told yet."""
        return self._results.get(job)

    @property
    def open(self) -> list[int]:
        """The jobs whose results are missing, at most `parallelism`."""
        return sorted(self._open)

    @property
    def ledger(self) -> tuple[dict[str, Any], ...]:
        """Everything that decided something, in order: {"asked": job}, {"told": job index, "outcomes": {candidate: outcome}} and
        {"extended": {"budget", "candidates"}}.

        A result stands where it was first looked at, so that the ledger of a strict search does not depend on when results came.
        """
        return self.ledger_from(0)

    @property
    def events(self) -> int:
        """How many events the ledger has."""
        return len(self._ledger)

    def ledger_from(self, first: int) -> tuple[dict[str, Any], ...]:
        """The events of the ledger from number `first` on."""
        return tuple(map(self._event, self._ledger[first:]))

    def _event(self, entry: Job | int | dict[str, Any]) -> dict[str, Any]:
        if isinstance(entry, Job):
            return {"asked": entry.to_json()}
        if isinstance(entry, int):
            return {"told": entry, "outcomes": {str(one): outcome.to_json() for one, outcome in self._results[entry].items()}}
        return entry

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask for, and every result has been told. Known once `ask` has come so far."""
        return self._exhausted and len(self._results) == len(self._view.jobs)

    def ask(self, seen: Iterable[int] | None = None) -> Job | None:
        """The next job, or None: results are missing (tell some and ask again), or the search has nothing left to measure.

        seen: the jobs whose results are looked at; only a logged search is asked with it, when it is replayed.
        """
        if self.finished:
            return None
        visible = self._visible(seen)
        if visible is None:
            return None
        for number in sorted(self._unseen.intersection(visible)):
            self._look_at(number)
        self._view.drafts.clear()
        planned = plan(self._view)
        if planned is None:
            if self._view.idle:
                self._exhausted = True
            elif len(self._results) == len(self._view.jobs):  # all results are there, and the lag keeps some from being looked at
                for number in sorted(self._unseen):
                    self._look_at(number)
                return self.ask()
            return None  # it may only be waiting for results
        news = tuple(sorted(self._news)) if self.logged else ()
        job = Job(len(self._view.jobs), planned.rung, planned.replicate, planned.members, planned.new, news)
        self._news.clear()
        self._view.asked(job)
        self._places.append(len(self._ledger))
        self._ledger.append(job)
        self._open.add(job.index)
        return job

    def tell(self, index: int, outcomes: Mapping[int, Outcome]) -> None:
        """Record what a job found. In a strict search any order is fine: a result is looked at once all before it are there.

        Telling the same again changes nothing. Raises ValueError for a job that was not asked for, other candidates than its own, and a
        different result.
        """
        if not 0 <= index < len(self._view.jobs):
            raise ValueError(f"job {index} has not been asked for; asked for so far: {len(self._view.jobs)}")
        if set(outcomes) != set(self._view.jobs[index].members):
            raise ValueError(f"job {index} measures the candidates {list(self._view.jobs[index].members)}, told were {sorted(outcomes)}")
        told = dict(sorted(outcomes.items()))
        if index in self._results:
            if self._results[index] != told:
                raise ValueError(f"job {index} was told {self._results[index]} before, and now {told}; a result does not change")
            return
        self._results[index] = told
        self._open.discard(index)
        self._unseen.add(index)
        self._exhausted = False
        while self._told in self._results:
            self._told += 1

    def extend(self, budget: int, candidates: int | None = None) -> None:
        """Let a search that has come to its end go on, with this budget in all and so many candidates at most (None: as the budget pays).

        What was derived from the budget that it began with (`Spec.calibrators`) stays. What the number of candidates left unspent need not
        be in the new budget. Raises ValueError while results are missing, and for a budget that is not more than what is spent.
        """
        if not self._view.idle:
            raise ValueError(f"extended: the results of {len(self._view.jobs) - len(self._view.visible)} jobs have not been looked at")
        if budget <= (spent := min(self._view.budget, self._view.spent)):
            raise ValueError(f"extended.budget: {budget} is not more than the {spent:g} iterations that the search has spent")
        if candidates is not None and candidates <= len(self._view.candidates):
            raise ValueError(f"extended.candidates: {candidates} leaves nothing to search after {len(self._view.candidates)} candidates")
        self._view.extended(budget, candidates)
        self._ledger.append({"extended": {"budget": budget, "candidates": candidates}})
        self._exhausted = False

    def repeat(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Do what these further events of the ledger say, each decision anew.

        Raises ValueError when a decision comes out differently from the ledger's, which then belongs to another spec or version.
        """
        for event in events:
            if "asked" in event:
                asked = event["asked"]
                if self.logged:  # ledgers of before say all that had been looked at, not only what was new
                    before = self._view.visible.difference(self._news)
                    asked = {**asked, "seen": [number for number in asked["seen"] if number not in before]}
                job = self.ask(asked["seen"] if self.logged else None)
                if job is None:
                    raise ValueError(f"ledger[{len(self._ledger)}]: this spec asks for nothing more where the ledger has a job")
                if difference := first_difference(job.to_json(), asked):
                    raise ValueError(f"ledger[{len(self._ledger) - 1}]: this spec asks for {difference}")
            elif "extended" in event:
                self.extend(**event["extended"])
            else:
                self.tell(event["told"], {int(index): Outcome.from_json(one) for index, one in event["outcomes"].items()})
                self._look_at(event["told"])

    def place(self, number: int) -> int:
        """Which event of the ledger a job is: the results that were told before it were looked at."""
        return self._places[number]

    def seen_by(self, number: int) -> int:
        """How many of the first jobs a job of a strict search may look at."""
        return max(0, number - self.spec.parallelism + 1)

    def history(self) -> History:
        """The view with everything that has been told."""
        whole = History(self.spec)
        for job in self._view.jobs:
            whole.asked(job)
        for number, outcomes in sorted(self._results.items()):
            whole.told(number, outcomes)
        whole.budget, whole.limit, whole.since = self._view.budget, self._view.limit, self._view.since
        return whole

    def best(self, n: int) -> list[Measured]:
        """The n best candidates that the search itself proposed: highest rung first, there by what their measurements say of them."""
        history = self.history()
        found = [one for one in history.measured if one.candidate.stage != "reference"]

        def rank(one: Measured) -> tuple[int, float, int]:
            return (-one.rung, -shrunken(history, one.rung, one.fitness, one.replicates), one.candidate.index)

        return sorted(found, key=rank)[:n]

    def fitness(self, candidate: int) -> float | None:
        """The mean AP of a candidate at the highest rung that it was seen at; that of its double, where it has one."""
        history = self.history()
        mine = history.values.get(history.original.get(candidate, candidate))
        return fmean(mine[max(mine)]) if mine else None

    def summary(self, costs: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """What has happened so far, as JSON; costs: what each measurement took. See `summarize`."""
        return summarize(self.history(), costs) | {"finished": self.finished}

    def _look_at(self, number: int) -> None:
        """Let a result into the view, and into the ledger, once."""
        if number not in self._view.visible:
            self._view.told(number, self._results[number])
            self._unseen.discard(number)
            self._news.append(number)
            self._ledger.append(number)

    def _visible(self, seen: Iterable[int] | None) -> Iterable[int] | None:
        """The jobs that the next decision looks at, those that were looked at before included or not; None: it has to wait for results."""
        count, parallelism = len(self._view.jobs), self.spec.parallelism
        if self.logged:
            if seen is not None:
                return seen
            return self._unseen if count - len(self._results) < parallelism else None
        first = self.seen_by(count)
        return [number for number in self._unseen if number < first] if self._told >= first else None


def replay(spec: Spec, ledger: Iterable[Mapping[str, Any]], *, logged: bool = False) -> Evolution:
    """The search as it stood after the events of a ledger, each decision made again. Raises ValueError as `Evolution.repeat` does."""
    evolution = Evolution(spec, logged=logged)
    evolution.repeat(ledger)
    return evolution


def first_difference(job: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The first part of a job that is not what the ledger has, and both in short; empty where nothing differs."""
    for part in sorted({*job, *known}):
        ours, theirs = dumped(job.get(part)), dumped(known.get(part))
        if ours != theirs:
            return f"another job: {part} is {shorten(ours, 120)} where the ledger has {shorten(theirs, 120)}"
    return ""


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def dumped(value: Any) -> str:
    """JSON as it is compared, byte for byte."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
