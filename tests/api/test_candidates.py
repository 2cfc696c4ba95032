"""`GET /searches/ID/candidates`: where each policy came from, every measurement of it, and what lets some of them through."""

import pytest

from detkds_core.store import jobs
from detkds_core.store import searches as stored

TERM = {"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2"}


@pytest.fixture
def tried(service, wanted):
    """The path of the candidates of a search: a reference, a seed and its two children, one of which a gate refused, and a combination."""
    search = service.http.post("/searches", json=wanted).json()["id"]
    rows = [
        ("reference", None, "reference", []),
        ("stage1", "global", "seed", []),
        ("stage1", "global", "mutate", [1]),
        ("stage1", "fgbg", "migrate", [1, 2]),
        ("stage2", None, "combine", [1, 2]),
    ]
    with service.store.begin() as session:
        proposals = [
            {
                "index": n,
                "policy": {"terms": [{**TERM, "weight": n + 1.0}]},
                "stage": stage,
                "island": island,
                "operator": how,
                "parents": parents,
            }
            for n, (stage, island, how, parents) in enumerate(rows)
        ]
        stored.propose(session, search, proposals, [str(n) for n in range(5)])
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search).id
        for number, members, rung, replicate in ((0, [0, 1, 2, 3], 1, 0), (1, [1], 2, 0), (2, [1], 2, 1), (3, [4], 1, 0)):
            stored.try_out(session, search, number, members, rung=rung, replicate=replicate, seed=3 + replicate, job_id=job)
        for number, index, figures in (
            (0, 0, {"ap": 10.0, "iterations": 5, "seconds": 1.0}),
            (0, 1, {"ap": 12.0, "lenient_ap": 40.0, "iterations": 5, "seconds": 1.5}),
            (0, 2, {"rejected": {"gate": "descent", "detail": "its loss rises"}, "iterations": 4, "seconds": 0.5}),
            (0, 3, {"failure": {"kind": "not_finite", "detail": "nan"}, "iterations": 1, "seconds": 0.1}),
            (1, 1, {"ap": 20.0, "iterations": 2, "seconds": 3.0}),
            (2, 1, {"ap": 22.0, "iterations": 2, "seconds": 3.0}),
        ):
            stored.measure(session, search, number, index, figures)
    return f"/searches/{search}/candidates"


def read(service, path, **parameters):
    """The whole list, in pages of two."""
    found, cursor = [], None
    while True:
        answer = service.http.get(path, params={"limit": 2, **parameters, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200, answer.text
        found += answer.json()["items"]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return found


def test_every_measurement_of_a_candidate_is_shown_with_its_rung_and_seed(service, tried):
    reference, seed, refused, failed, waiting = read(service, tried)
    common = {"replicate": 0, "seed": 3, "state": "MEASURED", "lenient_ap": None, "iterations": 2, "seconds": 3.0}
    assert seed["rungs"] == [
        common | {"number": 0, "rung": 1, "ap": 12.0, "lenient_ap": 40.0, "iterations": 5, "seconds": 1.5},
        common | {"number": 1, "rung": 2, "ap": 20.0},
        common | {"number": 2, "rung": 2, "replicate": 1, "seed": 4, "ap": 22.0},
    ]
    assert (seed["ap"], seed["rung"], seed["iterations"], seed["parents"], seed["operator"]) == (21.0, 2, 9, [], "seed")
    assert [one["ap"] for one in reference["rungs"]] == [10.0]
    assert (refused["parents"], refused["rejected"]["gate"], refused["rungs"][0]["state"]) == ([1], "descent", "REJECTED")
    assert (failed["parents"], failed["failure"]["kind"], failed["rungs"][0]["ap"]) == ([1, 2], "not_finite", None)
    assert (waiting["state"], waiting["rungs"][0]["state"], waiting["rungs"][0]["ap"]) == ("PROPOSED", "PROPOSED", None)


@pytest.mark.parametrize(
    ("asked", "indices"),
    [
        ({"state": "MEASURED"}, [0, 1]),
        ({"island": "global"}, [1, 2]),
        ({"operator": "migrate"}, [3]),
        ({"stage": "stage2"}, [4]),
        ({"island": "global", "state": "REJECTED"}, [2]),
        ({"operator": "crossover"}, []),
        ({}, [0, 1, 2, 3, 4]),
    ],
)
def test_candidates_are_narrowed_to_state_stage_island_and_operator(service, tried, asked, indices):
    assert [one["index"] for one in read(service, tried, **asked)] == indices


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"state": "DONE"}, "'PROPOSED', 'MEASURED', 'INFEASIBLE', 'REJECTED' or 'DUPLICATE'"),
        ({"island": "colour"}, "'global', 'fgbg', 'instance', 'logits' or 'localization'"),
        ({"operator": "guess"}, "'reference', 'warm', 'seed', 'sample'"),
        ({"gate": "descent"}, "there is no parameter 'gate'; one of limit, cursor, state, stage, island, operator"),
    ],
)
def test_what_candidates_cannot_be_narrowed_to_is_told(service, tried, asked, message):
    answer = service.http.get(tried, params=asked)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], message in error["message"]) == (f"?{next(iter(asked))}", True), error


def test_a_cursor_belongs_to_its_filters(service, tried):
    cursor = service.http.get(tried, params={"limit": 1, "island": "global"}).json()["next_cursor"]
    answer = service.http.get(tried, params={"cursor": cursor, "island": "fgbg"})
    assert answer.status_code == 422
    assert "belongs to a list with other filters" in answer.json()["errors"][0]["message"]
