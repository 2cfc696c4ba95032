"""What a search would do and cost, without starting it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Session

from detkds_api.budget import confirming_jobs, enough_for, expected_students
from detkds_api.checkpoints import file_bytes
from detkds_api.search_request import Planned
from detkds_api.settings import Settings
from detkds_api.warm_start import WarmStart
from detkds_core.evolution import Evolution, Outcome, Spec
from detkds_core.policy import SearchSpace, formula
from detkds_core.store import results
from detkds_core.store.disk import free_bytes

PREVIEWED = 60  # full proxies of a budget whose course is played through; a larger one is scaled
PLAYED = 250  # candidates of it, at most: rungs far below the full proxy would buy thousands
# Of a live search of 25 jobs, a job: 20 KB of log, 13 KB of specification and result and the same again in the database, 45 KB of events.
JOB_BYTES = 90_000
KNOWN_BYTES = 900  # of an earlier candidate in the specification of a job that looks for doubles, file and database

EXAMPLE = {
    "formulas": {"global": 2286, "logits": 77},
    "excluded": {"localization": "the student's boxes have no distributions"},
    "evaluated": {
        "references": ["none", "5·l2(standardize(global))"],
        "distillers": ["pkd", "fgd"],
        "finalists": 2,
        "seeds": 5,
        "students": 25,
    },
    "proposed": 60,
    "rungs": [{"iterations": 15, "candidates": 60}, {"iterations": 120, "candidates": 3}],
    "iterations": 2400,
    "confirmation_iterations": 1800,
    "seconds_an_iteration": 0.11,
    "seconds": 460.0,
    "workers": 2,
    "clock_seconds": 230.0,
    "disk": {"bytes": 14_456_000, "trunks": 9_456_000, "jobs": 5_000_000, "student": 3_152_000, "free": 52_000_000_000},
    "warm_start": {"policies": 7, "left_out": {"this search leaves 'logits' out": 3}},
    "spec": {"seed": 0},
}


class Evaluated(BaseModel):
    """Whom the candidates of a search are compared with.

    references: hand-designed policies that are candidates too, measured on the selection images as these are. distillers, finalists,
    seeds: of its confirmation, which trains so many students: no distillation, the distillers and the finalists, with every seed.
    """

    references: list[str]
    distillers: list[str]
    finalists: int
    seeds: int
    students: int


class Disk(BaseModel):
    """What a search leaves on disk, in bytes, about: all of it, and its parts.

    trunks: the students that its rungs fork from, kept in the cache; jobs: specifications, results, logs and rows of its jobs. student:
    one student's weights, as a distillation found them; where there was none, the checkpoint that it starts from, or the teacher's.
    free: of the artifacts folder, now.
    """

    bytes: int
    trunks: int
    jobs: int
    student: int
    free: int


class Preview(BaseModel):
    """What a search would do.

    formulas: different ones of each knowledge that it chooses from; excluded: why others are left out. evaluated: whom its candidates are
    compared with. proposed: about how many candidates the budget pays for; rungs: iterations of each and about how many candidates reach
    it. seconds: expected on one device, by what an iteration of this pair took before; null where nothing is known. workers: that are there
    now; clock_seconds: expected with them. warm_start: null where none was asked for.
    """

    formulas: dict[str, int]
    excluded: dict[str, str]
    evaluated: Evaluated
    proposed: int
    rungs: list[dict[str, int]]
    iterations: int
    confirmation_iterations: int
    seconds_an_iteration: float | None
    seconds: float | None
    workers: int
    clock_seconds: float | None
    disk: Disk
    warm_start: WarmStart | None
    spec: dict[str, Any]


def previewed(settings: Settings, found: Planned, student: int) -> Preview:
    """The course of a search whose candidates are worth random numbers. student: bytes of its weights."""
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
        excluded=left_out(found, course),
        evaluated=evaluated(spec, course),
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
        disk=disk(settings, found.spec, student, evolution, times),
        warm_start=found.seeds.view() if found.seeds else None,
        spec=dict(spec),
    )


def left_out(found: Planned, course: Spec) -> dict[str, str]:
    """Why a search does not choose from some knowledge: because the pair cannot exchange it, or because it was asked to."""
    unasked = (name for name in found.pairing.exchange.knowledge if name not in course.knowledge)
    return {**found.pairing.exchange.excluded, **dict.fromkeys(unasked, "the request names other knowledge")}


def evaluated(spec: Mapping[str, Any], course: Spec) -> Evaluated:
    confirmation = spec["confirmation"]
    return Evaluated(
        references=[formula(one) for one in course.references],
        distillers=[one["name"] for one in confirmation["distillers"]],
        finalists=confirmation["finalists"],
        seeds=confirmation["seeds"],
        students=expected_students(spec),
    )


def disk(settings: Settings, spec: Mapping[str, Any], student: int, played: Evolution, times: float) -> Disk:
    """What a search leaves on disk. played: the course of its beginning, which the whole is so many times of."""
    # Each seed of the search has a trunk of its own; its optimizer keeps two numbers of every weight, or one.
    seeds = len({job.replicate for job in played.jobs})
    trunks = seeds * student * (1 + (2 if spec["recipe"]["optimizer"] == "adamw" else 1)) if spec["fork"] else 0
    decisions = len(played.jobs) * times + confirming_jobs(spec["confirmation"], played.spec.group)
    # A job that proposes is told of all candidates before it, so that these bytes grow with the square of the budget.
    told = sum(job.new[0].index for job in played.jobs if job.new) * times**2 if spec["gates"] else 0
    jobs = round(decisions * JOB_BYTES + told * KNOWN_BYTES)
    return Disk(bytes=trunks + jobs, trunks=trunks, jobs=jobs, student=student, free=free_bytes(settings.filled_folder))


def student_bytes(session: Session, spec: Mapping[str, Any]) -> int:
    """Bytes of a student's weights, by the parameters that it had before; else of a checkpoint: the teacher's is rather too large."""
    known = results.parameters(session, spec["student"]["detector"])
    if known is not None:
        return known * 4
    return file_bytes(session, spec["student"]["checkpoint"] or spec["teacher"]["checkpoint"])
