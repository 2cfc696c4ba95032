"""Checkpoints that people bring: sent in parts, then checked once, then READY or REFUSED for good."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy import delete as sql_delete
from sqlalchemy.orm import Session

from . import events, pages
from .artifacts import REFERENCE
from .clock import db_time
from .models import Checkpoint, Distillation, Event, Search
from .states import active, move, terminal

TOPIC = "checkpoint"  # of events
DELETED = "deleted"


def create(
    session: Session,
    *,
    name: str,
    size: int,
    sha256: str,
    owner: str | None = None,
    detector: str | None = None,
    classes: Sequence[str] | None = None,
) -> Checkpoint:
    """A checkpoint whose file is awaited. size, sha256: of that file. detector, classes: what the sender says of it."""
    made = Checkpoint(
        name=name,
        owner=owner or "",
        size=size,
        sha256=sha256,
        detector=detector,
        wanted_classes=builtins.list(classes) if classes is not None else None,
    )
    session.add(made)
    session.flush()
    return made


def get(session: Session, checkpoint_id: str, *, owner: str | None = None) -> Checkpoint | None:
    """One checkpoint; None where there is none, or it is not the owner's (None: of anybody)."""
    return session.scalar(select(Checkpoint).where(Checkpoint.id == checkpoint_id, *_of(owner)))


def same(
    session: Session, *, owner: str | None, name: str, sha256: str, detector: str | None, classes: Sequence[str] | None
) -> Checkpoint | None:
    """The owner's newest checkpoint of this name, content and description that was not refused: sent before, or in part."""
    query = select(Checkpoint).where(
        Checkpoint.owner == (owner or ""), Checkpoint.name == name, Checkpoint.sha256 == sha256, Checkpoint.state != "REFUSED"
    )
    wanted = builtins.list(classes) if classes is not None else None
    for one in session.scalars(query.order_by(Checkpoint.created_at.desc(), Checkpoint.id.desc())):
        if one.wanted_classes == wanted and detector in (None, one.detector):
            return one
    return None


def list(
    session: Session, *, limit: int = 50, cursor: str | None = None, owner: str | None = None
) -> tuple[builtins.list[Checkpoint], str | None]:
    """The newest checkpoints first and the cursor of the next page. Raises ValueError for what is no cursor."""
    return pages.ordered(session, select(Checkpoint).where(*_of(owner)), Checkpoint, limit=limit, cursor=cursor)


def count_unfinished(session: Session, owner: str) -> int:
    """How many checkpoints of an owner are awaited."""
    query = select(func.count()).select_from(Checkpoint).where(Checkpoint.owner == owner, Checkpoint.state == "UPLOADING")
    return session.scalar(query) or 0


def touch(session: Session, checkpoint_id: str) -> None:
    """A part has come: the checkpoint is not abandoned."""
    session.execute(update(Checkpoint).where(Checkpoint.id == checkpoint_id).values(updated_at=db_time()))


def ready(session: Session, checkpoint_id: str, *, digest: str, size: int, classes: Sequence[str], detector: str | None) -> bool:
    """The file was checked and stored anew: its SHA-256, bytes, and what its header says. False: it was decided before."""
    values = {"digest": digest, "bytes": size, "classes": builtins.list(classes), "detector": detector}
    return bool(move(session, Checkpoint, Checkpoint.id == checkpoint_id, source="UPLOADING", target="READY", **values))


def refuse(session: Session, checkpoint_id: str, reason: str) -> bool:
    """The file cannot be used, or never came. False: it was decided before."""
    reason = reason.replace("\0", "")[:2000]
    return bool(move(session, Checkpoint, Checkpoint.id == checkpoint_id, source="UPLOADING", target="REFUSED", reason=reason))


def abandoned(session: Session, *, days: float, limit: int) -> builtins.list[str]:
    """Checkpoints of which no part has come for so long."""
    query = select(Checkpoint.id).where(Checkpoint.state == "UPLOADING", Checkpoint.updated_at < db_time(-86_400 * days))
    return builtins.list(session.scalars(query.order_by(Checkpoint.updated_at).limit(limit)))


def hold(session: Session, checkpoint_id: str) -> bool:
    """Keep a checkpoint from being deleted until the transaction ends. False: there is none."""
    return session.scalar(select(Checkpoint.id).where(Checkpoint.id == checkpoint_id).with_for_update(read=True)) is not None


def users(session: Session, checkpoint_id: str) -> builtins.list[Search | Distillation]:
    """The searches and distillations that need a checkpoint, the newest first of each: that have not ended, or that have SUCCEEDED, whose
    results rest on it. Until the transaction ends there will be no others."""
    session.scalar(select(Checkpoint.id).where(Checkpoint.id == checkpoint_id).with_for_update())
    found: builtins.list[Search | Distillation] = []
    for table in (Search, Distillation):
        place = f"{REFERENCE}checkpoints/{checkpoint_id}/"
        named = or_(*(table.spec[role]["checkpoint"].as_string().startswith(place, autoescape=True) for role in ("teacher", "student")))
        needing = table.state.in_(active(table) | {"SUCCEEDED"})
        found += session.scalars(select(table).where(needing, named).order_by(table.created_at.desc(), table.id.desc()))
    return found


def delete(session: Session, checkpoint_id: str) -> bool:
    """Forget a checkpoint; its files are the caller's to remove. False: there is none."""
    if session.scalar(sql_delete(Checkpoint).where(Checkpoint.id == checkpoint_id).returning(Checkpoint.id)) is None:
        return False
    events.append(session, TOPIC, checkpoint_id, DELETED, {})
    return True


def deleted(session: Session, checkpoint_ids: Iterable[str]) -> builtins.list[str]:
    """Those of these ids whose checkpoint was deleted, sorted. One that this database does not know may be another installation's."""
    query = select(Event.subject_id).where(Event.subject_id.in_(set(checkpoint_ids)), Event.topic == TOPIC, Event.kind == DELETED)
    return sorted(session.scalars(query))


def decided(session: Session, checkpoint_ids: Iterable[str]) -> builtins.list[str]:
    """Those of these ids whose checkpoint is READY or REFUSED, sorted: no part of theirs is awaited."""
    query = select(Checkpoint.id).where(Checkpoint.id.in_(set(checkpoint_ids)), Checkpoint.state.in_(terminal(Checkpoint)))
    return sorted(session.scalars(query))


def _of(owner: str | None) -> builtins.list[ColumnElement[bool]]:
    return [] if owner is None else [Checkpoint.owner == owner]
