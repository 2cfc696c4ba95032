"""How a search is shown, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from sqlalchemy.orm import Session

from detkds_api.budget import expected_students
from detkds_api.caller import Caller
from detkds_api.problems import NotFound
from detkds_api.progress import EXAMPLE as PROGRESS_EXAMPLE
from detkds_api.progress import Progress, db_now, seconds_between, seconds_left, share
from detkds_api.service import Running
from detkds_api.workers import fleet
from detkds_core.policy import formula, from_json
from detkds_core.store import jobs, labels, results
from detkds_core.store import searches as stored
from detkds_core.store.ids import is_id
from detkds_core.store.models import Candidate, Search
from detkds_core.store.states import active
from detkds_core.store.vocabulary import SearchState as State
from detkds_core.store.waiting import of_subject

Found = TypeVar("Found")


class Best(BaseModel):
    """The best candidate so far, on the selection images, after the student iterations of its rung: APs of another do not compare."""

    index: int
    ap: float
    rung: int | None
    formula: str
    policy: dict[str, Any]


class SearchView(BaseModel):
    """A search and where it stands.

    waiting: why none of its jobs runs; null while one does, and when it has ended. cloned_from: the search whose request it repeats, with
    what was to be different.
    """

    id: str
    name: str
    notes: str
    tags: list[str]
    state: State
    reason: str | None
    created_at: datetime
    updated_at: datetime
    dataset: str
    teacher: str
    student: str
    priority: int
    device_memory_gib: int | None
    waiting: str | None
    progress: Progress
    best: Best | None
    result_id: str | None
    cloned_from: str | None
    spec: dict[str, Any]


POLICY_EXAMPLE = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 2.0}]}
EXAMPLE = {
    "id": "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa",
    "name": "digits_gfl seed 0",
    "notes": "",
    "tags": ["digits"],
    "state": "RUNNING",
    "reason": None,
    "created_at": "2026-05-04T10:11:12Z",
    "updated_at": "2026-05-04T10:12:40Z",
    "dataset": "digits",
    "teacher": "gfl_r18w32_fpn32",
    "student": "gfl_r18w16_fpn32",
    "priority": 0,
    "device_memory_gib": None,
    "waiting": None,
    "progress": PROGRESS_EXAMPLE,
    "best": {"index": 6, "ap": 27.4, "rung": 120, "formula": "2·l2(standardize(global))", "policy": POLICY_EXAMPLE},
    "result_id": None,
    "cloned_from": None,
    "spec": {"candidates": 24, "seed": 0},
}


def existing(session: Session, caller: Caller, search_id: str) -> Search:
    """Raises NotFound, also for what is somebody else's."""
    search = stored.get(session, search_id, owner=caller.sees) if is_id(search_id) else None
    if search is None:
        raise NotFound(f"there is no search {search_id}; GET /searches lists them")
    return search


def view(session: Session, service: Running, search: Search) -> SearchView:
    """How one search is shown."""
    (shown,) = views(session, service, [search])
    return shown


def views(session: Session, service: Running, searches: Sequence[Search]) -> list[SearchView]:
    """How searches are shown: as many statements for a page of them as for one, each of which reads what an index leads to."""
    ids = [one.id for one in searches]
    open_ids = [one.id for one in searches if one.state in active(Search)]
    best = stored.best_candidates(session, ids)
    result_ids = of_some(searches, "SUCCEEDED", lambda ended: results.ids_of_searches(session, ended))
    tags = labels.of_each(session, Search, ids)
    at_work = jobs.at_work(session, open_ids) if open_ids else {}
    confirmed = of_some(searches, "CONFIRMING", lambda confirming: stored.confirmed(session, confirming))
    now = db_now(session)
    idle = any(not at_work[one] for one in open_ids)
    seen = fleet(session, service) if idle else None  # who is at work does not wait
    return [
        shown(
            one,
            best=best.get(one.id),
            result_id=result_ids.get(one.id),
            tags=tags[one.id],
            waiting=of_subject(seen, one.state, one.id) if seen and one.id in at_work and not at_work[one.id] else None,
            where=progress(one, best.get(one.id), at_work.get(one.id, ()), confirmed.get(one.id, (0, 0)), now),
        )
        for one in searches
    ]


def of_some(searches: Sequence[Search], state: str, read: Callable[[list[str]], dict[str, Found]]) -> dict[str, Found]:
    """What is read of those in a state; nothing is asked where there are none."""
    ids = [one.id for one in searches if one.state == state]
    return read(ids) if ids else {}


def shown(
    search: Search, *, best: Candidate | None, result_id: str | None, tags: list[str], waiting: str | None, where: Progress
) -> SearchView:
    return SearchView(
        id=search.id,
        name=search.name,
        notes=search.notes,
        tags=tags,
        state=cast(State, search.state),
        reason=search.reason,
        created_at=search.created_at,
        updated_at=search.updated_at,
        dataset=search.dataset,
        teacher=search.spec["teacher"]["detector"],
        student=search.spec["student"]["detector"],
        priority=search.priority,
        device_memory_gib=search.device_memory_gib,
        waiting=waiting,
        progress=where,
        best=best_view(best) if best else None,
        result_id=result_id,
        cloned_from=search.cloned_from,
        spec=search.spec,
    )


def best_view(candidate: Candidate) -> Best:
    assert candidate.ap is not None, "the best candidate is a measured one"
    policy = candidate.resolved or candidate.policy
    return Best(index=candidate.index, ap=candidate.ap, rung=candidate.rung, formula=formula(from_json(policy)), policy=policy)


def progress(search: Search, best: Candidate | None, running: Sequence[jobs.AtWork], again: tuple[int, int], now: datetime) -> Progress:
    """Where a search stands, counted in student iterations: done of the budget while it searches, then seeds of the confirmation.

    Where the number of candidates ends it, the budget is more than it needs: then of what was expected, or was done since beyond that.
    running: its jobs at work; again: how many students of its confirmation are measured, and how many there are.
    """
    spec, best_ap = search.spec, best.ap if best else None
    full = spec["rungs"][-1] if "rungs" in spec else spec["recipe"]["iterations"]  # a search from before there were rungs has none
    ended, before, budget = search.spent, search.inherited, spec.get("budget") or spec["candidates"] * full
    if (expected := spec.get("expected")) is not None:
        searched = search.state in ("CONFIRMING", "SUCCEEDED")
        budget = ended if searched else max(expected, ended)
    if search.state not in ("RUNNING", "CONFIRMING"):
        step = {"QUEUED": "waiting", "PAUSED": "paused", "SUCCEEDED": "done"}.get(search.state, "stopped")
        fraction = 1.0 if search.state == "SUCCEEDED" else min(1.0, (ended - before) / max(1, budget - before))
        return Progress(step=step, done=ended, total=budget, fraction=fraction, best_ap=best_ap, seconds_left=None, message="")
    a_student = spec["confirmation"]["iterations"]
    confirmed, students = again[0], again[1] or expected_students(spec)
    work: float = (budget if search.state == "CONFIRMING" else ended) + confirmed * a_student
    for job in running:
        each = a_student if job.kind == "confirm" else job.rung or full
        work += share(job.progress) * each * job.candidates
    fraction = min((work - before) / (budget - before + students * a_student), 1.0)
    return Progress(
        step="confirming" if search.state == "CONFIRMING" else "searching",
        done=confirmed if search.state == "CONFIRMING" else ended,
        total=students if search.state == "CONFIRMING" else budget,
        fraction=round(fraction, 4),
        best_ap=best_ap,
        seconds_left=seconds_left(fraction, seconds_between(search.started_at, now)),
        message=str((running[0].progress or {}).get("message") or "") if running else "waiting for a worker",
    )
