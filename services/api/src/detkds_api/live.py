"""What happens to a search or a distillation while it happens, as server-sent events that a broken connection loses none of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import sleep
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from detkds_api import distill, search_views
from detkds_api.service import Id, Service
from detkds_core.store import events
from detkds_core.store.models import Distillation, Event, Search
from detkds_core.store.states import terminal

router = APIRouter(tags=["events"])

LOOK_EVERY = 1.0  # seconds between two looks at what is new
RETRY = 2000  # milliseconds after which a client whose connection broke should come again
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The id of the last event that arrived; those after it are sent. Default: all.")
]
KINDS = (
    "Every event has an `id`, its kind as `event` (queued, running, proposed, measured, confirming, confirmed, succeeded, failed, "
    "cancelled, progress, ...) and what is known of it as JSON `data`. The stream ends after the event that ends its subject."
)
EXAMPLE = 'id: 41\nevent: measured\ndata: {"at":"2026-05-04T10:12:40+00:00","index":6,"ap":27.4,"rung":120}\n\n'
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"example": EXAMPLE}}}}


def known_search(search_id: Id, service: Service) -> str:
    """Asked for before the stream begins, for a stream cannot answer 404 any more. Raises NotFound."""
    with service.store.read() as session:
        return search_views.existing(session, service.caller, search_id).id


def known_distillation(distillation_id: Id, service: Service) -> str:
    """The same for a distillation. Raises NotFound."""
    with service.store.read() as session:
        return distill.existing(session, service.caller, distillation_id).id


@router.get(
    "/searches/{search_id}/events", response_class=EventSourceResponse, responses=STREAM, description=f"The events of a search. {KINDS}"
)
async def search_events(
    known: Annotated[str, Depends(known_search)], service: Service, last_event_id: LastEventId = None
) -> AsyncIterator[ServerSentEvent]:
    async for event in followed(service, Search, known, last_event_id):
        yield event


@router.get(
    "/distill/{distillation_id}/events",
    response_class=EventSourceResponse,
    responses=STREAM,
    description=f"The events of a distillation. {KINDS}",
)
async def distillation_events(
    known: Annotated[str, Depends(known_distillation)], service: Service, last_event_id: LastEventId = None
) -> AsyncIterator[ServerSentEvent]:
    async for event in followed(service, Distillation, known, last_event_id):
        yield event


async def followed(
    service: Service, table: type[Search | Distillation], subject_id: str, last_event_id: str | None
) -> AsyncIterator[ServerSentEvent]:
    """The events of a subject after the last one, as they come, until it has ended."""
    last = int(last_event_id) if last_event_id is not None and last_event_id.isdigit() else 0
    while True:
        found, ended = await run_sync(look, service, table, subject_id, last)
        for event in found:
            last = event.id
            yield ServerSentEvent(id=str(event.id), event=event.kind, data={"at": event.created_at.isoformat(), **event.data}, retry=RETRY)
        if not found:
            if ended:
                return
            await sleep(LOOK_EVERY)


def look(service: Service, table: type[Search | Distillation], subject_id: str, last: int) -> tuple[list[Event], bool]:
    """What is new, and whether the subject has ended."""
    with service.store.read() as session:
        subject: Any = session.get(table, subject_id)
        # In this order: the event that ends a subject is written together with its state.
        ended = subject is None or subject.state in terminal(table)
        return events.after(session, subject_id, last), ended
