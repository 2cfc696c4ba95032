"""What a step of a search costs does not depend on how much the search has measured."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median

from detkds_core.store import Store, jobs, searches
from detkds_evolver.drive import step

from .worker import create, work


def test_a_step_reads_and_writes_what_is_new(
    sqlite_database: str, database_work: Callable[[], AbstractContextManager[Counter[str]]]
) -> None:
    """One job is told and one asked for in each step, so that all steps do the same; the evolution itself is kept in memory."""
    store = Store(sqlite_database)
    store.migrate()
    search = create(store, budget=9000, parallelism=3)
    known, steps, claims = None, [], []
    while True:
        with database_work() as done, store.begin() as session:
            known = step(session, search, known)
        with store.begin() as session:
            if known is None or searches.get(session, search).state != "RUNNING":
                break
            with database_work() as found:
                assert searches.due(session) == []
            claims.append(found["steps"])
        steps.append(done)
        assert work(store)
    assert known.count > 150
    quarter = len(steps) // 4
    for name in ("statements", "steps"):
        each = [one[name] for one in steps]
        early, late = median(each[5:quarter]), median(each[-quarter:])
        assert late <= 1.2 * early, f"{name}: {early} in the first quarter, {late} in the last"
    assert max(claims[-quarter:]) <= 1.2 * max(claims[:quarter]), "nor does it grow to find what there is to do"
    with store.read() as session:
        assert len(jobs.of_search(session, search)) > 60
    store.close()
