"""`/keys`: who may use the service. Only the operator and keys with scope `admin` come here."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, cast

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from detkds_api.fields import Body, Name
from detkds_api.lists import Cursor, Limit, Page, page_of
from detkds_api.problems import NotFound
from detkds_api.service import Id, Service, administers, example
from detkds_core.store import keys as stored
from detkds_core.store.ids import is_id
from detkds_core.store.models import ApiKey
from detkds_core.store.vocabulary import Scope

router = APIRouter(tags=["keys"], dependencies=[Depends(administers)])
DAY = 86_400.0


class KeyRequest(Body):
    """A key for somebody."""

    name: Name = Field(description="what it is for, to find it again by")
    owner: Name = Field(description="whose searches, distillations and results it makes and sees; several keys may have one owner")
    scope: Scope = Field(
        default="run", description="`read`: looks; `run`: also starts and stops; `admin`: everything of everybody, and keys"
    )
    days: Annotated[float, Field(gt=0, le=3650)] | None = Field(default=90, description="how long it is valid; null: until it is revoked")


class KeyView(BaseModel):
    """A key. Its secret is not known to the service; it was shown once, when the key was made."""

    id: str
    name: str
    owner: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewKey(KeyView):
    """A key that was just made, with its secret: the only time that it is shown."""

    secret: str


EXAMPLE = {
    "id": "0198a3c2-0a1b-7c43-9a51-2f60c1c3d9aa",
    "name": "laptop",
    "owner": "vision team",
    "scope": "run",
    "created_at": "2026-05-04T10:11:12Z",
    "expires_at": "2026-08-02T10:11:12Z",
    "revoked_at": None,
    "last_used_at": None,
}
REQUEST_EXAMPLE = {"name": "laptop", "owner": "vision team", "scope": "run", "days": 90}


@router.post(
    "/keys",
    status_code=201,
    responses={201: example({**EXAMPLE, "secret": "detkds_SHOWN-ONCE"})},
    openapi_extra=example(REQUEST_EXAMPLE, request=True),
)
def create_key(wanted: KeyRequest, service: Service) -> NewKey:
    """Make a key. Keep its secret: nobody can read it again."""
    seconds = None if wanted.days is None else wanted.days * DAY
    with service.store.begin() as session:
        key, secret = stored.create(session, name=wanted.name, owner=wanted.owner, scope=wanted.scope, seconds=seconds)
        return NewKey(**view(key).model_dump(), secret=secret)


@router.get("/keys", responses={200: example({"items": [EXAMPLE], "next_cursor": None})})
def list_keys(service: Service, limit: Limit = 50, cursor: Cursor = None) -> Page[KeyView]:
    """The newest keys first, those that are valid no more included."""
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, limit=limit, cursor=cursor))
        return Page(items=[view(key) for key in found], next_cursor=after)


@router.delete("/keys/{key_id}", responses={200: example({**EXAMPLE, "revoked_at": "2026-05-05T08:00:00Z"})})
def revoke_key(key_id: Id, service: Service) -> KeyView:
    """End a key; requests that carry it are refused within seconds, and streams of events that are open end within a minute.

    Revoking again changes nothing.
    """
    with service.store.begin() as session:
        if not is_id(key_id) or not stored.revoke(session, key_id):
            raise NotFound(f"there is no key {key_id}; GET /keys lists them")
        key = stored.get(session, key_id)
        assert key is not None
        return view(key)


def view(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.id,
        name=key.name,
        owner=key.owner,
        scope=cast(Scope, key.scope),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )
