"""One step of one search: what has been measured is told to the evolution, what it proposes becomes jobs, in one transaction.

A step reads all it needs from the database and leaves nothing anywhere else, so a process may die at any point of it: the transaction is
gone, and the next one does the same again. Proposals do not depend on when results come (`detkds_core.evolution`), groups are fixed by
index, and an outcome is counted once. So the result of a search is the same whatever happened on its way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from detkds_core.evolution import Evolution, Proposal, Result, Spec
from detkds_core.policy import canonical_json
from detkds_core.store import events, jobs, results, searches
from detkds_core.store.models import Candidate, Job, Search
from detkds_evolver.confirmation import NothingToConfirmError, conclude, entrants, first_failure, fresh_seeds
from detkds_evolver.groups import group_size, job_spec, ready_groups

SPEC_KEYS = tuple(Spec.__dataclass_fields__)
HOPELESS_GROUPS = 2  # when nothing in the first two groups could be trained, not even the references, the rest cannot either


class SearchError(Exception):
    """Why a search cannot go on. Its text is the reason that the user reads."""


def recall(session: Session, search_id: str) -> Evolution | None:
    """The evolution of a search as the database has it; None: there is no such search.

    Only reads: repeating hundreds of proposals takes seconds, in which a step would keep every other writer waiting.
    Raises SearchError as `step` does.
    """
    search = searches.get(session, search_id)
    if search is None:
        return None
    evolution = Evolution(evolution_spec(search.spec))
    catch_up(evolution, searches.all_candidates(session, search_id))
    return evolution


def step(session: Session, search_id: str, known: Evolution | None = None) -> Evolution | None:
    """Do all that can be done for a search now. None: it has ended.

    known: what `recall` or an earlier step returned, so that the evolution need not be repeated from its beginning. It only saves time;
    after a transaction that was rolled back it must not be used again.
    Raises SearchError when the search cannot go on.
    """
    search = searches.lock(session, search_id)
    if search is None:
        return None
    if search.state == "QUEUED":
        searches.start(session, search)
    evolution = known or Evolution(evolution_spec(search.spec))
    for job in jobs.uncollected(session, search_id):
        if jobs.collect(session, job):
            collect(session, search, job)
    if search.state == "RUNNING":
        candidates = searches.all_candidates(session, search_id)
        catch_up(evolution, candidates)
        check_hope(search, evolution)
        propose(session, search, evolution, candidates)
        if evolution.finished:
            searches.confirm(session, search)
            enter(session, search, evolution)
    if search.state == "CONFIRMING" and all(one.state != "PROPOSED" for one in searches.confirmations(session, search_id)):
        catch_up(evolution, searches.all_candidates(session, search_id))
        end(session, search, evolution)
        return None
    if not jobs.under_way(session, search_id):
        raise SearchError("nothing is under way and nothing can be proposed")
    searches.clear_errors(session, search)
    return evolution


def evolution_spec(spec: Mapping[str, Any]) -> Spec:
    """The part of a search's specification that decides its proposals."""
    try:
        return Spec.from_json({key: spec[key] for key in SPEC_KEYS if key in spec})
    except (ValueError, TypeError, KeyError) as error:
        raise SearchError(f"the specification cannot be read: {error}") from error


def catch_up(evolution: Evolution, candidates: Sequence[Candidate]) -> None:
    """Bring an evolution to where the database is: ask for what was proposed, tell what was measured.

    Raises SearchError when the evolution proposes now what it did not propose then.
    """
    for candidate in candidates:
        if candidate.index >= len(evolution.proposals):
            proposal = evolution.ask()
            if proposal is None or policy_key(proposal) != candidate.policy_key:
                raise SearchError(
                    f"candidate {candidate.index} cannot be proposed again: the search was begun by another version of this program"
                )
        if candidate.state == "MEASURED":
            evolution.tell(candidate.index, Result(candidate.ap))
        elif candidate.state == "INFEASIBLE":
            failure = candidate.failure or {}
            evolution.tell(candidate.index, Result(None, jobs.readable(failure)))


def policy_key(proposal: Proposal) -> str:
    return hashlib.sha256(canonical_json(proposal.policy).encode()).hexdigest()


def check_hope(search: Search, evolution: Evolution) -> None:
    """Raises SearchError when none of the first candidates could be trained, whatever their policies: the fault lies elsewhere."""
    first = min(HOPELESS_GROUPS * group_size(search.spec), evolution.spec.candidates)
    told = [evolution.results[index] for index in range(first) if index in evolution.results]
    if len(told) == first and all(result.fitness is None for result in told):
        raise SearchError(f"none of the first {first} candidates could be trained; {first_failure(evolution)}")


def propose(session: Session, search: Search, evolution: Evolution, candidates: Sequence[Candidate]) -> None:
    """Store what the evolution proposes now, and a job for every group of candidates that is complete."""
    new: list[Proposal] = []
    while (proposal := evolution.ask()) is not None:
        new.append(proposal)
    searches.propose(session, search.id, [one.to_json() for one in new], [canonical_json(one.policy) for one in new])
    policies = {one.index: one.policy for one in candidates if one.job_id is None} | {one.index: one.to_json()["policy"] for one in new}
    proposed = len(evolution.proposals)
    complete = evolution.exhausted or proposed == evolution.spec.candidates
    for members in ready_groups(policies, group_size(search.spec), proposed, complete=complete):
        enqueue_group(session, search, {index: policies[index] for index in members})
    if new:
        events.append(session, "search", search.id, "proposed", {"first": new[0].index, "last": new[-1].index})


def enqueue_group(session: Session, search: Search, policies: Mapping[int, Any]) -> None:
    spec = job_spec(search.spec, "evaluate", policies, seed=search.spec["seed"])
    job = jobs.enqueue(session, kind="evaluate", spec=spec, search_id=search.id)
    searches.assign(session, search.id, list(policies), job.id)


def enter(session: Session, search: Search, evolution: Evolution) -> None:
    """A job for every fresh seed, each with all policies of the confirmation."""
    try:
        chosen = entrants(search.spec, evolution)
    except NothingToConfirmError as error:
        raise SearchError(str(error)) from error
    for seed in fresh_seeds(search.spec):
        job = enqueue_confirmation(session, search, {one.entrant: one.policy for one in chosen}, seed)
        searches.enter(session, search.id, job_id=job.id, seed=seed, entrants=[one.to_json() for one in chosen])


def enqueue_confirmation(session: Session, search: Search, policies: Mapping[int, Any], seed: int) -> Job:
    iterations = search.spec.get("confirmation", {}).get("iterations")
    spec = job_spec(search.spec, "confirm", policies, seed=seed, iterations=iterations)
    return jobs.enqueue(session, kind="confirm", spec=spec, search_id=search.id)


def collect(session: Session, search: Search, job: Job) -> None:
    """Count the outcome of an ended job.

    A group whose trainer failed is split: each of its policies gets a job of its own, so that one that crashes a trainer costs itself only.
    Training alone gives the figures of training in a group, so a split changes no result.
    Raises SearchError for data that no policy can train on.
    """
    if job.state == "SUCCEEDED":
        rows = {row["index"]: row for row in (job.result or {}).get("candidates", ())}
    else:
        failure = job.failure or {"kind": "lost", "detail": f"job {job.id} was cancelled"}
        if failure["kind"] == "bad_data":
            raise SearchError(jobs.readable(failure))
        wanted = {row["index"]: row["policy"] for row in job.spec["candidates"]}
        if len(wanted) > 1:
            split(session, search, job, wanted)
            return
        rows = {index: {"index": index, "failure": failure} for index in wanted}
    for candidate in job.spec["candidates"]:
        index = candidate["index"]
        figures = rows.get(index) or {"failure": {"kind": "bug", "detail": f"the result of job {job.id} does not have it"}}
        if job.kind == "evaluate":
            known = not searches.measure(session, search.id, index, figures)
        else:
            known = not searches.measure_again(session, search.id, index, job.spec["seed"], figures)
        if not known:
            told = {"index": index, "ap": figures.get("ap"), "failure": figures.get("failure")}
            events.append(session, "search", search.id, "measured" if job.kind == "evaluate" else "confirmed", told)


def split(session: Session, search: Search, job: Job, policies: Mapping[int, Any]) -> None:
    for index, policy in sorted(policies.items()):
        if job.kind == "evaluate":
            enqueue_group(session, search, {index: policy})
        else:
            enqueue_confirmation(session, search, {index: policy}, job.spec["seed"])


def end(session: Session, search: Search, evolution: Evolution) -> None:
    """Write the result and end the search, together."""
    environments = [
        job.result["environment"]
        for job in jobs.of_search(session, search.id)
        if job.kind == "confirm" and job.result and job.result.get("environment")
    ]
    try:
        outcome = conclude(
            search,
            searches.all_candidates(session, search.id),
            searches.confirmations(session, search.id),
            evolution.summary(),
            environments,
        )
    except NothingToConfirmError as error:
        raise SearchError(str(error)) from error
    results.create(
        session,
        search,
        policy=outcome.policy,
        ap=outcome.ap,
        metrics=outcome.metrics,
        evidence=outcome.evidence,
        artifacts={},
        environment=outcome.environment,
    )
    searches.succeed(session, search)
