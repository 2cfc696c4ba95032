"""What every endpoint stands on: the store and the settings of the running app."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Header, Path, Request

from detkds_api.caller import OPERATOR, Caller
from detkds_api.settings import Settings
from detkds_core.store import Store
from detkds_core.store.artifacts import Artifacts, artifacts_at
from detkds_core.store.waiting import Fleets


class Running(NamedTuple):
    """The store and the settings of the app that a request came to, what it knows of the fleet, and from whom the request came."""

    store: Store
    settings: Settings
    fleets: Fleets
    caller: Caller = OPERATOR

    @property
    def artifacts(self) -> Artifacts:
        """Where workers leave what they trained."""
        return artifacts_at(self.settings.artifacts_place)


def running(request: Request) -> Running:
    state = request.app.state
    return Running(state.store, state.settings, state.fleets, request.state.caller)


Service = Annotated[Running, Depends(running)]


def administers(service: Service) -> None:
    """For operations that need a key with scope `admin`. Raises Forbidden."""
    service.caller.must("admin")


# Any text is taken, so that what is no id is answered as what is not there.
Id = Annotated[str, Path(examples=["0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="A text of the client's own: the same request with the same key is done once and answered again.",
    ),
]


def example(document: Any, *, request: bool = False) -> dict[str, Any]:
    """OpenAPI's place for an example document: of an answer, or of the request body."""
    content = {"content": {"application/json": {"example": document}}}
    return {"requestBody": content} if request else content
