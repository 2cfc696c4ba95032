"""What a search is asked to do, what it proposes, and what it is told back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from detkds_core.policy import Policy, SearchSpace, canonical_json
from detkds_core.policy import from_json as policy_from_json
from detkds_core.policy import to_json as policy_to_json

Stage = Literal["reference", "stage1", "stage2"]


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that decides the course of a search; two equal specs propose the same policies.

    knowledge: one island each, in this order. candidates: how many policies are measured, references included.
    parallelism: proposal n sees the results of candidates with index < n - parallelism, whatever else is known.
    references: measured first, under the same budget (no distillation, hand-designed policies).
    stage2_share: part of what the references leave that goes to combining terms. floor: part of stage 1 that every island gets.
    population: how many of its last results an island breeds from. tournament: how many of them compete to be a parent.
    """

    knowledge: tuple[str, ...]
    candidates: int
    parallelism: int
    seed: int
    references: tuple[Policy, ...]
    space: SearchSpace
    stage2_share: float = 0.35
    floor: float = 0.08
    population: int = 24
    tournament: int = 5

    def __post_init__(self) -> None:
        if not self.knowledge:
            raise ValueError("spec.knowledge: a search needs at least one knowledge")
        for place, name in enumerate(self.knowledge):
            if name not in self.space.knowledge:
                raise ValueError(f"spec.knowledge[{place}]: {name!r} is not in the search space; one of {', '.join(self.space.knowledge)}")
            if name in self.knowledge[:place]:
                raise ValueError(f"spec.knowledge[{place}]: {name!r} appears twice")
        keys = [canonical_json(policy) for policy in self.references]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise ValueError(f"spec.references[{place}]: the same policy as references[{keys.index(key)}]")
        if self.candidates <= len(self.references):
            raise ValueError(
                f"spec.candidates: {self.candidates} leaves nothing to search after {len(self.references)} references;"
                f" at least {len(self.references) + 1}"
            )
        if self.parallelism < 1:
            raise ValueError(f"spec.parallelism: at least 1, got {self.parallelism}")
        if not 0 <= self.stage2_share < 1:
            raise ValueError(f"spec.stage2_share: at least 0 and below 1, got {self.stage2_share}")
        if not 0 <= self.floor * len(self.knowledge) <= 1:
            raise ValueError(f"spec.floor: {self.floor} for each of {len(self.knowledge)} islands is more than the whole")
        if self.population < 1 or self.tournament < 1:
            raise ValueError(f"spec.population and spec.tournament: at least 1, got {self.population} and {self.tournament}")

    @property
    def stage2_candidates(self) -> int:
        """How many candidates combine terms: the share of what the references leave, and one single term before them."""
        searched = self.candidates - len(self.references)
        return min(round(self.stage2_share * searched), searched - 1)

    @property
    def stage1_candidates(self) -> int:
        """How many candidates are single terms of an island."""
        return self.candidates - len(self.references) - self.stage2_candidates

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal spec back."""
        return {
            "knowledge": list(self.knowledge),
            "candidates": self.candidates,
            "parallelism": self.parallelism,
            "seed": self.seed,
            "references": [policy_to_json(policy) for policy in self.references],
            "space": self.space.to_json(),
            "stage2_share": self.stage2_share,
            "floor": self.floor,
            "population": self.population,
            "tournament": self.tournament,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spec:
        """Read what `to_json` wrote. Raises ValueError that names a key that is missing or not known."""
        fields = _keys(
            data, "spec", required=("knowledge", "candidates", "parallelism", "seed", "references", "space"), known=cls.__slots__
        )
        fields["knowledge"] = tuple(fields["knowledge"])
        fields["references"] = tuple(policy_from_json(policy) for policy in fields["references"])
        fields["space"] = SearchSpace.from_json(fields["space"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Proposal:
    """One candidate: its policy in canonical form, and where it comes from.

    island: the knowledge that a stage 1 candidate belongs to. parents: indices of the candidates it was made of.
    operator: how (`reference`, `seed`, `sample`, `mutate`, `weight`, `migrate`, `enumerate`, `combine`, `toggle`, `swap`, `scale`).
    """

    index: int
    policy: Policy
    stage: Stage
    island: str | None = None
    parents: tuple[int, ...] = ()
    operator: str = "reference"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal proposal back."""
        return {
            "index": self.index,
            "policy": policy_to_json(self.policy),
            "stage": self.stage,
            "island": self.island,
            "parents": list(self.parents),
            "operator": self.operator,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Proposal:
        """Read what `to_json` wrote. Raises ValueError that names a key that is missing, not known, or a stage that is none."""
        fields = _keys(data, "proposal", required=("index", "policy", "stage"), known=cls.__slots__)
        if fields["stage"] not in get_args(Stage):
            raise ValueError(f"proposal.stage: {fields['stage']!r} is not a stage; one of {', '.join(get_args(Stage))}")
        fields["policy"] = policy_from_json(fields["policy"])
        fields["parents"] = tuple(fields.get("parents", ()))
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Result:
    """What a candidate is worth: its fitness (AP, 0-100), or None with the failure that made it infeasible."""

    fitness: float | None
    failure: str | None = None

    def __post_init__(self) -> None:
        # NaN compares false with everything: a ranking with one in it would depend on the order of comparisons.
        if self.fitness is not None and not math.isfinite(self.fitness):
            raise ValueError(f"result.fitness: {self.fitness} is not finite; an infeasible candidate has fitness None and a failure")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal result back."""
        return {"fitness": self.fitness, "failure": self.failure}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Read what `to_json` wrote. Raises ValueError that names a key that is missing or not known."""
        return cls(**_keys(data, "result", required=("fitness",), known=cls.__slots__))


def _keys(data: Mapping[str, Any], where: str, *, required: tuple[str, ...], known: tuple[str, ...]) -> dict[str, Any]:
    """A copy of data, once it is sure that all required keys and only known keys are there."""
    for key in required:
        if key not in data:
            raise ValueError(f"{where}.{key}: missing")
    for key in data:
        if key not in known:
            raise ValueError(f"{where}.{key}: not known; one of {', '.join(known)}")
    return dict(data)
