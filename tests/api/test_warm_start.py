"""A search that begins with the best policies of earlier ones: which are taken, and what each mistake is told."""

import pytest

from detkds_core.policy import formula, from_json
from detkds_core.store import distillations, results

from .earlier import succeeded


def errors(answer):
    """`{pointer: message}` of a problem."""
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


def begun_with(service, wanted, *ids):
    """The formulas of the seeds, and what the preview says of the rest."""
    bought = service.http.post("/searches/preview", json={**wanted, "warm_start": list(ids)})
    assert bought.status_code == 200, bought.text
    document = bought.json()
    made = service.http.post("/searches", json={**wanted, "warm_start": list(ids)}).json()
    assert made["spec"] == document["spec"]
    assert made["spec"]["warm_start"] == list(ids)
    found = [formula(from_json(policy)) for policy in made["spec"]["seeds"]]
    assert document["warm_start"]["policies"] == len(found)
    return found, document["warm_start"]["left_out"]


def test_the_confirmed_policy_comes_first_then_the_best_of_each_island(service, wanted):
    policies = [
        ("0.3·l1[balanced](global) + l2[balanced](logits)", 2, 20.0),
        ("!l2(global)", 2, 99.0),
        ("0.3·l1[balanced](global)", 2, 30.0),
        ("3·l1[balanced](global)", 2, 29.0),  # the same formula
        ("0.1·l1[balanced](norm_C(global))", 1, 50.0),  # a lower rung
        ("l1[balanced](norm_HW(global))", 1, 49.0),
        ("l1[balanced](satt(global))", 1, 48.0),  # the fourth
        ("l2[balanced](logits)", 1, 1.0),
        ("0.3·l1[balanced](global) + 0.3·l2[balanced](logits)", 2, 10.0),  # another weight
        ("l1[balanced](global) + l1[balanced](fgbg)", 1, 5.0),
    ]
    search, result = succeeded(service, wanted, policies)
    found, left_out = begun_with(service, wanted, search)
    assert found == [policies[place][0] for place in (0, 2, 4, 5, 9, 7)]
    assert left_out == {}
    assert begun_with(service, wanted, result) == (found, left_out), "its result names it too"


def test_on_the_same_images_only_the_search_says_who_is_best(service, wanted):
    policies = [("l1[balanced](fgbg)", 2, 1.0), ("l1[balanced](global)", 2, 2.0)]
    other, same = (succeeded(service, wanted, policies, dataset=name)[0] for name in ("elsewhere", "shapes"))
    assert begun_with(service, wanted, other)[0] == ["l1[balanced](fgbg)", "l1[balanced](global)"]
    assert begun_with(service, wanted, same)[0] == ["l1[balanced](global)", "l1[balanced](fgbg)"]


def test_several_searches_give_theirs_by_turns(service, wanted):
    one, _ = succeeded(service, wanted, [("l1[balanced](global)", 2, 9.0), ("l2[balanced](global)", 2, 8.0)])
    two, _ = succeeded(service, wanted, [("l1[balanced](fgbg)", 2, 3.0), ("l1[balanced](norm_C(global))", 2, 2.0)])
    found, _ = begun_with(service, wanted, one, two)
    assert found == ["l1[balanced](global)", "l1[balanced](fgbg)", "l2[balanced](global)", "l1[balanced](norm_C(global))"]


def test_what_this_pair_or_this_search_cannot_use_is_counted_with_its_reason(service, wanted):
    policies = [
        ("l1[balanced](global) + l2[balanced](logits)", 2, 9.0),
        ("l2[balanced](logits)", 2, 8.0),
        ("l1[balanced](instance)", 2, 7.0),
        ("l1[balanced](fgbg)", 2, 6.0),
    ]
    search, _ = succeeded(service, wanted, policies, winner="fgd")
    other = {**wanted, "student": {"detector": "retinanet_r18w8_fpn32"}, "knowledge": ["global", "fgbg"]}
    found, left_out = begun_with(service, other, search)
    assert found == ["l1[balanced](fgbg)"]
    assert left_out == {
        "this pair cannot exchange 'logits': the teacher has 1 prediction a cell, the student 3": 2,
        "this search leaves 'instance' out": 1,
        "it has learned parts, which no search varies": 1,
    }


def test_fixed_weights_of_another_pair_become_ratios(service, wanted):
    search, _ = succeeded(service, wanted, [("5·l1(global)", 2, 9.0), ("!2·l2(fgbg)", 2, 8.0)], winner=1)
    assert begun_with(service, wanted, search)[0] == ["2·l2(fgbg)", "l1[balanced](global)"], "a hand-designed weight is the policy's own"
    assert begun_with(service, {**wanted, "weights": "published"}, search)[0] == ["2·l2(fgbg)", "5·l1(global)"]


def test_references_are_not_proposed_twice(service, wanted):
    search, _ = succeeded(service, wanted, [("l1[balanced](global)", 2, 9.0)], winner="5·l2(standardize(global))")
    assert begun_with(service, wanted, search) == (["l1[balanced](global)"], {})


@pytest.mark.parametrize("algorithm", ["detkds", "random", "genetic"])
def test_every_algorithm_takes_them(service, wanted, algorithm):
    search, _ = succeeded(service, wanted, [("l1[balanced](global)", 2, 9.0)])
    assert begun_with(service, {**wanted, "algorithm": algorithm}, search)[0] == ["l1[balanced](global)"]


def test_a_preview_without_a_warm_start_does_not_speak_of_it(service, wanted):
    document = service.http.post("/searches/preview", json=wanted).json()
    assert document["warm_start"] is None
    assert document["spec"]["seeds"] == []
    assert "warm_start" not in document["spec"]


def test_every_mistake_is_told_where_it_is_and_what_would_be_right(service, wanted):
    search, result = succeeded(service, wanted, [("l1[balanced](global)", 2, 9.0)])
    waiting = service.http.post("/searches", json=wanted).json()["id"]
    with service.store.begin() as session:
        one = distillations.create(session, name="d", spec={}, dataset={"name": "shapes"})
        ended = results.create(session, one, policy={"terms": []}, ap=1.0, metrics={}, evidence={}, artifacts={}, environment={}).id
    unknown = "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"
    body = {**wanted, "warm_start": [search, "mine", unknown, waiting, result, ended]}
    for path in ("/searches", "/searches/preview"):
        assert errors(service.http.post(path, json=body)) == {
            "/warm_start/1": "there is no search and no result 'mine'; GET /searches?state=SUCCEEDED lists those that can be named",
            "/warm_start/2": f"there is no search and no result '{unknown}'; GET /searches?state=SUCCEEDED lists those that can be named",
            "/warm_start/3": f"search {waiting} is QUEUED; only one that has SUCCEEDED can be named",
            "/warm_start/4": f"search {search} is named twice",
            "/warm_start/5": f"{ended} is the result of a distillation; name a search that has SUCCEEDED, or its result",
        }
    assert "/warm_start" in errors(service.http.post("/searches", json={**wanted, "warm_start": ["x"] * 11}))
