"""Lists of searches, distillations and results by order and filter, and the names, notes and tags that people find them by."""

import httpx2
import pytest

from detkds_api.results import TERMS
from detkds_core.policy import named_policies, to_json
from detkds_core.store import distillations, jobs, labels, results

PKD = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0}]}


def errors(answer):
    """`{pointer: message}` of a problem."""
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


def ids(service, path, **parameters):
    """The ids of a whole list, read in pages of two."""
    found, cursor = [], None
    while True:
        answer = service.http.get(path, params={"limit": 2, **parameters, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += [one["id"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.fixture
def student(wanted):
    """A distillation that is possible; tests add its policy."""
    return {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe", "seed")}


@pytest.fixture(params=["searches", "distill"])
def made(request, service, wanted, student):
    """Make one more of a kind: `made(path, **changes)`; and its path."""
    body = wanted if request.param == "searches" else {**student, "policy": "pkd"}

    def make(**changes):
        answer = service.http.post(f"/{request.param}", json={**body, **changes})
        assert answer.status_code == 202, answer.text
        return answer.json()

    return f"/{request.param}", make


def test_notes_and_tags_are_kept_shown_and_changed(service, made):
    path, make = made
    one = make(name="before", notes="first line\n\tsecond", tags=["paper", "a b"])
    assert (one["name"], one["notes"], one["tags"], one["cloned_from"]) == ("before", "first line\n\tsecond", ["a b", "paper"], None)
    assert next(each for each in service.http.get(path).json()["items"] if each["id"] == one["id"]) == one
    here = f"{path}/{one['id']}"
    changed = service.http.patch(here, json={"tags": ["c"]})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["name"], changed.json()["notes"], changed.json()["tags"]) == ("before", one["notes"], ["c"])
    changed = service.http.patch(here, json={"name": "after", "notes": "", "tags": None}).json()
    assert (changed["name"], changed["notes"], changed["tags"]) == ("after", "", ["c"])
    assert changed["updated_at"] >= one["updated_at"]
    assert service.http.patch(here, json={}).json() == changed == service.http.get(here).json()
    assert changed["spec"] == one["spec"]
    plain = make()
    assert (plain["notes"], plain["tags"]) == ("", [])


def test_a_priority_changes_until_the_end_and_says_who_waits_for_whom(service, made):
    path, make = made
    one = make(priority=-3)
    here = f"{path}/{one['id']}"
    changed = service.http.patch(here, json={"priority": 7, "name": "urgent"}).json()
    assert (changed["priority"], changed["name"], changed["spec"]) == (7, "urgent", one["spec"])
    assert service.http.get(here).json()["priority"] == 7
    assert service.http.patch(here, json={"priority": 6.0}).json()["priority"] == 6, "JSON has one kind of number"
    for priority in (101, -101, 1.5, "high"):
        assert "/priority" in errors(service.http.patch(here, json={"priority": priority}))
    service.http.post(f"{here}/pause")
    assert service.http.patch(here, json={"priority": 8}).json()["priority"] == 8
    service.http.post(f"{here}/cancel")
    late = service.http.patch(here, json={"priority": 9, "name": "too late"})
    assert (late.status_code, "urgent has ended (CANCELLED)" in late.json()["detail"]) == (409, True)
    assert service.http.patch(here, json={"priority": 8, "name": "in time"}).json()["name"] == "in time", "it has this one"


def test_a_key_gives_no_priority_above_what_it_may_ask_for(guarded):
    url, _ = guarded
    with httpx2.Client(base_url=url, timeout=60, trust_env=False, headers={"Authorization": f"Bearer {'0123456789abcdef' * 2}"}) as http:
        secret = http.post("/keys", json={"name": "t", "owner": "who hurries"}).json()["secret"]
        mine = {"Authorization": f"Bearer {secret}"}
        body = {"pair": "digits_gfl", "policy": "pkd", "recipe": {"iterations": 5}}
        here = f"/distill/{http.post('/distill', json=body, headers=mine).json()['id']}"
        refused = http.patch(here, json={"priority": 1, "name": "x"}, headers=mine)
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (403, "/priority")
        assert http.patch(here, json={"priority": -1}, headers=mine).json()["priority"] == -1
        assert http.patch(here, json={"priority": 50}).json()["priority"] == 50, "an admin may"
        assert http.patch(here, json={"priority": -1}, headers=mine).json()["priority"] == -1
        http.post(f"{here}/cancel", headers=mine)


@pytest.mark.parametrize(
    ("body", "where", "message"),
    [
        ({"notes": "x" * 4001}, "/notes", "at most 4000"),
        ({"notes": "a\u0000b"}, "/notes", "cannot be printed"),
        ({"tags": [""]}, "/tags/0", "at least 1"),
        ({"tags": ["x" * 41]}, "/tags/0", "at most 40"),
        ({"tags": ["a", "a\nb"]}, "/tags/1", "cannot be printed"),
        ({"tags": [" a"]}, "/tags/0", "has a blank at its beginning or end"),
        ({"tags": ["b", "a", "b"]}, "/tags", "'b' appears twice"),
        ({"tags": [str(n) for n in range(21)]}, "/tags", "at most 20"),
        ({"tags": "a"}, "/tags", "valid list"),
        ({"name": ""}, "/name", "at least 1"),
        ({"label": "x"}, "/label", "there is no field 'label'; one of name"),
    ],
)
def test_a_label_that_is_too_much_is_told(service, wanted, body, where, message):
    one = service.http.post("/searches", json=wanted).json()["id"]
    for answer in (service.http.post("/searches", json={**wanted, **body}), service.http.patch(f"/searches/{one}", json=body)):
        assert message in errors(answer)[where]


def test_an_idempotency_key_survives_a_new_name(service, wanted):
    header = {"Idempotency-Key": "renamed"}
    one = service.http.post("/searches", json={**wanted, "name": "a"}, headers=header).json()["id"]
    service.http.patch(f"/searches/{one}", json={"name": "b", "tags": ["t"]})
    again = service.http.post("/searches", json={**wanted, "name": "a"}, headers=header)
    assert (again.status_code, again.json()["id"], again.json()["name"]) == (202, one, "b")
    other = service.http.post("/searches", json={**wanted, "name": "a", "tags": ["t"]}, headers=header)
    assert other.json()["type"] == "urn:detkds:problem:idempotency-key-reused"


def test_a_list_is_narrowed_and_ordered(service, made):
    path, make = made
    tag = f"narrow {path[1:]}"
    first = make(name="Narrow one", tags=[tag, "x"])["id"]
    second = make(name="other", tags=[tag], student={"detector": "retinanet_r18w8_fpn32"})["id"]
    third = make(name="narrow 100%", tags=[tag])["id"]
    assert ids(service, path, tag=tag) == [third, second, first]
    assert ids(service, path, tag=tag, sort="created_at") == [first, second, third]
    assert ids(service, path, tag="x", name="NARROW") == [first]
    assert ids(service, path, tag=tag, name="100%") == [third]
    assert ids(service, path, tag=tag, student="retinanet_r18w8_fpn32", teacher="gfl_r18w32_fpn32", dataset="shapes") == [second]
    assert ids(service, path, tag=tag, dataset="digits") == []
    service.http.post(f"{path}/{second}/cancel")
    assert ids(service, path, tag=tag, state="CANCELLED") == [second]
    assert ids(service, path, tag=tag, sort="-updated_at") == [second, third, first]
    assert ids(service, path, tag=tag, sort="finished_at") == [second], "the others have not ended"


def test_searches_are_narrowed_to_an_algorithm(service, wanted):
    one = service.http.post("/searches", json={**wanted, "algorithm": "genetic", "tags": ["by algorithm"]}).json()["id"]
    service.http.post("/searches", json={**wanted, "tags": ["by algorithm"]})
    assert ids(service, "/searches", tag="by algorithm", algorithm="genetic") == [one]


@pytest.mark.parametrize(
    ("path", "parameters", "where", "message"),
    [
        (
            "/searches",
            {"colour": "red"},
            "?colour",
            "there is no parameter 'colour'; one of limit, cursor, sort, tag, dataset, name, teacher",
        ),
        ("/distill", {"algorithm": "tpe"}, "?algorithm", "one of limit, cursor, sort, tag, dataset, name, teacher, student, state"),
        (
            "/results",
            {"state": "QUEUED"},
            "?state",
            "one of limit, cursor, sort, name, tag, kind, dataset, teacher, student, term, ap_at_least, ap_at",
        ),
        ("/searches", {"sort": "ap"}, "?sort", "'created_at', '-created_at', 'updated_at', '-updated_at', 'finished_at' or '-finished_at'"),
        ("/results", {"sort": "updated_at"}, "?sort", "'created_at', '-created_at', 'ap' or '-ap'"),
        ("/searches", {"algorithm": "annealing"}, "?algorithm", "'detkds', 'random', 'random_halving'"),
        ("/searches", {"name": "a\u0000"}, "?name", "cannot be printed"),
        ("/results", {"term": "l3"}, "?term", "'l3' is in no policy; one of abs, batch, "),
        ("/results", {"ap_at_least": "nan"}, "?ap_at_least", "finite"),
        ("/results", {"ap_at_most": 101}, "?ap_at_most", "less than or equal to 100"),
        ("/results", {"kind": "teacher"}, "?kind", "'search' or 'distill'"),
    ],
)
def test_what_a_list_cannot_be_asked_for_is_told_with_what_it_can(service, path, parameters, where, message):
    assert message in errors(service.http.get(path, params=parameters))[where]


def test_a_cursor_goes_on_with_its_own_order_and_filters_only(service, wanted):
    for _ in range(2):
        service.http.post("/searches", json={**wanted, "tags": ["cursor"]})
    cursor = service.http.get("/searches", params={"tag": "cursor", "limit": 1}).json()["next_cursor"]
    refused = errors(service.http.get("/searches", params={"tag": "cursor", "cursor": cursor, "sort": "created_at"}))
    assert refused == {
        "?cursor": "this cursor belongs to a list in the order '-created_at', and this one is in the order 'created_at';"
        " take next_cursor of the page before"
    }
    refused = errors(service.http.get("/searches", params={"cursor": cursor}))
    assert refused["?cursor"].startswith("this cursor belongs to a list with other filters; page on with the filters of its first page")
    assert len(service.http.get("/searches", params={"tag": "cursor", "cursor": cursor, "limit": 50}).json()["items"]) == 1


@pytest.fixture(scope="module")
def measured(service):
    """Ids of three results of distillations: PKD with 20.5 AP, FGD with 30.5, PKD with 40.5 of another student."""
    made = []
    for policy, ap, detector in (
        ("pkd", 20.5, "gfl_r18w8_fpn32"),
        ("fgd", 30.5, "gfl_r18w8_fpn32"),
        ("pkd", 40.5, "retinanet_r18w8_fpn32"),
    ):
        body = {
            "dataset": "shapes",
            "teacher": {"detector": "gfl_r18w32_fpn32", "checkpoint": str(service.roots / "teacher.safetensors")},
            "student": {"detector": detector},
            "recipe": {"iterations": 2, "batch": 2, "image_size": 64},
            "policy": policy,
            "name": f"measured {policy}",
        }
        answer = service.http.post("/distill", json=body)
        assert answer.status_code == 202, answer.text
        with service.store.begin() as session:
            one = distillations.get(session, answer.json()["id"])
            jobs.finish(session, jobs.claim(session, worker="w", lease_seconds=30, job_id=jobs.of_distillation(session, one.id).id), {})
            empty = {"metrics": {}, "evidence": {}, "artifacts": {}, "environment": {}}
            made.append(results.create(session, one, policy=one.spec["policy"], ap=ap, **empty).id)
            distillations.succeed(session, one.id)
    return made


def test_results_are_ordered_by_ap_and_narrowed_to_pair_term_and_ap(service, measured):
    low, middle, high = measured
    assert ids(service, "/results", sort="-ap") == [high, middle, low]
    assert ids(service, "/results", sort="ap", ap_at_least=30.5) == [middle, high]
    assert ids(service, "/results", ap_at_most=30) == [low]
    assert ids(service, "/results", term="standardize") == [high, low]
    assert ids(service, "/results", term="fgd", kind="distill", dataset="shapes") == [middle]
    assert ids(service, "/results", teacher="gfl_r18w32_fpn32", student="retinanet_r18w8_fpn32") == [high]
    assert ids(service, "/results", kind="search") == []
    shown = service.http.get(f"/results/{high}").json()
    assert (shown["teacher"], shown["student"]) == ("gfl_r18w32_fpn32", "retinanet_r18w8_fpn32")


def test_results_are_found_by_name_and_by_the_tags_of_what_they_come_from(service, measured):
    low, middle, high = measured
    of = {one: service.http.get(f"/results/{one}").json()["distillation_id"] for one in measured}
    service.http.patch(f"/distill/{of[low]}", json={"tags": ["kept", "first"]})
    service.http.patch(f"/distill/{of[high]}", json={"tags": ["kept"]})
    assert ids(service, "/results", tag="kept") == [high, low]
    assert ids(service, "/results", tag="kept", name="PKD", sort="ap") == [low, high]
    assert ids(service, "/results", tag="first") == [low]
    assert ids(service, "/results", tag="kep") == []
    assert ids(service, "/results", name="d FGD") == [middle]


def test_a_new_name_is_the_results_too(service, measured):
    shown = service.http.get(f"/results/{measured[0]}").json()
    service.http.patch(f"/distill/{shown['distillation_id']}", json={"name": "renamed"})
    assert service.http.get(f"/results/{measured[0]}").json()["name"] == "renamed"


def test_every_word_of_a_named_policy_can_be_asked_for():
    found = {word for one in named_policies().values() for word in labels.words(to_json(one.policy))}
    assert found <= set(TERMS)
    assert {"global", "catt", "norm_N", "l2", "fgd"} <= found


def test_somebody_elses_labels_are_not_there(guarded):
    url, _ = guarded
    with httpx2.Client(
        base_url=url, timeout=30, trust_env=False, headers={"Authorization": f"Bearer {'0123456789abcdef' * 2}"}
    ) as operator:
        secrets = [
            operator.post("/keys", json={"name": "t", "owner": f"label {n}", "scope": s}).json()["secret"]
            for n, s in ((1, "run"), (2, "run"), (1, "read"))
        ]
    mine, yours, looking = (
        httpx2.Client(base_url=url, timeout=30, trust_env=False, headers={"Authorization": f"Bearer {secret}"}) for secret in secrets
    )
    with mine, yours, looking:
        one = mine.post("/distill", json={"pair": "digits_gfl", "policy": "pkd", "recipe": {"iterations": 5}, "tags": ["t"]}).json()["id"]
        assert [each["id"] for each in looking.get("/distill", params={"tag": "t"}).json()["items"]] == [one]
        assert yours.get("/distill", params={"tag": "t"}).json()["items"] == []
        assert yours.patch(f"/distill/{one}", json={"name": "stolen"}).status_code == 404
        assert yours.post(f"/distill/{one}/clone", json={}).status_code == 404
        assert looking.patch(f"/distill/{one}", json={"name": "x"}).status_code == 403
        assert mine.patch(f"/distill/{one}", json={"name": "mine"}).json()["name"] == "mine"
        mine.post(f"/distill/{one}/cancel")
