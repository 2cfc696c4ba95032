"""`/searches/ID/candidates` and its ledger: what a search tried, where each policy came from, and what was decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from detkds_api.lists import LIMIT, ListQuery, Page, page_of
from detkds_api.search_request import Knowledge
from detkds_api.search_views import POLICY_EXAMPLE, existing
from detkds_api.service import Id, Service, example
from detkds_core.evolution.spec import Operator, Stage
from detkds_core.policy import formula, from_json
from detkds_core.store import candidates as stored
from detkds_core.store import searches
from detkds_core.store.models import Candidate, Trial
from detkds_core.store.vocabulary import CandidateState

router = APIRouter(tags=["searches"])

PAGE = 500  # candidates that are read at once where all are wanted


class Lines(PlainTextResponse):
    """JSON, a line each."""

    media_type = "application/x-ndjson"


class CandidatesQuery(ListQuery):
    """What the list of candidates can be asked for."""

    limit: int = Field(default=100, ge=1, le=200, description=LIMIT)
    state: CandidateState | None = Field(default=None, description="Those in this state.")
    stage: Stage | None = Field(default=None, description="`reference`: hand-designed; `stage1`: single terms; `stage2`: combinations.")
    island: Knowledge | None = Field(default=None, description="Those of this island: single terms of this knowledge.")
    operator: Operator | None = Field(default=None, description="Those that were made so.")


class Rung(BaseModel):
    """One measurement of a candidate.

    number: of the decision that asked for it. rung: student iterations. replicate: which of the search's seeds (0: its own); seed: what it
    was trained with. ap: percent, on the selection images; null while it is not known, or where there is none. lenient_ap: at IoU 0.10 to
    0.50, half of it whatever the class, by which candidates below the full proxy are ordered; null at the full proxy.
    """

    number: int
    rung: int
    replicate: int
    seed: int
    state: CandidateState
    ap: float | None
    lenient_ap: float | None
    iterations: int | None
    seconds: float | None


class CandidateView(BaseModel):
    """A policy of a search and what it was worth (percent, on the selection images, at the highest rung that it was measured at).

    island: the knowledge that a single term belongs to. operator: how it was made; parents: indices of those that it was made of.
    resolved: its formula with the weights that its first training found. rung: iterations of that rung; rungs: every measurement, in the
    order in which they were decided. iterations, seconds: all that it cost. rejected: the gate that refused it, and why; audit: trained
    all the same, to judge the gates. same_as: the candidate whose double it is. look: loss, ratio and agreement of its gradient with the
    task's, before it was trained.
    """

    index: int
    state: str
    stage: str
    island: str | None
    operator: str
    parents: list[int]
    formula: str
    policy: dict[str, Any]
    resolved: str | None
    rung: int | None
    rungs: list[Rung]
    iterations: int | None
    ap: float | None
    ap50: float | None
    ap75: float | None
    seconds: float | None
    failure: dict[str, Any] | None
    rejected: dict[str, Any] | None
    same_as: int | None
    audit: bool
    look: dict[str, Any] | None


CANDIDATE_EXAMPLE = {
    "index": 6,
    "state": "MEASURED",
    "stage": "stage1",
    "island": "global",
    "operator": "mutate",
    "parents": [2],
    "formula": "2·l2(standardize(global))",
    "policy": POLICY_EXAMPLE,
    "ap": 27.4,
    "ap50": 49.8,
    "ap75": 26.0,
    "seconds": 31.2,
    "failure": None,
    "resolved": "2·l2(standardize(global))",
    "rung": 120,
    "rungs": [
        {
            "number": 4,
            "rung": 30,
            "replicate": 0,
            "seed": 0,
            "state": "MEASURED",
            "ap": 12.1,
            "lenient_ap": 30.6,
            "iterations": 34,
            "seconds": 6.4,
        },
        {
            "number": 9,
            "rung": 120,
            "replicate": 0,
            "seed": 0,
            "state": "MEASURED",
            "ap": 27.4,
            "lenient_ap": None,
            "iterations": 120,
            "seconds": 24.8,
        },
    ],
    "iterations": 225,
    "rejected": None,
    "same_as": None,
    "audit": False,
    "look": {"loss": 1.94, "ratio": 0.51, "agreement": 0.08},
}
LEDGER_EXAMPLE = '{"asked":{"index":0,"members":[0,1],"new":[],"replicate":0,"rung":0,"seen":[]}}\n'


@router.get("/searches/{search_id}/candidates", responses={200: example({"items": [CANDIDATE_EXAMPLE], "next_cursor": None})})
def list_candidates(search_id: Id, service: Service, query: Annotated[CandidatesQuery, Query()]) -> Page[CandidateView]:
    """The policies of a search by index, with where each came from and what was measured of it; all, or those that filters let through."""
    with service.store.read() as session:
        existing(session, service.caller, search_id)
        found, after = page_of(lambda: stored.list(session, search_id, **query.page()))
        trials = stored.trials(session, search_id, [one.index for one in found])
        return Page(items=[candidate_view(one, trials[one.index]) for one in found], next_cursor=after)


def every_candidate(session: Session, search_id: str) -> Iterator[CandidateView]:
    """All candidates of a search by index."""
    cursor: str | None = None
    while True:
        found, cursor = stored.list(session, search_id, limit=PAGE, cursor=cursor)
        trials = stored.trials(session, search_id, [one.index for one in found])
        yield from (candidate_view(one, trials[one.index]) for one in found)
        if cursor is None:
            return


@router.get(
    "/searches/{search_id}/ledger",
    response_class=Lines,
    responses={200: {"content": {"application/x-ndjson": {"example": LEDGER_EXAMPLE}}, "description": "the ledger, a line an event"}},
)
def get_ledger(search_id: Id, service: Service) -> Lines:
    """Every decision of a search and every result that it looked at, in order, a line each: from it the search can be replayed.

    Of a `strict` search it follows from the specification and the measurements alone, byte for byte.
    """
    with service.store.read() as session:
        existing(session, service.caller, search_id)
        lines = searches.ledger_lines(session, search_id)
    return Lines("".join(f"{line}\n" for line in lines))


def candidate_view(candidate: Candidate, trials: Sequence[Trial]) -> CandidateView:
    return CandidateView(
        index=candidate.index,
        state=candidate.state,
        stage=candidate.stage,
        island=candidate.island,
        operator=candidate.operator,
        parents=candidate.parents,
        formula=formula(from_json(candidate.policy)),
        policy=candidate.policy,
        ap=candidate.ap,
        ap50=candidate.ap50,
        ap75=candidate.ap75,
        seconds=candidate.seconds,
        failure=candidate.failure,
        resolved=formula(from_json(candidate.resolved)) if candidate.resolved else None,
        rung=candidate.rung,
        rungs=[rung_view(one) for one in trials],
        iterations=candidate.iterations,
        rejected=candidate.rejected,
        same_as=candidate.same_as,
        audit=candidate.audit,
        look=candidate.look,
    )


def rung_view(trial: Trial) -> Rung:
    return Rung(
        number=trial.number,
        rung=trial.rung,
        replicate=trial.replicate,
        seed=trial.seed,
        state=cast(CandidateState, trial.state),
        ap=trial.ap,
        lenient_ap=trial.lenient_ap,
        iterations=trial.iterations,
        seconds=trial.seconds,
    )
