"""What a search would do and cost, without starting it."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from detkds_api.budget import confirming_jobs, enough_for, expected_students
from detkds_api.search_request import Planned
from detkds_api.warm_start import WarmStart
from detkds_core.evolution import Evolution, Outcome, Spec
from detkds_core.policy import SearchSpace

PREVIEWED = 60  # full proxies of a budget whose course is played through; a larger one is scaled
PLAYED = 250  # candidates of it, at most: rungs far below the full proxy would buy thousands


EXAMPLE = {
    "formulas": {"global": 2286, "logits": 77},
    "excluded": {},
    "proposed": 60,
    "rungs": [{"iterations": 15, "candidates": 60}, {"iterations": 120, "candidates": 3}],
    "iterations": 2400,
    "confirmation_iterations": 1800,
    "seconds_an_iteration": 0.11,
    "seconds": 460.0,
    "workers": 2,
    "clock_seconds": 230.0,
    "warm_start": {"policies": 7, "left_out": {"this search leaves 'logits' out": 3}},
    "spec": {"seed": 0},
}


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
