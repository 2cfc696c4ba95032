"""What happens to a search or a distillation while it happens, as server-sent events that a broken connection loses none of."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from anyio import sleep
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from detkds_api import distill, search_views
from detkds_api.problems import TooMany
from detkds_api.service import Id, Service
from detkds_core.store import events
from detkds_core.store.models import Distillation, Event, Search
from detkds_core.store.states import terminal

router = APIRouter(tags=["events"])

LOOK_EVERY = 1.0  # seconds between two looks at what is new
RETRY = 2000  # milliseconds after which a client whose stream ended or broke should come again
AGAIN = 10  # seconds after which one that was one too many may: streams end, and not all are resumed
EVENT_ID = re.compile("[0-9]{1,18}")  # what the database can compare
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The id of the last event that arrived; those after it are sent. Default: all.")
]
KINDS = (
    "Every event has an `id`, its kind as `event` (queued, running, proposed, measured, confirming, confirmed, succeeded, failed, "
    "cancelled, progress, ...) and what is known of it as JSON `data`. The stream ends after the event that ends its subject, and before "
    "that from time to time (DETKDS_STREAM_SECONDS): ask again with the last id, as browsers do by themselves. An owner may have only so "
    "many open at once (DETKDS_QUOTA_STREAMS); one more is answered 429."
)
EXAMPLE = 'id: 41\nevent: measured\ndata: {"at":"2026-05-04T10:12:40+00:00","index":6,"ap":27.4,"rung":120}\n\n'
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"example": EXAMPLE}}}}


class Streams:
    """The streams of events that this process has open, by owner. most: that one may have; None: any number.

    Only the event loop counts here, so that there is no lock.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.open: Counter[str] = Counter()

    @contextmanager
    def one(self, owner: str | None) -> Iterator[None]:
        """owner: None has any number. Raises TooMany."""
        if owner is None:
            yield
            return
        count = self.open[owner]
        if self.most is not None and count >= self.most:
            allowed = f"{self.most} may be at once (DETKDS_QUOTA_STREAMS)"
            message = f"{count} streams of events of {owner!r} are open; {allowed}. Close one, or ask GET /searches, which has no stream"
            raise TooMany(message, headers={"Retry-After": str(AGAIN)})
        self.open[owner] += 1
        try:
            yield
        finally:
            self.open[owner] -= 1
            if not self.open[owner]:
                del self.open[owner]


async def opened(request: Request, service: Service) -> AsyncIterator[None]:
    """Counts a stream from before it begins until it has ended or its client is gone. Raises TooMany."""
    streams: Streams = request.app.state.streams
    with streams.one(service.caller.sees):
        yield


def known_search(search_id: Id, service: Service) -> str:
    """Asked for before the stream begins, for a stream cannot answer 404 any more. Raises NotFound."""
    with service.store.read() as session:
        return search_views.existing(session, service.caller, search_id).id


def known_distillation(distillation_id: Id, service: Service) -> str:
    """The same for a distillation. Raises NotFound."""
    with service.store.read() as session:
        return distill.existing(session, service.caller, distillation_id).id


@router.get(
    "/searches/{search_id}/events",
    response_class=EventSourceResponse,
    responses=STREAM,
    dependencies=[Depends(opened)],
    description=f"The events of a search. {KINDS}",
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
    dependencies=[Depends(opened)],
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
    """The events of a subject after the last one, as they come, until it has ended, or the stream has lasted for long enough.

    A stream passes the gate once, and its key may be revoked while it is open: it ends after a while, and who resumes it is asked anew.
    """
    last = int(last_event_id) if last_event_id is not None and EVENT_ID.fullmatch(last_event_id) else 0
    until = time.monotonic() + service.settings.stream_seconds
    while True:
        found, ended = await run_sync(look, service, table, subject_id, last)
        for event in found:
            last = event.id
            yield ServerSentEvent(id=str(event.id), event=event.kind, data={"at": event.created_at.isoformat(), **event.data}, retry=RETRY)
            if time.monotonic() >= until:  # also where a client reads so slowly that this takes its time
                return
        if not found:
            left = until - time.monotonic()
            if ended or left <= 0:
                return
            await sleep(min(LOOK_EVERY, left))


def look(service: Service, table: type[Search | Distillation], subject_id: str, last: int) -> tuple[list[Event], bool]:
    """What is new, and whether the subject has ended."""
    with service.store.read() as session:
        subject: Any = session.get(table, subject_id)
        # In this order: the event that ends a subject is written together with its state.
        ended = subject is None or subject.state in terminal(table)
        return events.after(session, subject_id, last), ended
