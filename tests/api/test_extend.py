"""`POST /searches/ID/extend`: what the search that goes on is, and what each mistake is told."""

import pytest

from detkds_api.budget import confirming_jobs, expected_students
from detkds_core.store import results, workers
from detkds_core.store import searches as stored
from detkds_core.store.models import Result, Search

from .earlier import succeeded, whole_ledger

POLICIES = [("!none", 2, 10.0), ("l1[balanced](global)", 2, 20.0), ("l2[balanced](fgbg)", 1, 15.0)]


@pytest.fixture
def ended(service, wanted):
    """The id of a search that has SUCCEEDED: 12 candidates wanted, 3 there, 15 iterations spent."""
    return succeeded(service, wanted, POLICIES)[0]


def errors(answer):
    """`{pointer: message}` of a problem."""
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


def extend(service, search, **body):
    return service.http.post(f"/searches/{search}/extend", json=body)


def test_it_goes_on_with_all_that_was_found_and_more_to_spend(service, ended):
    before = service.http.get(f"/searches/{ended}").json()
    answer = extend(service, ended, iterations=500)
    assert answer.status_code == 202, answer.text
    document = answer.json()
    assert answer.headers["location"] == f"/searches/{document['id']}"
    assert (document["state"], document["name"], document["result_id"]) == ("QUEUED", "earlier, extended", None)
    old, new = before["spec"], document["spec"]
    added = ("asked", "budget", "candidates", "expected", "begun", "continues", "confirmation")
    assert {name: value for name, value in new.items() if name not in added} == {
        name: value for name, value in old.items() if name not in added
    }
    assert (new["budget"], new["candidates"], new["continues"]) == (old["budget"] + 500, None, ended)
    assert new["begun"] == {"budget": 80, "candidates": 12}
    assert new["confirmation"] == {**old["confirmation"], "seeds_used": 5}, "other seeds than those that confirmed the first"
    assert document["best"] == before["best"]
    progress = document["progress"]
    assert (progress["done"], progress["total"], progress["fraction"]) == (15, 515, 0.0)
    lines = service.http.get(f"/searches/{document['id']}/ledger").text.splitlines()
    assert lines == [*whole_ledger(old), '{"extended":{"budget":580,"candidates":null}}']
    items = [service.http.get(f"/searches/{one}/candidates").json()["items"] for one in (ended, document["id"])]
    assert items[0] == items[1]
    with service.store.begin() as session:
        assert all(one.job_id is None for one in stored.trials(session, document["id"]))
        assert results.of_search(session, ended) is not None
    assert service.http.get(f"/searches/{ended}").json() == before, "the first stays as it was"


def test_what_the_candidates_left_unspent_is_not_spent_too(service, wanted):
    search, result = succeeded(service, wanted, POLICIES)
    with service.store.begin() as session:
        session.get(Result, result).evidence = {"summary": {"spent": 26.6}}
    document = extend(service, search, iterations=10).json()
    assert document["spec"]["budget"] == 27 + 10, "of the 80 that it had"
    assert document["progress"]["total"] == 15 + 10, "15 were trained, the others were looks"
    lines = service.http.get(f"/searches/{document['id']}/ledger").text.splitlines()
    assert lines[-1] == '{"extended":{"budget":37,"candidates":null}}'
    with service.store.begin() as session:
        ended = stored.get(session, search)
        ended.spec = {**ended.spec, "candidates": None}
    assert extend(service, search, iterations=10).json()["spec"]["budget"] == 80 + 10, "its budget ended it"


def test_further_candidates_buy_what_they_need(service, ended):
    spec = extend(service, ended, candidates=12, name="more").json()["spec"]
    assert (spec["candidates"], spec["budget"]) == (3 + 12, 80 + 80)


def test_further_hours_are_converted_by_what_the_pair_took(service, wanted):
    wanted["recipe"]["batch"] = 3  # of no other test
    search, _ = succeeded(service, wanted, POLICIES)
    assert extend(service, search, hours=0.5).json()["spec"]["budget"] == 80 + 9000  # 1,800 s at 0.2 s


def test_further_hours_by_the_clock_leave_out_the_confirmation(service, wanted):
    wanted["recipe"]["batch"] = 5  # of no other test
    search, _ = succeeded(service, wanted, POLICIES)
    with service.store.begin() as session:
        for name in ("w1", "w2"):
            workers.present(session, name, seconds=60)
        spec = stored.get(session, search).spec
    confirming = expected_students(spec) * spec["confirmation"]["iterations"]
    longer = extend(service, search, wall_clock_hours=0.5).json()["spec"]
    at_once = min(2, spec["parallelism"])
    jobs_at_once = min(2, confirming_jobs(spec))
    trunks = 3 * spec["fork"] * 0.2
    assert longer["budget"] - 80 == int((1800 - confirming * 0.2 / jobs_at_once - trunks) * at_once / 0.2)
    assert longer["asked"] == {"wall_clock_hours": 0.5}
    with service.store.begin() as session:
        for name in ("w1", "w2"):
            workers.leave(session, name)


def test_an_extended_search_can_be_extended(service, ended):
    first = extend(service, ended, iterations=100).json()
    with service.store.begin() as session:
        search = stored.get(session, first["id"])
        stored.start(session, search)
        stored.confirm(session, search)
        stored.succeed(session, search)
    second = extend(service, first["id"], iterations=50).json()
    assert (second["name"], second["spec"]["continues"]) == ("earlier, extended", first["id"])
    assert (second["spec"]["begun"], second["spec"]["budget"]) == ({"budget": 80, "candidates": 12}, 230)
    assert second["spec"]["confirmation"]["seeds_used"] == 10
    lines = service.http.get(f"/searches/{second['id']}/ledger").text.splitlines()
    assert [line for line in lines if "extended" in line] == [
        '{"extended":{"budget":180,"candidates":null}}',
        '{"extended":{"budget":230,"candidates":null}}',
    ]


def test_the_same_key_is_done_once(service, ended):
    answers = [
        service.http.post(
            f"/searches/{ended}/extend", json={"iterations": more}, headers={"Idempotency-Key": f"grow {ended}".replace(" ", "-")}
        )
        for more in (100, 100, 101)
    ]
    assert [answer.status_code for answer in answers] == [202, 202, 422]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[2].json()["type"] == "urn:detkds:problem:idempotency-key-reused"


@pytest.mark.parametrize("kind", ["hours", "wall_clock_hours"])
def test_a_repeat_is_answered_as_before_whatever_hours_buy_by_then(service, wanted, kind):
    wanted["recipe"]["batch"] = 6 if kind == "hours" else 7  # of no other test
    search, _ = succeeded(service, wanted, POLICIES)
    with service.store.begin() as session:
        workers.present(session, "w1", seconds=60)
    headers = {"Idempotency-Key": f"again-{kind}"}

    def again(**body):
        return service.http.post(f"/searches/{search}/extend", json=body, headers=headers)

    first = again(**{kind: 0.5})
    assert first.status_code == 202, first.text
    succeeded(service, wanted, [(text, rung, ap, 3.0) for text, rung, ap in POLICIES])  # three times as slow
    with service.store.begin() as session:
        workers.leave(session, "w1")
    assert service.http.patch(f"/searches/{search}", json={"name": "called otherwise"}).status_code == 200
    repeat = again(**{kind: 0.5})
    assert (repeat.status_code, repeat.json()["id"]) == (202, first.json()["id"]), repeat.text
    assert repeat.json()["spec"] == first.json()["spec"]
    for other in ({kind: 0.6}, {"iterations": 9000}, {kind: 0.5, "name": "mine"}):
        answer = again(**other)
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:detkds:problem:idempotency-key-reused")


@pytest.mark.parametrize(
    ("body", "where", "message"),
    [
        ({}, "/iterations", "is required, unless 'candidates', 'hours' or 'wall_clock_hours' say how much more the search may spend"),
        ({"iterations": 50, "hours": 1.0}, "/hours", "the extension is given in iterations already; leave one of them out"),
        ({"candidates": 5, "hours": 1.0}, "/hours", "the extension is given in candidates already; leave one of them out"),
        ({"iterations": 1}, "/iterations", "1 are less than one full proxy of 2 iterations"),
        ({"iterations": 0}, "/iterations", "0 should be greater than or equal to 1"),
        ({"wall_clock_hours": 1.0, "hours": 1.0}, "/wall_clock_hours", "the extension is given in hours already; leave one of them out"),
        (
            {"wall_clock_hours": 1.0},
            "/wall_clock_hours",
            "no worker is there to say how fast it goes; start one, or give 'hours' of one device",
        ),
        ({"hours": 1e-9}, "/hours", "buys 0 iterations at 0.2 s each, less than one full proxy of 2"),
        ({"budget": 50}, "/budget", "there is no field 'budget'; one of name, iterations, candidates, hours, wall_clock_hours, priority"),
    ],
)
def test_every_mistake_is_told_where_it_is_and_what_would_be_right(service, ended, body, where, message):
    assert errors(extend(service, ended, **body)) == {where: message}


def test_only_a_search_that_has_succeeded_can_be_extended(service, wanted, ended):
    waiting = service.http.post("/searches", json=wanted).json()["id"]
    answer = extend(service, waiting, iterations=50)
    assert (answer.status_code, answer.json()["detail"]) == (409, f"search {waiting} is QUEUED; it can be extended once it has SUCCEEDED")
    service.http.post(f"/searches/{waiting}/cancel")
    answer = extend(service, waiting, iterations=50)
    assert answer.status_code == 409
    assert answer.json()["detail"] == (
        f"search {waiting} is CANCELLED; only one that has SUCCEEDED can be extended. Start it anew with POST /searches"
    )
    with service.store.begin() as session:
        old = stored.create(session, name="old", spec={"recipe": {}}, dataset={"name": "shapes"})
        stored.start(session, old)
        stored.confirm(session, old)
        stored.succeed(session, old)
    answer = extend(service, old.id, iterations=50)
    assert answer.status_code == 409
    assert answer.json()["detail"].endswith('Start another one with POST /searches and "warm_start"')
    assert extend(service, "none", iterations=50).status_code == 404


@pytest.mark.parametrize("change", ["the seed", "a setting that this version does not know"])
def test_a_search_that_this_version_would_have_decided_otherwise_is_refused_before_it_starts(service, ended, change):
    with service.store.begin() as session:
        source = session.get(Search, ended)
        spec = dict(source.spec)
        source.spec = {**spec, "seed": spec["seed"] + 1} if change == "the seed" else {**spec, "space": {**spec["space"], "planets": 9}}
    answer = extend(service, ended, iterations=50)
    assert answer.status_code == 409
    detail = answer.json()["detail"]
    assert detail.startswith(f"search {ended} was made by another version of this program, and this one would have decided otherwise (")
    assert (": this spec asks for another job: " if change == "the seed" else "planets") in detail
    assert detail.endswith('Start another one with POST /searches and "warm_start"')
