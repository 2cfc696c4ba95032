"""The end of a search: its best candidates against no distillation and hand-designed policies, with fresh seeds on fresh images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from detkds_core.evolution import Evolution
from detkds_core.policy import Policy, canonical, canonical_json, formula, from_json, named_policies, to_json
from detkds_core.policy.named import name_of
from detkds_core.store.models import Candidate, Confirmation, Search

ALWAYS = {"none": "alone", "pkd": "reference"}  # named policies that every confirmation measures, and their role
LARGEST_SEED = 2**31  # seeds stay below: every generator in use takes them


@dataclass(frozen=True, slots=True)
class Entrant:
    """A policy that is measured again. candidate: its index in the search, None where the search did not measure it."""

    entrant: int
    candidate: int | None
    name: str
    role: str
    policy: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"entrant": self.entrant, "candidate": self.candidate, "name": self.name, "role": self.role, "policy": self.policy}


class NothingToConfirmError(Exception):
    """Why a search has no winner."""


def fresh_seeds(spec: Mapping[str, Any]) -> list[int]:
    """The seeds of the confirmation: none of them is the search's."""
    count = max(3, int(spec.get("confirmation", {}).get("seeds", 3)))
    return [(int(spec["seed"]) + 1 + n) % LARGEST_SEED for n in range(count)]


def entrants(spec: Mapping[str, Any], evolution: Evolution) -> list[Entrant]:
    """Whom the confirmation measures: no distillation, PKD, the best of the search's other references, and its finalists.

    Raises NothingToConfirmError when no searched candidate could be trained.
    """
    index_of = {canonical_json(proposal.policy): proposal.index for proposal in evolution.proposals}
    chosen: dict[str, tuple[str, str, Policy]] = {}  # canonical text -> name, role, policy
    for name, role in ALWAYS.items():
        policy = canonical(named_policies()[name].policy)
        chosen[canonical_json(policy)] = (name, role, policy)
    references = [
        (-fitness, proposal.index)
        for proposal in evolution.proposals
        if proposal.stage == "reference"
        and canonical_json(proposal.policy) not in chosen
        and (fitness := evolution.results[proposal.index].fitness) is not None
    ]
    if references:
        policy = evolution.proposals[min(references)[1]].policy
        key = canonical_json(policy)
        chosen[key] = (name_of(policy) or f"reference {index_of[key]}", "reference", policy)
    wanted = max(1, int(spec.get("confirmation", {}).get("finalists", 2)))
    finalists = 0
    for proposal in evolution.best(len(evolution.proposals)):
        key = canonical_json(proposal.policy)
        if finalists < wanted and key not in chosen:
            chosen[key] = (f"candidate {proposal.index}", "searched", proposal.policy)
            finalists += 1
    if not finalists:
        raise NothingToConfirmError("no searched candidate could be trained; " + first_failure(evolution))
    return [
        Entrant(number, index_of.get(key), name, role, to_json(policy)) for number, (key, (name, role, policy)) in enumerate(chosen.items())
    ]


def first_failure(evolution: Evolution) -> str:
    failed = next(((index, result.failure) for index, result in evolution.results.items() if result.fitness is None), None)
    return f"candidate {failed[0]}: {failed[1]}" if failed else "all of them are hand-designed policies"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a result row is made of."""

    policy: dict[str, Any]
    ap: float
    metrics: dict[str, Any]
    evidence: dict[str, Any]
    environment: dict[str, Any]


def conclude(
    search: Search,
    candidates: Sequence[Candidate],
    confirmations: Sequence[Confirmation],
    summary: Mapping[str, Any],
    environments: Sequence[Mapping[str, Any]],
) -> Outcome:
    """The winner, what it is worth, and the evidence.

    The winner is chosen by its mean AP on the selection images alone, so that its AP on the report images has chosen nothing.
    Raises NothingToConfirmError when no finalist could be trained with every seed.
    """
    # Imported here: the report draws pictures, and its libraries take two seconds that only the end of a search needs.
    from detkds_core.report import Row, verdict

    by_entrant: dict[int, list[Confirmation]] = {}
    for one in sorted(confirmations, key=lambda one: (one.entrant, one.seed)):
        by_entrant.setdefault(one.entrant, []).append(one)
    lines = {entrant: line(group) for entrant, group in by_entrant.items()}
    whole = {entrant: group for entrant, group in by_entrant.items() if all(one.ap is not None for one in group)}
    finalists = {
        entrant: mean([one.selection_ap for one in group])
        for entrant, group in whole.items()
        if group[0].role == "searched" and all(one.selection_ap is not None for one in group)
    }
    if not finalists:
        failed = next((one for one in confirmations if one.role == "searched" and one.failure), None)
        why = f"{failed.name}, seed {failed.seed}: {failed.failure}" if failed else "the trainer gave no AP on the selection images"
        raise NothingToConfirmError(f"no finalist could be trained with every seed; {why}")
    winner = min(finalists, key=lambda entrant: (-(finalists[entrant] or 0.0), entrant))
    rows = [
        Row(
            name=group[0].name,
            role=group[0].role,
            seeds=tuple(one.seed for one in group),
            ap=numbers(group, "ap"),
            ap50=numbers(group, "ap50"),
            ap75=numbers(group, "ap75"),
            parameters=0,  # the verdict compares APs; a confirmation exports nothing that could be counted
            images=group[0].images or 0,
        )
        for entrant, group in whole.items()
        if group[0].role != "searched" or entrant == winner
    ]
    judged = verdict(rows)
    best = lines[winner]
    metrics = {
        "verdict": judged.sentence,
        "against_alone": comparison_json(judged.against_alone),
        "against_reference": comparison_json(judged.against_reference),
        "winner": {"entrant": winner, "candidate": best["candidate"]},
        **{name: best[f"mean_{name}"] for name in ("ap", "ap50", "ap75")},
        "rows": list(lines.values()),
    }
    return Outcome(
        policy=by_entrant[winner][0].policy,
        ap=best["mean_ap"],
        metrics=metrics,
        evidence=evidence(search, candidates, confirmations, summary),
        environment=dict(environments[0]) if environments else {},
    )


def line(group: Sequence[Confirmation]) -> dict[str, Any]:
    """One policy over its seeds, as JSON. AP in percent; the interval is that of the mean over the seeds that were measured."""
    from detkds_core.report import mean_interval

    first = group[0]
    measured = [one for one in group if one.ap is not None]
    interval = mean_interval([one.ap for one in measured if one.ap is not None]) if measured else None
    return {
        "entrant": first.entrant,
        "candidate": first.candidate,
        "name": first.name,
        "role": first.role,
        "formula": formula(from_json(first.policy)),
        "policy": first.policy,
        "seeds": [one.seed for one in measured],
        "ap": [one.ap for one in measured],
        "ap50": [one.ap50 for one in measured],
        "ap75": [one.ap75 for one in measured],
        "selection_ap": [one.selection_ap for one in measured],
        "mean_ap": interval.mean if interval else None,
        "mean_ap50": mean([one.ap50 for one in measured]),
        "mean_ap75": mean([one.ap75 for one in measured]),
        "interval": [finite(interval.low), finite(interval.high)] if interval else None,
        "images": first.images,
        "failures": [{"seed": one.seed, **(one.failure or {})} for one in group if one.ap is None],
    }


def evidence(
    search: Search, candidates: Sequence[Candidate], confirmations: Sequence[Confirmation], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """All that a later reader needs in order to believe the figures, or to repeat them."""
    spec = search.spec
    rows: list[Candidate | Confirmation] = [*candidates, *confirmations]

    def total(of: Sequence[Candidate | Confirmation], field: str) -> float:
        return math.fsum(getattr(one, field) or 0 for one in of)

    return {
        "dataset": {"name": search.dataset, "digest": search.dataset_digest},
        "images": {
            "selection": next((one.images for one in candidates if one.images is not None), None),
            "report": next((one.images for one in confirmations if one.images is not None), None),
        },
        "seeds": {"search": spec["seed"], "confirmation": sorted({one.seed for one in confirmations})},
        "recipe": spec.get("recipe"),
        "confirmation": spec.get("confirmation"),
        "candidates": {
            "measured": sum(one.state == "MEASURED" for one in candidates),
            "infeasible": sum(one.state == "INFEASIBLE" for one in candidates),
        },
        "summary": dict(summary),
        "cost": {
            "seconds": total(rows, "seconds"),
            "iterations": int(total(rows, "iterations")),
            "search_seconds": total(candidates, "seconds"),
            "confirmation_seconds": total(confirmations, "seconds"),
        },
        "versions": {name: version(name) for name in ("detkds_core", "detkds_evolver")},
    }


def comparison_json(comparison: Any) -> dict[str, Any] | None:
    """A comparison of the report as JSON; its interval has no bounds where one seed allows none."""
    if comparison is None:
        return None
    mean_difference, low, high = comparison.difference
    return {
        "first": comparison.first,
        "second": comparison.second,
        "seeds": list(comparison.seeds),
        "differences": list(comparison.differences),
        "mean": mean_difference,
        "interval": [finite(low), finite(high)],
        "outcome": comparison.outcome,
    }


def numbers(group: Sequence[Confirmation], field: str) -> tuple[float, ...]:
    read: Callable[[Confirmation], float | None] = lambda one: getattr(one, field)  # noqa: E731
    return tuple(math.nan if (value := read(one)) is None else value for one in group)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing, or there is none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
