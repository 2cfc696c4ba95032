"""A worker that trains nothing: it claims jobs of the real queue and finishes them with figures that follow from policy and seed alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from detkds_core.policy import SearchSpace, named_policies, to_json
from detkds_core.store import Store, jobs, results, searches

KNOWLEDGE = ("global", "fgbg", "logits")
DATASET = {
    "name": "shapes",
    "classes": ["disc"],
    "digest": "d1",
    "train": {"annotations": "/t.json", "images": "/t"},
    "val": {"annotations": "/v.json", "images": "/v"},
}


def search_spec(**changes: Any) -> dict[str, Any]:
    """A small search; changes replace keys."""
    space = SearchSpace(knowledge=KNOWLEDGE, images_per_batch=8)
    references = [to_json(named_policies()[name].policy) for name in ("none", "pkd")]
    return {
        "knowledge": list(KNOWLEDGE),
        "candidates": 14,
        "parallelism": 6,
        "group": 3,
        "seed": 5,
        "references": references,
        "space": space.to_json(),
        "dataset": DATASET,
        "teacher": {"detector": "big", "checkpoint": "/big.safetensors"},
        "student": {"detector": "small", "checkpoint": None},
        "inherit": True,
        "recipe": {"iterations": 100, "batch": 8},
        "confirmation": {"finalists": 2, "seeds": 3, "iterations": 300},
    } | changes


def create(store: Store, **changes: Any) -> str:
    with store.begin() as session:
        return searches.create(session, name="test", spec=search_spec(**changes), dataset=DATASET).id


def ap_of(policy: Mapping[str, Any], seed: int, kind: str) -> float:
    """AP in percent, 20 to 40: mostly the policy's, a little the seed's; no distillation is poor and PKD middling."""
    text = json.dumps(policy, sort_keys=True)

    def share(of: str) -> float:
        return int(hashlib.sha256(of.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF

    if not policy["terms"]:
        return round(15 + share(f"{seed} {kind}"), 4)
    return round(20 + 19 * share(text) + share(f"{text} {seed} {kind}"), 4)


Row = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


def measured(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a job's result."""
    ap = ap_of(candidate["policy"], spec["seed"], spec["kind"])
    row = {
        "index": candidate["index"],
        "ap": ap,
        "ap50": round(ap * 1.5, 4),
        "ap75": round(ap * 0.9, 4),
        "images": 150,
        "iterations": spec["recipe"]["iterations"],
        "seconds": 2.0,
        "failure": None,
    }
    if spec["kind"] == "confirm":
        row["selection_ap"] = ap_of(candidate["policy"], spec["seed"], "selection")
    return row


def result_of(spec: Mapping[str, Any], row: Row = measured) -> dict[str, Any]:
    return {"candidates": [row(candidate, spec) for candidate in spec["candidates"]], "environment": {"torch": "none"}}


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
        fields = ("index", "policy", "stage", "island", "operator", "parents", "state", "ap", "failure")
        again = ("entrant", "candidate", "name", "role", "policy", "seed", "state", "ap", "selection_ap")
        return {
            "state": search.state,
            "reason": search.reason,
            "candidates": [{name: getattr(one, name) for name in fields} for one in searches.all_candidates(session, search_id)],
            "confirmations": [{name: getattr(one, name) for name in again} for one in searches.confirmations(session, search_id)],
            "result": None if result is None else {"policy": result.policy, "ap": result.ap, "metrics": result.metrics},
        }
