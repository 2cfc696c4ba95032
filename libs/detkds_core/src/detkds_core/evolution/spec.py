"""What a search is asked to do, what it asks to be measured, and what it is told back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from detkds_core.evolution.space import Space
from detkds_core.policy import Policy, SearchSpace
from detkds_core.policy import from_json as policy_from_json
from detkds_core.policy import to_json as policy_to_json

Stage = Literal["reference", "stage1", "stage2"]
Algorithm = Literal["detkds", "random", "random_halving", "evolution", "genetic", "tpe", "nsga2"]
# How a candidate was made: of nothing (`warm`: a policy of an earlier search, `seed`: hand-designed), or of others.
Opening = Literal["reference", "warm", "seed", "sample", "enumerate"]
Operator = Literal[Opening, "mutate", "weight", "migrate", "combine", "toggle", "swap", "look", "scale", "crossover"]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
ETA = 3  # one of so many is promoted
CALIBRATION_SHARE = 0.25  # of the budget, at most
GATES = ("finite", "gradient", "duplicate", "first_loss", "descent")  # in the order in which a candidate meets them
OF_OPTUNA = ("tpe", "nsga2")  # the algorithms that need it
HALVING = ("detkds", "random_halving")  # the algorithms that start candidates at the lowest rung


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that decides the course of a search; two equal specs ask for the same measurements.

    knowledge: one island each, in this order. budget: student iterations that the search may spend; rungs: student iterations of each
    rung, rising, the last the full proxy. candidates: the most policies that are proposed, references included; None: as many as the
    budget pays for. group: the most candidates of one job. parallelism: job n sees the results of jobs with index <= n - parallelism.
    references: proposed first, under the same budget (no distillation, hand-designed policies). seeds: what was good elsewhere, the most
    promising first; proposed early. eta: one of so many is promoted.
    look: what a candidate costs that is refused before its training, in iterations. stage2_share: part of the budget that goes to
    combining terms. floor: part of stage 1 that every island gets. population: how many of its last results an island breeds from.
    tournament: how many of them compete to be a parent. audit: share of the candidates that are trained even if a gate refuses them.
    calibration: how many of the first candidates pass every rung when that costs at most a quarter of the budget.
    lenient: candidates below the full proxy are ordered by their lenient AP, where it was measured, until half of a rung has an AP of 1.
    """

    knowledge: tuple[str, ...]
    budget: int
    seed: int
    references: tuple[Policy, ...]
    space: Space
    rungs: tuple[int, ...]
    algorithm: Algorithm = "detkds"
    candidates: int | None = None
    group: int = 1
    parallelism: int = 1
    eta: int = ETA
    look: float = 0.0
    stage2_share: float = 0.35
    floor: float = 0.08
    population: int = 24
    tournament: int = 5
    audit: float = 0.05
    calibration: int = 30
    seeds: tuple[Policy, ...] = ()
    lenient: bool = False

    def __post_init__(self) -> None:
        if not self.knowledge:
            raise ValueError("spec.knowledge: a search needs at least one knowledge")
        for place, name in enumerate(self.knowledge):
            if name not in self.space.knowledge:
                raise ValueError(f"spec.knowledge[{place}]: {name!r} is not in the search space; one of {', '.join(self.space.knowledge)}")
            if name in self.knowledge[:place]:
                raise ValueError(f"spec.knowledge[{place}]: {name!r} appears twice")
        keys = [self.space.key(policy) for policy in self.references]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise ValueError(f"spec.references[{place}]: the same policy as references[{keys.index(key)}]")
        self._check_seeds(keys)
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"spec.algorithm: {self.algorithm!r} is not known; one of {', '.join(ALGORITHMS)}")
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 1:
            raise ValueError(f"spec.rungs: {list(self.rungs)} are not rising numbers of iterations from 1 on")
        if self.candidates is not None and self.candidates <= len(self.references):
            raise ValueError(
                f"spec.candidates: {self.candidates} leaves nothing to search after {len(self.references)} references;"
                f" at least {len(self.references) + 1}"
            )
        if self.budget < self.rungs[-1]:
            raise ValueError(f"spec.budget: {self.budget} iterations are less than one full proxy of {self.rungs[-1]}")
        for name in ("group", "parallelism", "population", "tournament"):
            if getattr(self, name) < 1:
                raise ValueError(f"spec.{name}: at least 1, got {getattr(self, name)}")
        if self.eta < 2:
            raise ValueError(f"spec.eta: at least 2, got {self.eta}")
        if not 0 <= self.stage2_share < 1:
            raise ValueError(f"spec.stage2_share: at least 0 and below 1, got {self.stage2_share}")
        if not 0 <= self.audit <= 1:
            raise ValueError(f"spec.audit: from 0 to 1, got {self.audit}")
        if not 0 <= self.floor * len(self.knowledge) <= 1:
            raise ValueError(f"spec.floor: {self.floor} for each of {len(self.knowledge)} islands is more than the whole")

    def _check_seeds(self, known: list[str]) -> None:
        """Raises ValueError for a seed that nothing could be made of. known: the keys of the references."""
        names = [f"references[{place}]" for place in range(len(known))]
        keys = list(known)
        for place, seed in enumerate(self.seeds):
            where = f"spec.seeds[{place}]"
            if not seed.terms or seed.distillers:
                raise ValueError(f"{where}: a seed has terms and no distillers")
            for term in seed.terms:
                if term.knowledge not in self.knowledge:
                    raise ValueError(f"{where}: {term.knowledge!r} is not searched; one of {', '.join(self.knowledge)}")
            if self.space.admits(seed) is None:
                raise ValueError(f"{where}: the search space does not admit it")
            if (key := self.space.key(seed)) in keys:
                raise ValueError(f"{where}: the same policy as {names[keys.index(key)]}")
            keys.append(key)
            names.append(f"seeds[{place}]")

    @property
    def top(self) -> int:
        """The rung of the full proxy."""
        return len(self.rungs) - 1

    @property
    def halves(self) -> bool:
        """Whether candidates start at the lowest rung."""
        return self.algorithm in HALVING and len(self.rungs) > 1

    @property
    def calibrators(self) -> int:
        """How many of the first candidates pass every rung; 0 where the budget does not allow it."""
        wanted = self.calibration if self.halves else 0
        return wanted if wanted * sum(self.rungs) <= CALIBRATION_SHARE * self.budget else 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal spec back."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        assert isinstance(self.space, SearchSpace), "only a pair's own space is stored"
        return values | {
            "knowledge": list(self.knowledge),
            "rungs": list(self.rungs),
            "references": [policy_to_json(policy) for policy in self.references],
            "seeds": [policy_to_json(policy) for policy in self.seeds],
            "space": self.space.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spec:
        """Read what `to_json` wrote. Raises ValueError that names a key that is missing or not known."""
        values = _keys(data, "spec", required=("knowledge", "budget", "seed", "references", "space", "rungs"), known=cls.__slots__)
        values["knowledge"], values["rungs"] = tuple(values["knowledge"]), tuple(values["rungs"])
        values["references"] = tuple(policy_from_json(policy) for policy in values["references"])
        values["seeds"] = tuple(policy_from_json(policy) for policy in values.get("seeds", ()))
        values["space"] = SearchSpace.from_json(values["space"])
        return cls(**values)

    @classmethod
    def of_search(cls, spec: Mapping[str, Any]) -> Spec:
        """The part of a search's specification that decides its course; of one that continues another, as that one began: what was added
        since stands in the ledger. Raises ValueError or TypeError, KeyError for a specification of another version of this program."""
        begun = {**spec, **spec.get("begun", {})}
        return cls.from_json({key: begun[key] for key in cls.__slots__ if key in begun})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposed policy in canonical form, and where it comes from.

    island: the knowledge that a stage 1 candidate belongs to. parents: indices of the candidates it was made of. operator: how, one of
    `Operator`. audit: whether it is trained even if a gate refuses it.
    """

    index: int
    policy: Policy
    stage: Stage
    island: str | None = None
    parents: tuple[int, ...] = ()
    operator: str = "reference"
    audit: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal candidate back."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"policy": policy_to_json(self.policy), "parents": list(self.parents)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Read what `to_json` wrote. Raises ValueError that names a key that is missing, not known, or a stage that is none."""
        values = _keys(data, "candidate", required=("index", "policy", "stage"), known=cls.__slots__)
        if values["stage"] not in get_args(Stage):
            raise ValueError(f"candidate.stage: {values['stage']!r} is not a stage; one of {', '.join(get_args(Stage))}")
        values["policy"] = policy_from_json(values["policy"])
        values["parents"] = tuple(values.get("parents", ()))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Job:
    """One decision: these candidates are measured together at a rung, with the seed of a replicate.

    new: the members that nobody proposed before, in the order of members. known: earlier candidates whose looks were visible when it was
    decided, among which a new one may turn out to have a double. seen: of a logged search, the jobs whose results were looked at since the
    decision before.
    """

    index: int
    rung: int
    replicate: int
    members: tuple[int, ...]
    new: tuple[Candidate, ...] = ()
    seen: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"members": list(self.members), "new": [one.to_json() for one in self.new], "seen": list(self.seen)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job tells of a candidate. ap: on the selection images (0-100); None where it was not trained or could not be.

    lenient_ap: see `evaluation.coco.lenient_ap` (0-100); what short trainings are told apart by.
    failure: why it could not. rejected: the gate that refused it, also where an audit measured it all the same. same_as: the earlier
    candidate that does the same, whose measurements count for both. sketch, ratio: of its gradient at the fork, direction and length over
    the task's.
    """

    ap: float | None
    failure: str | None = None
    rejected: str | None = None
    same_as: int | None = None
    sketch: tuple[float, ...] = ()
    ratio: float | None = None
    lenient_ap: float | None = None

    def __post_init__(self) -> None:
        # NaN compares false with everything: a ranking with one in it would depend on the order of comparisons.
        for name, value in (("ap", self.ap), ("lenient_ap", self.lenient_ap)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"outcome.{name}: {value} is not finite; an infeasible candidate has ap None and a failure")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal outcome back."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"sketch": list(self.sketch)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """Read what `to_json` wrote. Raises ValueError that names a key that is missing or not known."""
        values = _keys(data, "outcome", required=("ap",), known=cls.__slots__)
        values["sketch"] = tuple(values.get("sketch", ()))
        return cls(**values)


def _keys(data: Mapping[str, Any], where: str, *, required: tuple[str, ...], known: tuple[str, ...]) -> dict[str, Any]:
    """A copy of data, once it is sure that all required keys and only known keys are there."""
    for key in required:
        if key not in data:
            raise ValueError(f"{where}.{key}: missing")
    for key in data:
        if key not in known:
            raise ValueError(f"{where}.{key}: not known; one of {', '.join(known)}")
    return dict(data)
