"""`detkds logs`: what a trainer wrote, as people read it."""

import json
import threading
import time

import pytest

from detkds_client.client import Client
from detkds_core.store import jobs
from detkds_core.store.artifacts import scratch_folder


@pytest.fixture
def training(service, wanted):
    """A distillation whose job runs its second attempt; (its id, the job's claim, the folder of its attempts)."""
    asked = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")}
    distillation = service.http.post("/distill", json={**asked, "policy": "pkd"}).json()["id"]
    job_id = service.http.get("/jobs", params={"distillation": distillation}).json()["items"][0]["id"]
    for ends in (True, False):
        with service.store.begin() as session:
            claim = jobs.claim(session, worker="w", lease_seconds=600, job_id=job_id)
            if ends:
                jobs.fail(session, claim, kind="bug", detail="x")
    folder = scratch_folder(service.settings.home) / job_id
    for attempt in ("1", "2"):
        (folder / attempt).mkdir(parents=True)
        (folder / attempt / "trainer.log").write_text(f"attempt {attempt}\n")
    yield distillation, claim, folder
    with service.store.begin() as session:
        jobs.finish(session, claim, {})


def test_the_log_of_any_attempt_is_printed(detkds, training):
    distillation, claim, _ = training
    assert detkds("logs", claim.job_id).stdout == "attempt 2\n"
    assert detkds("logs", distillation).stdout == "attempt 2\n"
    assert detkds("logs", claim.job_id, "--attempt", "1").stdout == "attempt 1\n"
    assert json.loads(detkds("logs", distillation, "--json").stdout)["logs"] == [1, 2]
    assert f"of attempt 1, 2: detkds logs {claim.job_id}" in " ".join(detkds("job", claim.job_id).stdout.split())
    refused = detkds("logs", claim.job_id, "--attempt", "7")
    assert refused.returncode == 1
    assert "has no log of attempt 7; there are logs of: 1, 2" in refused.stderr


def test_a_log_is_followed_until_its_attempt_ends(service, training):
    _, claim, folder = training

    def write() -> None:
        with (folder / "2" / "trainer.log").open("ab") as file:
            for part in (b"step 1, l\xc3", b"\xa4uft\n", b"x" * 70_000, b"\nend\n"):
                time.sleep(0.15)
                file.write(part)
                file.flush()
        with service.store.begin() as session:
            jobs.finish(session, claim, {})

    writer = threading.Thread(target=write)
    writer.start()
    with Client(service.url) as client:
        text = "".join(client.read_log(claim.job_id, 2, follow=True, poll=0.05))
    writer.join()
    assert text == "attempt 2\nstep 1, läuft\n" + "x" * 70_000 + "\nend\n"


def test_what_has_no_log_says_why_and_a_search_lists_its_jobs(detkds, service, wanted):
    search = service.http.post("/searches", json={**wanted, "name": "with jobs"}).json()["id"]
    with service.store.begin() as session:
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search)
    listed = detkds("logs", search)
    assert listed.returncode == 0, listed.stderr
    assert job.id in listed.stdout
    waiting = detkds("logs", job.id)
    assert (waiting.returncode, "is QUEUED; no attempt of it has left a log yet" in " ".join(waiting.stderr.split())) == (1, True)
    nothing = detkds("logs", "no-such-id")
    assert (nothing.returncode, "neither" in nothing.stderr) == (1, True)


def test_readiness_and_metrics_from_python(service):
    with Client(service.url) as client:
        assert client.ready()["status"] == "ready"
        assert "detkds_workers{" in client.metrics()
