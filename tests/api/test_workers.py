"""The fleet over HTTP: who works on what, workers that drain, why something waits, who may be urgent, and a disk that is nearly full."""

from collections.abc import Iterator

import httpx2
import pytest

from detkds_core.store import Store, jobs, keys, workers
from detkds_core.store.queue import Device

OPERATOR = "0123456789abcdef0123456789abcdef"  # of the `guarded` service
TRAINING = {"pair": "digits_gfl", "policy": "pkd", "recipe": {"iterations": 5}}
GPU = Device("GPU-5d0f", 1, 12)


def client(url: str, secret: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=30, trust_env=False, headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def store(service) -> Store:
    """The store of the open service, in which nothing of an earlier test waits or works."""
    with service.store.begin() as session:
        for job_id in [*jobs.waiting(session), *(one.job_id for one in workers.held(session))]:
            jobs.cancel(session, job_id)
        for one in workers.standings(session):
            workers.drain(session, one.worker.id, draining=False)
            workers.leave(session, one.worker.name)
    return service.store


@pytest.fixture
def team(guarded) -> Iterator[dict[str, httpx2.Client]]:
    """Clients of the guarded service: two owners, an admin, the operator."""
    url, settings = guarded
    made = {"operator": client(url, OPERATOR)}
    with Store(settings.url).begin() as session:
        for owner, scope in (("vision", "run"), ("robots", "run"), ("head", "admin")):
            made[owner] = client(url, keys.create(session, name="test", owner=owner, scope=scope)[1])
    yield made
    for one in made.values():
        one.close()


def present(store: Store, name: str, *, take: bool = False) -> jobs.Claim | None:
    with store.begin() as session:
        workers.present(session, name, seconds=60, device=GPU)
        return jobs.claim(session, worker=name, device=GPU, lease_seconds=60) if take else None


def test_workers_are_listed_with_the_job_of_the_search_that_each_device_holds(service, wanted, store):
    training = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe", "seed")}
    one = service.http.post("/distill", json={**training, "policy": "pkd", "name": "mine"}).json()
    assert one["waiting"] == "no worker is there"
    present(store, "gpu-1")
    held = present(store, "gpu-0", take=True)
    busy, idle = service.http.get("/workers").json()["items"]
    assert {**busy, "id": None} == {
        "id": None,
        "name": "gpu-0",
        "device": "GPU-5d0f",
        "gpus": 1,
        "memory_gib": 12,
        "state": "busy",
        "present": True,
        "disk_low": False,
        "job": {"id": held.job_id, "owner": "", "search_id": None, "distillation_id": one["id"], "name": "mine"},
    }
    assert (idle["name"], idle["state"], idle["job"]) == ("gpu-1", "idle", None)
    job = service.http.get(f"/jobs/{held.job_id}").json()
    assert (job["state"], job["worker"], job["device"], job["waiting"]) == ("RUNNING", "gpu-0", "GPU-5d0f", None)
    assert (job["distillation_id"], job["kind"], job["attempt"]) == (one["id"], "distill", 1)
    assert service.http.get(f"/distill/{one['id']}").json()["waiting"] is None
    for path in ("/jobs/no-such-job", "/jobs/0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"):
        assert service.http.get(path).status_code == 404


def test_a_worker_is_drained_and_taken_back(service, wanted, store):
    training = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe", "seed")}
    service.http.post("/distill", json={**training, "policy": "pkd"})
    present(store, "gpu-0", take=True)
    (worker,) = service.http.get("/workers").json()["items"]
    for _ in range(2):
        drained = service.http.post(f"/workers/{worker['id']}/drain")
        assert (drained.status_code, drained.json()["state"]) == (200, "draining")
    waiting = service.http.post("/distill", json={**training, "policy": "pkd", "seed": 9}).json()
    assert waiting["waiting"] == "all workers are draining"
    assert service.http.get("/distill?limit=1").json()["items"][0]["waiting"] == "all workers are draining"
    assert present(store, "gpu-0", take=True) is None
    assert service.http.post(f"/workers/{worker['id']}/undrain").json()["state"] == "busy"
    assert service.http.post("/workers/no-such-worker/drain").status_code == 404


def test_why_a_search_and_its_jobs_wait_is_told(service, wanted, store):
    search = service.http.post("/searches", json={**wanted, "device_memory_gib": 24}).json()
    assert (search["device_memory_gib"], search["waiting"]) == (24, "no evolver is there")
    with store.begin() as session:
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search["id"], device_memory_gib=24).id
    present(store, "gpu-0")
    sentence = "needs 1 GPU with 24 GiB; no worker has that: gpu-0 has 1 GPU with 12 GiB"
    assert service.http.get(f"/searches/{search['id']}").json()["waiting"] == sentence
    assert service.http.get(f"/jobs/{job}").json()["waiting"] == sentence
    assert service.http.post(f"/searches/{search['id']}/pause").json()["waiting"] == "paused"
    assert service.http.get(f"/jobs/{job}").json()["waiting"] == "paused"
    assert service.http.post(f"/searches/{search['id']}/cancel").json()["waiting"] is None


def test_only_an_admin_may_be_more_urgent_than_the_others(team, guarded):
    refused = team["vision"].post("/distill", json={**TRAINING, "priority": 1})
    assert refused.status_code == 403
    problem = refused.json()
    assert problem["errors"][0]["pointer"] == "/priority"
    assert "1 is more than a key with scope 'run' may ask for; at most 0 (DETKDS_PRIORITY_MAX)" in problem["detail"]
    low = team["vision"].post("/distill", json={**TRAINING, "priority": -5}).json()
    assert low["priority"] == -5
    for who in ("head", "operator"):
        made = team[who].post("/distill", json={**TRAINING, "priority": 100})
        assert (made.status_code, made.json()["priority"]) == (202, 100)
    with Store(guarded[1].url).read() as session:
        assert jobs.of_distillation(session, low["id"]).priority == -5
        assert jobs.of_distillation(session, made.json()["id"]).priority == 100
    beyond = team["operator"].post("/distill", json={**TRAINING, "priority": 101})
    assert beyond.status_code == 422
    assert beyond.json()["errors"][0]["pointer"] == "/priority"
    urgent = team["vision"].post(f"/distill/{low['id']}/clone", json={"priority": 1})
    assert (urgent.status_code, urgent.json()["errors"][0]["pointer"]) == (403, "/priority"), "a clone is asked as any other"
    search = {"pair": "digits_gfl", "candidates": 12, "priority": 1}
    assert team["robots"].post("/searches", json=search).status_code in (403, 429)  # 429: its quota of iterations is less
    assert team["head"].post("/searches", json=search).json()["priority"] == 1


def test_draining_needs_an_admin_and_the_work_of_others_is_not_named(team, guarded):
    store = Store(guarded[1].url)
    with store.begin() as session:
        workers.present(session, "gpu-7", seconds=60, device=GPU)
    mine = team["robots"].post("/distill", json={**TRAINING, "name": "secret"}).json()
    with store.begin() as session:
        held = jobs.claim(session, worker="gpu-7", lease_seconds=60, job_id=jobs.of_distillation(session, mine["id"]).id)
    seen = {who: team[who].get("/workers").json()["items"][0] for who in ("robots", "vision", "head")}
    assert seen["robots"]["job"]["name"] == seen["head"]["job"]["name"] == "secret"
    assert set(seen["vision"]["job"].values()) == {None}
    assert "secret" not in team["vision"].get("/workers").text
    assert team["vision"].get(f"/jobs/{held.job_id}").status_code == 404
    assert team["robots"].get(f"/jobs/{held.job_id}").json()["owner"] == "robots"
    path = f"/workers/{seen['head']['id']}/drain"
    for who, status in (("vision", 403), ("head", 200)):
        assert team[who].post(path).status_code == status
    assert team["vision"].post(path.replace("drain", "undrain")).status_code == 403
    assert team["operator"].post(path.replace("drain", "undrain")).json()["state"] == "busy"
    team["robots"].post(f"/distill/{mine['id']}/cancel")


def test_no_new_work_is_taken_while_the_disk_is_nearly_full(service, wanted, monkeypatch):
    header = {"Idempotency-Key": "before-the-disk-was-full"}
    before = service.http.post("/searches", json=wanted, headers=header).json()
    monkeypatch.setattr(service.settings, "disk_free_gib", 1e9)
    training = {**{name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")}, "policy": "pkd"}
    for path, body in (("/searches", wanted), ("/distill", training)):
        answer = service.http.post(path, json=body)
        assert answer.status_code == 507, answer.text
        problem = answer.json()
        assert problem["type"] == "urn:detkds:problem:no-room"
        assert f"jobs leave files ({service.settings.filled_folder}), 1e+09 are needed (DETKDS_DISK_FREE_GIB)" in problem["detail"]
    assert service.http.post("/searches", json=wanted, headers=header).json()["id"] == before["id"], "what is known is told"
    monkeypatch.setattr(service.settings, "disk_free_gib", 0.0)
    assert service.http.post("/distill", json=training).status_code == 202


@pytest.mark.parametrize(("field", "value"), [("priority", 101), ("priority", -101), ("priority", 0.5), ("device_memory_gib", 0)])
def test_what_is_no_priority_or_no_memory_is_refused_with_its_field(service, wanted, field, value):
    answer = service.http.post("/searches", json={**wanted, field: value})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/{field}"]


def test_the_same_key_with_another_priority_is_another_request(service, wanted):
    header = {"Idempotency-Key": "urgent-or-not"}
    first = service.http.post("/searches", json={**wanted, "priority": 3}, headers=header)
    assert first.json()["priority"] == 3
    assert service.http.post("/searches", json={**wanted, "priority": 3}, headers=header).json()["id"] == first.json()["id"]
    assert service.http.post("/searches", json=wanted, headers=header).status_code == 422
