"""A worker that trains nothing: it claims jobs of the real queue and finishes them with figures that follow from policy and seed alone.

And searches that are driven to their end by it and a real evolver, by turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from detkds_core.policy import SearchSpace, named_policies, to_json
from detkds_core.store import Store, jobs, leases, results, searches
from detkds_core.store.vocabulary import EVOLVER
from detkds_evolver.main import Evolver
from detkds_evolver.settings import Settings

KNOWLEDGE = ("global", "fgbg", "logits")
DATASET = {
    "name": "shapes",
    "classes": ["disc"],
    "digest": "d1",
    "train": {"annotations": "/t.json", "images": "/t"},
    "val": {"annotations": "/v.json", "images": "/v"},
}


LUCK = (-0.5, -0.25, 0.0, 0.25, 0.5)  # of the images on five draws, the same for every policy


def search_spec(**changes: Any) -> dict[str, Any]:
    """A small search; changes replace keys."""
    space = SearchSpace(knowledge=KNOWLEDGE, images_per_batch=8)
    references = [to_json(named_policies()[name].policy) for name in ("none", "pkd")]
    return {
        "knowledge": list(KNOWLEDGE),
        "budget": 1600,
        "rungs": [25, 50, 100],
        "fork": 50,
        "gates": ["duplicate", "descent"],
        "look": 2,
        "parallelism": 2,
        "group": 3,
        "seed": 5,
        "references": references,
        "space": space.to_json(),
        "dataset": DATASET,
        "teacher": {"detector": "big", "checkpoint": "/big.safetensors"},
        "student": {"detector": "small", "checkpoint": None},
        "inherit": True,
        "recipe": {"iterations": 100, "batch": 8},
        "confirmation": {"finalists": 2, "seeds": 3, "iterations": 300, "distillers": ["pkd"]},
    } | changes


def create(store: Store, **changes: Any) -> str:
    with store.begin() as session:
        return searches.create(session, name="test", spec=search_spec(**changes), dataset=DATASET).id


def ap_of(policy: Mapping[str, Any], seed: int, kind: str) -> float:
    """AP in percent, 20 to 40: mostly the policy's, a little the seed's; no distillation is poor and PKD middling."""
    text = json.dumps(policy, sort_keys=True)
    if not policy["terms"]:
        return round(15 + share(f"{seed} {kind}"), 4)
    return round(20 + 19 * share(text) + share(f"{text} {seed} {kind}"), 4)


Row = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


def share(of: str) -> float:
    """A number in 0-1 that depends on the text alone."""
    return int(hashlib.sha256(of.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF


def measured(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a job's result. Of the candidates that are measured for the first time one in ten is refused. A look takes half a second,
    and an eighth for each gate."""
    rung = spec.get("rung") or spec["recipe"]["iterations"]
    ap = ap_of(candidate["policy"], spec["seed"], f"{spec['kind']} {rung}")
    text = json.dumps(candidate["policy"], sort_keys=True)
    row: dict[str, Any] = {
        "index": candidate["index"],
        "ap": ap,
        "ap50": round(ap * 1.5, 4),
        "ap75": round(ap * 0.9, 4),
        "images": 150,
        "iterations": rung,
        "seconds": 2.0,
        "failure": None,
    }
    if (wrong := share(f"{text} {spec['seed']} boxes")) < 0.2:
        row["not_finite"] = 1 + int(100 * wrong)
    if spec["kind"] == "confirm":
        return row | {"resampled_ap": [round(ap + by, 4) for by in LUCK]}
    look = {"loss": 1.0, "ratio": 0.5, "agreement": 0.1, "sketch": [round(share(f"{text} sketch"), 6)], "failure": None}
    row |= {"look": look, "policy": candidate["policy"], "rejected": None, "same_as": None}
    row["cost"] = {"probe_seconds": 0.5 + 0.125 * len(spec["gates"]), "gate_seconds": dict.fromkeys(spec["gates"], 0.125)}
    if spec["gates"] and candidate["policy"]["terms"] and share(f"{text} gate") < 0.1:
        row["rejected"] = {"gate": "descent", "detail": "the gap grows"}
        if not candidate.get("audit"):
            row |= dict.fromkeys(("ap", "ap50", "ap75")) | {"iterations": 0}
    return row


def result_of(spec: Mapping[str, Any], row: Row = measured) -> dict[str, Any]:
    rows = [row(candidate, spec) for candidate in spec["candidates"]]
    warnings = ["fc.weight is not used", *(["the rate was scaled"] if spec["kind"] == "confirm" else [])]
    return {"candidates": rows, "warnings": warnings, "inherited": {"tensors": 18, "of": 37}, "environment": {"torch": "none"}}


def work(store: Store, row: Row = measured) -> bool:
    """Do the next job; False when none waits."""
    with store.begin() as session:
        claim = jobs.claim(session, worker="test", lease_seconds=60)
    if claim is None:
        return False
    with store.begin() as session:
        assert jobs.finish(session, claim, result_of(claim.spec, row))
    return True


def outcome(store: Store, search_id: str) -> dict[str, Any]:
    """What a search found, without ids and times."""
    with store.read() as session:
        search = searches.get(session, search_id)
        assert search is not None
        result = results.of_search(session, search_id)
        fields = ("index", "policy", "stage", "island", "operator", "parents", "state", "rung", "ap", "failure", "rejected", "same_as")
        again = ("entrant", "candidate", "name", "role", "policy", "seed", "state", "ap")
        return {
            "state": search.state,
            "reason": search.reason,
            "candidates": [{name: getattr(one, name) for name in fields} for one in searches.all_candidates(session, search_id)],
            "confirmations": [{name: getattr(one, name) for name in again} for one in searches.confirmations(session, search_id)],
            "ledger": searches.ledger(session, search_id),
            "result": None if result is None else {name: getattr(result, name) for name in ("policy", "ap", "metrics", "evidence")},
        }


def evolver(store: Store, **settings: float) -> Evolver:
    return Evolver(store, Settings(**{"reap_seconds": 0.001, "evolver_poll_seconds": 0.001, **settings}))


def drive(store: Store, row: Callable[..., dict[str, Any]] = measured) -> None:
    """Evolver and worker by turns, until neither has anything to do."""
    one = evolver(store)
    for _ in range(300):
        one.round()
        with store.read() as session:
            due = searches.due(session)
        if not work(store, row) and not due:
            with store.begin() as session:
                leases.give_up(session, EVOLVER, holder=one.holder)
            return
    raise AssertionError("the search does not end")


def ended(store: Store, search: str) -> bool:
    with store.read() as session:
        return searches.get(session, search).state not in ("QUEUED", "RUNNING", "CONFIRMING")


def specs(store: Store, search: str, kind: str) -> list[dict[str, Any]]:
    with store.read() as session:
        return [job.spec for job in jobs.of_search(session, search) if job.kind == kind]
