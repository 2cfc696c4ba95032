"""Searches, their candidates and their confirmations."""

from __future__ import annotations

import builtins
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, case, exists, func, insert, or_, select, update
from sqlalchemy.orm import Session, aliased

from . import events, jobs, labels, pages
from .clock import db_time
from .ids import new_id
from .models import Candidate, Confirmation, Decision, Job, Search, Trial
from .states import Move, active, move, move_each, terminal

REASON_LENGTH = 2000
DRIVEN = ("QUEUED", "RUNNING", "CONFIRMING")  # the states in which an evolver does something for a search
OF_TRIAL = tuple(
    getattr(Trial, name)
    for name in (
        *("id", "candidate", "number", "rung", "state", "ap", "ap50", "ap75", "images", "iterations", "seconds"),
        *("failure", "rejected", "same_as"),
    )
)  # what the standing of a candidate follows from
RECENT = 50  # searches in which the pace of a pair is looked for


def create(
    session: Session,
    *,
    name: str,
    spec: Mapping[str, Any],
    dataset: Mapping[str, Any],
    notes: str = "",
    tags: Sequence[str] = (),
    request: Mapping[str, Any] | None = None,
    cloned_from: str | None = None,
    idempotency_key: str | None = None,
    owner: str | None = None,
    priority: int = 0,
    device_memory_gib: int | None = None,
) -> Search:
    """Store a search; the evolver takes it from there. dataset: its JSON, of which name and digest become columns.
    priority, device_memory_gib: of all its jobs, as `jobs.enqueue` takes them.

    request: the body that asked for it; cloned_from: whose request it repeats.
    Raises IntegrityError when the owner has used the idempotency key before; `by_key` finds that search.
    """
    search = Search(
        name=name,
        notes=notes,
        spec=dict(spec),
        teacher=spec.get("teacher", {}).get("detector", ""),
        student=spec.get("student", {}).get("detector", ""),
        algorithm=spec.get("algorithm", ""),
        request=None if request is None else dict(request),
        cloned_from=cloned_from,
        dataset=dataset["name"],
        dataset_digest=dataset.get("digest") or "",
        idempotency_key=idempotency_key,
        owner=owner or "",
        priority=priority,
        device_memory_gib=device_memory_gib,
    )
    session.add(search)
    session.flush()
    labels.give(session, search, tags)
    events.append(session, "search", search.id, "queued", {"name": name})
    return search


def extend(
    session: Session,
    source: Search,
    *,
    name: str,
    spec: Mapping[str, Any],
    event: str,
    request: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
    priority: int = 0,
) -> Search:
    """Store a search that goes on where another one has ended: it has that one's ledger, and `event` after it, its candidates and their
    measurements. These belong to no job of its own; its own need the devices that the other one's did. The other search stays as it is.

    Raises IntegrityError as `create` does.
    """
    dataset = {"name": source.dataset, "digest": source.dataset_digest}
    search = create(
        session,
        name=name,
        spec=spec,
        dataset=dataset,
        request=request,
        idempotency_key=idempotency_key,
        owner=source.owner,
        priority=priority,
        device_memory_gib=source.device_memory_gib,
    )
    for table in (Candidate, Trial):
        rows = session.execute(select(*table.__table__.columns).where(table.search_id == source.id)).mappings()
        copies = [{**row, "id": new_id(), "search_id": search.id} | ({"job_id": None} if table is Trial else {}) for row in rows]
        if copies:
            session.execute(insert(table), copies)
    search.spent = search.inherited = source.spent
    lines = ledger_lines(session, source.id)
    record(session, search.id, 0, [*lines, event])
    return search


def get(session: Session, search_id: str, *, owner: str | None = None) -> Search | None:
    """One search; None where there is none, or it is not the owner's (None: of anybody)."""
    return session.scalar(select(Search).where(Search.id == search_id, *_of(owner)))


def by_key(session: Session, idempotency_key: str, *, owner: str | None = None) -> Search | None:
    """The search that was created with this key."""
    return session.scalar(select(Search).where(Search.owner == (owner or ""), Search.idempotency_key == idempotency_key))


def list(
    session: Session, *, limit: int = 50, cursor: str | None = None, sort: str = pages.NEWEST, owner: str | None = None, **asked: str | None
) -> tuple[builtins.list[Search], str | None]:
    """A page of searches and the cursor of the next one. sort: as of `pages.ordered`; asked: as of `labels.matching`.

    Raises ValueError for what is no cursor of this order and these filters.
    """
    query = select(Search).where(*_of(owner), *labels.matching(Search, asked))
    return pages.ordered(session, query, Search, sort=sort, asked=asked, limit=limit, cursor=cursor)


def count_active(session: Session, owner: str) -> int:
    """How many searches of an owner have not ended."""
    query = select(func.count()).select_from(Search).where(Search.owner == owner, Search.state.in_(active(Search)))
    return session.scalar(query) or 0


def cancel(session: Session, search_id: str, *, owner: str | None = None) -> bool:
    """End a search and all its jobs; what was measured stays. False: there is none, or it had ended."""
    # One state after the other, so that the machine is asked for each; the row is locked from the first hit.
    for source in sorted(active(Search)):
        if move(session, Search, Search.id == search_id, *_of(owner), source=source, target="CANCELLED", finished_at=db_time()):
            jobs.cancel_search(session, search_id)
            events.append(session, "search", search_id, "cancelled", {"from": source})
            return True
    return False


def pause(session: Session, search_id: str, *, owner: str | None = None) -> bool:
    """Hold a search and its jobs until it is resumed; its trainers end, what is measured stays. False: there is none, or it had ended."""
    for source in sorted(active(Search) - {"PAUSED"}):
        if move(session, Search, Search.id == search_id, *_of(owner), source=source, target="PAUSED"):
            jobs.pause(session, Job.search_id == search_id)
            events.append(session, "search", search_id, "paused", {"from": source})
            return True
    return False


def resume(session: Session, search_id: str, *, owner: str | None = None) -> bool:
    """Let a paused search go on where it was. False: there is none, or it is not paused."""
    search = session.scalar(select(Search).where(Search.id == search_id, Search.state == "PAUSED", *_of(owner)).with_for_update())
    if search is None:
        return False
    confirming = session.scalar(select(Confirmation.id).where(Confirmation.search_id == search_id).limit(1)) is not None
    target = "CONFIRMING" if confirming else "RUNNING" if search.started_at is not None else "QUEUED"
    moved = move(session, Search, Search.id == search_id, source="PAUSED", target=target)
    jobs.resume(session, Job.search_id == search_id)
    events.append(session, "search", search_id, "resumed", {"to": target})
    return bool(moved)


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
    under_way = exists().where(Job.search_id == Search.id, Job.collected.is_(False), Job.state.in_(active(Job)))
    query = select(Search.id).where(Search.state.in_(DRIVEN), or_(Search.state == "QUEUED", ended, ~under_way))
    return builtins.list(session.scalars(query.order_by(Search.created_at, Search.id)))


def lock(session: Session, search_id: str) -> Search | None:
    """The search, if it is to be driven, held against every other writer until the transaction ends."""
    query = select(Search).where(Search.id == search_id, Search.state.in_(DRIVEN)).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def all_candidates(session: Session, search_id: str) -> builtins.list[Candidate]:
    """Every candidate of a search by index."""
    query = select(Candidate).where(Candidate.search_id == search_id).order_by(Candidate.index)
    return builtins.list(session.scalars(query))


def count_candidates(session: Session, search_id: str) -> dict[str, int]:
    """How many candidates are in each state."""
    query = select(Candidate.state, func.count()).where(Candidate.search_id == search_id).group_by(Candidate.state)
    return {row[0]: row[1] for row in session.execute(query)}


def seconds_an_iteration(session: Session, shared: Mapping[str, Any]) -> float | None:
    """Seconds that a student iteration took in the newest searches with this teacher, student and recipe; None: there were none.

    shared: what all jobs of a search have of its specification. A candidate's part of its group's time, measuring included.
    """
    newest = select(Search).order_by(Search.created_at.desc(), Search.id.desc()).limit(RECENT)
    for search in session.scalars(newest):
        if all(search.spec.get(name) == shared[name] for name in ("teacher", "student", "recipe")):
            total = select(func.sum(Candidate.seconds), func.sum(Candidate.iterations)).where(Candidate.search_id == search.id)
            seconds, iterations = session.execute(total).one()
            if seconds and iterations:
                return float(seconds) / int(iterations)
    return None


def best_candidates(session: Session, search_ids: Sequence[str]) -> dict[str, Candidate]:
    """By search, the candidate with the highest AP at the highest rung so far, ties by the lower index; references count too.

    Searches in which nothing was measured are left out.
    """
    best = aliased(Candidate)
    best_id = (
        select(best.id)
        .where(best.search_id == Search.id, best.state == "MEASURED")
        .order_by(best.rung.desc(), best.ap.desc(), best.index)
        .limit(1)
        .correlate(Search)
        .scalar_subquery()
    )
    query = select(Candidate).join(Search, Candidate.id == best_id).where(Search.id.in_(search_ids))
    return {one.search_id: one for one in session.scalars(query)}


def confirmed(session: Session, search_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many students of their confirmations are measured, and how many there are; searches without any are left out."""
    measured = func.sum(case((Confirmation.state != "PROPOSED", 1), else_=0))
    query = select(Confirmation.search_id, measured, func.count()).where(Confirmation.search_id.in_(search_ids))
    return {row[0]: (row[1], row[2]) for row in session.execute(query.group_by(Confirmation.search_id))}


def running_best(session: Session, *, owner: str | None, limit: int) -> builtins.list[tuple[str, float | None]]:
    """Of the newest searches under way, at most `limit`: (id, AP of the best candidate so far in percent)."""
    best = (
        select(Candidate.ap)
        .where(Candidate.search_id == Search.id, Candidate.state == "MEASURED")
        .order_by(Candidate.rung.desc(), Candidate.ap.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = select(Search.id, best).where(Search.state.in_(("RUNNING", "CONFIRMING")))
    if owner is not None:
        query = query.where(Search.owner == owner)
    return [tuple(row) for row in session.execute(query.order_by(Search.created_at.desc(), Search.id.desc()).limit(limit))]


def propose(session: Session, search_id: str, proposals: Sequence[Mapping[str, Any]], canonical: Sequence[str]) -> None:
    """Store proposals (`evolution.Candidate.to_json`), each with its canonical text.

    Raises IntegrityError for an index or a policy that the search has already.
    """
    for proposal, text in zip(proposals, canonical, strict=True):
        session.add(Candidate(search_id=search_id, policy_key=hashlib.sha256(text.encode()).hexdigest(), **proposal))
    session.flush()


def resolved_policies(session: Session, search_id: str, indices: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The policies of these candidates with the weights that their first training found; those that have none yet are left out."""
    query = select(Candidate.index, Candidate.resolved).where(
        Candidate.search_id == search_id, Candidate.index.in_(indices), Candidate.resolved.is_not(None)
    )
    return {row[0]: row[1] for row in session.execute(query)}


def ledger(session: Session, search_id: str, first: int = 0, end: int | None = None) -> builtins.list[dict[str, Any]]:
    """The events of a search's ledger from number `first` on, in order, and before number `end`."""
    return [json.loads(line) for line in ledger_lines(session, search_id, first, end)]


def ledger_lines(session: Session, search_id: str, first: int = 0, end: int | None = None) -> builtins.list[str]:
    """The same as they are stored."""
    query = select(Decision.event).where(Decision.search_id == search_id, Decision.number >= first).order_by(Decision.number)
    if end is not None:
        query = query.where(Decision.number < end)
    return builtins.list(session.scalars(query))


def record(session: Session, search_id: str, first: int, events_: Iterable[str]) -> None:
    """Append events to the ledger from number `first` on. Raises IntegrityError when somebody else has."""
    for number, event in enumerate(events_, first):
        session.add(Decision(search_id=search_id, number=number, event=event))
    session.flush()


def count_ledger(session: Session, search_id: str) -> int:
    """How many events the ledger of a search has."""
    # They are numbered from 0 without a gap, and the last one is at the end of an index.
    last = session.scalar(select(func.max(Decision.number)).where(Decision.search_id == search_id))
    return 0 if last is None else last + 1


def trials(session: Session, search_id: str) -> builtins.list[Trial]:
    """Every measurement of a search by decision and candidate."""
    query = select(Trial).where(Trial.search_id == search_id).order_by(Trial.number, Trial.candidate)
    return builtins.list(session.scalars(query))


def costs(session: Session, search: Search) -> Iterator[dict[str, Any]]:
    """What each measurement of a search took, by the trainer that made it (`cost` of its row), in no order; with those of the searches that
    it continues, whose jobs made the measurements that it has of them. A trainer of before may not have said."""
    lineage = [search.id]
    while search.spec.get("continues") and (before := session.get(Search, search.spec["continues"])) is not None:
        search = before
        lineage.append(search.id)
    query = select(Job.result).where(Job.search_id.in_(lineage), Job.kind == "evaluate", Job.state == "SUCCEEDED")
    for result in session.scalars(query):
        yield from (row["cost"] for row in (result or {}).get("candidates", ()) if row.get("cost"))


def trials_of(session: Session, search_id: str, numbers: Sequence[int]) -> builtins.list[Trial]:
    """The measurements that these decisions asked for, by decision and candidate."""
    query = select(Trial).where(Trial.search_id == search_id, Trial.number.in_(numbers)).order_by(Trial.number, Trial.candidate)
    return builtins.list(session.scalars(query.execution_options(populate_existing=True)))


def try_out(
    session: Session, search_id: str, number: int, candidates: Iterable[int], *, rung: int, replicate: int, seed: int, job_id: str
) -> None:
    """Store that a job measures these candidates, as decision `number` asked. rung: iterations."""
    for candidate in candidates:
        session.add(
            Trial(search_id=search_id, number=number, candidate=candidate, rung=rung, replicate=replicate, seed=seed, job_id=job_id)
        )
    session.flush()


def assign(session: Session, search_id: str, number: int, candidates: Sequence[int], job_id: str) -> None:
    """Note which job measures these candidates of a decision now."""
    place = (Trial.search_id == search_id, Trial.number == number, Trial.candidate.in_(candidates))
    session.execute(update(Trial).where(*place).values(job_id=job_id))


def measure(session: Session, search_id: str, number: int, index: int, figures: Mapping[str, Any]) -> bool:
    """Store what a candidate was worth in decision `number` (a row of an `evaluate` result). False: it was known before."""
    return bool(measure_group(session, search_id, number, {index: figures}))


def measure_group(session: Session, search_id: str, number: int, rows: Mapping[int, Mapping[str, Any]]) -> builtins.list[int]:
    """The same of some or all candidates of a decision (rows: by index), in a few statements however many; those not known before.

    The caller holds the search (`lock`): nobody else measures between the look and the writes.
    """
    trials: dict[int, builtins.list[dict[str, Any]]] = {index: [] for index in rows}
    query = select(*OF_TRIAL).where(Trial.search_id == search_id, Trial.candidate.in_(rows))
    for trial in session.execute(query.order_by(Trial.candidate, Trial.number)).mappings():
        trials[trial["candidate"]].append(dict(trial))
    found = {}
    for index, figures in rows.items():
        asked = next((one for one in trials[index] if (one["number"], one["state"]) == (number, "PROPOSED")), None)
        if asked is not None:
            found[index] = Move(asked["id"], "PROPOSED", *_measured(figures))
            asked |= {"state": found[index].target, **found[index].values}
    move_each(session, Trial, builtins.list(found.values()))
    place = (Candidate.search_id == search_id, Candidate.index.in_(found))
    moves = []
    for candidate_id, index, state in session.execute(select(Candidate.id, Candidate.index, Candidate.state).where(*place)):
        known = [one for one in trials[index] if one["state"] != "PROPOSED"]
        target, values = _standing(known)
        if state not in ("PROPOSED", "MEASURED") or (state == "MEASURED" and target not in ("MEASURED", "INFEASIBLE")):
            # A measurement that was under way when another one failed has cost its time all the same.
            session.execute(update(Candidate).where(Candidate.id == candidate_id).values(**_cost(known)))
        else:
            moves.append(Move(candidate_id, state, target, values | _cost(known) | _first_training(rows[index])))
    move_each(session, Candidate, moves)
    if cost := sum(rows[index].get("iterations") or 0 for index in found):
        session.execute(update(Search).where(Search.id == search_id).values(spent=Search.spent + cost))
    return builtins.list(found)


def _measured(figures: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The state of a trial with these figures, and its values."""
    names = ("ap", "ap50", "ap75", "lenient_ap", "images", "iterations", "seconds", "rejected", "same_as")
    values: dict[str, Any] = {name: figures.get(name) for name in names} | {"failure": None}
    look = figures.get("look") or {}
    values |= {"sketch": look.get("sketch") or None, "ratio": look.get("ratio")}
    if figures.get("failure") is not None or (values["ap"] is None and values["rejected"] is None and values["same_as"] is None):
        failure = figures.get("failure") or {"kind": "bug", "detail": "the trainer gave neither an AP nor a failure"}
        return "INFEASIBLE", values | {"ap": None, "failure": failure}
    return ("DUPLICATE" if values["same_as"] is not None else "REJECTED" if values["rejected"] is not None else "MEASURED"), values


def _standing(known: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The state of a candidate with these measurements, in order, and its figures."""
    failed = next((one for one in known if one["state"] == "INFEASIBLE"), None)
    settled = next((one for one in known if one["state"] in ("REJECTED", "DUPLICATE")), None)
    if failed is not None:
        return "INFEASIBLE", dict.fromkeys(("ap", "ap50", "ap75", "rung")) | {"failure": failed["failure"]}
    if settled is not None:
        return settled["state"], {"rejected": settled["rejected"], "same_as": settled["same_as"]}
    rung = max(one["rung"] for one in known)
    best = [one for one in known if one["rung"] == rung]
    values: dict[str, Any] = {"rung": rung, "images": best[-1]["images"]}
    for name in ("ap", "ap50", "ap75"):
        there = [value for one in best if (value := one[name]) is not None]
        values[name] = math.fsum(there) / len(there) if there else None
    return "MEASURED", values


def _cost(known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a candidate with these measurements has cost."""
    return {"iterations": sum(one["iterations"] or 0 for one in known), "seconds": math.fsum(one["seconds"] or 0.0 for one in known)}


def _first_training(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What a candidate keeps of its first training: the weights that were found, and how it looked."""
    values: dict[str, Any] = {}
    if figures.get("policy") is not None:
        values["resolved"] = figures["policy"]
    if figures.get("look") is not None:
        values["look"] = {name: value for name, value in figures["look"].items() if name not in ("sketch", "failure")}
    return values


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
    names = ("ap", "ap50", "ap75", "images", "iterations", "seconds")
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
