"""Searches that have SUCCEEDED, for those that begin with what they found."""

from detkds_core.evolution import Evolution, Outcome, Spec, dumped
from detkds_core.policy import parse_formula, to_json
from detkds_core.store import jobs, results
from detkds_core.store import searches as stored


def whole_ledger(spec):
    """The ledger of a search in which each candidate was as good as its number says."""
    evolution = Evolution(Spec.of_search(spec))
    while (job := evolution.ask()) is not None:
        evolution.tell(job.index, {index: Outcome(10.0 + index) for index in job.members})
    return [dumped(event) for event in evolution.ledger]


def succeeded(service, wanted, policies, *, winner=0, dataset="elsewhere"):
    """The ids of a search on another dataset that has SUCCEEDED, and of its result. policies: (formula, rung, AP) by index, and after them
    the seconds that 5 iterations took (1); ('!' before a formula: a reference). winner: the index of the candidate that was confirmed, or a
    formula that the search did not measure."""
    spec = service.http.post("/searches", json=wanted).json()["spec"]
    with service.store.begin() as session:
        search = stored.create(session, name="earlier", spec=spec, dataset={"name": dataset, "digest": dataset})
        stored.start(session, search)
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search.id)
        for index, (text, rung, ap, *seconds) in enumerate(policies):
            policy = to_json(parse_formula(text.removeprefix("!")))
            stage = "reference" if text.startswith("!") else "stage1" if len(policy["terms"]) == 1 else "stage2"
            proposal = {"index": index, "policy": policy, "stage": stage, "island": None, "operator": "sample", "parents": []}
            stored.propose(session, search.id, [proposal], [f"k{index}"])
            stored.try_out(session, search.id, index, [index], rung=rung, replicate=0, seed=1, job_id=job.id)
            fixed = to_json(parse_formula("9·l1(global)"))
            cost = {"iterations": 5, "seconds": seconds[0] if seconds else 1.0}
            stored.measure(session, search.id, index, index, {"ap": ap, "images": 4, "policy": fixed, **cost})
        stored.record(session, search.id, 0, whole_ledger(spec))
        stored.confirm(session, search)
        stored.succeed(session, search)
        named = isinstance(winner, str)
        policy = to_json(parse_formula(winner)) if named else {"terms": []}
        metrics = {"winner": {"entrant": 2, "candidate": None if named else winner}}
        result = results.create(session, search, policy=policy, ap=1.0, metrics=metrics, evidence={}, artifacts={}, environment={})
        return search.id, result.id
