"""Searches, their candidates and confirmations."""

import builtins
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from detkds_core.store import events, jobs, results
from detkds_core.store.models import Candidate, Confirmation, Job, Result, Search
from detkds_core.store.pages import decoded, encoded, newest_first
from detkds_core.store.session import new_id, now
from detkds_core.store.states import is_final, move


def create(
    session: Session,
    *,
    name: str,
    spec: Mapping[str, Any],
    dataset: Mapping[str, Any],
    idempotency_key: str | None = None,
    owner: str | None = None,
) -> Search:
    """Store a search; the evolver takes it up."""
    moment = now(session)
    search = Search(
        id=new_id(),
        name=name,
        state="QUEUED",
        spec=dict(spec),
        dataset=dict(dataset),
        problems=0,
        idempotency_key=idempotency_key,
        owner=owner,
        created_at=moment,
        updated_at=moment,
    )
    session.add(search)
    session.flush()
    events.append(session, "search", search.id, "created", {"name": name})
    return search


def get(session: Session, search_id: str) -> Search | None:
    return session.get(Search, search_id)


def by_key(session: Session, idempotency_key: str) -> Search | None:
    return session.scalars(select(Search).where(Search.idempotency_key == idempotency_key)).one_or_none()


def list(
    session: Session, *, limit: int = 50, cursor: str | None = None, state: str | None = None
) -> tuple[Sequence[Search], str | None]:
    """A page, newest first. Raises ValueError for a cursor that no page gave."""
    statement = select(Search)
    return newest_first(session, statement.where(Search.state == state) if state else statement, Search, limit, cursor)


def active(session: Session) -> builtins.list[str]:
    """Ids of the searches that are to be driven, oldest first."""
    states = ("QUEUED", "RUNNING", "CONFIRMING")
    return [*session.scalars(select(Search.id).where(Search.state.in_(states)).order_by(Search.id))]


def advance(session: Session, search: Search, state: str, *, reason: str | None = None) -> bool:
    """Move a search to its next state."""
    done = move(session, Search, id=search.id, old=search.state, new=state, reason=reason, updated_at=now(session))
    if done:
        events.append(session, "search", search.id, state.lower(), {"reason": reason} if reason else {})
    return done


def cancel(session: Session, search_id: str) -> bool:
    """Stop a search and its jobs; what is measured stays. False: it is not there, or has ended."""
    return _stop(session, search_id, "CANCELLED", None)


def fail(session: Session, search_id: str, reason: str) -> bool:
    """End a search that cannot go on, and its jobs with it. False: it is not there, or has ended."""
    return _stop(session, search_id, "FAILED", reason)


def _stop(session: Session, search_id: str, state: str, reason: str | None) -> bool:
    search = session.get(Search, search_id)
    if search is None or is_final(Search, search.state):
        return False
    done = advance(session, search, state, reason=reason)
    if done:
        for job in jobs.of_search(session, search_id):
            if not is_final(Job, job.state):
                jobs.cancel(session, job.id)
    return done


def note_problem(session: Session, search_id: str) -> int:
    """Count an error in a row while driving this search; gives the count."""
    session.execute(update(Search).where(Search.id == search_id).values(problems=Search.problems + 1))
    return session.scalars(select(Search.problems).where(Search.id == search_id)).one()


def clear_problems(session: Session, search_id: str) -> None:
    session.execute(update(Search).where(Search.id == search_id, Search.problems > 0).values(problems=0))


def set_summary(session: Session, search_id: str, summary: Mapping[str, Any]) -> None:
    session.execute(update(Search).where(Search.id == search_id).values(summary=dict(summary), updated_at=now(session)))


def add_candidates(session: Session, search_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Store proposals: index, policy, canonical, stage, island, operator, parents."""
    moment = now(session)
    session.add_all(Candidate(search_id=search_id, state="PROPOSED", created_at=moment, **row) for row in rows)
    session.flush()


def measured(session: Session, search_id: str, row: Mapping[str, Any]) -> bool:
    """Store what a candidate was worth, once. False: it was stored before."""
    failure = row.get("failure")
    known = {name: row.get(name) for name in ("ap", "ap50", "ap75", "images", "iterations", "seconds", "failure")}
    state = "MEASURED" if failure is None and row.get("ap") is not None else "INFEASIBLE"
    statement = (
        update(Candidate)
        .where(Candidate.search_id == search_id, Candidate.index == row["index"], Candidate.state == "PROPOSED")
        .values(state=state, **known)
    )
    done: Any = session.execute(statement.execution_options(synchronize_session=False))
    return bool(done.rowcount == 1)


def all_candidates(session: Session, search_id: str) -> builtins.list[Candidate]:
    """Every candidate, by index."""
    return [*session.scalars(select(Candidate).where(Candidate.search_id == search_id).order_by(Candidate.index))]


def candidates(
    session: Session, search_id: str, *, limit: int = 100, cursor: str | None = None
) -> tuple[Sequence[Candidate], str | None]:
    """A page by index. Raises ValueError for a cursor that no page gave."""
    statement = select(Candidate).where(Candidate.search_id == search_id).order_by(Candidate.index).limit(limit + 1)
    if cursor is not None:
        statement = statement.where(Candidate.index > int(decoded(cursor)))
    rows = [*session.scalars(statement)]
    return rows[:limit], encoded(str(rows[limit - 1].index)) if len(rows) > limit else None


def best(session: Session, search_id: str) -> Candidate | None:
    """The measured candidate with the highest AP on the selection images; the earlier one of equals."""
    statement = select(Candidate).where(Candidate.search_id == search_id, Candidate.state == "MEASURED")
    return session.scalars(statement.order_by(Candidate.ap.desc(), Candidate.index).limit(1)).one_or_none()


def ended(session: Session, search_id: str) -> int:
    """How many candidates are measured or known not to be measurable."""
    statement = select(func.count()).select_from(Candidate).where(Candidate.search_id == search_id, Candidate.state != "PROPOSED")
    return session.scalars(statement).one()


def add_confirmation(session: Session, search_id: str, seed: int, row: Mapping[str, Any]) -> None:
    """Store one finalist's figures under one seed."""
    names = ("ap", "ap50", "ap75", "selection_ap", "images", "seconds", "failure")
    session.add(Confirmation(search_id=search_id, seed=seed, index=row["index"], **{name: row.get(name) for name in names}))
    session.flush()


def confirmations(session: Session, search_id: str) -> builtins.list[Confirmation]:
    """All confirmations, by candidate, then seed."""
    statement = select(Confirmation).where(Confirmation.search_id == search_id).order_by(Confirmation.index, Confirmation.seed)
    return [*session.scalars(statement)]


def succeed(session: Session, search: Search, **result: Any) -> Result:
    """Write the result and end the search, together."""
    row = results.create(session, kind="search", search_id=search.id, **result)
    advance(session, search, "SUCCEEDED")
    return row
