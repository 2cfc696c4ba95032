"""What a request costs does not depend on how much a search has tried, nor the statements of a page on how long it is."""

import pytest

from detkds_core.store import jobs
from detkds_core.store import searches as stored

WIDE = {"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2"}


def try_out(service, search_id, first, last):
    """Candidates of a search, measured in a job each, as the evolver and its workers would."""
    with service.store.begin() as session:
        for index in range(first, last):
            policy = {"terms": [{**WIDE, "weight": index + 1.0}]}
            proposal = {"index": index, "policy": policy, "stage": "stage1", "island": "global", "operator": "seed", "parents": []}
            job = jobs.enqueue(session, kind="evaluate", spec={"rung": 1, "candidates": [{"index": index}]}, search_id=search_id)
            stored.propose(session, search_id, [proposal], [f"key {index}"])
            stored.try_out(session, search_id, index, [index], rung=1, replicate=0, seed=1, job_id=job.id)
            claim = jobs.claim(session, worker="w", lease_seconds=60, job_id=job.id)
            assert jobs.finish(session, claim, {"candidates": []})
            assert jobs.collect(session, job)
            assert stored.measure(session, search_id, index, index, {"ap": 20.0 + index / 1000, "images": 4, "iterations": 1})


@pytest.fixture(scope="module")
def search(service):
    """A running search with a job at work."""
    wanted = {
        "dataset": "shapes",
        "teacher": {"detector": "gfl_r18w32_fpn32", "checkpoint": str(service.roots / "teacher.safetensors")},
        "student": {"detector": "gfl_r18w8_fpn32"},
        "candidates": 2000,
        "recipe": {"iterations": 2, "batch": 2, "image_size": 64},
    }
    made = service.http.post("/searches", json=wanted).json()["id"]
    with service.store.begin() as session:
        stored.start(session, stored.get(session, made))
        job = jobs.enqueue(session, kind="evaluate", spec={"rung": 1, "candidates": [{"index": 0}]}, search_id=made)
        assert jobs.claim(session, worker="w", lease_seconds=3600, job_id=job.id)
    try_out(service, made, 0, 20)
    return made


def test_a_request_reads_no_more_of_a_search_that_has_tried_more(service, search, database_work):
    with service.store.read() as session:
        job = jobs.of_search(session, search)[0].id
    paths = (
        "/searches",
        f"/searches/{search}",
        f"/searches/{search}/candidates?limit=10",
        f"/jobs?search={search}&limit=10",
        f"/jobs/{job}",
    )

    def costs():
        found = {}
        for path in paths:
            with database_work() as done:
                answer = service.http.get(path)
                assert answer.status_code == 200, answer.text
            found[path] = done
        return found

    costs()  # what is only done once, such as making connections
    few = costs()
    shown = service.http.get(f"/searches/{search}").json()
    assert (shown["progress"]["done"], shown["best"]["index"]) == (20, 19)
    try_out(service, search, 20, 320)
    many = costs()
    shown = service.http.get(f"/searches/{search}").json()
    assert (shown["progress"]["done"], shown["best"]["index"]) == (320, 319)
    for path in paths:
        assert many[path]["statements"] == few[path]["statements"]
        assert many[path]["steps"] <= 1.2 * few[path]["steps"], (path, few[path], many[path])


def test_a_page_of_searches_is_as_many_statements_as_one_of_them(service, search, wanted, database_work):
    for seed in range(5):
        assert service.http.post("/searches", json={**wanted, "seed": seed}).status_code == 202

    def statements(path):
        service.http.get(path)
        with database_work() as done:
            answer = service.http.get(path).json()
        return done["statements"], len(answer["items"])

    (one, shown), (all_, everything) = statements("/searches?limit=1"), statements("/searches?limit=50")
    assert (shown, everything) == (1, 6)
    assert all_ == one
