"""Lists by any order and filter, labels, and what a database of before them has in their columns afterwards."""

import base64
import json
from datetime import UTC, datetime
from itertools import product

import pytest
from sqlalchemy import event, text

from detkds_core.store import Store, candidates, distillations, jobs, labels, results, searches
from detkds_core.store.migrations import upgrade
from detkds_core.store.models import Distillation, Search

DATASET = {"name": "shapes", "digest": "d1"}


def spec(teacher: str = "t", student: str = "s", algorithm: str = "detkds") -> dict[str, object]:
    return {"teacher": {"detector": teacher}, "student": {"detector": student}, "algorithm": algorithm, "seed": 1}


def create(store: Store, name: str = "s", **changes) -> str:
    with store.begin() as session:
        wanted = {"spec": spec(), "dataset": DATASET, **changes}
        return searches.create(session, name=name, **wanted).id


def names(store: Store, **asked) -> list[str]:
    with store.read() as session:
        return [one.name for one in searches.list(session, **asked)[0]]


def paged(store: Store, domain, **asked) -> list[str]:
    """The ids of a list, read in pages of two."""
    found, cursor = [], None
    while True:
        with store.read() as session:
            page, cursor = domain.list(session, limit=2, cursor=cursor, **asked)
        found += [one.id for one in page]
        if cursor is None:
            return found


def test_a_list_is_narrowed_by_each_filter_and_by_several(store: Store) -> None:
    create(store, "Digits, first", tags=("paper", "a"))
    create(store, "second", spec=spec("big", "small", "random"), dataset={"name": "trees"}, owner="ann")
    create(store, "100% of digits", spec=spec("big"), tags=("paper",))
    assert names(store, tag="paper") == ["100% of digits", "Digits, first"]
    assert names(store, tag="pap") == []
    assert names(store, name="DIGITS") == ["100% of digits", "Digits, first"]
    assert names(store, name="0% o") == ["100% of digits"]
    assert names(store, name="0_%") == [], "a wildcard of SQL is a letter as any other"
    assert names(store, teacher="big") == ["100% of digits", "second"]
    assert names(store, teacher="big", student="s") == ["100% of digits"]
    assert names(store, algorithm="random", dataset="trees", state="QUEUED") == ["second"]
    assert names(store, owner="ann", teacher="big", tag=None) == ["second"]


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "updated_at", "-updated_at", "finished_at", "-finished_at"])
def test_every_order_is_paged_without_gap_and_with_the_id_where_times_are_equal(store: Store, sort: str) -> None:
    made = [create(store, str(number)) for number in range(5)]
    with store.begin() as session:
        session.execute(text("UPDATE searches SET created_at = (SELECT MIN(created_at) FROM searches) WHERE name <> '3'"))
        session.execute(text("UPDATE searches SET updated_at = created_at, finished_at = created_at"))
        session.execute(text("UPDATE searches SET finished_at = NULL WHERE name = '1'"))
    first, second, third, fourth, fifth = made
    expected = [first, second, third, fifth, fourth]  # the fourth came later than the others, which came at once
    if sort.endswith("finished_at"):
        expected.remove(second)  # has not ended
    assert paged(store, searches, sort=sort) == (expected[::-1] if sort.startswith("-") else expected)


def test_results_are_ordered_by_ap_and_narrowed_by_what_their_policy_is_made_of(store: Store) -> None:
    term = {"knowledge": "global", "transforms": ["none", "catt", "norm_N"], "distance": "l2", "weight": 1.0}
    policies = [
        {"terms": []},
        {"terms": [term]},
        {"terms": [{**term, "distance": "l1"}], "distillers": [{"name": "mgd"}]},
        {"terms": [term]},
    ]
    made = []
    for policy, ap in zip(policies, (21.25, 30.1, 30.1, None), strict=True):
        origin = create(store)
        with store.begin() as session:
            search = searches.get(session, origin)
            empty = {"metrics": {}, "evidence": {}, "artifacts": {}, "environment": {}}
            made.append(results.create(session, search, policy=policy, ap=ap, **empty).id)
    none, first, second, unknown = made
    assert paged(store, results, sort="-ap") == [second, first, none], "the one without an AP has no place in the order"
    assert paged(store, results, sort="ap") == [none, first, second]
    assert paged(store, results) == made[::-1]
    assert paged(store, results, term="catt") == [unknown, second, first]
    assert paged(store, results, term="l1") == paged(store, results, term="mgd") == [second]
    assert paged(store, results, term="none") == []
    assert paged(store, results, sort="-ap", ap_at_least=30.1) == [second, first]
    assert paged(store, results, ap_at_most=30.0) == [none]
    assert paged(store, results, teacher="t", student="s", kind="search") == made[::-1]
    assert paged(store, results, teacher="s") == []
    with store.read() as session:
        assert set(results.some(session, [first, "nobody"])) == {first}
        assert results.some(session, [first], owner="ann") == {}


def test_a_cursor_is_refused_by_another_order_other_filters_and_another_list(store: Store) -> None:
    for _ in range(3):
        create(store)
    with store.read() as session:
        _, cursor = searches.list(session, limit=2, state="QUEUED", tag=None)
        assert len(searches.list(session, limit=2, state="QUEUED", cursor=cursor)[0]) == 1
        with pytest.raises(ValueError, match="belongs to a list in the order '-created_at', and this one is in the order 'created_at'"):
            searches.list(session, sort="created_at", state="QUEUED", cursor=cursor)
        for other in ({}, {"state": "RUNNING"}, {"state": "QUEUED", "name": "s"}):
            with pytest.raises(ValueError, match="belongs to a list with other filters"):
                searches.list(session, cursor=cursor, **other)
        with pytest.raises(ValueError, match="is not a cursor of this list"):
            candidates.list(session, "s", cursor=cursor)


@pytest.mark.parametrize(
    "key", [["-ap", "", "high", "x"], ["-ap", "", True, "x"], ["-ap", "", 1e400, "x"], ["-ap", "", 1.0, 3], [1, 2, 3, 4]]
)
def test_a_cursor_that_somebody_wrote_is_refused(store: Store, key: list[object]) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(key).encode()).decode()
    with store.read() as session, pytest.raises(ValueError, match=r"cursor"):
        results.list(session, sort="-ap", cursor=cursor)


def test_labels_are_changed_and_a_result_takes_the_name(store: Store) -> None:
    one, other = create(store, "old", notes="why", tags=("b", "a", "b")), create(store, "old")
    with store.begin() as session:
        search = searches.get(session, one)
        empty = {"metrics": {}, "evidence": {}, "artifacts": {}, "environment": {}}
        result = results.create(session, search, policy={"terms": []}, ap=1.0, **empty).id
        kept = results.create(session, searches.get(session, other), policy={"terms": []}, ap=1.0, **empty).id
        assert (labels.of(session, search), search.notes) == (["a", "b"], "why")
        before = search.updated_at
        labels.relabel(session, search)
        assert search.updated_at == before, "nothing was asked for"
        labels.relabel(session, search, name="new", tags=["c"])
        assert (search.name, search.notes, labels.of(session, search)) == ("new", "why", ["c"])
        assert search.updated_at >= before
        labels.relabel(session, search, notes="", tags=[])
        assert (search.name, search.notes, labels.of(session, search)) == ("new", "", [])
    with store.read() as session:
        assert [results.get(session, identity).name for identity in (result, kept)] == ["new", "old"]
        assert searches.get(session, other).name == "old"


def test_a_distillation_has_labels_and_remembers_its_request(store: Store) -> None:
    with store.begin() as session:
        first = distillations.create(session, name="d", spec={"policy": {}, **spec()}, dataset=DATASET, request={"seed": 1}, tags=["x"])
        second = distillations.create(session, name="d", spec={"policy": {}, **spec()}, dataset=DATASET, cloned_from=first.id, notes="n")
        labels.relabel(session, first, name="e")
    assert paged(store, distillations, tag="x", name="E") == [first.id]
    with store.read() as session:
        one, other = distillations.get(session, first.id), distillations.get(session, second.id)
        assert (one.request, one.cloned_from, one.teacher, one.student) == ({"seed": 1}, None, "t", "s")
        assert (other.request, other.cloned_from, other.notes) == (None, first.id, "n")
        assert "policy" in jobs.of_distillation(session, first.id).spec


def test_no_list_reads_its_whole_table(sqlite_database: str) -> None:
    """Every order and every filter alone has its index, for all owners and for one; SQLite says how it would go about it."""
    store = Store(sqlite_database)
    store.migrate()
    asked = {"state": "QUEUED", "kind": "search", "dataset": "d", "teacher": "t", "student": "s", "algorithm": "a"}
    orders = {searches: ("created_at", "updated_at", "finished_at"), distillations: ("created_at", "updated_at", "finished_at")}
    orders[results] = ("created_at", "ap")
    filters = {
        searches: set(asked) - {"kind"},
        distillations: set(asked) - {"kind", "algorithm"},
        results: set(asked) - {"state", "algorithm"},
    }
    for _ in range(3):
        create(store)
    said: list[tuple[str, object]] = []
    event.listen(store.engine, "before_cursor_execute", lambda _c, _k, statement, parameters, *_: said.append((statement, parameters)))
    for domain, columns in orders.items():
        for column, down, owner in product(columns, ("", "-"), (None, "ann")):
            with store.read() as session:
                domain.list(session, sort=down + column, owner=owner)
        for name in filters[domain]:
            with store.read() as session:
                domain.list(session, **{name: asked[name]})
        with store.read() as session:
            domain.list(session, tag="x")
    with store.read() as session:
        results.list(session, term="x")
    with store.read() as session:
        cursor = searches.list(session, limit=1)[1]
        searches.list(session, limit=1, cursor=cursor)
    selects = [one for one in said if one[0].startswith("SELECT")]
    assert len(selects) > 30
    assert sum(" <= " in statement for statement, _ in selects) == 1, "the second page"
    wrong = []
    with store.engine.connect() as connection:
        for statement, parameters in selects:
            plan = " | ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))
            scans = "SCAN" in plan and "USING INDEX" not in plan
            sorts = "TEMP B-TREE" in plan and "LIST SUBQUERY" not in plan  # what has a label is found by it, and then sorted
            if scans or sorts or (" <= " in statement and "created_at<?" not in plan):
                wrong.append((statement[-120:], plan))
    assert wrong == []
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_database_of_before_has_what_its_documents_say_in_the_columns(request: pytest.FixtureRequest, kind: str) -> None:
    store = Store(request.getfixturevalue(f"{kind}_database"))
    with store.engine.begin() as connection:
        upgrade(connection, "0005")
        now = datetime.now(UTC).replace(tzinfo=None) if kind == "sqlite" else datetime.now(UTC)
        document = json.dumps(spec("big", "small", "tpe"))
        of_search = "INSERT INTO searches (id, owner, name, state, spec, dataset, dataset_digest, errors, created_at, updated_at)"
        connection.execute(
            text(f"{of_search} VALUES ('s', '', 'old', 'SUCCEEDED', :spec, 'd', '', 0, :now, :now)"), {"spec": document, "now": now}
        )
        connection.execute(
            text(f"{of_search} VALUES ('e', '', 'older', 'QUEUED', :spec, 'd', '', 0, :now, :now)"), {"spec": "{}", "now": now}
        )
        of_distillation = "INSERT INTO distillations (id, owner, name, state, spec, dataset, dataset_digest, created_at, updated_at)"
        connection.execute(
            text(f"{of_distillation} VALUES ('d', '', 'old', 'QUEUED', :spec, 'd', '', :now, :now)"), {"spec": document, "now": now}
        )
        policy = json.dumps({"terms": [{"knowledge": "fgbg", "transforms": ["none"], "distance": "kl"}], "distillers": [{"name": "fgd"}]})
        columns = (
            "id, owner, kind, search_id, name, dataset, dataset_digest, policy, ap, metrics, evidence, artifacts, environment, created_at"
        )
        values = "'r', '', 'search', 's', 'old', 'd', '', :policy, 3.5, :empty, :empty, :empty, :empty, :now"
        connection.execute(text(f"INSERT INTO results ({columns}) VALUES ({values})"), {"policy": policy, "empty": "{}", "now": now})
    store.migrate()
    with store.begin() as session:
        one, older, other = searches.get(session, "s"), searches.get(session, "e"), session.get(Distillation, "d")
        assert (one.teacher, one.student, one.algorithm) == ("big", "small", "tpe")
        assert (one.notes, one.request, one.cloned_from, labels.of(session, one)) == ("", None, None, [])
        assert (older.teacher, older.student, older.algorithm) == ("", "", "")
        assert (other.teacher, other.student) == ("big", "small")
        (result,) = results.list(session, term="fgd", teacher="big")[0]
        assert labels.of(session, result) == ["fgbg", "fgd", "kl"]
        labels.relabel(session, one, tags=["kept"])
        assert session.get(Search, "s").spec == spec("big", "small", "tpe")
    store.close()
