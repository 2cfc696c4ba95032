"""What happened in a search, by stage, island, rung and gate, as plain JSON values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import NormalDist, fmean
from typing import Any, Literal

from detkds_core.evolution.history import History
from detkds_core.evolution.rungs import agreement, calibrating, climbed, seed_noise
from detkds_core.evolution.spec import Candidate, Outcome
from detkds_core.policy import formula

Fate = Literal["measured", "rejected", "duplicate", "infeasible"]


def summarize(history: History) -> dict[str, Any]:
    """Counts, best and mean AP of all candidates, of each stage and of each island's stage 1; None where nothing is known.

    `funnel`: how many were proposed, refused by each gate, doubles, trained at each rung, and how the audit judges the gates.
    `rungs`: iterations, how many were measured there, and how it orders candidates beside the full proxy.
    """
    groups: dict[str, list[Candidate]] = {"reference": [], "stage1": [], "stage2": []}
    islands: dict[str, list[Candidate]] = {island: [] for island in history.spec.knowledge}
    for candidate in history.candidates:
        groups[candidate.stage].append(candidate)
        if candidate.island is not None:
            islands[candidate.island].append(candidate)
    return {
        "algorithm": history.spec.algorithm,
        "budget": history.budget,
        "spent": round(history.spent, 1),
        "all": _figures(history, history.candidates),
        "stages": {stage: _figures(history, members) for stage, members in groups.items()},
        "islands": {island: _figures(history, members) for island, members in islands.items()},
        "operators": _operators(history),
        "funnel": funnel(history),
        "rungs": _rungs(history),
    }


def funnel(history: History) -> dict[str, Any]:
    """Proposed, refused by gate, doubles, infeasible, trained at each rung; and the audit. A candidate counts once, as the ledger has it.

    An audited candidate, refused and trained all the same, was falsely refused if it is among the best 1 / eta of those at the last rung
    that it was measured at; one that could not be trained was refused rightly, and is infeasible. `false_reject_rate` has its 95 %
    interval beside it; both are None where none was audited.
    """
    fates = {index: fate(history, index) for index in history.outcomes}
    rejected: Counter[str] = Counter()
    audited = false = 0
    for index, rows in history.outcomes.items():
        gate = next((outcome.rejected for _, _, outcome in rows if outcome.rejected is not None), None)
        if gate is None or fates[index] == "duplicate":
            continue
        rejected[gate] += fates[index] == "rejected"
        measured = [(rung, outcome) for rung, _, outcome in rows if outcome.ap is not None]
        audited += fates[index] == "infeasible" or bool(measured)
        false += fates[index] == "rejected" and bool(measured) and _among_the_best(history, *measured[-1])
    rate, interval = proportion(false, audited) or (None, None)
    return {
        "proposed": len(history.candidates),
        "rejected": {gate: count for gate, count in sorted(rejected.items()) if count},
        "duplicates": sum(one == "duplicate" for one in fates.values()),
        "infeasible": sum(one == "infeasible" for one in fates.values()),
        "trained": [len({index for index, mine in history.values.items() if rung in mine}) for rung in range(len(history.spec.rungs))],
        "audited": audited,
        "falsely_rejected": false,
        "false_reject_rate": rate,
        "false_reject_interval": interval,
    }


def fate(history: History, index: int) -> Fate:
    """What became of a candidate that something was told of: its state in the store's ledger, in lower case."""
    outcomes = [outcome for _, _, outcome in history.outcomes[index]]
    if any(one.failure is not None for one in outcomes):
        return "infeasible"
    if index in history.original:
        return "duplicate"
    if any(one.rejected is not None for one in outcomes):
        return "rejected"
    return "measured" if any(one.ap is not None for one in outcomes) else "infeasible"


def _among_the_best(history: History, rung: int, outcome: Outcome) -> bool:
    others = sorted((mine[rung] for mine in history.means.values() if rung in mine), reverse=True)
    return bool(others) and history.worth(rung, outcome) >= others[len(others) // history.spec.eta]


def proportion(hits: int, of: int) -> tuple[float, list[float]] | None:
    """A share in 0-1 and its 95 % interval (Wilson, 1927, which has a width even where all or none hit); None of nothing.

    >>> [round(bound, 3) for bound in proportion(0, 3)[1]]
    [0.0, 0.562]
    """
    if of == 0:
        return None
    z = NormalDist().inv_cdf(0.975)
    share, shrink = hits / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    return share, [max(0.0, middle - half), min(1.0, middle + half)]


def _rungs(history: History) -> list[dict[str, Any]]:
    used = climbed(history)
    found: list[dict[str, Any]] = []
    for rung, iterations in enumerate(history.spec.rungs):
        tau = agreement(history, rung) if calibrating(history) and rung < history.spec.top else None
        found.append(
            {
                "iterations": iterations,
                "measured": sum(rung in mine for mine in history.values.values()),
                "in_use": rung in used,
                "tau": None if tau is None else {"tau": tau[0], "interval": [tau[1], tau[2]], "candidates": tau[3]},
            }
        )
    full = [mine for mine in history.values.values() if history.spec.top in mine]
    found[-1]["seed_noise"] = seed_noise(history) if len(full) > 1 else None
    return found


def _figures(history: History, members: Iterable[Candidate]) -> dict[str, Any]:
    members = list(members)
    mine = {member.index for member in members}
    fates = Counter(fate(history, index) for index in history.outcomes if index in mine)
    measured = [one for one in history.measured if one.candidate.index in mine]
    best = min(measured, key=lambda one: one.rank, default=None)
    return {
        "proposed": len(members),
        "measured": fates["measured"],
        "rejected": fates["rejected"],
        "duplicates": fates["duplicate"],
        "infeasible": fates["infeasible"],
        "mean": fmean(one.fitness for one in measured) if measured else None,
        "best": None
        if best is None
        else {"index": best.candidate.index, "fitness": best.fitness, "rung": best.rung, "formula": formula(best.candidate.policy)},
    }


def _operators(history: History) -> dict[str, Any]:
    """How often each operator was used, and how often its candidate was better than the best of its parents at a rung that both passed."""
    used: dict[str, dict[str, int]] = {}
    for candidate in history.candidates:
        figures = used.setdefault(candidate.operator, {"proposed": 0, "better_than_parents": 0})
        figures["proposed"] += 1
        figures["better_than_parents"] += _better(history, candidate.index, candidate.parents)
    return dict(sorted(used.items()))


def _better(history: History, index: int, parents: Sequence[int]) -> bool:
    mine = history.values.get(index, {})
    for rung in sorted(mine, reverse=True):
        theirs = [fmean(values[rung]) for parent in parents if rung in (values := history.values.get(parent, {}))]
        if theirs:
            return fmean(mine[rung]) > max(theirs)
    return False
