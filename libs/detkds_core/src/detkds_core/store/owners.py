"""Owners, of whom no table knows more than their names: turns among the requests of one."""

from __future__ import annotations

import hashlib

from sqlalchemy import func, select
from sqlalchemy.orm import Session


def hold(session: Session, owner: str) -> None:
    """Wait until no other transaction holds this owner, then hold it until this one ends.

    Who counts what an owner has before adding to it holds the owner first: Postgres lets two transactions count at once, and neither sees
    what the other adds. The counting statement has to come after, for it sees what was committed before it began. SQLite has one writer,
    and nothing is to be done.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(lock_key(owner))))


def lock_key(owner: str) -> int:
    """The key of an owner's advisory lock, a signed number of 64 bits. Owners who shared one would only wait for one another."""
    return int.from_bytes(hashlib.sha256(f"owner {owner}".encode()).digest()[:8], "big", signed=True)
