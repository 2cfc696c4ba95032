"""The end of a search: its best candidates against no distillation and hand-designed distillers, with fresh seeds on sealed images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from detkds_core.evolution import Candidate as Proposal
from detkds_core.evolution import Evolution
from detkds_core.policy import Policy, canonical, canonical_json, formula, from_json, named_policies, to_json
from detkds_core.policy.named import name_of
from detkds_core.store.models import Candidate, Confirmation, Search, Trial
from detkds_evolver.groups import LARGEST_SEED

SEEDS, LEAST_SEEDS, FINALISTS = 5, 3, 2
NONE_SEARCHED = "The search trained no policy of its own: those that it measured are hand-designed."
COUNTED = {"measured": "MEASURED", "rejected": "REJECTED", "duplicates": "DUPLICATE", "infeasible": "INFEASIBLE"}  # of the candidates


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
    """The seeds of the confirmation: none of them is the search's, nor an earlier confirmation's of a search that it continues."""
    confirmation = spec.get("confirmation", {})
    count = max(LEAST_SEEDS, int(confirmation.get("seeds", SEEDS)))
    first = int(spec["seed"]) + 1 + int(confirmation.get("seeds_used", 0))
    return [(first + n) % LARGEST_SEED for n in range(count)]


def entrants(spec: Mapping[str, Any], evolution: Evolution, resolved: Mapping[int, dict[str, Any]]) -> list[Entrant]:
    """Whom the confirmation measures: no distillation, the distillers that the specification names, the best of the search's other
    hand-designed policies, and its finalists; each policy once. resolved: policies with the weights that their first training found, by
    candidate.

    An island may begin with a policy that has a name: nobody searched for it. Where it ranks before the last finalist it is not one, but
    hand-designed, as the references are, and goes by its name.
    Raises NothingToConfirmError when no candidate but the references could be trained.
    """
    index_of = {canonical_json(one.policy): one.index for one in evolution.candidates}
    chosen: dict[str, tuple[str, str, int | None, Policy]] = {}  # canonical text -> name, role, candidate, policy

    def trained(one: Proposal) -> Policy:
        return canonical(from_json(resolved[one.index])) if one.index in resolved else one.policy

    def take(name: str, role: str, index: int | None, policy: Policy) -> None:
        key = canonical_json(policy)
        chosen.setdefault(key, (name, role, index_of.get(key) if index is None else index, policy))

    take("none", "alone", None, canonical(named_policies()["none"].policy))
    for name, policy in distillers(spec):
        take(name, "reference", None, policy)
    wanted = max(1, int(spec.get("confirmation", {}).get("finalists", FINALISTS)))
    finalists: dict[str, Proposal] = {}  # by canonical text
    by_hand = [one for one in evolution.history().measured if one.candidate.stage == "reference"]
    found = evolution.best(len(evolution.candidates))
    for one in found:
        policy = trained(one.candidate)
        if len(finalists) == wanted:
            break
        if name_of(policy) is not None:
            by_hand.append(one)
        elif canonical_json(policy) not in chosen:
            finalists.setdefault(canonical_json(policy), one.candidate)
    best_first = (one.candidate for one in sorted(by_hand, key=lambda one: one.rank))
    other = next((one for one in best_first if not {canonical_json(one.policy), canonical_json(trained(one))} & chosen.keys()), None)
    if other is not None:
        take(name_of(trained(other)) or name_of(other.policy) or f"reference {other.index}", "reference", other.index, trained(other))
    for finalist in finalists.values():
        take(f"candidate {finalist.index}", "searched", finalist.index, trained(finalist))
    if not found:
        raise NothingToConfirmError("no searched candidate could be trained; " + first_failure(evolution))
    return [Entrant(number, index, name, role, to_json(policy)) for number, (name, role, index, policy) in enumerate(chosen.values())]


def distillers(spec: Mapping[str, Any]) -> Iterator[tuple[str, Policy]]:
    """Names and policies of the hand-designed distillers of a confirmation; PKD where a specification of before them has none."""
    named = named_policies()
    for one in spec.get("confirmation", {}).get("distillers", ["pkd"]):
        if isinstance(one, str):
            yield one, canonical(named[one].policy)
        else:
            yield str(one["name"]), canonical(from_json(one["policy"]))


def first_failure(evolution: Evolution) -> str:
    """Which candidate failed first, and why."""
    outcomes = ((index, outcome) for told in evolution.results.values() for index, outcome in told.items())
    failed = next(((index, outcome.failure) for index, outcome in outcomes if outcome.failure is not None), None)
    if failed is not None:
        return f"candidate {failed[0]}: {failed[1]}"
    refused = sum(outcome.rejected is not None for told in evolution.results.values() for outcome in told.values())
    return f"{refused} were refused by a gate" if refused else "all of them are hand-designed policies"


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
    trials: Sequence[Trial],
    confirmations: Sequence[Confirmation],
    summary: Mapping[str, Any],
    environments: Sequence[Mapping[str, Any]],
    drawn: Mapping[tuple[int, int], Sequence[float | None]],
    trunks: Sequence[Mapping[str, Any]],
) -> Outcome:
    """The winner, what it is worth, and the evidence.

    All of it is decided on the report images, which the search never saw, with seeds that it never used: the best finalist is the result if
    it beats the best hand-designed distiller beyond noise, else that distiller is (docs/adr/0007). drawn: the AP on every draw of the
    report images, by entrant and seed. trunks: `{"steps", "seconds"}` of each that was grown.
    Raises NothingToConfirmError when no finalist could be trained with every seed.
    """
    # Imported here: the report draws pictures, and its libraries take two seconds that only the end of a search needs.
    from detkds_core.report import Row, insight, verdict

    of_candidate: dict[int, list[Trial]] = {}
    for trial in trials:
        of_candidate.setdefault(trial.candidate, []).append(trial)
    by_entrant: dict[int, list[Confirmation]] = {}
    for one in sorted(confirmations, key=lambda one: (one.entrant, one.seed)):
        by_entrant.setdefault(one.entrant, []).append(one)
    whole = {entrant: group for entrant, group in by_entrant.items() if all(one.ap is not None for one in group)}
    wanted = "searched" if any(one.role == "searched" for one in confirmations) else "reference"
    if not any(group[0].role == wanted for group in whole.values()):
        failed = next((one for one in confirmations if one.role == wanted and one.failure), None)
        why = f"{failed.name}, seed {failed.seed}: {failed.failure}" if failed else "none was measured"
        raise NothingToConfirmError(f"no finalist could be trained with every seed; {why}")
    everybody_drawn = all((one.entrant, one.seed) in drawn for group in whole.values() for one in group)
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
            resamples=tuple(tuple(drawn[one.entrant, one.seed]) for one in group) if everybody_drawn else (),
        )
        for group in whole.values()
    ]
    judged = verdict(rows)
    if judged.searched is None:
        judged = replace(judged, sentence=f"{judged.sentence} {NONE_SEARCHED}", why=NONE_SEARCHED)
    row_of = {row.name: row for row in rows}
    lines = {
        entrant: line(group, row_of.get(group[0].name) if entrant in whole else None, judged.choices.get(group[0].name, 1))
        for entrant, group in by_entrant.items()
    }
    by_name = {one["name"]: one for one in lines.values()}
    best = by_name[judged.searched if judged.returned == "searched" else judged.reference]
    metrics = {
        **judged.to_json(),
        "winner": {"entrant": best["entrant"], "candidate": best["candidate"]},
        **{kind: brief(by_name[name]) if name else None for kind, name in (("searched", judged.searched), ("reference", judged.reference))},
        **{name: best[f"mean_{name}"] for name in ("ap", "ap50", "ap75")},
        "interval": best["interval"],
        "rows": list(lines.values()),
    }
    draws = max((len(row) for row in drawn.values()), default=0) if everybody_drawn else 0
    return Outcome(
        policy=best["policy"],
        ap=best["mean_ap"],
        metrics=metrics,
        evidence=evidence(search, candidates, confirmations, summary, trunks)
        | {
            "draws": draws,
            "insight": insight(
                [insight_row(one, of_candidate.get(one.index, [])) for one in candidates],
                funnel=summary["funnel"],
            ),
        },
        environment=dict(environments[0]) if environments else {},
    )


def brief(line: Mapping[str, Any]) -> dict[str, Any]:
    """The best of its kind, in short: what it is and what it is worth, whether or not it is the result."""
    return {name: line[name] for name in ("entrant", "candidate", "name", "formula", "mean_ap", "interval", "choices")}


def insight_row(one: Candidate, trials: Sequence[Trial]) -> dict[str, Any]:
    """A candidate as `report.insight` takes it. trials: its own."""
    return {
        "index": one.index,
        "policy": one.policy,
        "stage": one.stage,
        "island": one.island,
        "operator": one.operator,
        "ap": one.ap,
        "rung": one.rung,
        "trials": [{"rung": trial.rung, "replicate": trial.replicate, "ap": trial.ap} for trial in trials if trial.ap is not None],
        "rejected": one.rejected,
        "failure": one.failure,
        "cost": {name: value for name, value in (("iterations", one.iterations), ("seconds", one.seconds)) if value is not None},
    }


def line(group: Sequence[Confirmation], row: Any, choices: int) -> dict[str, Any]:
    """One policy over its seeds, as JSON. AP in percent; row: that of the report, None where a seed failed.

    The interval is that of the mean over seeds and images, one that allows for the choice among so many; it has no bounds for one seed.
    """
    from detkds_core.report import ap_interval, mean_interval

    first = group[0]
    measured = [one for one in group if one.ap is not None]
    interval = mean_interval([one.ap for one in measured if one.ap is not None]) if measured else None
    if row is not None:
        interval = ap_interval(row, choices)
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
        "mean_ap": interval.mean if interval else None,
        "mean_ap50": mean([one.ap50 for one in measured]),
        "mean_ap75": mean([one.ap75 for one in measured]),
        "interval": [finite(interval.low), finite(interval.high)] if interval else None,
        "choices": choices,
        "images": first.images,
        "failures": [{"seed": one.seed, **(one.failure or {})} for one in group if one.ap is None],
    }


def evidence(
    search: Search,
    candidates: Sequence[Candidate],
    confirmations: Sequence[Confirmation],
    summary: Mapping[str, Any],
    trunks: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All that a later reader needs in order to believe the figures, or to repeat them."""
    spec = search.spec
    rows: list[Candidate | Confirmation] = [*candidates, *confirmations]

    def total(of: Sequence[Candidate | Confirmation], field: str) -> float:
        return math.fsum(getattr(one, field) or 0 for one in of)

    trunk_seconds, trunk_iterations = math.fsum(one["seconds"] for one in trunks), sum(one["steps"] for one in trunks)
    return {
        "dataset": {"name": search.dataset, "digest": search.dataset_digest},
        "images": {
            "selection": next((one.images for one in candidates if one.images is not None), None),
            "report": next((one.images for one in confirmations if one.images is not None), None),
        },
        "seeds": {"search": spec["seed"], "confirmation": sorted({one.seed for one in confirmations})},
        "recipe": spec.get("recipe"),
        "confirmation": spec.get("confirmation"),
        "continues": spec.get("continues"),
        "candidates": {
            "proposed": len(candidates),
            **{name: sum(one.state == state for one in candidates) for name, state in COUNTED.items()},
        },
        "summary": dict(summary),
        "cost": {
            "seconds": total(rows, "seconds") + trunk_seconds,
            "iterations": int(total(rows, "iterations")) + trunk_iterations,
            "trunk_seconds": trunk_seconds,
            "trunk_iterations": trunk_iterations,
            "search_seconds": total(candidates, "seconds"),
            "confirmation_seconds": total(confirmations, "seconds"),
        },
        "versions": {name: version(name) for name in ("detkds_core", "detkds_evolver")},
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
