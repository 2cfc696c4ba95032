"""What tells how the service is: whether it can work, what there is to watch, what trainers wrote, and its own log."""

import json
import logging
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from detkds_api import health
from detkds_api.metrics import Requests
from detkds_api.settings import Settings
from detkds_core import logs
from detkds_core.store import Store, distillations, jobs, searches, workers
from detkds_core.store.artifacts import artifacts_at, scratch_folder
from detkds_core.store.clock import db_time
from detkds_core.store.models import Candidate

OPERATOR = {"Authorization": "Bearer 0123456789abcdef0123456789abcdef"}  # of the `guarded` service
DATASET = {"name": "shapes", "digest": "d1"}
MEASURED = {"policy": {}, "policy_key": "k", "stage": "s", "operator": "o", "parents": [], "state": "MEASURED"}
SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")


def samples(text: str) -> dict[str, float]:
    """Every sample of an exposition by its name and labels; each must belong to the metric that was declared last."""
    found: dict[str, float] = {}
    declared = ""
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            declared = line.split()[2]
        elif not line.startswith("#"):
            matched = SAMPLE.fullmatch(line)
            assert matched, line
            name = re.sub(r"_(bucket|sum|count)$", "", matched[1]) if declared not in (matched[1],) else matched[1]
            assert name == declared, line
            assert line.rpartition(" ")[0] not in found, line
            found[line.rpartition(" ")[0]] = float(matched[3])
    assert text.endswith("\n")
    return found


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., str]:
    """What `GET /ready` would name of a home, after a change to it."""

    def missing(change: Callable[[Settings], object] = lambda _: None, **settings: Any) -> str:
        made = Settings(home=tmp_path, **settings)
        store = Store(made.url)
        store.migrate()
        change(made)
        found = health.Readiness(store, made).missing()
        store.close()
        return "; ".join(f"{one.pointer}: {one.message}" for one in found)

    return missing


def test_a_service_that_has_all_it_needs_is_ready(service):
    answer = service.http.get("/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "checked": ["database", "artifacts"]})


def test_what_is_missing_is_named(broken, tmp_path):
    def age(settings: Settings) -> None:
        with sqlite3.connect(tmp_path / "detkds.sqlite") as connection:
            connection.execute("UPDATE alembic_version SET version_num = '0001'")

    def block(settings: Settings) -> None:
        Path(settings.artifacts_place).write_text("a file where a folder should be")

    assert broken() == ""
    assert broken(block, artifacts=str(tmp_path / "blocked")) == "artifacts: cannot be written (Not a directory)"
    assert broken(age, artifacts=str(tmp_path / "other")).startswith("database: has the schema 0001, this code needs ")
    with sqlite3.connect(tmp_path / "detkds.sqlite") as connection:
        connection.execute("DROP TABLE alembic_version")
    settings = Settings(home=tmp_path, artifacts=str(tmp_path / "other"))
    found = health.Readiness(Store(settings.url), settings).missing()
    assert found[0].message.startswith("has the schema -, this code needs ")


def test_a_database_or_a_broker_that_is_away_is_named_without_a_word_of_where(tmp_path, redis_server):
    url = "postgresql+psycopg://detkds:hidden-password@127.0.0.1:1/detkds"
    dead = Settings(home=tmp_path, database_url=url, broker_url="redis://:hidden-password@127.0.0.1:1/0")
    found = health.Readiness(Store(dead.url), dead).missing()
    assert [(one.pointer, one.message) for one in found] == [("database", "does not answer"), ("broker", "does not answer")]
    alive = Settings(home=tmp_path, broker_url=redis_server)
    store = Store(alive.url)
    store.migrate()
    readiness = health.Readiness(store, alive)
    assert (readiness.missing(), readiness.checked) == ((), ["database", "artifacts", "broker"])


def test_not_ready_is_a_problem_while_the_process_lives(guarded, monkeypatch):
    url, _ = guarded
    with httpx2.Client(base_url=url, trust_env=False) as anybody:
        assert anybody.get("/ready").status_code == 200
        monkeypatch.setattr(health, "head", lambda: "9999")
        time.sleep(health.KNOWN_SECONDS + 0.1)
        answer = anybody.get("/ready")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "5"
        (one,) = answer.json()["errors"]
        assert one["pointer"] == "database"
        assert one["message"].endswith("this code needs 9999: python -m detkds_core.store")
        assert answer.json()["detail"] == f"database: {one['message']}"
        assert anybody.get("/health").status_code == 200
        time.sleep(health.KNOWN_SECONDS + 0.1)


def test_metrics_tell_of_queue_workers_gpus_searches_and_failures(guarded):
    url, settings = guarded
    store = Store(settings.url)
    gpu = {"uuid": "GPU-1", "name": 'An "A"', "memory_bytes": 80 << 30, "memory_used_bytes": 1 << 30, "use": None}
    with store.begin() as session:
        search = searches.create(session, name="s", spec={}, dataset=DATASET, owner="watched")
        searches.start(session, search)
        session.add(Candidate(search_id=search.id, index=0, ap=27.5, rung=15, **MEASURED))
        waiting = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search.id, priority=99)
        jobs.enqueue(session, kind="confirm", spec={}, search_id=search.id)
        for name in ("one", "two", "emptied", "gone"):
            workers.present(session, name, seconds=600, gpu_use=[gpu])
        standings = {one.worker.name: one.worker for one in workers.standings(session)}
        workers.drain(session, standings["emptied"].id, draining=True)
        standings["gone"].expires_at = db_time(-1)
    with store.begin() as session:
        claim = jobs.claim(session, worker="one", lease_seconds=600, job_id=waiting.id)
        jobs.renew(session, claim, lease_seconds=600, progress={"done": 3, "total": 4, "step_seconds": 0.125})
    with store.begin() as session:
        other = jobs.enqueue(session, kind="distill", spec={})
    with store.begin() as session:
        jobs.fail(session, jobs.claim(session, worker="two", lease_seconds=600, job_id=other.id), kind="out_of_memory", detail="")
    answer = httpx2.get(f"{url}/metrics", headers=OPERATOR, trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    assert (
        found
        | {
            'detkds_jobs_waiting{kind="confirm",state="QUEUED",reason="new"}': 1,
            'detkds_jobs_waiting{kind="distill",state="QUEUED",reason="out_of_memory"}': 1,
            'detkds_jobs_running{kind="evaluate"}': 1,
            'detkds_training_step_seconds{kind="evaluate"}': 0.125,
            'detkds_workers{state="busy"}': 1,
            'detkds_workers{state="idle"}': 1,
            'detkds_workers{state="draining"}': 0,
            'detkds_workers{state="drained"}': 1,
            'detkds_workers{state="lost"}': 1,
            'detkds_gpu_memory_bytes{gpu="GPU-1",name="An \\"A\\""}': 80 << 30,
            'detkds_gpu_memory_used_bytes{gpu="GPU-1",name="An \\"A\\""}': 1 << 30,
            f'detkds_search_best_ap{{search_id="{search.id}"}}': 27.5,
            'detkds_attempt_failures_total{kind="out_of_memory"}': 1,
            'detkds_attempt_failures_total{kind="not_finite"}': 0,
            "detkds_attempts_lost_total": 0,
        }
        == found
    )
    assert not any("gpu_use_ratio{" in name for name in found), "what the driver does not tell is left out"


def test_metrics_need_a_key_that_reads_and_tell_of_its_own_searches(guarded):
    url, settings = guarded
    with Store(settings.url).begin() as session:
        search = searches.create(session, name="s", spec={}, dataset=DATASET, owner="owner of it")
        searches.start(session, search)
        session.add(Candidate(search_id=search.id, index=0, ap=3.0, rung=1, **MEASURED))
    with httpx2.Client(base_url=url, trust_env=False) as http:
        assert http.get("/metrics").status_code == 401
        for owner, sees in (("owner of it", True), ("somebody else", False)):
            secret = http.post("/keys", json={"name": "m", "owner": owner, "scope": "read"}, headers=OPERATOR).json()["secret"]
            answer = http.get("/metrics", headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == 200
            assert (search.id in answer.text) is sees


def test_requests_are_counted_by_route_and_never_by_what_a_client_writes(guarded):
    url, _ = guarded
    with httpx2.Client(base_url=url, trust_env=False, headers=OPERATOR) as http:
        before = samples(http.get("/metrics").text)
        for path in ("/searches/a", "/searches/b", "/wp-admin", "/.env", "/pages/dashboard.js"):
            http.get(path)
        http.request("BREW", "/searches")
        http.get("/searches", headers={"Authorization": "Bearer wrong"})
        after = samples(http.get("/metrics").text)
    counts = {name: count - before.get(name, 0) for name, count in after.items() if "requests_total" in name}
    grown = {name: count for name, count in counts.items() if count}
    assert grown == {
        'detkds_http_requests_total{method="GET",route="/searches/{search_id}",status="404"}': 2,
        'detkds_http_requests_total{method="GET",route="none",status="404"}': 2,
        'detkds_http_requests_total{method="GET",route="none",status="401"}': 1,
        'detkds_http_requests_total{method="GET",route="/pages",status="200"}': 1,
        'detkds_http_requests_total{method="GET",route="/metrics",status="200"}': 1,
        'detkds_http_requests_total{method="other",route="/searches",status="405"}': 1,
    }


def test_durations_are_a_histogram():
    requests = Requests()
    for seconds in (0.001, 0.005, 0.3, 60.0):
        requests.note("GET", "/x", 200, seconds)
    found = samples("".join(f"{line}\n" for line in requests.lines()))
    labels = 'method="GET",route="/x"'
    name = "detkds_http_request_duration_seconds"
    buckets = {bound: found[f'{name}_bucket{{{labels},le="{bound}"}}'] for bound in ("0.005", "0.25", "0.5", "10.0", "+Inf")}
    assert buckets == {"0.005": 2, "0.25": 2, "0.5": 3, "10.0": 3, "+Inf": 4}
    assert found[f"{name}_count{{{labels}}}"] == 4
    assert found[f"{name}_sum{{{labels}}}"] == pytest.approx(60.306)


@pytest.fixture
def trained(service) -> Iterator[tuple[str, Path]]:
    """A job that runs its second attempt; its id, and the folder in which that writes, with the log of both, the first one published."""
    with service.store.begin() as session:
        one = distillations.create(session, name="d", spec={}, dataset=DATASET)
        job_id = jobs.of_distillation(session, one.id).id
    with service.store.begin() as session:
        jobs.fail(session, jobs.claim(session, worker="w", lease_seconds=600, job_id=job_id), kind="bug", detail="x")
    with service.store.begin() as session:
        claim = jobs.claim(session, worker="w", lease_seconds=600, job_id=job_id)
    artifacts_at(service.settings.artifacts_place).put(f"{job_id}/1/trainer.log", b"first\nattempt\n")
    folder = scratch_folder(service.settings.home) / job_id
    for attempt, text in (("1", "first\nattempt\n"), ("2", "läuft ")):
        (folder / attempt).mkdir(parents=True)
        (folder / attempt / "trainer.log").write_text(text)
    yield job_id, folder
    with service.store.begin() as session:
        jobs.finish(session, claim, {})


def test_the_log_of_every_attempt_can_be_read_in_parts(service, trained):
    job_id, _ = trained
    job = service.http.get(f"/jobs/{job_id}").json()
    assert (job["state"], job["attempt"], job["logs"], job["failure"]) == ("RUNNING", 2, [1, 2], {"kind": "bug", "detail": "x"})
    part = service.http.get(f"/jobs/{job_id}/attempts/1/log").json()
    assert part == {"job_id": job_id, "attempt": 1, "offset": 0, "next_offset": 14, "size": 14, "ended": True, "text": "first\nattempt\n"}
    part = service.http.get(f"/jobs/{job_id}/attempts/1/log", params={"offset": 6}).json()
    assert (part["text"], part["offset"], part["next_offset"]) == ("attempt\n", 6, 14)
    part = service.http.get(f"/jobs/{job_id}/attempts/1/log", params={"offset": 99}).json()
    assert (part["text"], part["next_offset"], part["size"]) == ("", 99, 14)
    assert service.http.get(f"/jobs/{job_id}/attempts/2/log").json()["ended"] is False


def test_a_log_is_read_where_it_lies_when_its_attempt_has_ended(service, trained):
    """The scratch folder of a job goes with its end, and an attempt of another machine never was in this one's."""
    job_id, folder = trained
    artifacts = artifacts_at(service.settings.artifacts_place)
    artifacts.put(f"{job_id}/2/trainer.log", "läuft, vor dem Umzug".encode())
    path = f"/jobs/{job_id}/attempts/2/log"
    assert service.http.get(path).json()["text"] == "läuft ", "what is written now comes first"
    shutil.rmtree(folder)
    assert service.http.get(f"/jobs/{job_id}").json()["logs"] == [1, 2]
    part = service.http.get(path, params={"offset": 8, "limit": 16}).json()
    assert (part["text"], part["next_offset"], part["size"]) == ("vor dem Umzug", 21, 21)
    artifacts.remove(job_id)
    assert service.http.get(f"/jobs/{job_id}").json()["logs"] == []
    assert service.http.get(path).status_code == 404


def test_artifacts_that_are_away_hide_no_job(service, trained, monkeypatch, tmp_path):
    job_id, folder = trained
    shutil.rmtree(folder / "1")
    (tmp_path / "file").write_text("a file, where a folder should be")
    monkeypatch.setattr(service.settings, "artifacts", str(tmp_path / "file"))
    assert service.http.get(f"/jobs/{job_id}").json()["logs"] == [2]
    assert service.http.get(f"/jobs/{job_id}/attempts/2/log").json()["text"] == "läuft "
    answer = service.http.get(f"/jobs/{job_id}/attempts/1/log")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")


def test_a_character_that_is_cut_waits_for_its_other_half(service, trained):
    job_id, folder = trained
    with (folder / "2" / "trainer.log").open("ab") as file:
        file.write("0123456789ä".encode()[:-1])
    part = service.http.get(f"/jobs/{job_id}/attempts/2/log").json()
    assert (part["text"], part["next_offset"], part["size"]) == ("läuft 0123456789", 17, 18)
    with (folder / "2" / "trainer.log").open("ab") as file:
        file.write("ä".encode()[-1:] + b"\xff\n")
    assert service.http.get(f"/jobs/{job_id}/attempts/2/log", params={"offset": 17}).json()["text"] == "ä\ufffd\n"
    part = service.http.get(f"/jobs/{job_id}/attempts/2/log", params={"limit": 18}).json()
    assert (part["text"], part["next_offset"]) == ("läuft 0123456789", 17)


def test_a_log_that_is_not_there_is_told_with_those_that_are(service, trained):
    job_id, folder = trained
    answer = service.http.get(f"/jobs/{job_id}/attempts/3/log")
    assert answer.status_code == 404
    assert answer.json()["detail"] == f"job {job_id} has no log of attempt 3; there are logs of: 1, 2"
    for attempt, status in (("0", 422), ("x", 422), ("1001", 422), ("%2e%2e", 422)):
        assert service.http.get(f"/jobs/{job_id}/attempts/{attempt}/log").status_code == status
    (folder / "3").mkdir()
    (folder / "3" / "trainer.log").symlink_to("/etc/hostname")
    assert service.http.get(f"/jobs/{job_id}/attempts/3/log").status_code == 404


def test_jobs_are_listed_by_what_they_are_for(service, trained):
    job_id, _ = trained
    distillation = service.http.get(f"/jobs/{job_id}").json()["distillation_id"]
    assert [one["id"] for one in service.http.get("/jobs", params={"distillation": distillation}).json()["items"]] == [job_id]
    assert job_id in [one["id"] for one in service.http.get("/jobs", params={"state": "RUNNING"}).json()["items"]]
    assert service.http.get("/jobs", params={"search": distillation}).json()["items"] == []
    assert service.http.get("/jobs", params={"search": "' OR 1=1"}).json()["items"] == []
    with service.store.begin() as session:
        newer = jobs.enqueue(session, kind="evaluate", spec={}).id
    page = service.http.get("/jobs", params={"limit": 1}).json()
    assert [one["id"] for one in page["items"]] == [newer]
    rest = service.http.get("/jobs", params={"limit": 1, "cursor": page["next_cursor"]}).json()
    assert [one["id"] for one in rest["items"]] == [job_id]
    with service.store.begin() as session:
        jobs.cancel(session, newer)
    for asked, pointer in (({"kind": "distill"}, "?kind"), ({"cursor": page["next_cursor"], "state": "RUNNING"}, "?cursor")):
        answer = service.http.get("/jobs", params=asked)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_jobs_and_logs_are_their_owners(guarded):
    url, settings = guarded
    with Store(settings.url).begin() as session:
        one = distillations.create(session, name="d", spec={}, dataset=DATASET, owner="log owner")
        job_id = jobs.of_distillation(session, one.id).id
    artifacts_at(settings.artifacts_place).put(f"{job_id}/1/trainer.log", b"mine\n")
    with httpx2.Client(base_url=url, trust_env=False) as http:
        for owner, status in (("log owner", 200), ("log stranger", 404)):
            secret = http.post("/keys", json={"name": "l", "owner": owner, "scope": "read"}, headers=OPERATOR).json()["secret"]
            mine = {"Authorization": f"Bearer {secret}"}
            for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/attempts/1/log"):
                assert http.get(path, headers=mine).status_code == status
            assert [job["id"] for job in http.get("/jobs", headers=mine).json()["items"]] == ([job_id] if status == 200 else [])


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What the service writes while a test runs, as machines read it."""
    written: list[dict[str, Any]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(json.loads(logs.Json(()).format(record)))

    handler, log = Kept(), logging.getLogger("detkds.api")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    yield written
    log.removeHandler(handler)
    log.setLevel(level)


def test_what_changes_something_or_is_refused_is_logged_under_its_request_id(service, lines):
    search_id = "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"
    answer = service.http.post(f"/searches/{search_id}/cancel", headers={"X-Request-ID": "build-42-a"})
    assert (answer.headers["x-request-id"], answer.json()["request_id"]) == ("build-42-a", "build-42-a")
    service.http.get("/searches")
    service.http.get("/searches/x")
    cancelled, looked = lines
    assert {name: cancelled[name] for name in ("event", "level", "request_id", "search_id", "method", "route", "status")} == {
        "event": "request",
        "level": "INFO",
        "request_id": "build-42-a",
        "search_id": search_id,
        "method": "POST",
        "route": "/searches/{search_id}/cancel",
        "status": 404,
    }
    assert (looked["route"], looked["status"]) == ("/searches/{search_id}", 404)
    assert "search_id" not in looked, "what is no id is not written down"
