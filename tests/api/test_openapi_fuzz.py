"""The service does what its OpenAPI document says: schemathesis asks every operation what fits the document and what does not, alone and
in sequences, with a key and without, and finds nothing.

`DETKDS_FUZZ_EXAMPLES=100 python -m pytest tests/api/test_openapi_fuzz.py` asks more (half an hour), with another seed every time.
"""

import hashlib
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

from detkds_core.store import distillations, jobs, results, workers

from .earlier import succeeded

EXAMPLES = os.environ.get("DETKDS_FUZZ_EXAMPLES")
CONFIG = Path(__file__).with_name("schemathesis.toml")
OFTEN = """
# Which characters of all Unicode are printable, schemathesis does not know; of this alphabet (Latin and Thai), all that are no controls.
[generation]
codec = "tis-620"
max-examples = {each}

[phases.stateful.generation]
codec = "tis-620"
max-examples = {sequences}
"""
EVERY_DAY = """
# Their bodies are those of POST /searches and POST /distill.
[[operations]]
include-path = ["/searches/preview", "/searches/{search_id}/clone", "/distill/{distillation_id}/clone"]
phases.coverage.enabled = false
"""
FOUND = [("!none", 2, 10.0), ("l1[balanced](global)", 2, 20.0), ("l2[balanced](fgbg)", 1, 15.0)]


def ids(service):
    """Something of each kind that there is: `{name of the parameter: ids}`."""
    http, wanted = service.http, service.search()
    search, found = succeeded(service, wanted, FOUND)
    waiting = http.post("/searches", json=wanted).json()["id"]
    body = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")} | {"policy": "pkd"}
    done, queued = (http.post("/distill", json=body).json()["id"] for _ in range(2))
    content = (service.roots / "teacher.safetensors").read_bytes()
    upload = {"name": "sent", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    checkpoints = [upload, {"name": "taken", "path": str(service.roots / "teacher.safetensors")}]
    with service.store.begin() as session:
        workers.present(session, "cpu-0", seconds=86_400)
        (worker,) = (one.worker.id for one in workers.standings(session))
        job = jobs.of_distillation(session, done).id
        jobs.finish(session, jobs.claim(session, worker="cpu-0", lease_seconds=60, job_id=job), {})
        artifacts = {"checkpoint": f"{job}/1/student.safetensors", "detections": f"{job}/1/detections.json"}
        rest = {"policy": {"terms": []}, "ap": 31.2, "metrics": {}, "evidence": {}, "environment": {}}
        result = results.create(session, distillations.get(session, done), artifacts=artifacts, **rest).id
        distillations.succeed(session, done)
        held = jobs.enqueue(session, kind="evaluate", spec={}, search_id=waiting).id
        assert jobs.claim(session, worker="cpu-0", lease_seconds=86_400, job_id=held)
    folder = Path(service.settings.artifacts_place) / job / "1"
    folder.mkdir(parents=True)
    (folder / "student.safetensors").write_bytes(content)
    (folder / "detections.json").write_text(json.dumps({"student": [], "teacher": []}))
    (folder / "trainer.log").write_text("begun\n")
    return {
        "search_id": [search, waiting],
        "distillation_id": [done, queued],
        "result_id": [result, found],
        "checkpoint_id": [http.post("/checkpoints", json=one).json()["id"] for one in checkpoints],
        "job_id": [job, held],
        "worker_id": [worker],
        "key_id": [http.post("/keys", json={"name": "laptop", "owner": "somebody"}).json()["id"]],
        "ids": [f"{result},{found}"],
    }


def configured(service):
    """The configuration for a service, with what is known of it."""
    text = CONFIG.read_text()
    for parameter, values in ids(service).items():
        text += f"\n[dictionaries.{parameter}]\nvalues = {json.dumps(values)}\n"
    if service.settings.api_key:
        text += f'\n[auth.openapi.key]\nbearer = "{service.settings.api_key.get_secret_value()}"\n'
    text += OFTEN.format(each=EXAMPLES or 3, sequences=EXAMPLES or 15)
    return text if EXAMPLES else text + EVERY_DAY


def test_schemathesis_finds_nothing(whole_service, tmp_path):
    (tmp_path / "schemathesis.toml").write_text(configured(whole_service))
    how = ["--seed", str(secrets.randbits(32))] if EXAMPLES else ["--generation-deterministic"]
    if not EXAMPLES and not whole_service.settings.api_key:
        how += ["--phases", "fuzzing,stateful"]  # a key changes little of the rest
    (tmp_path / "openapi.json").write_bytes(whole_service.http.get("/openapi.json").content)
    command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", whole_service.url, *how]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
