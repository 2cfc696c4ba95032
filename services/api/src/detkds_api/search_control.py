"""What is done with a search that is there: cancel, pause, resume, extend."""

from __future__ import annotations

from fastapi import APIRouter, Response

from detkds_api import quota
from detkds_api.budget import expected_students
from detkds_api.extension import ExtendRequest, extension, repeats
from detkds_api.once import once
from detkds_api.problems import Conflict, NoRoom, answers
from detkds_api.search_views import EXAMPLE, SearchView, existing, view
from detkds_api.service import Id, IdempotencyKey, Service, example
from detkds_core.store import searches as stored
from detkds_core.store.models import Search

router = APIRouter(tags=["searches"])


@router.post("/searches/{search_id}/cancel", responses={200: example({**EXAMPLE, "state": "CANCELLED"}), **answers(Conflict)})
def cancel_search(search_id: Id, service: Service) -> SearchView:
    """Stop a search: its jobs leave the queue, its trainer ends within seconds, what is measured stays.

    Cancelling again changes nothing; a search that has ended otherwise cannot be cancelled any more (409).
    """
    with service.store.begin() as session:
        search = existing(session, service.caller, search_id)
        if not stored.cancel(session, search_id) and search.state != "CANCELLED":
            raise Conflict(f"search {search_id} has ended ({search.state}); there is nothing to cancel")
        return view(session, service, existing(session, service.caller, search_id))


@router.post("/searches/{search_id}/pause", responses={200: example({**EXAMPLE, "state": "PAUSED"}), **answers(Conflict)})
def pause_search(search_id: Id, service: Service) -> SearchView:
    """Hold a search: its trainers end within seconds and give their devices back, its jobs wait, what is measured stays.

    Jobs that were under way begin anew when it is resumed. Pausing again changes nothing; what has ended cannot be paused (409).
    """
    with service.store.begin() as session:
        search = existing(session, service.caller, search_id)
        if not stored.pause(session, search_id) and search.state != "PAUSED":
            raise Conflict(f"search {search_id} has ended ({search.state}); there is nothing to pause")
        return view(session, service, existing(session, service.caller, search_id))


@router.post("/searches/{search_id}/resume", responses={200: example(EXAMPLE), **answers(Conflict)})
def resume_search(search_id: Id, service: Service) -> SearchView:
    """Let a paused search go on where it was. One that is not paused stays as it is; one that has ended cannot go on (409)."""
    with service.store.begin() as session:
        search = existing(session, service.caller, search_id)
        if not stored.resume(session, search_id) and search.state not in stored.DRIVEN:
            raise Conflict(f"search {search_id} has ended ({search.state}); there is nothing to resume")
        return view(session, service, existing(session, service.caller, search_id))


@router.post(
    "/searches/{search_id}/extend",
    status_code=202,
    responses={202: example({**EXAMPLE, "state": "QUEUED", "name": "digits_gfl seed 0, extended"}), **answers(Conflict, NoRoom)},
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

        def create() -> Search:
            name, spec, added, event, request = extension(session, source, wanted)
            iterations = added + expected_students(spec) * spec["confirmation"]["iterations"]
            quota.check(session, service, iterations=iterations, priority=wanted.priority)
            return stored.extend(
                session,
                source,
                name=name,
                spec=spec,
                event=event,
                request=request,
                idempotency_key=idempotency_key,
                priority=wanted.priority,
            )

        quota.wait_turn(session, service)
        search = once(
            session,
            idempotency_key,
            lambda key: stored.by_key(session, key, owner=source.owner),
            create,
            lambda found: repeats(found, source, wanted),
        )
        answer = view(session, service, search)
    response.headers["Location"] = f"/searches/{answer.id}"
    return answer
