"""`/searches`: find the distillation policy that suits a teacher and a student on a dataset."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field
from sqlalchemy.orm import Session

from detkds_api import checkpoints, quota
from detkds_api.budget import expected_students
from detkds_api.changes import EXAMPLE as CHANGE_EXAMPLE
from detkds_api.changes import Change, changed
from detkds_api.cloning import answered, cloned, kept_request, repeats
from detkds_api.datasets import make_builtin
from detkds_api.lists import Page, RunsQuery, page_of
from detkds_api.once import once
from detkds_api.preview import EXAMPLE as PREVIEW_EXAMPLE
from detkds_api.preview import Preview, previewed, student_bytes, with_expected
from detkds_api.problems import Conflict, NoRoom, answers
from detkds_api.search_request import SearchRequest, planned
from detkds_api.search_views import EXAMPLE, SearchView, existing, view, views
from detkds_api.service import Id, IdempotencyKey, Running, Service, example
from detkds_core.evolution.spec import Algorithm
from detkds_core.store import searches as stored
from detkds_core.store.models import Search
from detkds_core.store.vocabulary import SearchState as State

router = APIRouter(tags=["searches"])

REQUEST_EXAMPLE = {"pair": "digits_gfl", "candidates": 24, "seed": 0, "tags": ["digits"]}
PREVIEW_REQUEST_EXAMPLE = {"pair": "digits_gfl", "wall_clock_hours": 0.5, "warm_start": ["0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"]}


class SearchesQuery(RunsQuery):
    """What the list of searches can be asked for."""

    state: State | None = Field(default=None, description="Those in this state.")
    algorithm: Algorithm | None = Field(default=None, description="Those by this algorithm.")


@router.post(
    "/searches", status_code=202, responses={202: example(EXAMPLE), **answers(NoRoom)}, openapi_extra=example(REQUEST_EXAMPLE, request=True)
)
def create_search(wanted: SearchRequest, service: Service, response: Response, idempotency_key: IdempotencyKey = None) -> SearchView:
    """Start a search. The answer comes when it is stored; `Location` tells where to look at it."""
    make_builtin(service.settings, wanted.dataset, wanted.pair)
    with service.store.begin() as session:
        answer = view(session, service, started(session, service, wanted, idempotency_key))
    response.headers["Location"] = f"/searches/{answer.id}"
    return answer


@router.post(
    "/searches/{search_id}/clone",
    status_code=202,
    responses={
        202: example({**EXAMPLE, "state": "QUEUED", "name": "digits_gfl seed 1", "cloned_from": EXAMPLE["id"]}),
        **answers(Conflict, NoRoom),
    },
    openapi_extra=example({"seed": 1}, request=True),
)
def clone_search(
    search_id: Id, service: Service, response: Response, changes: SearchRequest | None = None, idempotency_key: IdempotencyKey = None
) -> SearchView:
    """Start a new search with the same request, checked as any: the body has what is to be different, such as the seed.

    Of `recipe` and `confirmation`, the fields that are given change; another `pair` takes dataset, teacher and student with it, another
    budget the one that was there. null takes a field back to its default. One from before requests were kept cannot be cloned (409).
    """
    with service.store.read() as session:
        wanted = cloned(existing(session, service.caller, search_id), changes or SearchRequest(), SearchRequest, "/searches")
    make_builtin(service.settings, wanted.dataset, wanted.pair)
    with service.store.begin() as session:
        answer = view(session, service, started(session, service, wanted, idempotency_key, cloned_from=search_id))
    response.headers["Location"] = f"/searches/{answer.id}"
    return answer


def started(
    session: Session, service: Running, wanted: SearchRequest, idempotency_key: str | None, cloned_from: str | None = None
) -> Search:
    """The search that a request asks for, stored. Raises InvalidInput, NoRoom, Forbidden, TooMany, KeyReused."""
    request = kept_request(wanted)

    def by_key(key: str) -> Search | None:
        return stored.by_key(session, key, owner=service.caller.owner)

    if idempotency_key is not None and (before := answered(by_key(idempotency_key), request, cloned_from)) is not None:
        return before
    pairing, spec, *_ = planned(session, service, wanted)

    def create() -> Search:
        checkpoints.hold(session, spec)
        iterations = spec["budget"] + expected_students(spec) * spec["confirmation"]["iterations"]
        quota.check(session, service, iterations=iterations, priority=wanted.priority)
        return stored.create(
            session,
            name=wanted.name or f"{wanted.pair or pairing.dataset['name']} seed {wanted.seed}",
            notes=wanted.notes,
            tags=wanted.tags,
            spec=with_expected(spec),
            dataset=pairing.dataset,
            request=request,
            cloned_from=cloned_from,
            idempotency_key=idempotency_key,
            owner=service.caller.owner,
            priority=wanted.priority,
            device_memory_gib=wanted.device_memory_gib,
        )

    quota.wait_turn(session, service)
    return once(
        session,
        idempotency_key,
        by_key,
        create,
        lambda found: repeats(found, request, cloned_from, spec),
    )


@router.post("/searches/preview", responses={200: example(PREVIEW_EXAMPLE)}, openapi_extra=example(PREVIEW_REQUEST_EXAMPLE, request=True))
def preview_search(wanted: SearchRequest, service: Service) -> Preview:
    """What a search would do and cost, without starting it: the same checks, and its course repeated with made-up APs."""
    make_builtin(service.settings, wanted.dataset, wanted.pair)
    with service.store.read() as session:
        found = planned(session, service, wanted)
        student = student_bytes(session, found.spec)
    return previewed(service.settings, found, student)


@router.get("/searches", responses={200: example({"items": [EXAMPLE], "next_cursor": None})})
def list_searches(service: Service, query: Annotated[SearchesQuery, Query()]) -> Page[SearchView]:
    """The newest searches first, or in another order; all, or those that every filter lets through."""
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, owner=service.caller.sees, **query.page()))
        return Page(items=views(session, service, found), next_cursor=after)


@router.get("/searches/{search_id}", responses={200: example(EXAMPLE)})
def get_search(search_id: Id, service: Service) -> SearchView:
    """One search and where it stands."""
    with service.store.read() as session:
        return view(session, service, existing(session, service.caller, search_id))


@router.patch(
    "/searches/{search_id}",
    responses={200: example({**EXAMPLE, **CHANGE_EXAMPLE}), **answers(Conflict)},
    openapi_extra=example(CHANGE_EXAMPLE, request=True),
)
def change_search(search_id: Id, change: Change, service: Service) -> SearchView:
    """Change name, notes and tags of a search, in whatever state it is, and until it ends its priority, by which its jobs
    are taken from then on.

    What it does is decided when it is made.
    """
    with service.store.begin() as session:
        search = existing(session, service.caller, search_id)
        changed(session, service, search, change)
        return view(session, service, search)
