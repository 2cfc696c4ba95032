"""Searches, their candidates and their confirmations."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, exists, func, or_, select, update
from sqlalchemy.orm import Session

from . import events, jobs, pages
from .clock import db_time
from .models import Candidate, Confirmation, Job, Search
from .states import active, move, terminal

REASON_LENGTH = 2000


def create(
    session: Session,
    *,
    name: str,
    spec: Mapping[str, Any],
    dataset: Mapping[str, Any],
    idempotency_key: str | None = None,
    owner: str | None = None,
) -> Search:
    """Store a search; the evolver takes it from there. dataset: its JSON, of which name and digest become columns.

    Raises IntegrityError when the owner has used the idempotency key before; `by_key` finds that search.
    """
    search = Search(
        name=name,
        spec=dict(spec),
        dataset=dataset["name"],
        dataset_digest=dataset.get("digest") or "",
        idempotency_key=idempotency_key,
        owner=owner or "",
    )
    session.add(search)
    session.flush()
    events.append(session, "search", search.id, "queued", {"name": name})
    return search


def get(session: Session, search_id: str, *, owner: str | None = None) -> Search | None:
    """One search; None where there is none, or it is not the owner's (None: of anybody)."""
    return session.scalar(select(Search).where(Search.id == search_id, *_of(owner)))


def by_key(session: Session, idempotency_key: str, *, owner: str | None = None) -> Search | None:
    """The search that was created with this key."""
    return session.scalar(select(Search).where(Search.owner == (owner or ""), Search.idempotency_key == idempotency_key))


def list(
    session: Session, *, limit: int = 50, cursor: str | None = None, state: str | None = None, owner: str | None = None
) -> tuple[builtins.list[Search], str | None]:
    """The newest searches first and the cursor of the next page. Raises ValueError for what is no cursor."""
    query = select(Search).where(*_of(owner), *([Search.state == state] if state is not None else []))
    return pages.newest_first(session, query, Search, limit=limit, cursor=cursor)


def cancel(session: Session, search_id: str, *, owner: str | None = None) -> bool:
    """End a search and all its jobs; what was measured stays. False: there is none, or it had ended."""
    # One state after the other, so that the machine is asked for each; the row is locked from the first hit.
    for source in sorted(active(Search)):
        if move(session, Search, Search.id == search_id, *_of(owner), source=source, target="CANCELLED", finished_at=db_time()):
            jobs.cancel_search(session, search_id)
            events.append(session, "search", search_id, "cancelled", {"from": source})
            return True
    return False


def fail(session: Session, search_id: str, reason: str) -> bool:
    """End a search that cannot go on, with the reason, and all its jobs. False: it had ended."""
    reason = reason.replace("\0", "")[:REASON_LENGTH]
    moved = move(session, Search, Search.id == search_id, source=active(Search), target="FAILED", reason=reason, finished_at=db_time())
    if moved:
        jobs.cancel_search(session, search_id)
        events.append(session, "search", search_id, "failed", {"reason": reason})
    return bool(moved)


def start(session: Session, search: Search) -> None:
    """QUEUED to RUNNING."""
    if move(session, Search, Search.id == search.id, source="QUEUED", target="RUNNING", started_at=db_time()):
        events.append(session, "search", search.id, "running", {})
    session.refresh(search)


def confirm(session: Session, search: Search) -> None:
    """RUNNING to CONFIRMING: all candidates are measured."""
    if move(session, Search, Search.id == search.id, source="RUNNING", target="CONFIRMING"):
        events.append(session, "search", search.id, "confirming", {})
    session.refresh(search)


def succeed(session: Session, search: Search) -> None:
    """CONFIRMING to SUCCEEDED; the caller writes its result in the same transaction."""
    if move(session, Search, Search.id == search.id, source="CONFIRMING", target="SUCCEEDED", finished_at=db_time()):
        events.append(session, "search", search.id, "succeeded", {})
    session.refresh(search)


def count_error(session: Session, search_id: str) -> int:
    """Count a step of the evolver that failed; how many failed in a row."""
    statement = update(Search).where(Search.id == search_id).values(errors=Search.errors + 1).returning(Search.errors)
    return session.scalar(statement) or 0


def clear_errors(session: Session, search: Search) -> None:
    """The last step went well."""
    if search.errors:
        session.execute(update(Search).where(Search.id == search.id).values(errors=0))


def due(session: Session) -> builtins.list[str]:
    """The searches that the evolver has something to do for, oldest first.

    Those that are new, that have an ended job whose outcome is not counted, or that nothing is under way for.
    """
    ended = exists().where(Job.search_id == Search.id, Job.collected.is_(False), Job.state.in_(terminal(Job)))
    under_way = exists().where(Job.search_id == Search.id, Job.state.in_(active(Job)))
    query = select(Search.id).where(Search.state.in_(active(Search)), or_(Search.state == "QUEUED", ended, ~under_way))
    return builtins.list(session.scalars(query.order_by(Search.created_at, Search.id)))


def lock(session: Session, search_id: str) -> Search | None:
    """The search, if it has not ended, held against every other writer until the transaction ends."""
    query = select(Search).where(Search.id == search_id, Search.state.in_(active(Search))).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def candidates(
    session: Session, search_id: str, *, limit: int = 100, cursor: str | None = None
) -> tuple[builtins.list[Candidate], str | None]:
    """The candidates of a search by index and the cursor of the next page. Raises ValueError for what is no cursor."""
    query = select(Candidate).where(Candidate.search_id == search_id)
    return pages.ascending(session, query, Candidate.index, kind=int, limit=limit, cursor=cursor)


def all_candidates(session: Session, search_id: str) -> builtins.list[Candidate]:
    """Every candidate of a search by index."""
    query = select(Candidate).where(Candidate.search_id == search_id).order_by(Candidate.index)
    return builtins.list(session.scalars(query))


def count_candidates(session: Session, search_id: str) -> dict[str, int]:
    """How many candidates are in each state."""
    query = select(Candidate.state, func.count()).where(Candidate.search_id == search_id).group_by(Candidate.state)
    return {row[0]: row[1] for row in session.execute(query)}


def best_candidate(session: Session, search_id: str) -> Candidate | None:
    """The candidate with the highest AP so far, ties by the lower index; references count too."""
    query = (
        select(Candidate)
        .where(Candidate.search_id == search_id, Candidate.state == "MEASURED")
        .order_by(Candidate.ap.desc(), Candidate.index)
        .limit(1)
    )
    return session.scalar(query)


def propose(session: Session, search_id: str, proposals: Sequence[Mapping[str, Any]], canonical: Sequence[str]) -> None:
    """Store proposals (`Proposal.to_json`), each with its canonical text.

    Raises IntegrityError for an index or a policy that the search has already.
    """
    for proposal, text in zip(proposals, canonical, strict=True):
        session.add(Candidate(search_id=search_id, policy_key=hashlib.sha256(text.encode()).hexdigest(), **proposal))
    session.flush()


def assign(session: Session, search_id: str, indices: Sequence[int], job_id: str) -> None:
    """Note which job measures these candidates."""
    session.execute(update(Candidate).where(Candidate.search_id == search_id, Candidate.index.in_(indices)).values(job_id=job_id))


def measure(session: Session, search_id: str, index: int, figures: Mapping[str, Any]) -> bool:
    """Store what a candidate was worth (a row of an `evaluate` result). False: it was known before."""
    place = (Candidate.search_id == search_id, Candidate.index == index)
    return _measure(session, Candidate, place, figures, ("ap", "ap50", "ap75", "images", "iterations", "seconds"))


def confirmations(session: Session, search_id: str) -> builtins.list[Confirmation]:
    """The confirmations of a search by policy and seed."""
    query = select(Confirmation).where(Confirmation.search_id == search_id).order_by(Confirmation.entrant, Confirmation.seed)
    return builtins.list(session.scalars(query))


def enter(session: Session, search_id: str, *, job_id: str, seed: int, entrants: Sequence[Mapping[str, Any]]) -> None:
    """Store that a job confirms these policies with a seed. entrants: `{"entrant", "candidate", "name", "role", "policy"}` each."""
    for entrant in entrants:
        session.add(Confirmation(search_id=search_id, job_id=job_id, seed=seed, **entrant))
    session.flush()


def measure_again(session: Session, search_id: str, entrant: int, seed: int, figures: Mapping[str, Any]) -> bool:
    """Store what a policy was worth with one seed (a row of a `confirm` result). False: it was known before."""
    place = (Confirmation.search_id == search_id, Confirmation.entrant == entrant, Confirmation.seed == seed)
    names = ("ap", "ap50", "ap75", "selection_ap", "images", "iterations", "seconds")
    return _measure(session, Confirmation, place, figures, names)


def _measure(
    session: Session, table: type[Any], place: tuple[ColumnElement[bool], ...], figures: Mapping[str, Any], names: tuple[str, ...]
) -> bool:
    values = {name: figures.get(name) for name in names}
    if figures.get("failure") is None and values["ap"] is not None:
        return bool(move(session, table, *place, source="PROPOSED", target="MEASURED", **values))
    values |= dict.fromkeys(("ap", "ap50", "ap75"))
    failure = figures.get("failure") or {"kind": "bug", "detail": "the trainer gave neither an AP nor a failure"}
    return bool(move(session, table, *place, source="PROPOSED", target="INFEASIBLE", failure=failure, **values))


def _of(owner: str | None) -> builtins.list[ColumnElement[bool]]:
    return [] if owner is None else [Search.owner == owner]
