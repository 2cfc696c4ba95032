"""API keys: who may do what, and until when. The database has a hash of each secret, never the secret."""

from __future__ import annotations

import builtins
import hashlib
import secrets

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from . import pages
from .clock import db_time
from .models import ApiKey

PREFIX = "detkds_"  # so that secret scanners and people know what they have found
BYTES = 32  # of a secret: 256 bits, so that a plain hash of it needs neither salt nor slowness
SEEN_EVERY = 60.0  # seconds between two notes of when a key was last used


def create(session: Session, *, name: str, owner: str, scope: str, seconds: float | None = None) -> tuple[ApiKey, str]:
    """A new key and its secret, which nobody can read again. seconds: how long it is valid; None: until it is revoked."""
    secret = PREFIX + secrets.token_urlsafe(BYTES)
    key = ApiKey(name=name, owner=owner, scope=scope, digest=digest(secret))
    session.add(key)
    session.flush()
    if seconds is not None:
        session.execute(update(ApiKey).where(ApiKey.id == key.id).values(expires_at=db_time(seconds)))
        session.refresh(key)
    return key, secret


def find(session: Session, secret: str) -> ApiKey | None:
    """The key of a secret, while it is valid. Secrets are compared by their hashes, so that no time tells how much of one was right."""
    return session.scalar(select(ApiKey).where(ApiKey.digest == digest(secret), *_valid()))


def used(session: Session, key_id: str) -> None:
    """Note that a key was used, once in a while."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id, _unseen()).values(last_used_at=db_time()))


def unseen(session: Session, key_id: str) -> bool:
    """Whether the last note of a key's use is older than that."""
    return session.scalar(select(ApiKey.id).where(ApiKey.id == key_id, _unseen())) is not None


def revoke(session: Session, key_id: str) -> bool:
    """End a key now. False: there is none."""
    known = session.scalar(select(ApiKey.id).where(ApiKey.id == key_id))
    session.execute(update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=db_time()))
    return known is not None


def get(session: Session, key_id: str) -> ApiKey | None:
    return session.scalar(select(ApiKey).where(ApiKey.id == key_id))


def list(session: Session, *, limit: int = 50, cursor: str | None = None) -> tuple[builtins.list[ApiKey], str | None]:
    """The newest keys first, those that are valid no more included, and the cursor of the next page. Raises ValueError for no cursor."""
    return pages.ordered(session, select(ApiKey), ApiKey, limit=limit, cursor=cursor)


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _unseen() -> ColumnElement[bool]:
    return or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < db_time(-SEEN_EVERY))


def _valid() -> tuple[ColumnElement[bool], ...]:
    return ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_time())
