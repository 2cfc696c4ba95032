"""Results: written once, by the evolver, with their evidence."""

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from detkds_core.store.models import Result
from detkds_core.store.pages import newest_first
from detkds_core.store.session import new_id, now


def create(
    session: Session,
    *,
    kind: str,
    name: str,
    dataset: str,
    formula: str | None,
    policy: Mapping[str, Any] | None,
    ap: float | None,
    metrics: Mapping[str, Any],
    artifacts: Mapping[str, Any] | None = None,
    search_id: str | None = None,
    distillation_id: str | None = None,
) -> Result:
    """Store a result. A search and a distillation have one each: a second one violates a unique key."""
    result = Result(
        id=new_id(),
        kind=kind,
        name=name,
        search_id=search_id,
        distillation_id=distillation_id,
        dataset=dataset,
        formula=formula,
        policy=dict(policy) if policy is not None else None,
        ap=ap,
        metrics=dict(metrics),
        artifacts=dict(artifacts or {}),
        created_at=now(session),
    )
    session.add(result)
    session.flush()
    return result


def get(session: Session, result_id: str) -> Result | None:
    return session.get(Result, result_id)


def of(session: Session, *, search_id: str | None = None, distillation_id: str | None = None) -> Result | None:
    """The result of a search or of a distillation, if there is one yet."""
    key = Result.search_id == search_id if search_id is not None else Result.distillation_id == distillation_id
    return session.scalars(select(Result).where(key)).one_or_none()


def list(
    session: Session, *, limit: int = 50, cursor: str | None = None, kind: str | None = None
) -> tuple[Sequence[Result], str | None]:
    """A page, newest first. Raises ValueError for a cursor that no page gave."""
    statement = select(Result)
    return newest_first(session, statement.where(Result.kind == kind) if kind else statement, Result, limit, cursor)


def ids_of(session: Session, search_ids: builtins.list[str]) -> dict[str, str]:
    """Result ids of many searches at once."""
    rows = session.execute(select(Result.search_id, Result.id).where(Result.search_id.in_(search_ids)))
    return {search_id: result_id for search_id, result_id in rows if search_id is not None}
