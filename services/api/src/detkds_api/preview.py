"""What a search would do and cost, without starting it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

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

PLAYED = 300  # candidates of a course that is played through, at most; of a longer one a part is, and scaled
PART = 60  # full proxies of such a part
PART_CANDIDATES = 120  # of such a part, where their number ends the search
LUCK = 0.75  # of an AP from 0 to 1.75 that is not the candidate's own: a rung orders by it as live ones do, Kendall's tau 0.4
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
    "look_iterations": 240,
    "trunk_iterations": 60,
    "confirmation_iterations": 1800,
    "seconds_an_iteration": 0.11,
    "seconds": 468.6,
    "workers": 2,
    "clock_seconds": 237.6,
    "disk": {"bytes": 14_456_000, "trunks": 9_456_000, "jobs": 5_000_000, "student": 3_152_000, "free": 52_000_000_000},
    "warm_start": {"policies": 7, "left_out": {"this search leaves 'logits' out": 3}},
    "spec": {"seed": 0},
}


class Evaluated(BaseModel):
    """Whom the candidates of a search are compared with.

    references: hand-designed policies that are candidates too, measured on the selection images as these are. distillers, finalists,
    seeds: of its confirmation, which trains so many students: no distillation, the distillers, the best of those references that are none
    of these, and the finalists, with every seed.
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
    compared with. proposed: about how many candidates there will be; rungs: iterations of each and about how many candidates reach it.
    iterations: the budget, or about what is spent of it where the number of candidates ends the search before; look_iterations: what
    of them looks at candidates before a training count as. Beside them trunk_iterations, of the trainings without distillation that rungs
    fork from, unless they are kept from before, and confirmation_iterations. seconds: of all three, expected on one device, by what an
    iteration of this pair took before; null where nothing is known. workers: that are there now; clock_seconds: expected with them.
    warm_start: null where none was asked for.
    """

    formulas: dict[str, int]
    excluded: dict[str, str]
    evaluated: Evaluated
    proposed: int
    rungs: list[dict[str, int]]
    iterations: int
    look_iterations: int
    trunk_iterations: int
    confirmation_iterations: int
    seconds_an_iteration: float | None
    seconds: float | None
    workers: int
    clock_seconds: float | None
    disk: Disk
    warm_start: WarmStart | None
    spec: dict[str, Any]


class Foreseen(NamedTuple):
    """What a search does, about: candidates that are proposed and that reach each rung, iterations spent (repeated: of these, on the best
    once more with other seeds), jobs, earlier candidates that these are told of in all, and seeds of its trainings."""

    proposed: float
    reached: tuple[float, ...]
    spent: float
    repeated: float
    jobs: float
    told: float
    seeds: int


def previewed(settings: Settings, found: Planned, student: int) -> Preview:
    """The course of a search whose candidates are worth random numbers. student: bytes of its weights."""
    spec, pace = found.spec, found.speed.pace
    course = Spec.from_json({key: spec[key] for key in Spec.__dataclass_fields__ if key in spec})
    ahead = foreseen(course)
    proposed = round(ahead.proposed)
    searching = course.budget if course.candidates is None else min(course.budget, round(ahead.spent))
    trunks = ahead.seeds * int(spec["fork"])
    confirming = expected_students(spec) * int(spec["confirmation"]["iterations"])
    searching_time = found.speed.clock_seconds(searching, course.parallelism)
    confirming_time = found.speed.clock_seconds(confirming, confirming_jobs(spec))
    clock = searching_time + trunks * pace + confirming_time if searching_time and confirming_time and pace else None
    space = course.space
    assert isinstance(space, SearchSpace)
    return Preview(
        formulas={knowledge: space.size(knowledge) for knowledge in course.knowledge},
        excluded=left_out(found, course),
        evaluated=evaluated(spec, course),
        proposed=proposed,
        rungs=[
            {"iterations": one, "candidates": min(proposed, round(count))} for one, count in zip(course.rungs, ahead.reached, strict=True)
        ],
        iterations=searching,
        look_iterations=round(course.look * proposed),
        trunk_iterations=trunks,
        confirmation_iterations=confirming,
        seconds_an_iteration=pace,
        seconds=round((searching + trunks + confirming) * pace, 1) if pace else None,
        workers=found.speed.workers,
        clock_seconds=round(clock, 1) if clock else None,
        disk=disk(settings, found.spec, student, ahead),
        warm_start=found.seeds.view() if found.seeds else None,
        spec=with_expected(spec),
    )


def with_expected(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification, and where the number of candidates ends its search (`expected`) about how many iterations they will train for, which
    may be far less than the budget; of many, at most how many: these come near it, and to play them takes a second."""
    course = Spec.of_search(spec)
    if course.candidates is None:
        return dict(spec)
    if course.candidates <= PART_CANDIDATES:
        ahead = foreseen(course)
        trained = round(ahead.spent) - round(course.look * round(ahead.proposed))
    else:
        trained = enough_for(course.candidates, course.rungs) - round(course.look * course.candidates)
    return {**spec, "expected": min(course.budget, trained)}


def foreseen(course: Spec) -> Foreseen:
    """A course played to its end where it is short. Of a longer one the first candidates pass every rung (`Spec.calibrators`), and what
    comes after goes as a smaller search without them, so many times."""
    whole = played(course)
    if whole.finished:
        return told_of(whole)
    first = min(course.calibrators, course.candidates or course.calibrators)
    calibration = first * (sum(course.rungs) + course.look)
    rest, more = course.budget - calibration, course.candidates and course.candidates - first
    # Budget and candidates by the same factor, so that the one which ends the search ends the part; either of them small makes it short.
    part = max(min(PART * course.rungs[-1], whole.history().spent - calibration) / rest, PART_CANDIDATES / more if more else 0.0)
    budget, limit = max(course.rungs[-1], int(rest * part)), more and max(len(course.references) + 1, round(more * part))
    small = played(replace(course, budget=budget, candidates=limit, calibration=0))
    seen = told_of(small)
    times = rest / budget if small.finished else rest / seen.spent
    proposed = first + seen.proposed * times
    return Foreseen(
        proposed=min(proposed, course.candidates or proposed),
        reached=tuple(first + count * times for count in seen.reached),
        spent=calibration + (seen.spent - seen.repeated) * times + seen.repeated,  # the best are a handful, however many there are
        repeated=seen.repeated,
        jobs=first / course.group * len(course.rungs) + seen.jobs * times,
        # A job that proposes is told of all candidates before it, so that these grow with the square of the candidates.
        told=seen.told * (proposed / seen.proposed) ** 2,
        seeds=seen.seeds,
    )


def played(course: Spec) -> Evolution:
    """A search that has ended, or proposed PLAYED candidates: they are worth random numbers, nearly the same at every rung.

    Optuna's samplers take minutes to choose so many, and measure each candidate at the full proxy, as random policies are.
    """
    course = replace(course, algorithm="random") if course.algorithm in ("tpe", "nsga2") else course
    evolution, rng = Evolution(course), random.Random(0)
    worth: dict[int, float] = {}
    while len(evolution.candidates) < PLAYED and (job := evolution.ask()) is not None:
        evolution.tell(job.index, {one: Outcome(worth.setdefault(one, rng.random()) + LUCK * rng.random()) for one in job.members})
    return evolution


def told_of(evolution: Evolution) -> Foreseen:
    """What was played."""
    jobs, rungs = evolution.jobs, range(len(evolution.spec.rungs))
    return Foreseen(
        proposed=len(evolution.candidates),
        reached=tuple(len({index for job in jobs if job.rung == rung for index in job.members}) for rung in rungs),
        spent=evolution.history().spent,
        repeated=sum(evolution.spec.rungs[job.rung] * len(job.members) for job in jobs if job.replicate),
        jobs=len(jobs),
        told=sum(job.new[0].index for job in jobs if job.new),
        seeds=len({job.replicate for job in jobs}),
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


def disk(settings: Settings, spec: Mapping[str, Any], student: int, ahead: Foreseen) -> Disk:
    """What a search leaves on disk."""
    # Each seed of the search has a trunk of its own; its optimizer keeps two numbers of every weight, or one.
    trunks = ahead.seeds * student * (1 + (2 if spec["recipe"]["optimizer"] == "adamw" else 1)) if spec["fork"] else 0
    decisions = ahead.jobs + confirming_jobs(spec)
    jobs = round(decisions * JOB_BYTES + (ahead.told if spec["gates"] else 0) * KNOWN_BYTES)
    return Disk(bytes=trunks + jobs, trunks=trunks, jobs=jobs, student=student, free=free_bytes(settings.filled_folder))


def student_bytes(session: Session, spec: Mapping[str, Any]) -> int:
    """Bytes of a student's weights, by the parameters that it had before; else of a checkpoint: the teacher's is rather too large."""
    known = results.parameters(session, spec["student"]["detector"])
    if known is not None:
        return known * 4
    return file_bytes(session, spec["student"]["checkpoint"] or spec["teacher"]["checkpoint"])
