"""What happened in a search, by stage, island, rung and gate, as plain JSON values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Any, Literal

from detkds_core.evolution.history import History
from detkds_core.evolution.rungs import agreement, calibrating, climbed, measured_noise
from detkds_core.evolution.spec import GATES, Candidate
from detkds_core.policy import formula

Fate = Literal["measured", "rejected", "duplicate", "infeasible"]


def summarize(history: History, costs: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Counts, best and mean AP of all candidates, of each stage and of each island's stage 1; None where nothing is known.

    costs: of each measurement, what it took by the trainer that made it (`training.jobs`), in any order.
    `funnel`: how many were proposed, refused by each gate, doubles, trained at each rung, and what the gates are worth and cost.
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
        "funnel": funnel(history, costs),
        "rungs": _rungs(history),
    }


def funnel(history: History, costs: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Proposed, refused by gate, doubles, infeasible, trained at each rung; and the audit. A candidate counts once, as the ledger has it.

    An audited candidate, refused and trained all the same, was falsely refused if it is among the best 1 / eta of those at the last rung
    that it was measured at; a double, if what it was taken for is not. One that could not be trained was refused rightly, and is
    infeasible. `false_reject_rate` has its 95 % interval beside it; both are None where none was audited.

    `gates`: the same of each gate that was met, in the order of the cascade, and the `seconds` that it took. Here `refused` are all that
    the gate stopped, the doubles and the infeasible among them, which `rejected` leaves to their own counts. `look_seconds`: of looking
    at candidates, all gates included. None where the trainers did not say.
    """
    fates = {index: fate(history, index) for index in history.outcomes}
    refused: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    audited: Counter[str] = Counter()
    false: Counter[str] = Counter()
    for index, rows in history.outcomes.items():
        gate = next((outcome.rejected for _, _, outcome in rows if outcome.rejected is not None), None)
        if gate is None:
            continue
        refused[gate] += 1
        rejected[gate] += fates[index] == "rejected"
        measured = [(rung, outcome) for rung, _, outcome in rows if outcome.ap is not None]
        audited[gate] += fates[index] == "infeasible" or bool(measured)
        if fates[index] == "infeasible" or not measured:
            continue
        rung, outcome = measured[-1]
        good = _good(history, rung, history.worth(rung, outcome))
        if fates[index] == "duplicate":  # lost where the candidate that counts for it is not as good
            good = good and not _good(history, rung, history.means.get(history.original[index], {}).get(rung))
        false[gate] += good
    look_seconds, gate_seconds = seconds_of(costs)
    met = {*refused, *(gate_seconds or ())}
    return {
        "proposed": len(history.candidates),
        "rejected": {gate: count for gate, count in sorted(rejected.items()) if count},
        "duplicates": sum(one == "duplicate" for one in fates.values()),
        "infeasible": sum(one == "infeasible" for one in fates.values()),
        "trained": [len({index for index, mine in history.values.items() if rung in mine}) for rung in range(len(history.spec.rungs))],
        **_audit(audited.total(), false.total()),
        "gates": {
            gate: {
                "refused": refused[gate],
                **_audit(audited[gate], false[gate]),
                "seconds": None if gate_seconds is None else gate_seconds.get(gate, 0.0),
            }
            for gate in sorted(met, key=lambda gate: (GATES.index(gate) if gate in GATES else len(GATES), gate))
        },
        "look_seconds": look_seconds,
    }


def _audit(audited: int, false: int) -> dict[str, Any]:
    rate, interval = proportion(false, audited) or (None, None)
    return {"audited": audited, "falsely_rejected": false, "false_reject_rate": rate, "false_reject_interval": interval}


def seconds_of(costs: Iterable[Mapping[str, Any]]) -> tuple[float | None, dict[str, float] | None]:
    """Seconds of a trainer for looking at candidates: in all, and of these by gate; None where they were not measured.

    Trainers of before did not measure the gates one by one: a sum over some of the looks would be too small.

    >>> seconds_of([{"probe_seconds": 2.0, "gate_seconds": {"finite": 0.25}}, {"probe_seconds": 1.0, "gate_seconds": {"finite": 0.5}}])
    (3.0, {'finite': 0.75})
    >>> seconds_of([{"probe_seconds": 2.0, "gate_seconds": {"finite": 0.25}}, {"probe_seconds": 1.0}])
    (3.0, None)
    """
    told = [one for one in costs if one.get("probe_seconds") is not None]
    if not told:
        return None, None
    whole = math.fsum(one["probe_seconds"] for one in told)
    if any(one["probe_seconds"] and "gate_seconds" not in one for one in told):
        return whole, None
    by_gate: dict[str, list[float]] = {}
    for one in told:
        for gate, seconds in one.get("gate_seconds", {}).items():
            by_gate.setdefault(gate, []).append(seconds)
    return whole, {gate: math.fsum(seconds) for gate, seconds in by_gate.items()}


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


def _good(history: History, rung: int, value: float | None) -> bool:
    """Whether a value is among the best 1 / eta of a rung; None, of what was not measured there, is not."""
    others = sorted((mine[rung] for mine in history.means.values() if rung in mine), reverse=True)
    return value is not None and bool(others) and value >= others[len(others) // history.spec.eta]


def proportion(hits: int, of: int) -> tuple[float, list[float]] | None:
    """A share in 0-1 and its 95 % interval (Wilson, 1927, which has a width even where all or none hit); None of nothing.

    >>> [round(bound, 3) for bound in proportion(0, 3)[1]]
    [0.0, 0.561]
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
    found[-1]["seed_noise"] = measured_noise(history)
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
