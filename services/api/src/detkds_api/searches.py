"""`/searches`: find the distillation policy that suits a teacher and a student on a dataset."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from sqlalchemy.orm import Session

from detkds_api import quota
from detkds_api.caller import Caller
from detkds_api.datasets import make_builtin
from detkds_api.extension import ExtendRequest, extension
from detkds_api.lists import Cursor, Limit, Page, page_of
from detkds_api.once import once
from detkds_api.problems import Conflict, NotFound
from detkds_api.progress import EXAMPLE as PROGRESS_EXAMPLE
from detkds_api.progress import Progress, seconds_left, seconds_since, share
from detkds_api.search_request import Preview, SearchRequest, asked_for, expected_students, planned, previewed
from detkds_api.service import Id, IdempotencyKey, Service, example, is_id
from detkds_core.policy import formula, from_json
from detkds_core.store import jobs, results
from detkds_core.store import searches as stored
from detkds_core.store.models import Candidate, Search
from detkds_core.store.vocabulary import SearchState as State

router = APIRouter(tags=["searches"])


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


PREVIEW_EXAMPLE = {
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
PREVIEW_REQUEST_EXAMPLE = {"pair": "digits_gfl", "wall_clock_hours": 0.5, "warm_start": ["0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"]}


LEDGER_EXAMPLE = '{"asked":{"index":0,"members":[0,1],"new":[],"replicate":0,"rung":0,"seen":[]}}\n'


@router.post("/searches", status_code=202, responses={202: example(EXAMPLE)}, openapi_extra=example(REQUEST_EXAMPLE, request=True))
def create_search(wanted: SearchRequest, service: Service, response: Response, idempotency_key: IdempotencyKey = None) -> SearchView:
    """Start a search. The answer comes when it is stored; `Location` tells where to look at it."""
    make_builtin(service.settings, wanted.dataset, wanted.pair)
    with service.store.begin() as session:
        pairing, spec, *_ = planned(session, service, wanted)
        name = wanted.name or f"{wanted.pair or pairing.dataset['name']} seed {wanted.seed}"

        def create() -> Search:
            quota.check(session, service, spec["budget"] + expected_students(spec) * spec["confirmation"]["iterations"])
            return stored.create(
                session, name=name, spec=spec, dataset=pairing.dataset, idempotency_key=idempotency_key, owner=service.caller.owner
            )

        search = once(
            session,
            idempotency_key,
            lambda key: stored.by_key(session, key, owner=service.caller.owner),
            create,
            lambda found: (found.name, asked_for(found.spec)) == (name, asked_for(spec)),
        )
        answer = view(session, search)
    response.headers["Location"] = f"/searches/{answer.id}"
    return answer


@router.post("/searches/preview", responses={200: example(PREVIEW_EXAMPLE)}, openapi_extra=example(PREVIEW_REQUEST_EXAMPLE, request=True))
def preview_search(wanted: SearchRequest, service: Service) -> Preview:
    """What a search would do and cost, without starting it: the same checks, and its course repeated with made-up APs."""
    make_builtin(service.settings, wanted.dataset, wanted.pair)
    with service.store.read() as session:
        found = planned(session, service, wanted)
    return previewed(found)


@router.get("/searches", responses={200: example({"items": [EXAMPLE], "next_cursor": None})})
def list_searches(service: Service, limit: Limit = 50, cursor: Cursor = None, state: State | None = None) -> Page[SearchView]:
    """The newest searches first, all or those in one state."""
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, limit=limit, cursor=cursor, state=state, owner=service.caller.sees))
        return Page(items=[view(session, one) for one in found], next_cursor=after)


@router.get("/searches/{search_id}", responses={200: example(EXAMPLE)})
def get_search(search_id: Id, service: Service) -> SearchView:
    """One search and where it stands."""
    with service.store.read() as session:
        return view(session, existing(session, service.caller, search_id))


@router.post("/searches/{search_id}/cancel", responses={200: example({**EXAMPLE, "state": "CANCELLED"})})
def cancel_search(search_id: Id, service: Service) -> SearchView:
    """Stop a search: its jobs leave the queue, its trainer ends within seconds, what is measured stays.

    Cancelling again changes nothing; a search that has ended otherwise cannot be cancelled any more (409).
    """
    with service.store.begin() as session:
        search = existing(session, service.caller, search_id)
        if not stored.cancel(session, search_id) and search.state != "CANCELLED":
            raise Conflict(f"search {search_id} has ended ({search.state}); there is nothing to cancel")
        return view(session, existing(session, service.caller, search_id))


@router.post("/searches/{search_id}/pause", responses={200: example({**EXAMPLE, "state": "PAUSED"})})
def pause_search(search_id: Id, service: Service) -> SearchView:
    """Hold a search: its trainers end within seconds and give their devices back, its jobs wait, what is measured stays.

    Jobs that were under way begin anew when it is resumed. Pausing again changes nothing; what has ended cannot be paused (409).
    """
    with service.store.begin() as session:
        search = existing(session, service.caller, search_id)
        if not stored.pause(session, search_id) and search.state != "PAUSED":
            raise Conflict(f"search {search_id} has ended ({search.state}); there is nothing to pause")
        return view(session, existing(session, service.caller, search_id))


@router.post("/searches/{search_id}/resume", responses={200: example(EXAMPLE)})
def resume_search(search_id: Id, service: Service) -> SearchView:
    """Let a paused search go on where it was. One that is not paused stays as it is; one that has ended cannot go on (409)."""
    with service.store.begin() as session:
        search = existing(session, service.caller, search_id)
        if not stored.resume(session, search_id) and search.state not in stored.DRIVEN:
            raise Conflict(f"search {search_id} has ended ({search.state}); there is nothing to resume")
        return view(session, existing(session, service.caller, search_id))


@router.post(
    "/searches/{search_id}/extend",
    status_code=202,
    responses={202: example({**EXAMPLE, "state": "QUEUED", "name": "digits_gfl seed 0, extended"})},
    openapi_extra=example({"iterations": 2400}, request=True),
)
def extend_search(
    search_id: Id, wanted: ExtendRequest, service: Service, response: Response, idempotency_key: IdempotencyKey = None
) -> SearchView:
    """Start a search that goes on where one that has SUCCEEDED ended: with its decisions and measurements, and more to spend.

    Nothing is measured again; the best of all are confirmed anew, with other seeds. The search that it continues stays as it is. Any other
    than one that has SUCCEEDED cannot be extended (409).
    """
    with service.store.begin() as session:
        source = existing(session, service.caller, search_id)
        name, spec, event = extension(session, source, wanted)

        def create() -> Search:
            more = spec["budget"] - source.spec["budget"]
            quota.check(session, service, more + expected_students(spec) * spec["confirmation"]["iterations"])
            return stored.extend(session, source, name=name, spec=spec, event=event, idempotency_key=idempotency_key)

        search = once(
            session,
            idempotency_key,
            lambda key: stored.by_key(session, key, owner=source.owner),
            create,
            lambda found: (found.name, asked_for(found.spec)) == (name, asked_for(spec)),
        )
        answer = view(session, search)
    response.headers["Location"] = f"/searches/{answer.id}"
    return answer


@router.get("/searches/{search_id}/candidates", responses={200: example({"items": [CANDIDATE_EXAMPLE], "next_cursor": None})})
def list_candidates(search_id: Id, service: Service, limit: Limit = 100, cursor: Cursor = None) -> Page[CandidateView]:
    """The policies of a search by index, with what is measured of them."""
    with service.store.read() as session:
        existing(session, service.caller, search_id)
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
        existing(session, service.caller, search_id)
        lines = stored.ledger_lines(session, search_id)
    return PlainTextResponse("".join(f"{line}\n" for line in lines), media_type="application/x-ndjson")


def existing(session: Session, caller: Caller, search_id: str) -> Search:
    """Raises NotFound, also for what is somebody else's."""
    search = stored.get(session, search_id, owner=caller.sees) if is_id(search_id) else None
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
    before = stored.inherited(session, search.id) if "continues" in spec else 0
    if search.state not in ("RUNNING", "CONFIRMING"):
        step = {"QUEUED": "waiting", "PAUSED": "paused", "SUCCEEDED": "done"}.get(search.state, "stopped")
        fraction = 1.0 if search.state == "SUCCEEDED" else min(1.0, (ended - before) / max(1, budget - before))
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
    fraction = min((work - before) / (budget - before + students * a_student), 1.0)
    return Progress(
        step="confirming" if search.state == "CONFIRMING" else "searching",
        done=confirmed if search.state == "CONFIRMING" else ended,
        total=students if search.state == "CONFIRMING" else budget,
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
        resolved=formula(from_json(candidate.resolved)) if candidate.resolved else None,
        rung=candidate.rung,
        iterations=candidate.iterations,
        rejected=candidate.rejected,
        same_as=candidate.same_as,
        audit=candidate.audit,
        look=candidate.look,
    )
