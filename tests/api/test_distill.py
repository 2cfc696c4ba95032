"""`/distill`: what a policy may be, and what becomes of it."""

import pytest

from detkds_core.store import distillations, jobs, results, searches

PKD = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0}]}


def errors(answer):
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


@pytest.fixture
def student(wanted):
    """A distillation that is possible; tests add its policy."""
    return {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe", "seed")}


@pytest.mark.parametrize(
    ("policy", "terms"),
    [("pkd", PKD["terms"]), ("none", []), (PKD, PKD["terms"]), ("5*l2(standardize(global))", PKD["terms"]), ({"terms": []}, [])],
    ids=["name", "no distillation", "json", "formula", "empty"],
)
def test_a_policy_may_be_named_written_or_given(service, student, policy, terms):
    answer = service.http.post("/distill", json={**student, "policy": policy})
    assert answer.status_code == 202, answer.text
    one = answer.json()
    assert one["spec"]["policy"]["terms"] == terms
    assert answer.headers["location"] == f"/distill/{one['id']}"
    with service.store.begin() as session:
        job = jobs.of_distillation(session, one["id"])
        assert (job.kind, job.state) == ("distill", "QUEUED")
        assert {"kind", "dataset", "teacher", "student", "recipe", "policy", "seed", "inherit"} <= job.spec.keys()
        jobs.cancel(session, job.id)


@pytest.mark.parametrize(
    ("policy", "where", "message"),
    [
        (
            {"terms": [PKD["terms"][0], {**PKD["terms"][0], "transforms": ["none", "none", "norm_X"]}]},
            "/policy/terms/1/transforms/2",
            "norm_X",
        ),
        ({"terms": [{**PKD["terms"][0], "weight": -1}]}, "/policy/terms/0/weight", "-1"),
        ({"terms": [{**PKD["terms"][0], "weights": 1}]}, "/policy/terms/0/weights", "weight"),
        ({"terms": "pkd"}, "/policy/terms", "list of terms"),
        ({}, "/policy/terms", "missing"),
        ("pdk", "/policy", "did you mean pkd"),
        ("5·l2(standardise(global))", "/policy", "standardise"),
        ("5·l2(", "/policy", ""),
        ("x" * 5000, "/policy", "one of none"),
        ("5·" * 3000, "/policy", "at most 4000"),
        ({"search": "none"}, "/policy/search", "there is no search"),
        ({"search": 3}, "/policy", '{"search": id}'),
        ({"search": "none", "terms": []}, "/policy", "nothing else"),
        (7, "/policy", "valid string, or 7 should be a valid dictionary"),
    ],
)
def test_an_illegal_policy_is_told_by_its_place(service, student, policy, where, message):
    found = errors(service.http.post("/distill", json={**student, "policy": policy}))
    assert message in found[where]


def test_a_legal_term_that_this_pair_cannot_train_with_is_told(service, student):
    body = {**student, "student": {"detector": "retinanet_r18w8_fpn32"}}
    found = errors(service.http.post("/distill", json={**body, "policy": "pear(logits)"}))
    assert "this pair cannot exchange 'logits'" in found["/policy"]
    one_image = {**student, "recipe": {**student["recipe"], "batch": 1}}
    term = {"knowledge": "global", "transforms": ["none", "none", "norm_N"], "distance": "l2", "weight": 1.0}
    assert "/policy/terms/0/transforms/2" in errors(service.http.post("/distill", json={**one_image, "policy": {"terms": [term]}}))


def test_a_search_that_goes_on_has_no_winner_yet(service, wanted):
    one = service.http.post("/searches", json=wanted).json()["id"]
    assert (
        "is QUEUED; its winner is known once it has SUCCEEDED"
        in errors(service.http.post("/distill", json={"policy": {"search": one}}))["/policy/search"]
    )


def test_a_winner_is_trained_with_what_its_search_had(service, wanted):
    search_id = service.http.post("/searches", json=wanted).json()["id"]
    with service.store.begin() as session:
        search = searches.get(session, search_id)
        searches.start(session, search)
        searches.confirm(session, search)
        results.create(session, search, policy=PKD, ap=31.5, metrics={}, evidence={}, artifacts={}, environment={})
        searches.succeed(session, search)
    found = service.http.get(f"/searches/{search_id}").json()
    assert found["progress"]["fraction"] == 1.0
    answer = service.http.post("/distill", json={"policy": {"search": search_id}, "recipe": {"iterations": 5}})
    assert answer.status_code == 202, answer.text
    spec = answer.json()["spec"]
    assert spec["policy"] == PKD
    assert spec["teacher"]["checkpoint"] == wanted["teacher"]["checkpoint"]
    assert spec["recipe"]["iterations"] == 5
    assert spec["recipe"]["image_size"] == 64  # the search's, since no pair says otherwise
    with service.store.begin() as session:
        assert distillations.get(session, answer.json()["id"]).search_id == search_id
        jobs.cancel(session, jobs.of_distillation(session, answer.json()["id"]).id)


def test_progress_is_what_the_trainer_says(service, student):
    one = service.http.post("/distill", json={**student, "policy": "pkd"}).json()
    assert one["progress"]["step"] == "waiting"
    with service.store.begin() as session:
        job_id = jobs.of_distillation(session, one["id"]).id
        claim = jobs.claim(session, worker="test", lease_seconds=30, job_id=job_id)
    with service.store.begin() as session:
        jobs.renew(session, claim, lease_seconds=30, progress={"done": 40, "total": 160, "message": "training", "best_ap": None})
    seen = service.http.get(f"/distill/{one['id']}").json()
    assert seen["state"] == "RUNNING"
    assert (seen["progress"]["step"], seen["progress"]["done"], seen["progress"]["total"]) == ("training", 40, 160)
    assert seen["progress"]["fraction"] == 0.25
    assert seen["progress"]["seconds_left"] >= 0
    with service.store.begin() as session:
        jobs.fail(session, claim, kind="not_finite", detail="the loss became NaN in step 41")
    seen = service.http.get(f"/distill/{one['id']}").json()
    assert seen["state"] == "FAILED"
    assert "NaN in step 41" in seen["reason"]
    answer = service.http.post(f"/distill/{one['id']}/cancel")
    assert answer.status_code == 409
    assert "has ended (FAILED)" in answer.json()["detail"]


def test_what_is_trained_and_has_no_result_yet_has_not_ended_and_cannot_be_held(service, student):
    one = service.http.post("/distill", json={**student, "policy": "pkd"}).json()["id"]
    with service.store.begin() as session:
        claim = jobs.claim(session, worker="test", lease_seconds=30, job_id=jobs.of_distillation(session, one).id)
        assert jobs.finish(session, claim, {})
    for verb in ("pause", "cancel"):
        answer = service.http.post(f"/distill/{one}/{verb}")
        assert answer.status_code == 409
        told = f"distillation {one} is trained, and its result is being written; there is nothing to {verb}"
        assert answer.json()["detail"] == told


def test_cancelling_takes_the_job_out_of_the_queue(service, student):
    one = service.http.post("/distill", json={**student, "policy": "pkd"}).json()["id"]
    assert service.http.post(f"/distill/{one}/cancel").json()["state"] == "CANCELLED"
    with service.store.begin() as session:
        assert jobs.of_distillation(session, one).state == "CANCELLED"
    assert one in [item["id"] for item in service.http.get("/distill", params={"state": "CANCELLED"}).json()["items"]]


def test_the_same_key_trains_once(service, student):
    answers = [service.http.post("/distill", json={**student, "policy": "pkd"}, headers={"Idempotency-Key": "d-1"}) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    other = service.http.post("/distill", json={**student, "policy": "none"}, headers={"Idempotency-Key": "d-1"})
    assert other.status_code == 422
    assert other.json()["type"] == "urn:detkds:problem:idempotency-key-reused"


@pytest.mark.parametrize("path", ["/distill/none", "/distill/none/cancel"])
def test_a_distillation_that_is_not_there_is_404(service, path):
    answer = service.http.post(path) if path.endswith("cancel") else service.http.get(path)
    assert answer.status_code == 404
