"""What happened in a search, by stage, island, rung and gate, as plain JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from detkds_core.evolution.history import History
from detkds_core.evolution.rungs import agreement, calibrating, climbed, seed_noise
from detkds_core.evolution.spec import Candidate
from detkds_core.policy import formula


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
    """Proposed, refused by gate, doubles, infeasible, trained at each rung; and the audit.

    A refused candidate that was trained all the same was falsely refused if, at the rung where it was measured, it is among the best third.
    """
    rejected: Counter[str] = Counter()
    infeasible = audited = false = 0
    for rows in history.outcomes.values():
        gate = next((outcome.rejected for _, _, outcome in rows if outcome.rejected is not None), None)
        if gate is not None:
            rejected[gate] += 1
        elif all(outcome.ap is None and outcome.same_as is None for _, _, outcome in rows):
            infeasible += 1
        for rung, _, outcome in rows:
            if outcome.rejected is not None and outcome.ap is not None:
                audited += 1
                others = sorted((fmean(mine[rung]) for mine in history.values.values() if rung in mine), reverse=True)
                false += bool(others) and history.worth(rung, outcome) >= others[len(others) // history.spec.eta]
    return {
        "proposed": len(history.candidates),
        "rejected": dict(sorted(rejected.items())),
        "duplicates": len(history.original),
        "infeasible": infeasible,
        "trained": [len({index for index, mine in history.values.items() if rung in mine}) for rung in range(len(history.spec.rungs))],
        "audited": audited,
        "falsely_rejected": false,
    }


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
    seen = [one for one in members if one.index in history.outcomes]
    measured = [one for one in history.measured if any(one.candidate.index == member.index for member in members)]
    best = min(measured, key=lambda one: one.rank, default=None)
    return {
        "proposed": len(members),
        "measured": len(seen),
        "infeasible": len(seen) - len(measured),
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
