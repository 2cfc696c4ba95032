"""How a search that has SUCCEEDED goes on: what the request adds, and the specification of the search that continues it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pydantic import Field
from sqlalchemy.orm import Session

from detkds_api.budget import Speed, bought, bought_by_the_clock, enough_for
from detkds_api.fields import Body, Name
from detkds_api.problems import Conflict, FieldError, invalid, pointer
from detkds_api.quota import Priority
from detkds_core.evolution import Spec, dumped, replay
from detkds_core.evolution.spec import OF_OPTUNA
from detkds_core.store import results, searches, workers
from detkds_core.store.models import Search

EXTENDED = ", extended"
MORE = ("iterations", "candidates", "hours", "wall_clock_hours")
REPEATED = 100  # lines of a ledger that are repeated before an extension is accepted: a moment's work
LONGEST_NAME = 200  # characters, of the column
LONGEST_REQUESTED = 120  # of a request


class ExtendRequest(Body):
    """How much more a search may spend: exactly one of iterations, candidates, hours and wall_clock_hours."""

    name: Name | None = Field(default=None, description="default: that of the search, extended")
    iterations: int | None = Field(default=None, ge=1, le=10**12, description="further student iterations, without the confirmation")
    candidates: int | None = Field(default=None, ge=1, le=100_000, description="further policies, and the iterations that they need")
    hours: float | None = Field(default=None, gt=0, le=1e6, description="further hours of one device, by what an iteration took before")
    wall_clock_hours: float | None = Field(
        default=None, gt=0, le=1e6, description="further hours by the clock with the workers that are there now, its confirmation included"
    )
    priority: Priority = 0


class Extension(NamedTuple):
    """What a search that continues another one is. added: iterations that it may spend beyond what was spent; event: the first of its own;
    request: what would search as long from the beginning."""

    name: str
    spec: dict[str, Any]
    added: int
    event: str
    request: dict[str, Any] | None


def extension(session: Session, source: Search, wanted: ExtendRequest) -> Extension:
    """The search that continues `source`.

    The specification is the old one with more to spend; `begun` keeps what the first one had, which decides what it did. Raises Conflict
    for a search that cannot be continued, InvalidInput.
    """
    check_ended(session, source)
    spec, rungs = source.spec, tuple(source.spec["rungs"])
    limit = None
    if wanted.candidates is not None:
        limit = sum(searches.count_candidates(session, source.id).values()) + wanted.candidates
    more = added(session, source, wanted, rungs)
    budget = spent(session, source) + more
    confirmation = spec["confirmation"]
    used = int(confirmation.get("seeds_used", 0)) + int(confirmation["seeds"])
    longer = {
        **spec,
        "asked": asked(wanted),
        "budget": budget,
        "candidates": limit,
        "expected": source.spent + more,
        "begun": spec.get("begun") or {"budget": spec["budget"], "candidates": spec["candidates"]},
        "continues": source.id,
        "confirmation": {**confirmation, "seeds_used": used},
    }
    name = wanted.name or source.name.removesuffix(EXTENDED)[: LONGEST_NAME - len(EXTENDED)] + EXTENDED
    request = request_of(source, name, budget, limit, wanted.priority)
    return Extension(name, longer, more, dumped({"extended": {"budget": budget, "candidates": limit}}), request)


def asked(wanted: ExtendRequest) -> dict[str, Any]:
    """What a request says, by which it is known when it comes again: what its hours buy depends on the pace and the workers of the moment.

    Without its priority, which decides nothing and may have changed since.
    """
    return wanted.model_dump(mode="json", exclude_none=True, exclude={"priority"})


def repeats(found: Search, source: Search, wanted: ExtendRequest) -> bool:
    """Whether what was made with an Idempotency-Key came from the same request."""
    return (found.spec.get("continues"), found.spec.get("asked")) == (source.id, asked(wanted))


def request_of(source: Search, name: str, budget: int, limit: int | None, priority: int) -> dict[str, Any] | None:
    """The request of a search with all that two may spend; None where the first one's was not kept."""
    if source.request is None:
        return None
    replaced = ("candidates", "iterations", "hours", "wall_clock_hours", "priority")
    return {
        **{key: value for key, value in source.request.items() if key not in replaced},
        "name": name[:LONGEST_REQUESTED],
        "iterations": budget,
        **({"candidates": limit} if limit is not None else {}),
        **({"priority": priority} if priority else {}),
    }


def check_ended(session: Session, source: Search) -> None:
    """Raises Conflict for a search that cannot be continued, which says what can be done instead."""
    if source.state in ("FAILED", "CANCELLED"):
        raise Conflict(
            f"search {source.id} is {source.state}; only one that has SUCCEEDED can be extended. Start it anew with POST /searches"
        )
    if source.state != "SUCCEEDED":
        raise Conflict(f"search {source.id} is {source.state}; it can be extended once it has SUCCEEDED")
    if "rungs" not in source.spec or not searches.count_ledger(session, source.id):
        raise Conflict(
            f"search {source.id} is from before searches kept their decisions, so that none can go on from them."
            ' Start another one with POST /searches and "warm_start"'
        )
    try:
        decided_alike(session, source)
    except (ValueError, TypeError, KeyError) as error:
        raise Conflict(
            f"search {source.id} was made by another version of this program, and this one would have decided otherwise ({error})."
            ' Start another one with POST /searches and "warm_start"'
        ) from error


def decided_alike(session: Session, source: Search) -> None:
    """Raises ValueError, TypeError or KeyError when this program reads a search otherwise, as far as the beginning of its ledger shows.

    The evolver repeats all of it. Of Optuna's algorithms only the specification is read: they need a package that the API does without.
    """
    spec = Spec.of_search(source.spec)
    if spec.algorithm not in OF_OPTUNA:
        replay(spec, searches.ledger(session, source.id, 0, REPEATED), logged=source.spec.get("mode") == "logged")


def spent(session: Session, source: Search) -> int:
    """What a search has used of its budget, as its decisions count it: a look at each candidate included.

    One that ended by its budget has all of it behind it. Where the number of candidates ended it before, the rest was not asked for again.
    """
    budget = int(source.spec["budget"])
    result = results.of_search(session, source.id) if source.spec.get("candidates") is not None else None
    summary = (result.evidence.get("summary") if result is not None else None) or {}
    return min(budget, math.ceil(float(summary.get("spent", budget))))


def added(session: Session, source: Search, wanted: ExtendRequest, rungs: tuple[int, ...]) -> int:
    """Further student iterations. Raises InvalidInput."""
    given = [name for name in MORE if getattr(wanted, name) is not None]
    if not given:
        message = "is required, unless 'candidates', 'hours' or 'wall_clock_hours' say how much more the search may spend"
        raise invalid([FieldError("/iterations", message)])
    if len(given) > 1:
        raise invalid([FieldError(pointer(given[1]), f"the extension is given in {given[0]} already; leave one of them out")])
    if wanted.candidates is not None:
        return enough_for(wanted.candidates, rungs)
    speed = Speed(searches.seconds_an_iteration(session, source.spec), workers.alive(session))
    if wanted.hours is not None:
        return bought(wanted.hours, rungs, speed.pace)
    if wanted.wall_clock_hours is not None:
        spec = source.spec
        return bought_by_the_clock(wanted.wall_clock_hours, rungs, spec, speed)
    assert wanted.iterations is not None
    if wanted.iterations < rungs[-1]:
        raise invalid([FieldError("/iterations", f"{wanted.iterations} are less than one full proxy of {rungs[-1]} iterations")])
    return wanted.iterations
