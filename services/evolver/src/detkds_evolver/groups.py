"""Which candidates are trained together: consecutive indices, the same groups whatever happens and in whatever order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

SHARED = ("dataset", "teacher", "student", "inherit", "resize", "recipe")  # what every job of a search has of the search's specification


def group_size(spec: Mapping[str, Any]) -> int:
    """Candidates of one job. Never more than may be under way at once: the group would wait for results of its own."""
    return max(1, min(int(spec.get("group") or 1), int(spec["parallelism"])))


def ready_groups(unassigned: Collection[int], size: int, proposed: int, *, complete: bool) -> list[list[int]]:
    """The groups of candidates without a job that can become one.

    unassigned: indices of proposed candidates without a job. proposed: how many are proposed at all. complete: no more will be, so that
    the last group may be smaller.

    >>> ready_groups([4, 5, 6, 7, 8], 4, proposed=9, complete=False)
    [[4, 5, 6, 7]]
    """
    groups: dict[int, list[int]] = {}
    for index in sorted(unassigned):
        groups.setdefault(index // size, []).append(index)
    return [members for number, members in sorted(groups.items()) if (number + 1) * size <= proposed or complete]


def job_spec(
    spec: Mapping[str, Any], kind: str, policies: Mapping[int, Any], *, seed: int, iterations: int | None = None
) -> dict[str, Any]:
    """The specification of an `evaluate` or `confirm` job (docs/architecture.md). policies: index -> policy JSON."""
    shared = {key: spec[key] for key in SHARED if key in spec}
    if iterations is not None:
        recipe = shared["recipe"]
        # a recipe in epochs counts its milestones in epochs too, and epochs win over iterations
        epochs = {"epochs": None, "milestones": None, "eval_every": None} if recipe.get("epochs") is not None else {}
        shared["recipe"] = {**recipe, **epochs, "iterations": iterations}
    candidates = [{"index": index, "policy": policy} for index, policy in sorted(policies.items())]
    return {"kind": kind, **shared, "candidates": candidates, "seed": seed}
