"""Somebody else's objects, over every operation of the description: not there, whatever the verb."""

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from detkds_core.store import Store, distillations, jobs, results, searches, workers
from detkds_core.store.models import ApiKey

TRAINING = {"pair": "digits_gfl", "policy": "pkd", "recipe": {"iterations": 5}}
SEARCH = {"pair": "digits_gfl", "candidates": 12, "recipe": {"iterations": 2}}


@pytest.fixture(scope="module")
def secret_things(guarded) -> dict[str, str]:
    """What an owner has: the id of one of each kind, by the name that paths give it."""
    url, settings = guarded
    operator = {"Authorization": "Bearer 0123456789abcdef0123456789abcdef"}
    with httpx2.Client(base_url=url, headers=operator, timeout=120, trust_env=False) as http:
        key = http.post("/keys", json={"name": "theirs", "owner": "they"}).json()
        theirs = {"Authorization": f"Bearer {key['secret']}"}
        search = http.post("/searches", json=SEARCH, headers=theirs).json()["id"]
        upload = {"name": "theirs", "size": 6, "sha256": "0" * 64}
        checkpoint = http.post("/checkpoints", json=upload, headers=theirs).json()["id"]
        distillation = http.post("/distill", json=TRAINING, headers=theirs).json()["id"]
    with Store(settings.url).begin() as session:
        job = jobs.of_distillation(session, distillation).id
        jobs.finish(session, jobs.claim(session, worker="w", lease_seconds=60, job_id=job), {})
        row = distillations.get(session, distillation)
        rest = {"policy": {"terms": []}, "ap": 1.0, "metrics": {}, "evidence": {}, "environment": {}}
        result = results.create(session, row, artifacts={"checkpoint": f"{job}/1/student.safetensors"}, **rest).id
        distillations.succeed(session, distillation)
        workers.present(session, "gpu-7", seconds=86400)
        (worker,) = (one.worker.id for one in workers.standings(session) if one.worker.name == "gpu-7")
        held = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search, owner="they").id
        assert jobs.claim(session, worker="gpu-7", lease_seconds=86400, job_id=held)
        one = searches.get(session, search)
        searches.start(session, one)
        searches.confirm(session, one)
        searches.succeed(session, one)
    folder = Path(settings.artifacts_place) / job / "1"
    folder.mkdir(parents=True)
    for name in ("student.safetensors", "trainer.log", "detections.json"):
        (folder / name).write_text("theirs")
    found = {"search_id": search, "distillation_id": distillation, "job_id": job, "result_id": result, "key_id": key["id"], "attempt": "1"}
    found |= {"checkpoint_id": checkpoint, "number": "0"}
    return {**found, "worker_id": worker, "held_id": held, "checkpoint": str(folder / "student.safetensors")}


def operations(http: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of all that has an id in its path. Datasets, which have names, are the installation's, for all."""
    paths = http.get("/openapi.json").json()["paths"]
    return [(method, path, one) for path, methods in paths.items() if "_id}" in path for method, one in methods.items()]


def body_of(operation: dict[str, Any]) -> dict[str, Any]:
    """The body of a request as a client takes it: the example, or bytes."""
    media = operation.get("requestBody", {}).get("content", {})
    if "application/octet-stream" in media:
        return {"content": b"theirs", "headers": {"Content-Type": "application/octet-stream"}}
    return {"json": media["application/json"]["example"]} if "application/json" in media else {}


def test_every_operation_with_an_id_answers_a_strangers_key_as_if_nothing_were_there(holder, operator, secret_things) -> None:
    walked = operations(operator)
    assert len(walked) > 15
    stranger, nobody = holder("a stranger"), "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"
    for method, path, operation in walked:
        names = re.findall(r"\{(\w+)\}", path)
        assert set(names) <= secret_things.keys(), f"{path}: this test does not know what has such an id"
        real = re.sub(r"\{(\w+)\}", lambda found: secret_things[found[1]], path)
        made_up = re.sub(r"\{(\w+)\}", lambda found: {"attempt": "1", "number": "0"}.get(found[1], nobody), path)
        theirs, nothing = (stranger.request(method, one, **body_of(operation)) for one in (real, made_up))
        wanted = 403 if path.startswith(("/keys", "/workers")) else 404  # for scope admin alone, whether there or not
        assert (theirs.status_code, nothing.status_code) == (wanted, wanted), f"{method} {path}: {theirs.text[:300]}"
        told, told_of_nothing = theirs.json()["detail"].replace(real.split("/")[2], ""), nothing.json()["detail"].replace(nobody, "")
        assert told == told_of_nothing, "in the same words"


def test_a_list_has_nothing_of_somebody_else(holder, operator, secret_things) -> None:
    document = operator.get("/openapi.json").json()
    lists = [path for path, methods in document["paths"].items() if "{" not in path and "get" in methods]
    stranger = holder("a stranger with lists")
    for path in (*lists, f"/jobs?search={secret_things['search_id']}", f"/jobs?distillation={secret_things['distillation_id']}"):
        answer = stranger.get(path)
        for name in ("search_id", "distillation_id", "job_id", "held_id", "result_id", "key_id", "checkpoint_id"):
            echoed = name in ("search_id", "distillation_id") and "?" in path and answer.json()["items"] == []
            assert secret_things[name] not in answer.text or echoed, f"{path} tells of {name}"


def test_a_body_cannot_name_somebody_elses_things(holder, secret_things) -> None:
    stranger = holder("a stranger with bodies")
    search, nobody = secret_things["search_id"], "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"
    student = {"detector": "gfl_r18w16_fpn32", "checkpoint": secret_things["checkpoint_id"]}
    for path, body in (
        ("/distill", {"pair": "digits_gfl", "policy": {"search": search}}),
        ("/searches", {**SEARCH, "warm_start": [search]}),
        ("/searches/preview", {**SEARCH, "warm_start": [search]}),
        ("/searches", {**SEARCH, "warm_start": [secret_things["result_id"]]}),
        ("/distill", {"pair": "digits_gfl", "policy": "none", "student": student}),
    ):
        theirs = stranger.post(path, json=body)
        assert theirs.status_code == 422, theirs.text
        known = next(one for one in (search, secret_things["result_id"], secret_things["checkpoint_id"]) if one in str(body))
        made_up = stranger.post(path, json=json.loads(json.dumps(body).replace(known, nobody)))
        assert theirs.json()["detail"].replace(known, "") == made_up.json()["detail"].replace(nobody, "")


def test_a_comparison_cannot_name_somebody_elses_results(holder, secret_things) -> None:
    ids = f"{secret_things['result_id']},0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"
    answer = holder("a stranger who compares").get("/results/compare", params={"ids": ids})
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith(f"there is no result {ids.replace(',', ', ')}; "), "one is there, and for them it is not"


def test_weights_of_somebody_elses_training_are_not_there(holder, operator, secret_things) -> None:
    """The artifacts folder may be named in a request, and one key could train from what another one's jobs had left."""
    checkpoint = secret_things["checkpoint"]
    teacher, student = ({"detector": f"gfl_r18w{width}_fpn32"} for width in (32, 16))
    body = {"dataset": "digits", "policy": "none", "student": {**student, "checkpoint": checkpoint}}
    body["teacher"] = {**teacher, "checkpoint": "digits_gfl_r18w32_fpn32"}
    stranger = holder("a stranger with weights")
    missing = checkpoint.replace("student.", "nothing.")
    for path in (checkpoint, missing):
        answer = stranger.post("/distill", json={**body, "student": {**student, "checkpoint": path}})
        assert answer.json()["detail"] == f"student.checkpoint: '{path}' does not exist on the service's machine"
    for http in (holder("they"), operator):
        answer = http.post("/distill", json=body)
        assert "is not a safetensors file with weights in it" in answer.json()["detail"], "whose it is, for them it is read"


def test_a_key_that_only_reads_changes_nothing(holder, operator, guarded) -> None:
    document = operator.get("/openapi.json").json()
    reader = holder("a reader", scope="read")
    nobody = "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method != "get" and path != "/searches/preview":
                answer = reader.request(method, re.sub(r"\{\w+\}", nobody, path), **body_of(operation))
                assert answer.status_code == 403, f"{method} {path}"
    with Store(guarded[1].url).read() as session:
        assert session.query(ApiKey).filter(ApiKey.revoked_at.is_not(None)).count() == 0
