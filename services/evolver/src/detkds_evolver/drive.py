"""One step of one search: what has been measured is told to the evolution, what it asks for becomes jobs, in one transaction.

A step reads all it needs from the database and leaves nothing anywhere else, so a process may die at any point of it: the transaction is
gone, and the next one does the same again. What is asked for does not depend on when results come (`detkds_core.evolution`), and an outcome
is counted once. So the result of a search is the same whatever happened on its way, and so is its ledger, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy.orm import Session

from detkds_core.evolution import Evolution, Job, Outcome, Spec, dumped
from detkds_core.policy import canonical_json, to_json
from detkds_core.store import events, jobs, results, searches
from detkds_core.store.candidates import looked
from detkds_core.store.models import Job as StoredJob
from detkds_core.store.models import Search, Trial
from detkds_evolver.confirmation import NothingToConfirmError, conclude, entrants, first_failure, fresh_seeds
from detkds_evolver.findings import inherited, warnings_of
from detkds_evolver.groups import job_spec, replicate_seed, shared_out

HOPELESS_JOBS = 2  # when nothing in the first two jobs could be trained, not even the references, the rest cannot either


class SearchError(Exception):
    """Why a search cannot go on. Its text is the reason that the user reads."""


def recall(session: Session, search_id: str) -> Evolution | None:
    """The evolution of a search as the database has it; None: there is no such search.

    Only reads: repeating hundreds of decisions takes seconds, in which a step would keep every other writer waiting.
    Raises SearchError as `step` does.
    """
    search = searches.get(session, search_id)
    return None if search is None else catch_up(session, search, None)


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
    for job in jobs.uncollected(session, search_id):
        if jobs.collect(session, job):
            collect(session, search, job)
    evolution = catch_up(session, search, known)
    if search.state == "RUNNING":
        check_hope(evolution)
        propose(session, search, evolution)
        if evolution.finished:
            searches.confirm(session, search)
            enter(session, search, evolution)
    if search.state == "CONFIRMING" and all(one.state != "PROPOSED" for one in searches.confirmations(session, search_id)):
        end(session, search, evolution)
        return None
    # In this order: a job that ends between the two is uncollected then, and the next step counts it.
    if not jobs.under_way(session, search_id) and not jobs.uncollected(session, search_id):
        raise SearchError("nothing is under way and nothing can be proposed")
    searches.clear_errors(session, search)
    return evolution


def evolution_spec(spec: Mapping[str, Any]) -> Spec:
    """The part of a search's specification that decides its course. Raises SearchError."""
    try:
        return Spec.of_search(spec)
    except (ValueError, TypeError, KeyError) as error:
        raise SearchError(f"the specification cannot be read: {error}") from error


def catch_up(session: Session, search: Search, known: Evolution | None) -> Evolution:
    """The evolution where the database is: the ledger repeated, from where it is known, and all told that has been measured since.

    Raises SearchError when a decision comes out differently from the ledger's.
    """
    evolution = known or Evolution(evolution_spec(search.spec), logged=search.spec.get("mode") == "logged")
    try:
        evolution.repeat(searches.ledger(session, search.id, evolution.events))
    except (ValueError, TypeError, KeyError) as error:
        raise SearchError(f"the search was begun by another version of this program: {error}") from error
    for number, members in groupby(searches.trials_of(session, search.id, evolution.open), key=lambda one: one.number):
        group = list(members)
        if all(one.state != "PROPOSED" for one in group):
            evolution.tell(number, {one.candidate: outcome_of(one) for one in group})
    return evolution


def outcome_of(trial: Trial) -> Outcome:
    """What a trial tells the evolution."""
    failure = jobs.readable(trial.failure) if trial.failure else None
    gate = trial.rejected["gate"] if trial.rejected else None
    return Outcome(trial.ap, failure, gate, trial.same_as, tuple(trial.sketch or ()), trial.ratio, trial.lenient_ap)


def check_hope(evolution: Evolution) -> None:
    """Raises SearchError when none of the first candidates could be trained, whatever their policies: the fault lies elsewhere."""
    first = [found for number in range(HOPELESS_JOBS) if (found := evolution.result(number)) is not None]
    outcomes = [one for group in first for one in group.values()]
    if len(first) == HOPELESS_JOBS and all(one.failure is not None for one in outcomes):
        raise SearchError(f"none of the first {len(outcomes)} candidates could be trained; {first_failure(evolution)}")


def propose(session: Session, search: Search, evolution: Evolution) -> None:
    """Store what the evolution asks for now: its new candidates, a job for each of its decisions, and the ledger."""
    first = evolution.count
    while (job := evolution.ask()) is not None:
        searches.propose(session, search.id, [one.to_json() for one in job.new], [canonical_json(one.policy) for one in job.new])
        stored = enqueue_group(session, search, evolution, job, job.members)
        searches.try_out(
            session,
            search.id,
            job.index,
            job.members,
            rung=evolution.spec.rungs[job.rung],
            replicate=job.replicate,
            seed=replicate_seed(search.spec, job.replicate),
            job_id=stored.id,
        )
    recorded = searches.count_ledger(session, search.id)
    searches.record(session, search.id, recorded, map(dumped, evolution.ledger_from(recorded)))
    if evolution.count > first:
        events.append(session, "search", search.id, "proposed", {"first": first, "last": evolution.count - 1})


def enqueue_group(session: Session, search: Search, evolution: Evolution, job: Job, members: Sequence[int]) -> StoredJob:
    """A job for some candidates of a decision, those with the weights that their first training found."""
    resolved = searches.resolved_policies(session, search.id, members)
    candidates = {index: resolved.get(index) or to_json(evolution.candidate(index).policy) for index in members}
    new = {one.index: one for one in job.new if one.index in members}
    rung = evolution.spec.rungs[job.rung]
    spec = job_spec(search.spec, "evaluate", candidates, seed=replicate_seed(search.spec, job.replicate))
    spec |= {
        "number": job.index,
        "rung": rung if job.rung < evolution.spec.top else None,
        "fork": search.spec.get("fork", 0),
        "stands_for": search.spec.get("confirmation", {}).get("iterations"),
        "gates": search.spec.get("gates", []) if new else [],
        **(known_looks(search, evolution, job) if new else {"known": []}),
    }
    for candidate in spec["candidates"]:
        one = new.get(candidate["index"])
        if one is not None and one.audit:
            candidate["audit"] = True
        if one is not None and one.stage == "reference":
            candidate["reference"] = True
    return enqueue(session, search, "evaluate", spec)


def enqueue(session: Session, search: Search, kind: str, spec: Mapping[str, Any]) -> StoredJob:
    """A job of a search, with what all of them have of it."""
    return jobs.enqueue(
        session,
        kind=kind,
        spec=spec,
        search_id=search.id,
        owner=search.owner,
        priority=search.priority,
        device_memory_gib=search.device_memory_gib,
    )


def known_looks(search: Search, evolution: Evolution, job: Job) -> dict[str, Any]:
    """The earlier candidates that a job's `duplicate` gate compares its new ones with.

    Only where they are found, which whoever claims the job reads (`jobs.claim`): of a strict search how many of its decisions they come
    from, of a logged one, which looks at results in any order, before which event of its ledger they were told. Written out in every job,
    they would be most of what the database holds.
    """
    if evolution.logged:
        return {"known": [], "known_told_before": evolution.place(job.index)}
    return {"known": [], "known_before": evolution.seen_by(job.index)}


def enter(session: Session, search: Search, evolution: Evolution) -> None:
    """Jobs for every fresh seed, which share out the policies of the confirmation; trained in one job or in several, they see the same."""
    try:
        everybody = [one.index for one in evolution.candidates]
        chosen = entrants(search.spec, evolution, searches.resolved_policies(session, search.id, everybody))
    except NothingToConfirmError as error:
        raise SearchError(str(error)) from error
    for seed in fresh_seeds(search.spec):
        for places in shared_out(len(chosen), int(search.spec.get("group") or 1)):
            members = [chosen[place] for place in places]
            job = enqueue_confirmation(session, search, {one.entrant: one.policy for one in members}, seed)
            searches.enter(session, search.id, job_id=job.id, seed=seed, entrants=[one.to_json() for one in members])


def enqueue_confirmation(session: Session, search: Search, policies: Mapping[int, Any], seed: int) -> StoredJob:
    iterations = search.spec.get("confirmation", {}).get("iterations")
    spec = job_spec(search.spec, "confirm", policies, seed=seed, iterations=iterations)
    return enqueue(session, search, "confirm", spec)


def collect(session: Session, search: Search, job: StoredJob) -> None:
    """Count the outcome of an ended job.

    A group whose trainer failed is split: each of its policies gets a job of its own, so that one that crashes a trainer costs itself only.
    Training alone gives the figures of training in a group, and the policies come one after the other, each compared with those before it:
    so a split changes no result.
    Raises SearchError for data that no policy can train on.
    """
    if job.state == "SUCCEEDED":
        rows = {row["index"]: row for row in (job.result or {}).get("candidates", ())}
    else:
        failure = job.failure or {"kind": "lost", "detail": f"job {job.id} was cancelled"}
        if failure["kind"] == "bad_data":
            raise SearchError(jobs.readable(failure))
        if len(job.spec["candidates"]) > 1:
            enqueue_alone(session, search, job, job.spec["candidates"], job.spec.get("known", []))
            return
        rows = {row["index"]: {"index": row["index"], "failure": failure} for row in job.spec["candidates"]}
    if job.kind == "evaluate" and "number" not in job.spec:
        raise SearchError("the search was begun by another version of this program: its jobs do not say which decision they belong to")
    missing = {"failure": {"kind": "bug", "detail": f"the result of job {job.id} does not have it"}}
    figures = {index: rows.get(index) or missing for index in (candidate["index"] for candidate in job.spec["candidates"])}
    if job.kind == "evaluate":
        counted = searches.measure_group(session, search.id, job.spec["number"], figures)
    else:
        counted = [index for index in figures if searches.measure_again(session, search.id, index, job.spec["seed"], figures[index])]
    for index in counted:
        row = figures[index]
        told = {"index": index, "ap": row.get("ap"), "failure": row.get("failure")}
        if job.kind == "evaluate":
            told |= {"rung": job.spec["rung"], "rejected": row.get("rejected"), "same_as": row.get("same_as")}
        events.append(session, "search", search.id, "measured" if job.kind == "evaluate" else "confirmed", told)
    if job.spec.get("rest"):
        looks = [
            looked(index, look["sketch"], look.get("ratio"))
            for index, row in rows.items()
            if (look := row.get("look")) and look["sketch"] and look.get("failure") is None
        ]
        enqueue_alone(session, search, job, job.spec["rest"], [*job.spec.get("known", []), *looks])


def enqueue_alone(
    session: Session, search: Search, job: StoredJob, candidates: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]
) -> None:
    """A job for the first of a group's candidates; the rest wait for what it shows, and are compared with it as they were in the group."""
    first, *rest = candidates
    spec = {**job.spec, "candidates": [first], "rest": rest} | ({"known": list(known)} if "known" in job.spec else {})
    alone = enqueue(session, search, job.kind, spec)
    if job.kind == "evaluate":
        searches.assign(session, search.id, job.spec["number"], [first["index"]], alone.id)


def end(session: Session, search: Search, evolution: Evolution) -> None:
    """Write the result and end the search, together."""
    evolution.ask()  # for nothing: one that was repeated since the search's last decision does not know yet that there is none left
    own = jobs.of_search(session, search.id)
    confirmed = [job for job in own if job.kind == "confirm" and job.result]
    environments = [job.result["environment"] for job in confirmed if job.result and job.result.get("environment")]
    drawn = {
        (row["index"], job.spec["seed"]): row["resampled_ap"]
        for job in confirmed
        for row in (job.result or {}).get("candidates", ())
        if row.get("resampled_ap")
    }
    confirmations = searches.confirmations(session, search.id)
    try:
        outcome = conclude(
            search,
            searches.all_candidates(session, search.id),
            searches.trials(session, search.id),
            confirmations,
            evolution.summary(searches.costs(session, search)),
            environments,
            drawn,
            grown(session, search, own),
        )
    except NothingToConfirmError as error:
        raise SearchError(str(error)) from error
    results.create(
        session,
        search,
        policy=outcome.policy,
        ap=outcome.ap,
        metrics=outcome.metrics | {"warnings": warnings_of(search.spec, own, {one.entrant: one.name for one in confirmations})},
        evidence=outcome.evidence | {"inherited": inherited(own)},
        artifacts={},
        environment=outcome.environment,
    )
    searches.succeed(session, search)


def grown(session: Session, search: Search, own: Sequence[StoredJob]) -> list[Mapping[str, Any]]:
    """The trunks that a search's candidates fork from, `{"steps", "seconds"}` each, as far as its jobs grew them; those that were kept from
    before cost nothing. Of a search that continues another, which has that one's measurements, that one's too, summed up.
    """
    forks = [job.result["fork"] for job in own if job.result and job.result.get("fork")]
    source = results.of_search(session, search.spec["continues"]) if search.spec.get("continues") else None
    before: Mapping[str, Any] = source.evidence.get("cost", {}) if source is not None else {}
    return [
        {"steps": before.get("trunk_iterations", 0), "seconds": before.get("trunk_seconds", 0.0)},
        *(fork for fork in forks if fork["grown"]),
    ]
