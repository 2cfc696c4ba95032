"""What a search is asked to do, in full: its request checked against the pair, its specification, and what that would do and cost."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from detkds_api.fields import Body, Name, Seed
from detkds_api.pairing import Pairing, RecipeChoice, StudentChoice, TeacherChoice, resolve
from detkds_api.policies import read_policy
from detkds_api.problems import FieldError, invalid, pointer, pointer_of_path
from detkds_api.service import Running
from detkds_api.warm_start import Seeds, WarmStart, named_searches, seeds
from detkds_core.catalogue import DETECTORS
from detkds_core.evolution import Evolution, Outcome, Spec
from detkds_core.evolution.spec import ETA, GATES, HALVING, OF_OPTUNA, Algorithm
from detkds_core.policy import Policy, SearchSpace, canonical, named_policies, to_json
from detkds_core.policy.named import name_of, suiting
from detkds_core.store import searches as stored
from detkds_core.store import workers

Knowledge = Literal["global", "fgbg", "instance", "logits", "localization"]
# Of a term's gradient to the task's, what a search begins with. The feature terms of good hand-designed distillers have 9 to 460 at the
# fork of small pairs (docs/benchmarks.md, "Live comparisons"): a student that has learnt little is led by its teacher first.
FEATURE_RATIOS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
RESPONSE_RATIOS = (0.03, 0.1, 0.3, 1.0, 3.0)
RUNGS = (4, 2)  # parts of the full proxy; an eighth does not order policies (docs/benchmarks.md, "Rungs and forks")
LOOK = 4  # iterations that a look at a candidate costs, about
DEFAULT_PARALLELISM = 2
NO_PACE = "no iteration of this pair with this recipe has been measured yet; give 'candidates' or 'iterations' the first time"
PREVIEWED = 60  # full proxies of a budget whose course is played through; a larger one is scaled
PLAYED = 250  # candidates of it, at most: rungs far below the full proxy would buy thousands
DEFAULT_REFERENCES = ("none", "pkd")
DEFAULT_GROUP = 4  # candidates that share batches and teacher: less for each, and still fine-grained progress


class Confirmation(Body):
    """How the best candidates are measured again: on images that the search has not seen, with fresh seeds, beside no distillation."""

    finalists: int = Field(default=2, ge=1, le=20)
    seeds: int = Field(default=5, ge=3, le=50)
    distillers: Literal["all"] | list[Name | dict[str, Any]] = Field(
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
    space: Literal["published", "full"] = Field(
        default="published", description="`published`: the names that DetKDS can reach; `full`: everything that the policy language has"
    )
    references: list[Name | dict[str, Any]] | None = Field(
        default=None,
        max_length=50,
        description="named policies, formulas or policies, measured beside the searched ones; default: none and pkd",
    )
    warm_start: list[Name] | None = Field(
        default=None,
        max_length=10,
        description="ids of searches that have SUCCEEDED, or of their results: begin with their best policies that this pair can run",
    )
    recipe: RecipeChoice | None = None
    confirmation: Confirmation = Confirmation()
    weights: Literal["balanced", "published"] = Field(
        default="balanced",
        description="`balanced`: a weight is the ratio of the term's gradient to the task's; `published`: DetKDS' own numbers",
    )
    rungs: list[int] | None = Field(
        default=None,
        max_length=10,
        description="student iterations of short trainings below the full proxy, rising; default: a quarter and half of it",
    )
    mode: Literal["strict", "logged"] = Field(
        default="strict", description="`strict`: depends on the specification alone; `logged`: never waits for a slow job, can be replayed"
    )
    group: int | None = Field(default=None, ge=1, le=64, description="candidates that are trained together")
    parallelism: int | None = Field(default=None, ge=1, le=1024, description="jobs that may be under way at once; default: 2")
    inherit: bool | None = Field(
        default=None,
        description="the student starts from the teacher's neck and head where shapes match; default: as the pair says, else true",
    )
    resize: bool = Field(
        default=False, description="levels of different strides are matched too; the teacher's maps take the student's sizes"
    )


class Preview(BaseModel):
    """What a search would do.

    formulas: different ones of each knowledge that the pair can train with; excluded: why it cannot exchange the others. proposed: about
    how many candidates the budget pays for; rungs: iterations of each and about how many candidates reach it. seconds: expected on one
    device, by what an iteration of this pair took before; null where nothing is known. workers: that are there now; clock_seconds: expected
    with them. warm_start: null where none was asked for.
    """

    formulas: dict[str, int]
    excluded: dict[str, str]
    proposed: int
    rungs: list[dict[str, int]]
    iterations: int
    confirmation_iterations: int
    seconds_an_iteration: float | None
    seconds: float | None
    workers: int
    clock_seconds: float | None
    warm_start: WarmStart | None
    spec: dict[str, Any]


class Speed(NamedTuple):
    """pace: seconds that a student iteration of a pair took before, where it is known. workers: that are there now."""

    pace: float | None
    workers: int

    def clock_seconds(self, iterations: float, at_once: int) -> float | None:
        """How long so many iterations take where so many jobs may be under way at once; None where nothing is known."""
        return iterations * self.pace / min(self.workers, at_once) if self.pace and self.workers else None


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
        service.settings,
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
    references = wanted_references(wanted, pairing)
    warm = None
    if wanted.warm_start:
        warm = seeds(session, named_searches(session, service.caller, wanted.warm_start), pairing, space, references)
    spec = specification(wanted, pairing, space, references, warm.policies if warm else (), speed)
    return Planned(pairing, spec, speed, warm)


def specification(
    wanted: SearchRequest,
    pairing: Pairing,
    space: SearchSpace,
    references: tuple[Policy, ...],
    warm: tuple[Policy, ...],
    speed: Speed,
) -> dict[str, Any]:
    """All that decides the course of the search, in full: what the evolver reads, and what a later reader can repeat.

    warm: policies of earlier searches. Raises InvalidInput.
    """
    if wanted.algorithm in OF_OPTUNA and find_spec("optuna") is None:
        message = f"{wanted.algorithm!r} needs Optuna, which is not installed here: pip install 'detkds_core[optuna]'"
        raise invalid([FieldError("/algorithm", message)])
    halves = wanted.algorithm in HALVING
    rungs = wanted_rungs(wanted, pairing, halves)
    confirmation = {
        "finalists": wanted.confirmation.finalists,
        "seeds": wanted.confirmation.seeds,
        "iterations": wanted.confirmation.iterations or rungs[-1],
        "distillers": wanted_distillers(wanted.confirmation, pairing),
    }
    try:
        evolution = Spec(
            knowledge=space.knowledge,
            budget=wanted_budget(wanted, rungs, confirmation, speed),
            candidates=wanted.candidates,
            group=wanted.group or DEFAULT_GROUP,
            parallelism=wanted.parallelism or DEFAULT_PARALLELISM,
            seed=wanted.seed,
            references=references,
            seeds=warm,
            space=space,
            rungs=rungs,
            algorithm=wanted.algorithm,
            look=LOOK if halves else 0,
        )
    except ValueError as error:
        path, _, message = str(error).partition(": ")
        raise invalid([FieldError(pointer_of_path(path.removeprefix("spec")), message)]) from None
    hours = {name: value for name in ("hours", "wall_clock_hours") if (value := getattr(wanted, name)) is not None}
    return {
        **pairing.spec(),
        **evolution.to_json(),
        "fork": rungs[-1] // 2 if len(rungs) > 1 else 0,
        "gates": list(GATES) if halves else [],
        "mode": wanted.mode,
        "confirmation": confirmation,
        "inherit": pairing.inherits(wanted.inherit),
        "pair": wanted.pair,
        **({"warm_start": wanted.warm_start} if wanted.warm_start else {}),
        **({"asked": hours} if hours else {}),
    }


def previewed(found: Planned) -> Preview:
    """The course of a search whose candidates are worth random numbers."""
    spec, pace = found.spec, found.speed.pace
    course = Spec.from_json({key: spec[key] for key in Spec.__dataclass_fields__ if key in spec})
    useful = course.budget if course.candidates is None else min(course.budget, enough_for(course.candidates, course.rungs))
    budget = min(useful, PREVIEWED * course.rungs[-1])
    limit = course.candidates and max(len(course.references) + 1, math.ceil(course.candidates * budget / useful))
    evolution, rng = Evolution(replace(course, budget=budget, candidates=limit)), random.Random(0)
    while len(evolution.candidates) < PLAYED and (job := evolution.ask()) is not None:
        evolution.tell(job.index, {index: Outcome(rng.random()) for index in job.members})
    times = useful / (budget if evolution.finished else evolution.history().spent)
    reached = [len({index for job in evolution.jobs if job.rung == rung for index in job.members}) for rung in range(len(course.rungs))]
    proposed = round(len(evolution.candidates) * times)
    proposed = min(proposed, course.candidates) if course.candidates else proposed
    confirming = expected_students(spec) * int(spec["confirmation"]["iterations"])
    searching_time = found.speed.clock_seconds(course.budget, course.parallelism)
    confirming_time = found.speed.clock_seconds(confirming, confirming_jobs(spec["confirmation"], course.group))
    space = course.space
    assert isinstance(space, SearchSpace)
    return Preview(
        formulas={knowledge: space.size(knowledge) for knowledge in course.knowledge},
        excluded=dict(found.pairing.exchange.excluded),
        proposed=proposed,
        rungs=[
            {"iterations": one, "candidates": min(proposed, round(count * times))} for one, count in zip(course.rungs, reached, strict=True)
        ],
        iterations=course.budget,
        confirmation_iterations=confirming,
        seconds_an_iteration=pace,
        seconds=round((course.budget + confirming) * pace, 1) if pace else None,
        workers=found.speed.workers,
        clock_seconds=round(searching_time + confirming_time, 1) if searching_time and confirming_time else None,
        warm_start=found.seeds.view() if found.seeds else None,
        spec=dict(spec),
    )


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


def wanted_budget(wanted: SearchRequest, rungs: tuple[int, ...], confirmation: Mapping[str, Any], speed: Speed) -> int:
    """Student iterations that the search may spend. Raises InvalidInput."""
    given = [name for name in ("iterations", "hours", "wall_clock_hours") if getattr(wanted, name) is not None]
    if len(given) > 1:
        raise invalid([FieldError(pointer(given[1]), f"the budget is given in {given[0]} already; leave one of them out")])
    if wanted.hours is not None:
        return bought(wanted.hours, rungs, speed.pace)
    if wanted.wall_clock_hours is not None:
        parallelism, group = wanted.parallelism or DEFAULT_PARALLELISM, wanted.group or DEFAULT_GROUP
        return bought_by_the_clock(wanted.wall_clock_hours, rungs, confirmation, speed, parallelism, group)
    if wanted.iterations is not None:
        if wanted.iterations < rungs[-1]:
            raise invalid([FieldError("/iterations", f"{wanted.iterations} are less than one full proxy of {rungs[-1]} iterations")])
        return wanted.iterations
    if wanted.candidates is None:
        message = "is required, unless 'iterations', 'hours' or 'wall_clock_hours' say how much the search may spend"
        raise invalid([FieldError("/candidates", message)])
    return enough_for(wanted.candidates, rungs)


def bought(hours: float, rungs: tuple[int, ...], pace: float | None) -> int:
    """Student iterations of so many hours of one device. Raises InvalidInput where the pace is not known, or too little is bought."""
    if pace is None:
        raise invalid([FieldError("/hours", NO_PACE)])
    iterations = int(hours * 3600 / pace)
    if iterations < rungs[-1]:
        message = f"buys {iterations} iterations at {pace:.3g} s each, less than one full proxy of {rungs[-1]}"
        raise invalid([FieldError("/hours", message)])
    return iterations


def bought_by_the_clock(
    hours: float, rungs: tuple[int, ...], confirmation: Mapping[str, Any], speed: Speed, parallelism: int, group: int
) -> int:
    """Student iterations that so many hours leave to the search after its confirmation, with the workers that are there.

    Raises InvalidInput where there is no worker, the pace is not known, or too little is left.
    """
    where = "/wall_clock_hours"
    if speed.pace is None:
        raise invalid([FieldError(where, NO_PACE)])
    confirming = expected_students({"confirmation": confirmation}) * int(confirmation["iterations"])
    after = speed.clock_seconds(confirming, confirming_jobs(confirmation, group))
    if after is None:
        raise invalid([FieldError(where, "no worker is there to say how fast it goes; start one, or give 'hours' of one device")])
    at_once = min(speed.workers, parallelism)
    iterations = int((hours * 3600 - after) * at_once / speed.pace)
    if iterations < rungs[-1]:
        least = (after + rungs[-1] * speed.pace / at_once) / 3600
        message = (
            f"the confirmation takes {after / 3600:.3g} hours of it with the workers that are there ({speed.workers}), and what is left is"
            f" less than one full proxy of {rungs[-1]} iterations; more than {least:.3g} hours, or fewer seeds, finalists or distillers"
        )
        raise invalid([FieldError(where, message)])
    return iterations


def enough_for(candidates: int, rungs: tuple[int, ...]) -> int:
    """Student iterations that let so many candidates pass the lowest rung, a third of each rung the next, and the best repeat the last."""
    climbing: float = sum(candidates / ETA**place * rung for place, rung in enumerate(rungs))
    looks = candidates * LOOK if len(rungs) > 1 else 0
    spare = 6 * rungs[-1] if len(rungs) > 1 else 0  # replicates
    return math.ceil(climbing + looks) + spare


def wanted_space(wanted: SearchRequest, pairing: Pairing) -> SearchSpace:
    """What the search chooses from. Raises InvalidInput."""
    weights = (
        {"feature_weights": FEATURE_RATIOS, "response_weights": RESPONSE_RATIOS, "balanced": True} if wanted.weights == "balanced" else {}
    )
    return SearchSpace.of(pairing.facts, knowledge=wanted_knowledge(wanted, pairing), breadth=wanted.space, **weights)


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


def wanted_references(wanted: SearchRequest, pairing: Pairing) -> tuple[Policy, ...]:
    """The policies that are measured beside, each checked against the pair. Raises InvalidInput."""
    asked = wanted.references if wanted.references is not None else list(DEFAULT_REFERENCES)
    return tuple(read_policy(one, pointer("references", place), pairing) for place, one in enumerate(asked))


def wanted_distillers(wanted: Confirmation, pairing: Pairing) -> list[dict[str, Any]]:
    """The hand-designed distillers of the confirmation, `{"name", "policy"}` each, checked against the pair. Raises InvalidInput."""
    if wanted.distillers == "all":
        stages = DETECTORS[pairing.student["detector"]].stages
        names = suiting(pairing.exchange, pairing.facts, pairing.families, stages)
        return [{"name": name, "policy": to_json(canonical(named_policies()[name].policy))} for name in names]
    chosen: dict[Policy, str] = {}
    for place, asked in enumerate(wanted.distillers):
        policy = read_policy(asked, pointer("confirmation", "distillers", place), pairing)
        name = asked if isinstance(asked, str) and asked in named_policies() else name_of(policy) or f"distiller {place}"
        chosen.setdefault(policy, name)
    return [{"name": name, "policy": to_json(policy)} for policy, name in chosen.items()]


def expected_students(spec: Mapping[str, Any]) -> int:
    """How many students the confirmation will train: no distillation, the distillers and the finalists, with every seed."""
    confirmation = spec["confirmation"]
    distillers = confirmation.get("distillers", DEFAULT_REFERENCES[1:])
    return int(confirmation["seeds"]) * (1 + len(distillers) + int(confirmation["finalists"]))


def confirming_jobs(confirmation: Mapping[str, Any], group: int) -> int:
    """How many jobs the confirmation is, all of which may be under way at once."""
    each = expected_students({"confirmation": confirmation}) // int(confirmation["seeds"])
    return int(confirmation["seeds"]) * math.ceil(each / group)


def asked_for(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification as far as its request decides it: what hours buy depends on what is known when it comes."""
    return {name: value for name, value in spec.items() if name != "budget" or "asked" not in spec}
