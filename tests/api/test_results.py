"""`/results`: the evidence, and the checkpoint as a file."""

import base64
import hashlib
import json
from pathlib import Path

import pytest

from detkds_core.store import distillations, jobs, results, searches

PKD = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0}]}

WEIGHTS = b"safe" * 100_000
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(scope="module")
def finished(service):
    """The ids of a distillation's result with a checkpoint, and of one whose artifacts lead astray."""
    folder = Path(service.settings.artifacts_place) / "job" / "1"
    folder.mkdir(parents=True)
    (folder / "student.safetensors").write_bytes(WEIGHTS)
    (folder / "student.pth").write_bytes(b"pickled")
    (folder / "student_config.py").write_bytes(b"model = {}")
    (folder / "student_last.safetensors").write_bytes(b"at the end")
    (folder / "student_last.pth").write_bytes(b"pickled at the end")
    (folder / "detections.json").write_text('{"student": [], "teacher": []}')
    body = {
        "dataset": "shapes",
        "teacher": {"detector": "gfl_r18w32_fpn32", "checkpoint": str(service.roots / "teacher.safetensors")},
        "student": {"detector": "gfl_r18w8_fpn32"},
        "recipe": {"iterations": 2, "batch": 2, "image_size": 64},
        "policy": "pkd",
    }
    made = []
    good = {"checkpoint": "job/1/student.safetensors", "checkpoint_pth": "job/1/student.pth", "detections": "job/1/detections.json"}
    good |= {"checkpoint_last": "job/1/student_last.safetensors", "checkpoint_last_pth": "job/1/student_last.pth"}
    good["config"] = "job/1/student_config.py"
    good["digests"] = {"checkpoint": DIGEST}
    for artifacts in (good, {"checkpoint": "../../../../etc/passwd"}):
        one = service.http.post("/distill", json=body).json()["id"]
        with service.store.begin() as session:
            claim = jobs.claim(session, worker="test", lease_seconds=30, job_id=jobs.of_distillation(session, one).id)
            jobs.finish(session, claim, {"student": {"ap": 31.2}})
            row = distillations.get(session, one)
            metrics = {"student": {"ap": 31.2, "ap50": 54.0}}
            result = results.create(
                session,
                row,
                policy=PKD,
                ap=31.2,
                metrics=metrics,
                evidence={"seeds": [3]},
                artifacts=artifacts,
                environment={"device": "cpu"},
            )
            distillations.succeed(session, one)
        made.append((one, result.id))
    return made


def test_a_result_carries_its_evidence(service, finished):
    distillation, result = finished[0]
    seen = service.http.get(f"/distill/{distillation}").json()
    assert (seen["state"], seen["result_id"], seen["progress"]["fraction"], seen["progress"]["best_ap"]) == ("SUCCEEDED", result, 1.0, 31.2)
    document = service.http.get(f"/results/{result}").json()
    assert document["kind"] == "distill"
    assert document["distillation_id"] == distillation
    assert document["formula"] == "5·l2(standardize(global))"
    assert document["ap"] == 31.2
    assert document["metrics"]["student"]["ap50"] == 54.0
    assert document["evidence"] == {"seeds": [3]}
    assert document["checkpoint"] is True
    assert "job/1" not in json.dumps(document)  # no path of the service's machine


@pytest.mark.parametrize(
    ("format", "suffix", "content"),
    [
        ("safetensors", "safetensors", WEIGHTS),
        ("pth", "pth", b"pickled"),
        ("config", "py", b"model = {}"),
        ("last", "safetensors", b"at the end"),
        ("last_pth", "pth", b"pickled at the end"),
    ],
)
def test_the_checkpoint_is_a_file(service, finished, format, suffix, content):
    answer = service.http.get(f"/results/{finished[0][1]}/checkpoint", params={"format": format})
    assert answer.status_code == 200
    assert answer.content == content
    assert f'filename="student-{finished[0][1]}.{suffix}"' in answer.headers["content-disposition"]
    assert answer.headers["content-type"] == "application/octet-stream"


def test_the_checkpoint_comes_under_its_digest_whole_or_in_ranges(service, finished):
    path = f"/results/{finished[0][1]}/checkpoint"
    whole = service.http.get(path)
    assert whole.headers["etag"] == f'"{DIGEST}"'
    assert whole.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(DIGEST)).decode()}:"
    assert int(whole.headers["content-length"]) == len(WEIGHTS)

    def part(wanted: str, **headers: str):
        return service.http.get(path, headers={"Range": wanted, **headers})

    for wanted, start, stop in (("bytes=2-5", 2, 6), ("bytes=399998-", 399_998, 400_000), ("bytes=-3", 399_997, 400_000)):
        answer = part(wanted)
        assert (answer.status_code, answer.content) == (206, WEIGHTS[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/400000"
        assert answer.headers["etag"] == f'"{DIGEST}"'
    assert part("bytes=0-9", **{"If-Range": f'"{DIGEST}"'}).status_code == 206
    for ignored in (part("bytes=0-9", **{"If-Range": '"another"'}), part("bytes=0-1,4-5"), part("lines=1-2"), part("bytes=5-2")):
        assert (ignored.status_code, ignored.content) == (200, WEIGHTS)
    beyond = part("bytes=400000-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */400000")
    assert "400000 bytes" in beyond.json()["detail"]
    known = service.http.get(path, headers={"If-None-Match": f'"another", "{DIGEST}"'})
    assert (known.status_code, known.content) == (304, b"")


def test_a_damaged_and_a_lost_checkpoint_are_told_with_both_digests(service, finished):
    path = Path(service.settings.artifacts_place) / "job" / "1" / "student.safetensors"
    try:
        path.write_bytes(b"rot")
        found = hashlib.sha256(b"rot").hexdigest()
        for told in (f"expected SHA-256 {DIGEST}, found {found}", f"expected a file with SHA-256 {DIGEST}, found none"):
            answer = service.http.get(f"/results/{finished[0][1]}/checkpoint")
            assert answer.status_code == 500
            assert answer.json()["type"] == "urn:detkds:problem:artifact-damaged"
            assert told in answer.json()["detail"]
            path.unlink(missing_ok=True)
    finally:
        path.write_bytes(WEIGHTS)


def test_the_policy_comes_with_the_configuration_of_its_student(service, finished):
    path = Path(service.settings.artifacts_place) / "job" / "1" / "student_config.py"
    document = service.http.get(f"/results/{finished[0][1]}/policy").json()
    assert document == {"policy": PKD, "formula": "5·l2(standardize(global))", "config": "model = {}"}
    assert service.http.get(f"/results/{finished[1][1]}/policy").json() == {**document, "config": None}, "its trainer left none"
    try:
        path.unlink()
        answer = service.http.get(f"/results/{finished[0][1]}/policy")
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:detkds:problem:artifact-damaged")
    finally:
        path.write_bytes(b"model = {}")


def test_detections_are_a_document(service, finished):
    answer = service.http.get(f"/results/{finished[0][1]}/detections")
    assert answer.json() == {"student": [], "teacher": []}
    assert "its trainer left none" in service.http.get(f"/results/{finished[1][1]}/detections").json()["detail"]


def test_a_checkpoint_outside_the_artifacts_is_not_given(service, finished):
    answer = service.http.get(f"/results/{finished[1][1]}/checkpoint")
    assert answer.status_code == 404
    assert b"root:" not in answer.content


def test_other_formats_are_refused_with_those_that_are(service, finished):
    answer = service.http.get(f"/results/{finished[0][1]}/checkpoint", params={"format": "onnx"})
    assert answer.status_code == 422
    assert "'safetensors', 'pth', 'config', 'last' or 'last_pth'" in answer.json()["errors"][0]["message"]


def test_the_result_of_a_search_has_no_checkpoint_and_says_how_to_get_one(service, wanted):
    search_id = service.http.post("/searches", json=wanted).json()["id"]
    with service.store.begin() as session:
        search = searches.get(session, search_id)
        searches.start(session, search)
        searches.confirm(session, search)
        evidence = {"seeds": [3, 4, 5]}
        result = results.create(
            session, search, policy=PKD, ap=30.0, metrics={"verdict": "…"}, evidence=evidence, artifacts={}, environment={}
        )
        searches.succeed(session, search)
    assert service.http.get(f"/searches/{search_id}").json()["result_id"] == result.id
    answer = service.http.get(f"/results/{result.id}/checkpoint")
    assert answer.status_code == 404
    assert "POST /distill" in answer.json()["detail"]
    document = service.http.get(f"/results/{result.id}/policy").json()
    assert document == {"policy": PKD, "formula": "5·l2(standardize(global))", "config": None}, "it has no student of its own"
    kinds = {item["kind"] for item in service.http.get("/results", params={"kind": "search"}).json()["items"]}
    assert kinds == {"search"}


@pytest.mark.parametrize("path", ["", "/checkpoint", "/policy", "/report"])
def test_a_result_that_is_not_there_is_404(service, path):
    for result in ("none", "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa", "..%2F..%2Fetc%2Fpasswd"):
        assert service.http.get(f"/results/{result}{path}").status_code == 404
