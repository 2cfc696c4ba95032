"""What happened in a search, by stage and by island, as plain JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from detkds_core.evolution.spec import Proposal, Result, Spec
from detkds_core.policy import formula


def summarize(spec: Spec, proposals: Sequence[Proposal], results: Mapping[int, Result]) -> dict[str, Any]:
    """Counts, best and mean fitness of all candidates, of each stage, and of each island's stage 1; None where nothing is known.

    `best` holds the index, fitness and formula. An island without candidates is listed too: nothing was spent on it.
    """
    groups: dict[str, list[Proposal]] = {"reference": [], "stage1": [], "stage2": []}
    islands: dict[str, list[Proposal]] = {island: [] for island in spec.knowledge}
    for proposal in proposals:
        groups[proposal.stage].append(proposal)
        if proposal.island is not None:
            islands[proposal.island].append(proposal)
    return {
        "candidates": spec.candidates,
        "all": _figures(proposals, results),
        "stages": {stage: _figures(members, results) for stage, members in groups.items()},
        "islands": {island: _figures(members, results) for island, members in islands.items()},
        "operators": _operators(proposals, results),
    }


def _figures(members: Iterable[Proposal], results: Mapping[int, Result]) -> dict[str, Any]:
    members = list(members)
    told = [(proposal, results[proposal.index]) for proposal in members if proposal.index in results]
    feasible = [(fitness, proposal) for proposal, result in told if (fitness := result.fitness) is not None]
    best = min(feasible, key=lambda one: (-one[0], one[1].index), default=None)
    return {
        "proposed": len(members),
        "measured": len(told),
        "infeasible": len(told) - len(feasible),
        "mean": fmean(fitness for fitness, _ in feasible) if feasible else None,
        "best": None if best is None else {"index": best[1].index, "fitness": best[0], "formula": formula(best[1].policy)},
    }


def _operators(proposals: Sequence[Proposal], results: Mapping[int, Result]) -> dict[str, Any]:
    """How often each operator was used, and how often its candidate was better than the best of its parents."""
    used: dict[str, dict[str, int]] = {}
    for proposal in proposals:
        figures = used.setdefault(proposal.operator, {"proposed": 0, "better_than_parents": 0})
        figures["proposed"] += 1
        mine = results.get(proposal.index, Result(None)).fitness
        parents = [fitness for index in proposal.parents if index in results and (fitness := results[index].fitness) is not None]
        figures["better_than_parents"] += mine is not None and bool(parents) and mine > max(parents)
    return dict(sorted(used.items()))
