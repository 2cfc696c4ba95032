"""Searches, candidates, results, datasets and duties, on SQLite and Postgres."""

import threading

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from detkds_core.store import Store, candidates, datasets, distillations, events, jobs, leases, results, searches, workers
from detkds_core.store.models import Search, Worker

DATASET = {"name": "shapes", "digest": "d1", "classes": ["disc"]}


def create(store: Store, name: str = "s", **changes: object) -> str:
    with store.begin() as session:
        return searches.create(session, name=name, spec={"seed": 1}, dataset=DATASET, **changes).id


def proposal(index: int, weight: float = 1.0) -> dict[str, object]:
    policy = {"terms": [{"weight": weight + index}]}
    return {"index": index, "policy": policy, "stage": "stage1", "island": "global", "operator": "sample", "parents": []}


def propose(store: Store, search: str, *indices: int) -> None:
    with store.begin() as session:
        searches.propose(session, search, [proposal(index) for index in indices], [f"policy {index}" for index in indices])


def test_what_measurements_took_is_kept_in_the_results_of_jobs(store: Store) -> None:
    """Of a search and of those that it continues; not of confirmations, of what failed, nor of rows of before, which do not say."""

    def done(search: str, kind: str, *rows: dict[str, object], failed: bool = False) -> None:
        with store.begin() as session:
            job = jobs.enqueue(session, kind=kind, spec={}, search_id=search).id
            claim = jobs.claim(session, worker="w", lease_seconds=60, job_id=job)
            if failed:
                assert jobs.fail(session, claim, kind="bad_data", detail="no")
            else:
                assert jobs.finish(session, claim, {"candidates": list(rows)})

    first, other = create(store), create(store)
    with store.begin() as session:
        spec = {"seed": 1, "continues": first}
        more = searches.create(session, name="more", spec=spec, dataset=DATASET).id
    done(first, "evaluate", {"cost": {"probe_seconds": 1.0}}, {"index": 1})
    done(first, "evaluate", failed=True)
    done(more, "evaluate", {"cost": {"probe_seconds": 2.0}}, {"cost": {"probe_seconds": 3.0}})
    done(more, "confirm", {"cost": {"probe_seconds": 10.0}})
    done(other, "evaluate", {"cost": {"probe_seconds": 20.0}})
    with store.read() as session:
        found = {
            one: sorted(cost["probe_seconds"] for cost in searches.costs(session, searches.get(session, one))) for one in (first, more)
        }
    assert found == {first: [1.0], more: [1.0, 2.0, 3.0]}


def test_a_search_is_found_by_id_and_by_key(store: Store) -> None:
    one = create(store, idempotency_key="k1")
    with store.read() as session:
        search = searches.get(session, one)
        assert (search.state, search.dataset, search.dataset_digest, search.spec) == ("QUEUED", "shapes", "d1", {"seed": 1})
        assert searches.by_key(session, "k1").id == one
        assert searches.by_key(session, "k2") is None
        assert searches.get(session, "no-such-search") is None


def test_a_key_is_used_once_by_each_owner(store: Store) -> None:
    create(store, idempotency_key="k1")
    with pytest.raises(IntegrityError):
        create(store, idempotency_key="k1")
    create(store, idempotency_key="k1", owner="ann")
    create(store)
    create(store)  # without a key there is nothing to be equal


def test_what_belongs_to_somebody_else_is_not_there(store: Store) -> None:
    one = create(store, owner="ann")
    with store.begin() as session:
        assert searches.get(session, one, owner="ann") is not None
        assert searches.get(session, one, owner="bob") is None
        assert searches.list(session, owner="bob") == ([], None)
        assert not searches.cancel(session, one, owner="bob")
        assert searches.cancel(session, one, owner="ann")


def test_pages_have_no_gap_and_no_repetition_while_searches_arrive(store: Store) -> None:
    made = [create(store, f"s{number}") for number in range(7)]
    with store.read() as session:
        first, cursor = searches.list(session, limit=3)
    create(store, "late")
    seen = [one.id for one in first]
    while cursor is not None:
        with store.read() as session:
            page, cursor = searches.list(session, limit=3, cursor=cursor)
        assert len(page) <= 3
        seen += [one.id for one in page]
    assert seen == made[::-1]
    with store.read() as session:
        assert searches.list(session, limit=8)[1] is None, "a full page that is the last one has no cursor"


def test_searches_of_the_same_moment_are_paged_by_id(store: Store) -> None:
    made = [create(store) for _ in range(4)]
    with store.begin() as session:
        session.execute(text("UPDATE searches SET created_at = (SELECT MIN(created_at) FROM searches)"))
    with store.read() as session:
        first, cursor = searches.list(session, limit=2)
        second, end = searches.list(session, limit=2, cursor=cursor)
    assert [one.id for one in (*first, *second)] == sorted(made, reverse=True)
    assert end is None


@pytest.mark.parametrize(
    "cursor", ["", "x", "%00", "bnVsbA", "WzEsMl0", "WyJcdTAwMDAiLCJhIl0", "é", "W1tdLFtdXQ", "WyIyMDI2LTAxLTAxIiwiYSJd"]
)
def test_a_text_that_is_no_cursor_is_refused(store: Store, cursor: str) -> None:
    with store.read() as session:
        with pytest.raises(ValueError, match="is not a cursor of this list"):
            searches.list(session, cursor=cursor)
        with pytest.raises(ValueError, match="is not a cursor of this list"):
            candidates.list(session, "s", cursor=cursor)


def test_a_list_can_be_narrowed_to_a_state(store: Store) -> None:
    one, other = create(store), create(store)
    with store.begin() as session:
        searches.cancel(session, one)
        assert [each.id for each in searches.list(session, state="CANCELLED")[0]] == [one]
        assert [each.id for each in searches.list(session, state="QUEUED")[0]] == [other]


def test_cancel_ends_the_search_and_all_its_jobs(store: Store) -> None:
    one, other = create(store), create(store)
    with store.begin() as session:
        waiting = jobs.enqueue(session, kind="evaluate", spec={}, search_id=one).id
        running = jobs.enqueue(session, kind="evaluate", spec={}, search_id=one).id
        kept = jobs.enqueue(session, kind="evaluate", spec={}, search_id=other).id
        claim = jobs.claim(session, worker="w", lease_seconds=30, job_id=running)
    with store.begin() as session:
        assert searches.cancel(session, one)
        assert not searches.cancel(session, one)
        assert not searches.cancel(session, "no-such-search")
    with store.begin() as session:
        assert [jobs.get(session, job).state for job in (waiting, running, kept)] == ["CANCELLED", "CANCELLED", "QUEUED"]
        assert not jobs.renew(session, claim, lease_seconds=30)
        search = searches.get(session, one)
        assert (search.state, search.finished_at is not None) == ("CANCELLED", True)
        assert [event.kind for event in events.after(session, one)] == ["queued", "cancelled"]


def test_a_failed_search_says_why_in_what_a_text_column_takes(store: Store) -> None:
    one = create(store)
    with store.begin() as session:
        assert searches.fail(session, one, "no\0 images" + "." * 5000)
        assert not searches.fail(session, one, "again")
        reason = searches.get(session, one).reason
    assert reason.startswith("no images.")
    assert len(reason) == 2000


def test_no_index_and_no_policy_twice_in_a_search(store: Store) -> None:
    one, other = create(store), create(store)
    propose(store, one, 0, 1)
    propose(store, other, 0, 1)
    with pytest.raises(IntegrityError):
        propose(store, one, 1)
    with pytest.raises(IntegrityError), store.begin() as session:
        searches.propose(session, one, [proposal(2)], ["policy 1"])
    with store.read() as session:
        assert [each.index for each in searches.all_candidates(session, one)] == [0, 1]


def decide(store: Store, search: str, number: int, *candidates: int, rung: int = 100, replicate: int = 0) -> str:
    """A decision of the search: these candidates are measured at a rung. The id of its job."""
    with store.begin() as session:
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search).id
        searches.try_out(session, search, number, candidates, rung=rung, replicate=replicate, seed=7 + replicate, job_id=job)
    return job


def figures(ap: float | None, **changes: object) -> dict[str, object]:
    return {"ap": ap, "ap50": 50.0, "ap75": 30.0, "images": 150, "iterations": 100, "seconds": 2.5, "failure": None} | changes


def test_a_measurement_counts_once_and_a_failure_has_no_figures(store: Store) -> None:
    one = create(store)
    propose(store, one, 0, 1, 2)
    decide(store, one, 0, 0, 1, 2)
    with store.begin() as session:
        assert searches.measure(session, one, 0, 0, figures(31.5))
        assert not searches.measure(session, one, 0, 0, figures(99.0))
        assert searches.measure(session, one, 0, 1, figures(31.5, failure={"kind": "not_finite", "detail": "step 3"}))
        assert searches.measure(session, one, 0, 2, {})
        assert not searches.measure(session, one, 0, 9, figures(31.5)), "a candidate that the decision does not have"
        assert not searches.measure(session, one, 1, 0, figures(31.5)), "a decision that there is not"
    with store.read() as session:
        found = searches.all_candidates(session, one)
        assert [(each.state, each.ap) for each in found] == [("MEASURED", 31.5), ("INFEASIBLE", None), ("INFEASIBLE", None)]
        assert (found[0].rung, found[0].images, found[0].iterations) == (100, 150, 100)
        assert found[1].failure == {"kind": "not_finite", "detail": "step 3"}
        assert found[2].failure["kind"] == "bug"
        assert searches.count_candidates(session, one) == {"MEASURED": 1, "INFEASIBLE": 2}
        assert searches.best_candidates(session, [one])[one].index == 0
        assert [(each.candidate, each.state, each.ap) for each in searches.trials(session, one)] == [
            (0, "MEASURED", 31.5),
            (1, "INFEASIBLE", None),
            (2, "INFEASIBLE", None),
        ]


def test_a_candidate_has_the_mean_of_its_highest_rung_and_all_that_it_cost(store: Store) -> None:
    one = create(store)
    propose(store, one, 0, 1)
    decide(store, one, 0, 0, 1, rung=15)
    decide(store, one, 1, 0, rung=120)
    decide(store, one, 2, 0, rung=120, replicate=1)
    with store.begin() as session:
        searches.measure(session, one, 0, 0, figures(9.0, iterations=15, seconds=1.0))
        searches.measure(session, one, 0, 1, figures(40.0, iterations=15, seconds=1.0))
        assert searches.best_candidates(session, [one])[one].index == 1
        searches.measure(
            session, one, 2, 0, figures(22.0, ap50=44.0, iterations=120, seconds=4.0)
        )  # before decision 1: order does not count
        searches.measure(session, one, 1, 0, figures(20.0, ap50=40.0, iterations=105, seconds=3.0))  # from a checkpoint of the rung below
    nothing = create(store)
    with store.read() as session:
        first, second = searches.all_candidates(session, one)
        assert (first.rung, first.ap, first.ap50, first.iterations, first.seconds) == (120, 21.0, 42.0, 240, 8.0)
        assert (second.rung, second.ap, second.iterations) == (15, 40.0, 15)
        assert searches.best_candidates(session, [one])[one].index == 0, "the highest rung counts, not the highest AP"
        assert searches.get(session, one).spent == 255
        assert searches.get(session, nothing).spent == 0


def test_what_a_gate_refused_and_a_double_have_no_ap(store: Store) -> None:
    one = create(store)
    propose(store, one, 0, 1, 2)
    decide(store, one, 0, 0, 1, 2)
    refused = {"gate": "gradient", "detail": "its gradient is 900 times the task's"}
    look = {"loss": 1.5, "ratio": 900.0, "agreement": 0.1, "sketch": [1.0, 0.0], "failure": None}
    with store.begin() as session:
        searches.measure(session, one, 0, 0, {"rejected": refused, "look": look, "iterations": 4, "seconds": 0.5})
        searches.measure(session, one, 0, 1, {"same_as": 0, "iterations": 4, "seconds": 0.5})
        searches.measure(session, one, 0, 2, figures(12.0, rejected=refused))  # an audit trains it all the same
    with store.read() as session:
        found = searches.all_candidates(session, one)
        assert [(each.state, each.ap, each.rung, each.same_as) for each in found] == [
            ("REJECTED", None, None, None),
            ("DUPLICATE", None, None, 0),
            ("REJECTED", None, None, None),
        ]
        assert (found[0].rejected, found[1].rejected, found[0].iterations, found[2].iterations) == (refused, None, 4, 100)
        assert found[0].look == {"loss": 1.5, "ratio": 900.0, "agreement": 0.1}
        tried = searches.trials(session, one)
        assert [each.sketch for each in tried] == [[1.0, 0.0], None, None]
        assert tried[2].ap == 12.0, "the audit's measurement judges the gate"
        assert searches.best_candidates(session, [one]) == {}


def test_a_candidate_that_fails_at_a_higher_rung_is_infeasible_and_still_costs(store: Store) -> None:
    one = create(store)
    propose(store, one, 0)
    for number, rung in enumerate((15, 120, 120)):
        decide(store, one, number, 0, rung=rung, replicate=max(0, number - 1))
    with store.begin() as session:
        searches.measure(session, one, 0, 0, figures(9.0, iterations=15))
        searches.measure(session, one, 1, 0, {"failure": {"kind": "not_finite", "detail": "step 80"}, "iterations": 80, "seconds": 2.0})
        searches.measure(session, one, 2, 0, figures(20.0, iterations=120))  # was under way already
    with store.read() as session:
        [found] = searches.all_candidates(session, one)
        assert (found.state, found.ap, found.rung, found.failure["detail"]) == ("INFEASIBLE", None, None, "step 80")
        assert (found.iterations, found.seconds) == (215, 7.0)
        assert searches.best_candidates(session, [one]) == {}


def test_the_weights_that_a_first_training_found_are_kept(store: Store) -> None:
    one = create(store)
    propose(store, one, 0, 1)
    decide(store, one, 0, 0, 1, rung=15)
    decide(store, one, 1, 0, rung=120)
    found = {"terms": [{"weight": 3.25}]}
    with store.begin() as session:
        searches.measure(session, one, 0, 0, figures(9.0, policy=found))
        searches.measure(session, one, 0, 1, figures(9.0))
        searches.measure(session, one, 1, 0, figures(10.0))
        assert searches.resolved_policies(session, one, [0, 1, 2]) == {0: found}
        assert searches.resolved_policies(session, one, [1]) == {}
        assert searches.all_candidates(session, one)[0].policy == proposal(0)["policy"], "what was proposed stays"


def test_a_decision_measures_a_candidate_once_and_can_change_its_job(store: Store) -> None:
    one = create(store)
    propose(store, one, 0, 1)
    job = decide(store, one, 0, 0, 1)
    with pytest.raises(IntegrityError):
        decide(store, one, 0, 1)
    with store.begin() as session:
        alone = jobs.enqueue(session, kind="evaluate", spec={}, search_id=one).id
        searches.assign(session, one, 0, [1], alone)
    with store.read() as session:
        assert [(each.candidate, each.job_id) for each in searches.trials(session, one)] == [(0, job), (1, alone)]


def test_a_ledger_is_appended_to_in_order_and_never_twice(store: Store) -> None:
    one, other = create(store), create(store)
    with store.begin() as session:
        assert searches.ledger(session, one) == []
        searches.record(session, one, 0, ['{"asked":0}', '{"asked":1}'])
        searches.record(session, one, 2, ['{"told":0}'])
        searches.record(session, other, 0, ['{"asked":9}'])
    with pytest.raises(IntegrityError), store.begin() as session:
        searches.record(session, one, 2, ['{"told":1}'])
    with store.read() as session:
        assert searches.ledger(session, one) == [{"asked": 0}, {"asked": 1}, {"told": 0}]
        assert (searches.count_ledger(session, one), searches.count_ledger(session, other)) == (3, 1)


def test_a_search_that_goes_on_has_what_the_other_found_and_is_its_own(store: Store) -> None:
    one = create(store)
    propose(store, one, 0, 1)
    decide(store, one, 0, 0, 1)
    found = {"terms": [{"weight": 7.5}]}
    with store.begin() as session:
        searches.measure(session, one, 0, 0, figures(9.0, policy=found, iterations=15, seconds=3.0))
        searches.measure(session, one, 0, 1, {"rejected": {"gate": "descent", "detail": "why"}, "iterations": 4})
        searches.record(session, one, 0, ['{"asked":0}', '{"told":0}'])
        source = searches.get(session, one)
        made = searches.extend(
            session, source, name="more", spec={"seed": 1, "continues": one}, event='{"extended":1}', idempotency_key="k"
        )
        other = made.id
    with store.read() as session:
        assert (made.state, made.dataset, made.dataset_digest, made.spec) == ("QUEUED", "shapes", "d1", {"seed": 1, "continues": one})
        assert searches.ledger_lines(session, other) == ['{"asked":0}', '{"told":0}', '{"extended":1}']
        assert searches.ledger_lines(session, one) == ['{"asked":0}', '{"told":0}']
        for read in (searches.all_candidates, searches.trials):
            mine, theirs = ([{**vars(row)} for row in read(session, search)] for search in (other, one))
            for rows in (mine, theirs):
                for row in rows:
                    for name in ("id", "search_id", "job_id", "_sa_instance_state"):
                        row.pop(name, None)
            assert mine == theirs
            assert len(mine) == 2
        assert [each.job_id for each in searches.trials(session, other)] == [None, None]
        assert searches.resolved_policies(session, other, [0, 1]) == {0: found}
        ours, theirs = searches.get(session, other), searches.get(session, one)
        assert (ours.inherited, ours.spent, theirs.inherited, theirs.spent) == (19, 19, 0, 19)
        assert searches.due(session)[-1] == other
    with store.begin() as session:
        session.delete(session.get(Search, one))
    with store.read() as session:
        assert len(searches.trials(session, other)) == 2, "though the jobs that measured them are gone"


def test_the_pace_is_that_of_the_newest_search_with_this_pair_and_recipe(store: Store) -> None:
    pair = {"teacher": {"detector": "t"}, "student": {"detector": "s"}, "recipe": {"iterations": 120}}

    def measured(spec: dict[str, object], seconds: float | None) -> None:
        with store.begin() as session:
            one = searches.create(session, name="s", spec=spec, dataset=DATASET).id
        propose(store, one, 0, 1)
        decide(store, one, 0, 0, 1, rung=15)
        if seconds is not None:
            with store.begin() as session:
                searches.measure(session, one, 0, 0, figures(9.0, iterations=15, seconds=seconds))
                searches.measure(session, one, 0, 1, {"same_as": 0, "iterations": 5, "seconds": seconds})

    def pace() -> float | None:
        with store.read() as session:
            return searches.seconds_an_iteration(session, {**pair, "dataset": {"name": "other"}})

    assert pace() is None
    measured(pair, None)
    assert pace() is None
    measured(pair, 30.0)
    assert pace() == 3.0  # 60 seconds for 20 iterations
    measured({**pair, "recipe": {"iterations": 121}}, 300.0)
    measured({**pair, "student": {"detector": "other"}}, 300.0)
    assert pace() == 3.0
    measured(pair, 10.0)
    measured(pair, None)  # the newest has nothing to tell yet
    assert pace() == 1.0


def test_candidates_are_paged_by_index(store: Store) -> None:
    one = create(store)
    propose(store, one, *range(11))
    with store.read() as session:
        first, cursor = candidates.list(session, one, limit=10)
        second, end = candidates.list(session, one, limit=10, cursor=cursor)
    assert [each.index for each in (*first, *second)] == list(range(11))
    assert end is None


def test_a_search_has_one_result(store: Store) -> None:
    one = create(store, "mine")
    content = {"policy": {"terms": []}, "ap": 30.0, "metrics": {}, "evidence": {}, "artifacts": {}, "environment": {}}
    with store.begin() as session:
        search = searches.get(session, one)
        result = results.create(session, search, **content)
        distillation = distillations.create(session, name="d", spec={}, dataset=DATASET, search_id=one)
        other = results.create(session, distillation, **content)
    with pytest.raises(IntegrityError), store.begin() as session:
        results.create(session, search, **content)
    with store.read() as session:
        assert results.of_search(session, one).id == result.id
        assert results.of_distillation(session, distillation.id).id == other.id
        assert [each.id for each in results.list(session)[0]] == [other.id, result.id]
        assert [each.id for each in results.list(session, kind="search")[0]] == [result.id]
        assert (results.get(session, result.id).name, results.get(session, result.id).dataset_digest) == ("mine", "d1")
        assert results.get(session, result.id, owner="bob") is None


def test_due_are_searches_with_something_to_do(store: Store) -> None:
    new, ended, busy, idle, done = (create(store) for _ in range(5))
    with store.begin() as session:
        for one in (ended, busy, idle):
            searches.start(session, searches.get(session, one))
        searches.cancel(session, done)
        for one in (ended, busy):
            jobs.enqueue(session, kind="evaluate", spec={}, search_id=one)
        finished = jobs.enqueue(session, kind="evaluate", spec={}, search_id=ended).id
        jobs.finish(session, jobs.claim(session, worker="w", lease_seconds=30, job_id=finished), {})
    with store.read() as session:
        assert searches.due(session) == [new, ended, idle]


def test_events_are_read_on_from_the_last_one(store: Store) -> None:
    with store.begin() as session:
        for number in range(3):
            events.append(session, "search", "a", "step", {"number": number})
            events.append(session, "search", "b", "step", {"number": -number})
    with store.read() as session:
        first = events.after(session, "a", 0, limit=2)
        rest = events.after(session, "a", first[-1].id)
    assert [one.data["number"] for one in (*first, *rest)] == [0, 1, 2]


def test_datasets_have_names(store: Store) -> None:
    asked = {"train": {}, "val": {}}
    for name in ("b", "a", "c", "z"):
        with store.begin() as session:
            datasets.ask(session, name=name, owner=None, asked=asked)
            if name != "z":
                assert datasets.begin_check(session, name, holder=name, seconds=30).name == name
                assert datasets.ready(session, name, holder=name, data={"name": name, "digest": "d"})
    with store.begin() as session:
        assert datasets.ask(session, name="a", owner=None, asked={"train": 1}).asked == asked, "READY for good"
        assert datasets.count_unchecked(session) == 1
    with store.read() as session:
        assert datasets.names(session) == ["a", "b", "c"]
        page, cursor = datasets.list(session, limit=2)
        assert [one.name for one in page] == ["a", "b"]
        assert [(one.name, one.state) for one in datasets.list(session, limit=2, cursor=cursor)[0]] == [("c", "READY"), ("z", "CHECKING")]
        assert datasets.get(session, "y") is None


def test_only_who_holds_a_check_decides_it(store: Store) -> None:
    with store.begin() as session:
        datasets.ask(session, name="a", owner="ann", asked={})
        assert [one.name for one in datasets.unheld(session)] == ["a"]
        assert datasets.begin_check(session, "a", holder="one", seconds=30).attempts == 1
        assert datasets.unheld(session) == [], "somebody checks it"
        assert datasets.begin_check(session, "a", holder="two", seconds=30) is None
        assert datasets.hold(session, "a", holder="one", seconds=-1, progress={"done": 1, "total": 2, "message": "m"})
        assert datasets.get(session, "a").progress == {"done": 1, "total": 2, "message": "m"}
        assert [one.name for one in datasets.unheld(session)] == ["a"], "its lease has run out"
        assert datasets.begin_check(session, "a", holder="two", seconds=30).attempts == 2
        assert not datasets.hold(session, "a", holder="one", seconds=30)
        assert not datasets.ready(session, "a", holder="one", data={"digest": "d"})
        datasets.leave(session, "a", holder="two", counted=False)
        assert datasets.begin_check(session, "a", holder="three", seconds=30).attempts == 2
        assert datasets.refuse(session, "a", holder="three", problems=[{"pointer": "", "message": "m"}])
        assert datasets.begin_check(session, "a", holder="four", seconds=30) is None, "it is decided"
        assert datasets.ask(session, name="a", owner="bob", asked={"train": {}}).state == "REFUSED", "it is not his"
        again = datasets.ask(session, name="a", owner="ann", asked={"train": {}})
        assert (again.state, again.asked, again.problems, again.attempts) == ("CHECKING", {"train": {}}, None, 0)
        assert datasets.begin_check(session, "a", holder="five", seconds=30).asked == {"train": {}}, "four left no lease"
        assert not datasets.ready(session, "a", holder="three", data={"digest": "d"}), "what was asked before is decided"
        assert [datasets.count_unchecked(session, owner=owner) for owner in (None, "ann", "bob")] == [1, 1, 0]
        assert datasets.remove(session, "a")
        assert not datasets.hold(session, "a", holder="five", seconds=30), "who checks it finds out"
        assert not datasets.remove(session, "a")


def test_workers_are_counted_until_they_leave_or_are_not_heard_of(store: Store) -> None:
    def alive() -> int:
        with store.read() as session:
            return workers.alive(session)

    assert alive() == 0
    with store.begin() as session:
        workers.present(session, "a", seconds=60)
        workers.present(session, "b", seconds=60)
        workers.present(session, "c", seconds=-1)
        workers.present(session, "d", seconds=-90_000)
    assert alive() == 2
    with store.begin() as session:
        workers.present(session, "a", seconds=-1)
        workers.present(session, "c", seconds=60)
        workers.leave(session, "b")
    assert alive() == 1
    with store.read() as session:
        assert set(session.scalars(select(Worker.name))) == {"a", "c"}, "who has been gone for a day is forgotten"


def test_a_duty_has_one_holder_until_its_lease_runs_out(store: Store) -> None:
    def acquire(holder: str, seconds: float = 30) -> bool:
        with store.begin() as session:
            return leases.acquire(session, "evolver", holder=holder, seconds=seconds)

    assert acquire("a")
    assert not acquire("b")
    assert acquire("a", seconds=-1), "the holder renews"
    assert acquire("b")
    assert not acquire("a")
    with store.begin() as session:
        leases.give_up(session, "evolver", holder="a")
    assert not acquire("a")
    with store.begin() as session:
        leases.give_up(session, "evolver", holder="b")
    assert acquire("a")


def test_a_free_duty_that_many_want_gets_one_holder(store: Store) -> None:
    barrier, got = threading.Barrier(5), []

    def want(holder: str) -> None:
        barrier.wait()
        with store.begin() as session:
            if leases.acquire(session, "evolver", holder=holder, seconds=30):
                got.append(holder)

    threads = [threading.Thread(target=want, args=(f"h{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_deleting_a_search_deletes_what_is_its_own(store: Store) -> None:
    """Foreign keys are on: SQLite would ignore them otherwise."""
    one = create(store)
    propose(store, one, 0)
    with pytest.raises(IntegrityError), store.begin() as session:
        jobs.enqueue(session, kind="evaluate", spec={}, search_id="no-such-search")
    with store.begin() as session:
        searches.record(session, one, 0, ["{}"])
        job = jobs.enqueue(session, kind="evaluate", spec={}).id
        searches.try_out(session, one, 0, [0], rung=15, replicate=0, seed=1, job_id=job)
        session.delete(session.get(Search, one))
    with store.read() as session:
        assert searches.all_candidates(session, one) == searches.trials(session, one) == searches.ledger(session, one) == []
