"""What a search is asked to do, in full: its request checked against the pair, and its specification."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from sqlalchemy.orm import Session

from detkds_api.budget import DEFAULT_GROUP, DEFAULT_PARALLELISM, DEFAULT_REFERENCES, LOOK, Speed, trunk_steps, wanted_budget
from detkds_api.fields import NOTES, TAGS, Body, Name, Notes, Seed, Shallow, Tags
from detkds_api.pairing import Pairing, RecipeChoice, StudentChoice, TeacherChoice, resolve
from detkds_api.policies import read_policy
from detkds_api.problems import FieldError, invalid, pointer, pointer_of_path
from detkds_api.quota import DeviceMemory, Priority
from detkds_api.service import Running
from detkds_api.warm_start import Seeds, named_searches, seeds
from detkds_core.catalogue import DETECTORS
from detkds_core.evolution import Spec
from detkds_core.evolution.spec import GATES, HALVING, OF_OPTUNA, Algorithm
from detkds_core.policy import PairFacts, Policy, SearchSpace, canonical, named_policies, to_json
from detkds_core.policy.distillers import learns_first
from detkds_core.policy.named import name_of, suiting
from detkds_core.store import searches as stored
from detkds_core.store import workers

Knowledge = Literal["global", "fgbg", "instance", "logits", "localization"]
Breadth = Literal["published", "full"]
Weights = Literal["balanced", "published"]
SPACE = "`published`: the names that DetKDS can reach; `full`: everything that the policy language has"
WEIGHTS = "`balanced`: a weight is the ratio of the term's gradient to the task's; `published`: DetKDS' own numbers"
# Of a term's gradient to the task's, what a search begins with. The feature terms of good hand-designed distillers have 9 to 460 at the
# fork of small pairs (docs/benchmarks.md, "Live comparisons"): a student that has learnt little is led by its teacher first.
FEATURE_RATIOS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
RESPONSE_RATIOS = (0.03, 0.1, 0.3, 1.0, 3.0)
# Parts of the full proxy. An eighth does not order policies, half of it costs more than it tells (docs/benchmarks.md, "Rungs and forks" and
# "On measured policies").
RUNGS = (4,)
REFERENCE_SHARE = 0.2  # of the budget, and of the candidates, for the default references at the lowest rung


class Confirmation(Body):
    """How the best candidates are measured again: on images that the search has not seen, with fresh seeds, beside no distillation."""

    finalists: int = Field(default=2, ge=1, le=20)
    seeds: int = Field(default=5, ge=3, le=50)
    distillers: Literal["all"] | list[Annotated[Name | dict[str, Any], Shallow]] = Field(
        default="all",
        max_length=50,
        description="hand-designed distillers to compare with: named policies, formulas or policies; `all`: every named one that the pair "
        "can run and that suits the student",
    )
    iterations: int | None = Field(default=None, ge=1, le=10_000_000, description="default: those of the recipe")


class SearchRequest(Body):
    """What to search: either a `pair` of the catalogue, or dataset, teacher and student."""

    name: Name | None = Field(default=None, description="to find it again by")
    pair: Name | None = Field(default=None, description="of `GET /detectors`; gives all three of the following and a recipe")
    dataset: Name | None = Field(default=None, description="of `GET /datasets`")
    teacher: TeacherChoice | None = None
    student: StudentChoice | None = None
    algorithm: Algorithm = Field(
        default="detkds",
        description="`detkds`: islands, rungs and gates; the others are for comparison, `random_halving` with the same rungs and gates",
    )
    candidates: int | None = Field(default=None, ge=4, le=100_000, description="policies that are proposed at most, references included")
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=10**12,
        description="budget in student iterations, without the confirmation; default: what the candidates need",
    )
    hours: float | None = Field(
        default=None, gt=0, le=1e6, description="budget in hours of one device, by what an iteration of this pair took before"
    )
    wall_clock_hours: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="budget in hours by the clock, the confirmation included, with the workers that are there now",
    )
    seed: Seed = 0
    knowledge: list[Knowledge] | None = Field(
        default=None, min_length=1, max_length=5, description="default: all that the pair can exchange"
    )
    space: Breadth = Field(default="published", description=SPACE)
    references: list[Annotated[Name | dict[str, Any], Shallow]] | None = Field(
        default=None,
        max_length=50,
        description="named policies, formulas or policies, measured first and then varied like any other candidate; default: none, pkd and"
        " further named policies that suit the pair, as far as a fifth of the budget pays for them",
    )
    warm_start: list[Name] | None = Field(
        default=None,
        max_length=10,
        description="ids of searches that have SUCCEEDED, or of their results: begin with their best policies that this pair can run",
    )
    priority: Priority = 0
    device_memory_gib: DeviceMemory | None = None
    recipe: RecipeChoice | None = None
    confirmation: Confirmation = Confirmation()
    weights: Weights = Field(default="balanced", description=WEIGHTS)
    rungs: list[int] | None = Field(
        default=None,
        max_length=10,
        description="student iterations of short trainings below the full proxy, rising; default: a quarter of it",
    )
    mode: Literal["strict", "logged"] = Field(
        default="strict", description="`strict`: depends on the specification alone; `logged`: never waits for a slow job, can be replayed"
    )
    group: int | None = Field(default=None, ge=1, le=64, description="candidates that are trained together")
    parallelism: int | None = Field(default=None, ge=1, le=1024, description="jobs that may be under way at once; default: 2")
    inherit: bool | None = Field(
        default=None,
        description="the student starts from the teacher's neck and head, from each module that fits; default: as the pair says, else true",
    )
    resize: bool = Field(
        default=False, description="levels of different strides are matched too; the teacher's maps take the student's sizes"
    )
    notes: Notes = Field(default="", description=NOTES)
    tags: Tags = Field(default=[], description=TAGS)


class Planned(NamedTuple):
    """What a request comes to. seeds: of its warm start."""

    pairing: Pairing
    spec: dict[str, Any]
    speed: Speed
    seeds: Seeds | None


def planned(session: Session, service: Running, wanted: SearchRequest) -> Planned:
    """What the request pairs, and the specification of its search.

    Raises InvalidInput with every field that is wrong, and what would be right.
    """
    pairing = resolve(
        session,
        service,
        pair=wanted.pair,
        dataset=wanted.dataset,
        teacher=wanted.teacher,
        student=wanted.student,
        recipe=wanted.recipe,
        resize=wanted.resize,
        schedule="proxy",
    )
    speed = Speed(stored.seconds_an_iteration(session, pairing.spec()), workers.alive(session))
    space = wanted_space(wanted, pairing)
    extent = wanted_extent(wanted, pairing, speed)
    references = wanted_references(wanted, pairing, extent.budget / extent.rungs[0])
    warm = None
    if wanted.warm_start:
        warm = seeds(session, named_searches(session, service.caller, wanted.warm_start), pairing, space, references)
    spec = specification(wanted, pairing, space, extent, references, warm.policies if warm else ())
    return Planned(pairing, spec, speed, warm)


class Extent(NamedTuple):
    """How far a search goes. rungs: student iterations of each; budget: all that it may spend; confirmation: as the evolver reads it."""

    rungs: tuple[int, ...]
    budget: int
    confirmation: dict[str, Any]


def wanted_extent(wanted: SearchRequest, pairing: Pairing, speed: Speed) -> Extent:
    """Raises InvalidInput."""
    if wanted.algorithm in OF_OPTUNA and find_spec("optuna") is None:
        message = f"{wanted.algorithm!r} needs Optuna, which is not installed here: pip install 'detkds_core[optuna]'"
        raise invalid([FieldError("/algorithm", message)])
    rungs = wanted_rungs(wanted, pairing, wanted.algorithm in HALVING)
    confirmation = {
        "finalists": wanted.confirmation.finalists,
        "seeds": wanted.confirmation.seeds,
        "iterations": wanted.confirmation.iterations or rungs[-1],
        "distillers": wanted_distillers(wanted.confirmation, pairing),
    }
    # How many references there are follows from the budget, and the budget from whether one of them is confirmed too: here from all that
    # there may be.
    references = [to_json(one) for one in wanted_references(wanted, pairing, math.inf)]
    return Extent(rungs, wanted_budget(wanted, rungs, confirmation, references, speed), confirmation)


def specification(
    wanted: SearchRequest,
    pairing: Pairing,
    space: SearchSpace,
    extent: Extent,
    references: tuple[Policy, ...],
    warm: tuple[Policy, ...],
) -> dict[str, Any]:
    """All that decides the course of the search, in full: what the evolver reads, and what a later reader can repeat.

    warm: policies of earlier searches. Raises InvalidInput.
    """
    halves = wanted.algorithm in HALVING
    try:
        evolution = Spec(
            knowledge=space.knowledge,
            budget=extent.budget,
            candidates=wanted.candidates,
            group=wanted.group or DEFAULT_GROUP,
            parallelism=wanted.parallelism or DEFAULT_PARALLELISM,
            seed=wanted.seed,
            references=references,
            seeds=warm,
            space=space,
            rungs=extent.rungs,
            algorithm=wanted.algorithm,
            look=LOOK if halves else 0,
            lenient=True,
        )
    except ValueError as error:
        path, _, message = str(error).partition(": ")
        raise invalid([FieldError(pointer_of_path(path.removeprefix("spec")), message)]) from None
    hours = {name: value for name in ("hours", "wall_clock_hours") if (value := getattr(wanted, name)) is not None}
    return {
        **pairing.spec(),
        **evolution.to_json(),
        "fork": trunk_steps(extent.rungs),
        "gates": list(GATES) if halves else [],
        "mode": wanted.mode,
        "confirmation": extent.confirmation,
        "inherit": pairing.inherits(wanted.inherit),
        "pair": wanted.pair,
        **({"warm_start": wanted.warm_start} if wanted.warm_start else {}),
        **({"asked": hours} if hours else {}),
    }


def wanted_rungs(wanted: SearchRequest, pairing: Pairing, halves: bool) -> tuple[int, ...]:
    """Student iterations of each rung, the full proxy last. Raises InvalidInput for rungs that do not rise to it."""
    full = pairing.iterations
    if not halves:
        if wanted.rungs:
            raise invalid([FieldError("/rungs", f"{wanted.algorithm!r} measures every candidate at the full proxy; leave them out")])
        return (full,)
    if wanted.rungs is None:
        return (*sorted({max(1, full // part) for part in RUNGS} - {full}), full)
    if wanted.rungs != sorted(set(wanted.rungs)) or any(not 1 <= rung < full for rung in wanted.rungs):
        raise invalid([FieldError("/rungs", f"{wanted.rungs} are not rising numbers from 1 to below the full proxy's {full} iterations")])
    return (*wanted.rungs, full)


def wanted_space(wanted: SearchRequest, pairing: Pairing) -> SearchSpace:
    """What the search chooses from. Raises InvalidInput."""
    return space_of(pairing.facts, wanted_knowledge(wanted, pairing), wanted.space, wanted.weights)


def space_of(facts: PairFacts, knowledge: tuple[str, ...], breadth: Breadth, weights: Weights) -> SearchSpace:
    """What a search on a pair with these facts chooses from."""
    ratios = {"feature_weights": FEATURE_RATIOS, "response_weights": RESPONSE_RATIOS, "balanced": True} if weights == "balanced" else {}
    return SearchSpace.of(facts, knowledge=knowledge, breadth=breadth, **ratios)


def wanted_knowledge(wanted: SearchRequest, pairing: Pairing) -> tuple[str, ...]:
    """The knowledge to search over, in the order of the policy language. Raises InvalidInput for what the pair cannot exchange."""
    if wanted.knowledge is None:
        return pairing.exchange.knowledge
    errors = []
    for place, name in enumerate(wanted.knowledge):
        if name in wanted.knowledge[:place]:
            errors.append(FieldError(pointer("knowledge", place), f"{name!r} appears twice"))
        elif name not in pairing.exchange.knowledge:
            reason = pairing.exchange.excluded[name]
            errors.append(FieldError(pointer("knowledge", place), f"this pair cannot exchange {name!r}: {reason}"))
    if errors:
        raise invalid(errors)
    return tuple(name for name in pairing.exchange.knowledge if name in wanted.knowledge)


def wanted_references(wanted: SearchRequest, pairing: Pairing, paid: float) -> tuple[Policy, ...]:
    """The policies that are measured first, each checked against the pair. Raises InvalidInput.

    By default no distillation and hand-designed policies that suit the pair, PKD first, as many as REFERENCE_SHARE allows; without those
    that learn something on the teacher beforehand, which takes longer than a rung. paid: candidates that the budget pays for at the lowest
    rung.
    """
    if wanted.references is not None:
        return tuple(read_policy(one, pointer("references", place), pairing) for place, one in enumerate(wanted.references))
    most = max(len(DEFAULT_REFERENCES), REFERENCE_SHARE * min(paid, wanted.candidates or math.inf))
    policies = (named_policies()[name].policy for name in (*DEFAULT_REFERENCES, *suiting_names(pairing)))
    ready = dict.fromkeys(canonical(policy) for policy in policies if not any(learns_first(one) for one in policy.distillers))
    return tuple(ready)[: int(min(most, len(ready)))]


def suiting_names(pairing: Pairing) -> tuple[str, ...]:
    """The named policies that suit the pair."""
    stages = DETECTORS[pairing.student["detector"]].stages
    names = suiting(pairing.exchange, pairing.facts, pairing.families, stages)
    return tuple(name for name in names if not pairing.cannot_run(named_policies()[name].policy))


def wanted_distillers(wanted: Confirmation, pairing: Pairing) -> list[dict[str, Any]]:
    """The hand-designed distillers of the confirmation, `{"name", "policy"}` each, checked against the pair. Raises InvalidInput."""
    if wanted.distillers == "all":
        return [{"name": name, "policy": to_json(canonical(named_policies()[name].policy))} for name in suiting_names(pairing)]
    chosen: dict[Policy, str] = {}
    for place, asked in enumerate(wanted.distillers):
        policy = read_policy(asked, pointer("confirmation", "distillers", place), pairing)
        name = asked if isinstance(asked, str) and asked in named_policies() else name_of(policy) or f"distiller {place}"
        chosen.setdefault(policy, name)
    return [{"name": name, "policy": to_json(policy)} for policy, name in chosen.items()]
