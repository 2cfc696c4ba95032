"""`/searches`: find the distillation policy that suits a teacher and a student on a dataset."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, cast

from fastapi import APIRouter, Response
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
from detkds_core.evolution import Spec
from detkds_core.policy import Policy, SearchSpace, formula, from_json
from detkds_core.store import jobs, results
from detkds_core.store import searches as stored
from detkds_core.store.models import Candidate, Search
from detkds_core.store.vocabulary import SearchState as State

router = APIRouter(tags=["searches"])

Knowledge = Literal["global", "fgbg", "instance", "logits", "localization"]
DEFAULT_REFERENCES = ("none", "pkd")
DEFAULT_GROUP = 4  # candidates that share batches and teacher: less for each, and still fine-grained progress


class Confirmation(Body):
    """How the best candidates are measured again: on images that the search has not seen, with fresh seeds."""

    finalists: int = Field(default=2, ge=1, le=20)
    seeds: int = Field(default=3, ge=3, le=50)
    iterations: int | None = Field(default=None, ge=1, le=10_000_000, description="default: those of the recipe")


class SearchRequest(Body):
    """What to search: either a `pair` of the catalogue, or dataset, teacher and student."""

    name: Name | None = Field(default=None, description="to find it again by")
    pair: Name | None = Field(default=None, description="of `GET /detectors`; gives all three of the following and a recipe")
    dataset: Name | None = Field(default=None, description="of `GET /datasets`")
    teacher: TeacherChoice | None = None
    student: StudentChoice | None = None
    candidates: int = Field(ge=4, le=2000, description="policies that are measured, references included")
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
    group: int | None = Field(default=None, ge=1, le=64, description="candidates that are trained together")
    parallelism: int | None = Field(default=None, ge=1, le=1024, description="candidates that may be under way at once; default: one group")
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
    """A policy of a search and what it was worth (percent, on the selection images)."""

    index: int
    state: str
    stage: str
    island: str | None
    operator: str
    parents: list[int]
    formula: str
    policy: dict[str, Any]
    ap: float | None
    ap50: float | None
    ap75: float | None
    seconds: float | None
    failure: dict[str, Any] | None


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
}
REQUEST_EXAMPLE = {"pair": "digits_gfl", "candidates": 24, "seed": 0}


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
        spec = specification(wanted, pairing)
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


def specification(wanted: SearchRequest, pairing: Pairing) -> dict[str, Any]:
    """All that decides the course of the search, in full: what the evolver reads, and what a later reader can repeat.

    Raises InvalidInput.
    """
    knowledge = wanted_knowledge(wanted, pairing)
    references = wanted_references(wanted, pairing)
    group = wanted.group or DEFAULT_GROUP
    parallelism = wanted.parallelism or group
    if parallelism < group:
        message = f"{parallelism} is less than a group of {group}, whose candidates are trained at once; at least {group}"
        raise invalid([FieldError("/parallelism", message)])
    space = SearchSpace.of(pairing.facts, knowledge=knowledge, breadth=wanted.space)
    try:
        evolution = Spec(
            knowledge=knowledge,
            candidates=wanted.candidates,
            parallelism=parallelism,
            seed=wanted.seed,
            references=references,
            space=space,
        )
    except ValueError as error:
        path, _, message = str(error).partition(": ")
        raise invalid([FieldError(pointer_of_path(path.removeprefix("spec")), message)]) from None
    confirmation = wanted.confirmation.model_dump()
    confirmation["iterations"] = confirmation["iterations"] or pairing.recipe.iterations
    return {
        **pairing.spec(),
        **evolution.to_json(),
        "group": group,
        "confirmation": confirmation,
        "inherit": pairing.inherits(wanted.inherit),
        "pair": wanted.pair,
    }


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
    policy = from_json(candidate.policy)
    return Best(index=candidate.index, ap=candidate.ap, formula=formula(policy), policy=candidate.policy)


def progress(session: Session, search: Search, best_ap: float | None) -> Progress:
    """Where a search stands, counted in trained iterations of one policy: a confirmation may take longer than a candidate."""
    spec = search.spec
    counts = stored.count_candidates(session, search.id)
    ended, total = counts.get("MEASURED", 0) + counts.get("INFEASIBLE", 0), spec["candidates"]
    if search.state not in ("RUNNING", "CONFIRMING"):
        step = "waiting" if search.state == "QUEUED" else "done" if search.state == "SUCCEEDED" else "stopped"
        fraction = 1.0 if search.state == "SUCCEEDED" else ended / total
        return Progress(step=step, done=ended, total=total, fraction=fraction, best_ap=best_ap, seconds_left=None, message="")
    confirmation = spec["confirmation"]
    seeds, a_candidate = confirmation["seeds"], spec["recipe"]["iterations"]
    a_seed = confirmation["iterations"] * (confirmation["finalists"] + len(DEFAULT_REFERENCES))
    mine = jobs.of_search(session, search.id)
    confirmed = sum(job.kind == "confirm" and job.state == "SUCCEEDED" for job in mine)
    running = [job for job in mine if job.state == "RUNNING"]
    work = ended * a_candidate + confirmed * a_seed
    for job in running:
        work += share(job.progress) * (a_seed if job.kind == "confirm" else a_candidate * len(job.spec["candidates"]))
    fraction = min(work / (total * a_candidate + seeds * a_seed), 1.0)
    return Progress(
        step="confirming" if search.state == "CONFIRMING" else "searching",
        done=confirmed if search.state == "CONFIRMING" else ended,
        total=seeds if search.state == "CONFIRMING" else total,
        fraction=round(fraction, 4),
        best_ap=best_ap,
        seconds_left=seconds_left(fraction, seconds_since(session, search.started_at)),
        message=str((running[0].progress or {}).get("message") or "") if running else "waiting for a worker",
    )


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
    )
