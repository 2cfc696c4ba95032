"""`/searches`: find the distillation policy that suits a teacher and a student on a dataset."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from typing import Any, Literal, cast

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from detkds_api.datasets import make_builtin
from detkds_api.fields import Body, Name, Seed
from detkds_api.lists import Cursor, Limit, Page, page_of
from detkds_api.once import once
from detkds_api.pairing import Pairing, RecipeChoice, StudentChoice, TeacherChoice, resolve
from detkds_api.policies import read_policy
from detkds_api.problems import Conflict, FieldError, NotFound, invalid, pointer, pointer_of_path
from detkds_api.progress import EXAMPLE as PROGRESS_EXAMPLE
from detkds_api.progress import Progress, seconds_left, seconds_since, share
from detkds_api.service import Id, IdempotencyKey, Service, example, is_id
from detkds_core.catalogue import DETECTORS
from detkds_core.evolution import Evolution, Outcome, Spec
from detkds_core.evolution.spec import ETA, HALVING
from detkds_core.policy import Policy, SearchSpace, canonical, formula, from_json, named_policies, to_json
from detkds_core.policy.named import name_of, suiting
from detkds_core.store import jobs, results
from detkds_core.store import searches as stored
from detkds_core.store.models import Candidate, Search
from detkds_core.store.vocabulary import SearchState as State

router = APIRouter(tags=["searches"])

Knowledge = Literal["global", "fgbg", "instance", "logits", "localization"]
Algorithm = Literal["detkds", "random", "random_halving", "evolution", "genetic", "tpe", "nsga2"]
RATIOS = (0.03, 0.1, 0.3, 1.0, 3.0)  # of a term's gradient to the task's, that a search begins with
GATES = ("finite", "gradient", "duplicate", "first_loss", "descent")
OF_OPTUNA = ("tpe", "nsga2")
RUNGS = (8, 4, 2)  # parts of the full proxy
LOOK = 4  # iterations that a look at a candidate costs, about
DEFAULT_PARALLELISM = 2
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
    recipe: RecipeChoice | None = None
    confirmation: Confirmation = Confirmation()
    weights: Literal["balanced", "published"] = Field(
        default="balanced",
        description="`balanced`: a weight is the ratio of the term's gradient to the task's; `published`: DetKDS' own numbers",
    )
    rungs: list[int] | None = Field(
        default=None,
        max_length=10,
        description="student iterations of short trainings below the full proxy, rising; default: an eighth, a quarter and half of it",
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


class Best(BaseModel):
    """The best candidate so far, on the selection images."""

    index: int
    ap: float
    formula: str
    policy: dict[str, Any]


class SearchView(BaseModel):
    """A search and where it stands."""

    id: str
    name: str
    state: State
    reason: str | None
    created_at: datetime
    updated_at: datetime
    dataset: str
    teacher: str
    student: str
    progress: Progress
    best: Best | None
    result_id: str | None
    spec: dict[str, Any]


class CandidateView(BaseModel):
    """A policy of a search and what it was worth (percent, on the selection images, at the highest rung that it was measured at).

    resolved: its formula with the weights that its first training found. rung: iterations of that rung. iterations, seconds: all that it
    cost. rejected: the gate that refused it, and why; audit: trained all the same, to judge the gates. same_as: the candidate whose double
    it is. look: loss, ratio and agreement of its gradient with the task's, before it was trained.
    """

    index: int
    state: str
    stage: str
    island: str | None
    operator: str
    parents: list[int]
    formula: str
    policy: dict[str, Any]
    resolved: str | None
    rung: int | None
    iterations: int | None
    ap: float | None
    ap50: float | None
    ap75: float | None
    seconds: float | None
    failure: dict[str, Any] | None
    rejected: dict[str, Any] | None
    same_as: int | None
    audit: bool
    look: dict[str, Any] | None


class Preview(BaseModel):
    """What a search would do.

    formulas: different ones of each knowledge that the pair can train with; excluded: why it cannot exchange the others. proposed: about
    how many candidates the budget pays for; rungs: iterations of each and about how many candidates reach it. seconds: expected on one
    device, by what an iteration of this pair took before; null where nothing is known.
    """

    formulas: dict[str, int]
    excluded: dict[str, str]
    proposed: int
    rungs: list[dict[str, int]]
    iterations: int
    confirmation_iterations: int
    seconds_an_iteration: float | None
    seconds: float | None
    spec: dict[str, Any]


PREVIEW_EXAMPLE = {
    "formulas": {"global": 2286, "logits": 77},
    "excluded": {},
    "proposed": 60,
    "rungs": [{"iterations": 15, "candidates": 60}, {"iterations": 120, "candidates": 3}],
    "iterations": 2400,
    "confirmation_iterations": 1800,
    "seconds_an_iteration": 0.11,
    "seconds": 460.0,
    "spec": {"seed": 0},
}
POLICY_EXAMPLE = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 2.0}]}
EXAMPLE = {
    "id": "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa",
    "name": "digits_gfl seed 0",
    "state": "RUNNING",
    "reason": None,
    "created_at": "2026-05-04T10:11:12Z",
    "updated_at": "2026-05-04T10:12:40Z",
    "dataset": "digits",
    "teacher": "gfl_r18w32_fpn32",
    "student": "gfl_r18w16_fpn32",
    "progress": PROGRESS_EXAMPLE,
    "best": {"index": 6, "ap": 27.4, "formula": "2·l2(standardize(global))", "policy": POLICY_EXAMPLE},
    "result_id": None,
    "spec": {"candidates": 24, "seed": 0},
}
CANDIDATE_EXAMPLE = {
    "index": 6,
    "state": "MEASURED",
    "stage": "stage1",
    "island": "global",
    "operator": "mutate",
    "parents": [2],
    "formula": "2·l2(standardize(global))",
    "policy": POLICY_EXAMPLE,
    "ap": 27.4,
    "ap50": 49.8,
    "ap75": 26.0,
    "seconds": 31.2,
    "failure": None,
    "resolved": "2·l2(standardize(global))",
    "rung": 120,
    "iterations": 225,
    "rejected": None,
    "same_as": None,
    "audit": False,
    "look": {"loss": 1.94, "ratio": 0.51, "agreement": 0.08},
}
REQUEST_EXAMPLE = {"pair": "digits_gfl", "candidates": 24, "seed": 0}


LEDGER_EXAMPLE = '{"asked":{"index":0,"members":[0,1],"new":[],"replicate":0,"rung":0,"seen":[]}}\n'


@router.post("/searches", status_code=202, responses={202: example(EXAMPLE)}, openapi_extra=example(REQUEST_EXAMPLE, request=True))
def create_search(wanted: SearchRequest, service: Service, response: Response, idempotency_key: IdempotencyKey = None) -> SearchView:
    """Start a search. The answer comes when it is stored; `Location` tells where to look at it."""
    make_builtin(service.settings, wanted.dataset, wanted.pair)
    with service.store.begin() as session:
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
        spec = specification(wanted, pairing, stored.seconds_an_iteration(session, pairing.spec()))
        name = wanted.name or f"{wanted.pair or pairing.dataset['name']} seed {wanted.seed}"
        search = once(
            session,
            idempotency_key,
            lambda key: stored.by_key(session, key),
            lambda: stored.create(session, name=name, spec=spec, dataset=pairing.dataset, idempotency_key=idempotency_key),
            lambda found: (found.name, found.spec) == (name, spec),
        )
        answer = view(session, search)
    response.headers["Location"] = f"/searches/{answer.id}"
    return answer


@router.post("/searches/preview", responses={200: example(PREVIEW_EXAMPLE)}, openapi_extra=example(REQUEST_EXAMPLE, request=True))
def preview_search(wanted: SearchRequest, service: Service) -> Preview:
    """What a search would do and cost, without starting it: the same checks, and its course repeated with made-up APs."""
    make_builtin(service.settings, wanted.dataset, wanted.pair)
    with service.store.read() as session:
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
        pace = stored.seconds_an_iteration(session, pairing.spec())
        spec = specification(wanted, pairing, pace)
    return previewed(spec, pairing.exchange.excluded, pace)


@router.get("/searches", responses={200: example({"items": [EXAMPLE], "next_cursor": None})})
def list_searches(service: Service, limit: Limit = 50, cursor: Cursor = None, state: State | None = None) -> Page[SearchView]:
    """The newest searches first, all or those in one state."""
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, limit=limit, cursor=cursor, state=state))
        return Page(items=[view(session, one) for one in found], next_cursor=after)


@router.get("/searches/{search_id}", responses={200: example(EXAMPLE)})
def get_search(search_id: Id, service: Service) -> SearchView:
    """One search and where it stands."""
    with service.store.read() as session:
        return view(session, existing(session, search_id))


@router.post("/searches/{search_id}/cancel", responses={200: example({**EXAMPLE, "state": "CANCELLED"})})
def cancel_search(search_id: Id, service: Service) -> SearchView:
    """Stop a search: its jobs leave the queue, its trainer ends within seconds, what is measured stays.

    Cancelling again changes nothing; a search that has ended otherwise cannot be cancelled any more (409).
    """
    with service.store.begin() as session:
        search = existing(session, search_id)
        if not stored.cancel(session, search_id) and search.state != "CANCELLED":
            raise Conflict(f"search {search_id} has ended ({search.state}); there is nothing to cancel")
        return view(session, existing(session, search_id))


@router.get("/searches/{search_id}/candidates", responses={200: example({"items": [CANDIDATE_EXAMPLE], "next_cursor": None})})
def list_candidates(search_id: Id, service: Service, limit: Limit = 100, cursor: Cursor = None) -> Page[CandidateView]:
    """The policies of a search by index, with what is measured of them."""
    with service.store.read() as session:
        existing(session, search_id)
        found, after = page_of(lambda: stored.candidates(session, search_id, limit=limit, cursor=cursor))
        return Page(items=[candidate_view(one) for one in found], next_cursor=after)


@router.get(
    "/searches/{search_id}/ledger",
    response_class=PlainTextResponse,
    responses={200: {"content": {"application/x-ndjson": {"example": LEDGER_EXAMPLE}}, "description": "the ledger, a line an event"}},
)
def get_ledger(search_id: Id, service: Service) -> PlainTextResponse:
    """Every decision of a search and every result that it looked at, in order, a line each: from it the search can be replayed.

    Of a `strict` search it follows from the specification and the measurements alone, byte for byte.
    """
    with service.store.read() as session:
        existing(session, search_id)
        lines = stored.ledger_lines(session, search_id)
    return PlainTextResponse("".join(f"{line}\n" for line in lines), media_type="application/x-ndjson")


def specification(wanted: SearchRequest, pairing: Pairing, pace: float | None) -> dict[str, Any]:
    """All that decides the course of the search, in full: what the evolver reads, and what a later reader can repeat.

    pace: seconds that an iteration of this pair took before, where it is known.

    Raises InvalidInput.
    """
    knowledge = wanted_knowledge(wanted, pairing)
    references = wanted_references(wanted, pairing)
    weights = {"feature_weights": RATIOS, "response_weights": RATIOS, "balanced": True} if wanted.weights == "balanced" else {}
    space = SearchSpace.of(pairing.facts, knowledge=knowledge, breadth=wanted.space, **weights)
    if wanted.algorithm in OF_OPTUNA and find_spec("optuna") is None:
        message = f"{wanted.algorithm!r} needs Optuna, which is not installed here: pip install 'detkds_core[optuna]'"
        raise invalid([FieldError("/algorithm", message)])
    halves = wanted.algorithm in HALVING
    rungs = wanted_rungs(wanted, pairing, halves)
    try:
        evolution = Spec(
            knowledge=knowledge,
            budget=wanted_budget(wanted, rungs, pace),
            candidates=wanted.candidates,
            group=wanted.group or DEFAULT_GROUP,
            parallelism=wanted.parallelism or DEFAULT_PARALLELISM,
            seed=wanted.seed,
            references=references,
            space=space,
            rungs=rungs,
            algorithm=wanted.algorithm,
            look=LOOK if halves else 0,
        )
    except ValueError as error:
        path, _, message = str(error).partition(": ")
        raise invalid([FieldError(pointer_of_path(path.removeprefix("spec")), message)]) from None
    confirmation = {
        "finalists": wanted.confirmation.finalists,
        "seeds": wanted.confirmation.seeds,
        "iterations": wanted.confirmation.iterations or rungs[-1],
        "distillers": wanted_distillers(wanted.confirmation, pairing),
    }
    return {
        **pairing.spec(),
        **evolution.to_json(),
        "fork": rungs[-1] // 2 if len(rungs) > 1 else 0,
        "gates": list(GATES) if halves else [],
        "mode": wanted.mode,
        "confirmation": confirmation,
        "inherit": pairing.inherits(wanted.inherit),
        "pair": wanted.pair,
    }


def previewed(spec: Mapping[str, Any], excluded: Mapping[str, str], pace: float | None) -> Preview:
    """The course of a search whose candidates are worth random numbers."""
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
    space = course.space
    assert isinstance(space, SearchSpace)
    return Preview(
        formulas={knowledge: space.size(knowledge) for knowledge in course.knowledge},
        excluded=dict(excluded),
        proposed=proposed,
        rungs=[
            {"iterations": one, "candidates": min(proposed, round(count * times))} for one, count in zip(course.rungs, reached, strict=True)
        ],
        iterations=course.budget,
        confirmation_iterations=confirming,
        seconds_an_iteration=pace,
        seconds=round((course.budget + confirming) * pace, 1) if pace else None,
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


def wanted_budget(wanted: SearchRequest, rungs: tuple[int, ...], pace: float | None) -> int:
    """Student iterations that the search may spend. Raises InvalidInput."""
    if wanted.iterations is not None and wanted.hours is not None:
        raise invalid([FieldError("/hours", "the budget is given in iterations already; leave one of them out")])
    if wanted.hours is not None:
        if pace is None:
            message = "no iteration of this pair with this recipe has been measured yet; give 'candidates' or 'iterations' the first time"
            raise invalid([FieldError("/hours", message)])
        bought = int(wanted.hours * 3600 / pace)
        if bought < rungs[-1]:
            message = f"buys {bought} iterations at {pace:.3g} s each, less than one full proxy of {rungs[-1]}"
            raise invalid([FieldError("/hours", message)])
        return bought
    if wanted.iterations is not None:
        if wanted.iterations < rungs[-1]:
            raise invalid([FieldError("/iterations", f"{wanted.iterations} are less than one full proxy of {rungs[-1]} iterations")])
        return wanted.iterations
    if wanted.candidates is None:
        raise invalid([FieldError("/candidates", "is required, unless 'iterations' or 'hours' say how much the search may spend")])
    return enough_for(wanted.candidates, rungs)


def enough_for(candidates: int, rungs: tuple[int, ...]) -> int:
    """Student iterations that let so many candidates pass the lowest rung, a third of each rung the next, and the best repeat the last."""
    climbing: float = sum(candidates / ETA**place * rung for place, rung in enumerate(rungs))
    looks = candidates * LOOK if len(rungs) > 1 else 0
    spare = 6 * rungs[-1] if len(rungs) > 1 else 0  # replicates
    return math.ceil(climbing + looks) + spare


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


def existing(session: Session, search_id: str) -> Search:
    """Raises NotFound."""
    search = stored.get(session, search_id) if is_id(search_id) else None
    if search is None:
        raise NotFound(f"there is no search {search_id}; GET /searches lists them")
    return search


def view(session: Session, search: Search) -> SearchView:
    best = stored.best_candidate(session, search.id)
    result = results.of_search(session, search.id) if search.state == "SUCCEEDED" else None
    return SearchView(
        id=search.id,
        name=search.name,
        state=cast(State, search.state),
        reason=search.reason,
        created_at=search.created_at,
        updated_at=search.updated_at,
        dataset=search.dataset,
        teacher=search.spec["teacher"]["detector"],
        student=search.spec["student"]["detector"],
        progress=progress(session, search, best.ap if best else None),
        best=best_view(best) if best else None,
        result_id=result.id if result else None,
        spec=search.spec,
    )


def best_view(candidate: Candidate) -> Best:
    assert candidate.ap is not None, "the best candidate is a measured one"
    policy = candidate.resolved or candidate.policy
    return Best(index=candidate.index, ap=candidate.ap, formula=formula(from_json(policy)), policy=policy)


def progress(session: Session, search: Search, best_ap: float | None) -> Progress:
    """Where a search stands, counted in student iterations: done of the budget while it searches, then seeds of the confirmation."""
    spec = search.spec
    full = spec["rungs"][-1] if "rungs" in spec else spec["recipe"]["iterations"]  # a search from before there were rungs has none
    ended, budget = stored.spent(session, search.id), spec.get("budget") or spec["candidates"] * full
    if search.state not in ("RUNNING", "CONFIRMING"):
        step = "waiting" if search.state == "QUEUED" else "done" if search.state == "SUCCEEDED" else "stopped"
        fraction = 1.0 if search.state == "SUCCEEDED" else min(1.0, ended / budget)
        return Progress(step=step, done=ended, total=budget, fraction=fraction, best_ap=best_ap, seconds_left=None, message="")
    a_student = spec["confirmation"]["iterations"]
    mine = jobs.of_search(session, search.id)
    again = stored.confirmations(session, search.id)
    confirmed, students = sum(one.state != "PROPOSED" for one in again), len(again) or expected_students(spec)
    running = [job for job in mine if job.state == "RUNNING"]
    work: float = (budget if search.state == "CONFIRMING" else ended) + confirmed * a_student
    for job in running:
        each = a_student if job.kind == "confirm" else job.spec.get("rung") or full
        work += share(job.progress) * each * len(job.spec["candidates"])
    fraction = min(work / (budget + students * a_student), 1.0)
    return Progress(
        step="confirming" if search.state == "CONFIRMING" else "searching",
        done=confirmed if search.state == "CONFIRMING" else ended,
        total=students if search.state == "CONFIRMING" else budget,
        fraction=round(fraction, 4),
        best_ap=best_ap,
        seconds_left=seconds_left(fraction, seconds_since(session, search.started_at)),
        message=str((running[0].progress or {}).get("message") or "") if running else "waiting for a worker",
    )


def expected_students(spec: Mapping[str, Any]) -> int:
    """How many students the confirmation will train: no distillation, the distillers and the finalists, with every seed."""
    confirmation = spec["confirmation"]
    distillers = confirmation.get("distillers", DEFAULT_REFERENCES[1:])
    return int(confirmation["seeds"]) * (1 + len(distillers) + int(confirmation["finalists"]))


def candidate_view(candidate: Candidate) -> CandidateView:
    return CandidateView(
        index=candidate.index,
        state=candidate.state,
        stage=candidate.stage,
        island=candidate.island,
        operator=candidate.operator,
        parents=candidate.parents,
        formula=formula(from_json(candidate.policy)),
        policy=candidate.policy,
        ap=candidate.ap,
        ap50=candidate.ap50,
        ap75=candidate.ap75,
        seconds=candidate.seconds,
        failure=candidate.failure,
        resolved=formula(from_json(candidate.resolved)) if candidate.resolved else None,
        rung=candidate.rung,
        iterations=candidate.iterations,
        rejected=candidate.rejected,
        same_as=candidate.same_as,
        audit=candidate.audit,
        look=candidate.look,
    )
