"""`clone`: the same request again, with what is to be different."""

import pytest

from detkds_api.cloning import cloned
from detkds_api.problems import InvalidInput
from detkds_api.search_request import SearchRequest
from detkds_core.store import distillations
from detkds_core.store import searches as stored
from detkds_core.store.models import Search

from .earlier import succeeded


def clone(service, path, **changes):
    answer = service.http.post(f"{path}/clone", json=changes)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/{path.split('/')[1]}/{answer.json()['id']}"
    return answer.json()


def errors(answer):
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


@pytest.fixture
def source(service, wanted):
    """A search with its labels, and its path."""
    one = service.http.post("/searches", json={**wanted, "notes": "n", "tags": ["t"], "confirmation": {"seeds": 3}}).json()
    return one, f"/searches/{one['id']}"


def test_a_search_is_repeated_as_it_was_asked_for(service, source):
    one, path = source
    service.http.patch(path, json={"name": "called otherwise", "tags": []})
    again = clone(service, path)
    assert again["id"] != one["id"]
    assert (again["cloned_from"], again["state"], again["spec"]) == (one["id"], "QUEUED", one["spec"])
    assert (again["name"], again["notes"], again["tags"]) == (one["name"], "n", ["t"]), "as the request said"
    assert service.http.get(f"/searches/{again['id']}").json() == again
    assert service.http.post(f"{path}/clone").status_code == 202, "a body is not needed"
    assert clone(service, f"/searches/{again['id']}")["cloned_from"] == again["id"], "a clone can be cloned"


def test_what_is_given_is_different_and_the_rest_stays(service, source):
    one, path = source
    other = clone(service, path, seed=4)
    assert {name for name in one["spec"] if one["spec"][name] != other["spec"][name]} == {"seed"}
    assert (one["name"], other["name"]) == ("shapes seed 3", "shapes seed 4")
    spec = clone(service, path, recipe={"iterations": 4}, confirmation={"finalists": 1}, name="mine", tags=[])["spec"]
    assert (spec["recipe"]["iterations"], spec["recipe"]["batch"], spec["rungs"]) == (4, 2, [1, 4])
    assert (spec["confirmation"]["finalists"], spec["confirmation"]["seeds"]) == (1, 3)
    budget = clone(service, path, iterations=5000, candidates=None)["spec"]
    assert (budget["budget"], budget["candidates"]) == (5000, None)
    small = clone(service, path, student={"detector": "gfl_r18w8_fpn16"})
    assert (small["student"], small["teacher"]) == ("gfl_r18w8_fpn16", one["teacher"])


def test_another_pair_or_budget_takes_the_place_of_what_says_the_same():
    source = Search(
        id="s",
        request={"dataset": "shapes", "teacher": {"detector": "t", "checkpoint": "/t"}, "student": {"detector": "s"}, "iterations": 9},
    )
    merged = cloned(source, SearchRequest(pair="digits_gfl", hours=1.0), SearchRequest, "/searches")
    assert (merged.pair, merged.dataset, merged.teacher, merged.student, merged.iterations, merged.hours) == (
        "digits_gfl",
        None,
        None,
        None,
        None,
        1.0,
    )
    kept = cloned(source, SearchRequest(pair="digits_gfl", dataset="trees"), SearchRequest, "/searches")
    assert (kept.dataset, kept.teacher, kept.iterations) == ("trees", None, 9)


def test_a_request_of_an_earlier_version_that_is_none_any_more_is_told():
    source = Search(id="s", request={"dataset": "shapes", "gone": 1, "recipe": {"lr": -1.0}})
    with pytest.raises(InvalidInput) as caught:
        cloned(source, SearchRequest(seed=1), SearchRequest, "/searches")
    assert {error.pointer for error in caught.value.errors} == {"/gone", "/recipe/lr"}
    assert all("of the request that is repeated: " in error.message for error in caught.value.errors)


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"seed": -1}, "/seed", "greater than or equal to 0"),
        ({"sed": 1}, "/sed", "there is no field 'sed'"),
        ({"student": {"detector": "yolo"}}, "/student/detector", "'yolo' is not a known detector"),
        ({"recipe": {"lr": 0}}, "/recipe/lr", "greater than 0"),
        ({"references": ["nobody"]}, "/references/0", "not a named policy"),
        ({"iterations": 1}, "/iterations", "less than one full proxy"),
        ({"teacher": None}, "/teacher", "is required"),
    ],
)
def test_a_change_is_checked_as_a_fresh_request_is(service, source, changes, where, message):
    assert message in errors(service.http.post(f"{source[1]}/clone", json=changes))[where]


def test_the_same_key_clones_once(service, source):
    header = {"Idempotency-Key": f"clone-{source[0]['id']}"}
    answers = [service.http.post(f"{source[1]}/clone", json={"seed": seed}, headers=header) for seed in (5, 5, 6)]
    assert [answer.status_code for answer in answers] == [202, 202, 422]
    assert answers[0].json()["id"] == answers[1].json()["id"]


def test_a_search_from_before_requests_were_kept_cannot_be_repeated(service, source):
    with service.store.begin() as session:
        old = stored.create(session, name="old", spec=source[0]["spec"], dataset={"name": "shapes"}).id
        trained = distillations.create(session, name="old", spec={"policy": {"terms": []}}, dataset={"name": "shapes"}).id
    for path, again in ((f"/searches/{old}", "POST /searches"), (f"/distill/{trained}", "POST /distill")):
        answer = service.http.post(f"{path}/clone", json={})
        assert answer.status_code == 409
        assert answer.json()["detail"].endswith(
            f"is from before requests were kept, so that none can be repeated. Start it anew with {again}"
        )
    for path in ("/searches/none", "/distill/none", f"/distill/{old}"):
        assert service.http.post(f"{path}/clone", json={}).status_code == 404


def test_an_extended_search_is_repeated_with_all_that_both_could_spend(service, wanted):
    earlier, _ = succeeded(service, wanted, [("!none", 2, 10.0), ("l1[balanced](global)", 2, 20.0)])
    with service.store.begin() as session:
        session.get(Search, earlier).request = wanted
    longer = service.http.post(f"/searches/{earlier}/extend", json={"iterations": 500, "name": "longer"}).json()
    again = clone(service, f"/searches/{longer['id']}")
    assert (again["name"], again["spec"]["budget"], again["spec"]["candidates"]) == ("longer", 80 + 500, None)
    assert not {"continues", "begun"} & again["spec"].keys(), "from its beginning"


def test_priority_and_memory_of_the_device_are_repeated_or_changed(service, wanted):
    def needs(one):
        return one["priority"], one["device_memory_gib"]

    training = {**{name: wanted[name] for name in ("dataset", "teacher", "student", "recipe", "seed")}, "policy": "pkd"}
    for path, body in (("/searches", wanted), ("/distill", training)):
        one = service.http.post(path, json={**body, "priority": -5, "device_memory_gib": 24}).json()
        assert needs(clone(service, f"{path}/{one['id']}")) == (-5, 24)
        assert needs(clone(service, f"{path}/{one['id']}", priority=7, device_memory_gib=None)) == (7, None)
        assert errors(service.http.post(f"{path}/{one['id']}/clone", json={"priority": 101})).keys() == {"/priority"}


def test_an_extended_search_is_repeated_with_the_priority_of_its_extension(service, wanted):
    earlier, _ = succeeded(service, wanted, [("!none", 2, 10.0), ("l1[balanced](global)", 2, 20.0)])
    with service.store.begin() as session:
        session.get(Search, earlier).request = {**wanted, "priority": 3, "device_memory_gib": 24}
        session.get(Search, earlier).device_memory_gib = 24
    for asked, priority in (({}, 0), ({"priority": -2}, -2)):
        longer = service.http.post(f"/searches/{earlier}/extend", json={"iterations": 500, **asked}).json()
        again = clone(service, f"/searches/{longer['id']}")
        for one in (longer, again):
            assert (one["priority"], one["device_memory_gib"]) == (priority, 24)


def test_a_distillation_is_repeated_with_its_policy_or_another(service, wanted):
    body = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe", "seed")}
    one = service.http.post("/distill", json={**body, "policy": "pkd", "tags": ["t"]}).json()
    again = clone(service, f"/distill/{one['id']}", seed=9)
    assert (again["cloned_from"], again["formula"], again["tags"]) == (one["id"], one["formula"], ["t"])
    assert again["spec"] == {**one["spec"], "seed": 9}
    other = clone(service, f"/distill/{one['id']}", policy={"terms": []}, recipe={"batch": 1})
    assert (other["formula"], other["spec"]["recipe"]["batch"], other["spec"]["recipe"]["image_size"]) == ("none", 1, 64)
    assert "did you mean pkd?" in errors(service.http.post(f"/distill/{one['id']}/clone", json={"policy": "pdk"}))["/policy"]
    assert errors(service.http.post(f"/distill/{one['id']}/clone", json={"policy": None})) != {}
