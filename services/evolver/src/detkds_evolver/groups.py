"""What a job of a search is told: what all jobs share, the candidates and the seed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

SHARED = ("dataset", "teacher", "student", "inherit", "resize", "recipe")  # what every job of a search has of the search's specification


REPLICATES_APART = 1_000_003  # between the seeds of a search's replicates; its confirmation's lie beside its first
LARGEST_SEED = 2**31  # seeds stay below: every generator in use takes them


def replicate_seed(spec: Mapping[str, Any], replicate: int) -> int:
    """The seed that all candidates of a search train with in their n-th measurement at a rung."""
    return (int(spec["seed"]) + replicate * REPLICATES_APART) % LARGEST_SEED


def shared_out(count: int, size: int) -> list[range]:
    """Places 0 .. count - 1 in as few jobs of at most `size` as it takes, as even as can be.

    >>> shared_out(7, 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    number = -(-count // size)
    bounds = [-(-count * part // number) for part in range(number + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]


def job_spec(
    spec: Mapping[str, Any], kind: str, policies: Mapping[int, Any], *, seed: int, iterations: int | None = None
) -> dict[str, Any]:
    """The specification of an `evaluate` or `confirm` job (docs/architecture.md). policies: index -> policy JSON."""
    shared = {key: spec[key] for key in SHARED if key in spec}
    if iterations is not None:
        recipe = shared["recipe"]
        # a recipe in epochs counts its milestones in epochs too, and epochs win over iterations
        epochs = {"epochs": None, "eval_every": None} if recipe.get("epochs") is not None else {}
        other = epochs or iterations != recipe.get("iterations")  # milestones of another length would come too early or never
        late = (recipe.get("warm_up") or 0) >= iterations  # its rate would never be reached
        cut = {**({"milestones": None} if other else {}), **({"warm_up": None} if late else {})}
        shared["recipe"] = {**recipe, **epochs, **cut, "iterations": iterations}
    candidates = [{"index": index, "policy": policy} for index, policy in sorted(policies.items())]
    return {"kind": kind, **shared, "candidates": candidates, "seed": seed}
