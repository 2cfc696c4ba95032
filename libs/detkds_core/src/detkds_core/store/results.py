"""Results: what came out, with its evidence. A search and a distillation have at most one each."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from . import labels, pages
from .models import Distillation, Result, Search


def create(
    session: Session,
    origin: Search | Distillation,
    *,
    policy: Mapping[str, Any],
    ap: float | None,
    metrics: Mapping[str, Any],
    evidence: Mapping[str, Any],
    artifacts: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Result:
    """Store what came out of a search or a distillation. Raises IntegrityError when it has a result already."""
    of_search = isinstance(origin, Search)
    result = Result(
        kind="search" if of_search else "distill",
        search_id=origin.id if of_search else None,
        distillation_id=None if of_search else origin.id,
        owner=origin.owner,
        name=origin.name,
        dataset=origin.dataset,
        dataset_digest=origin.dataset_digest,
        teacher=origin.teacher,
        student=origin.student,
        policy=dict(policy),
        ap=ap,
        metrics=dict(metrics),
        evidence=dict(evidence),
        artifacts=dict(artifacts),
        environment=dict(environment),
    )
    session.add(result)
    session.flush()
    labels.give(session, result, labels.words(policy))
    return result


def get(session: Session, result_id: str, *, owner: str | None = None) -> Result | None:
    """One result; None where there is none, or it is not the owner's (None: of anybody)."""
    return session.scalar(select(Result).where(Result.id == result_id, *_of(owner)))


def of_search(session: Session, search_id: str) -> Result | None:
    return session.scalar(select(Result).where(Result.search_id == search_id))


def ids_of_searches(session: Session, search_ids: Sequence[str]) -> dict[str, str]:
    """The ids of the results of these searches, as far as they have one."""
    query = select(Result.search_id, Result.id).where(Result.search_id.in_(search_ids))
    return {search_id: result_id for search_id, result_id in session.execute(query) if search_id is not None}


def of_distillation(session: Session, distillation_id: str) -> Result | None:
    return session.scalar(select(Result).where(Result.distillation_id == distillation_id))


def some(session: Session, ids: Sequence[str], *, owner: str | None = None) -> dict[str, Result]:
    """The results of these ids, as far as there are such of the owner's (None: of anybody's)."""
    return {one.id: one for one in session.scalars(select(Result).where(Result.id.in_(ids), *_of(owner)))}


def parameters(session: Session, student: str) -> int | None:
    """How many parameters a detector had in its newest distillation; None: there was none."""
    query = select(Result.metrics).where(Result.student == student, Result.kind == "distill").order_by(Result.created_at.desc()).limit(1)
    metrics = session.scalar(query)
    count = (metrics or {}).get("student", {}).get("parameters")
    return int(count) if count else None


def list(
    session: Session,
    *,
    limit: int = 50,
    cursor: str | None = None,
    sort: str = pages.NEWEST,
    owner: str | None = None,
    **asked: str | float | None,
) -> tuple[builtins.list[Result], str | None]:
    """A page of results and the cursor of the next one. sort: as of `pages.ordered`; asked: as of `labels.matching`.

    Raises ValueError for what is no cursor of this order and these filters.
    """
    query = select(Result).where(*_of(owner), *labels.matching(Result, asked))
    return pages.ordered(session, query, Result, sort=sort, asked=asked, limit=limit, cursor=cursor)


def _of(owner: str | None) -> builtins.list[ColumnElement[bool]]:
    return [] if owner is None else [Result.owner == owner]
