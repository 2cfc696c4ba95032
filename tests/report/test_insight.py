"""What a search teaches, on searches whose answer is known."""

import json
import random

import pytest

from detkds_core.report.insight import genes, insight


def term(knowledge="global", transforms=("none", "none", "norm_N"), distance="l1"):
    return {"knowledge": knowledge, "transforms": list(transforms), "distance": distance, "weight": 2.0}


def row(index, terms, ap=None, stage="stage1", **more):
    return {"index": index, "policy": {"terms": terms}, "stage": stage, "island": None, "operator": "sample", "ap": ap, **more}


def additive(noise=0.3, count=80):
    """AP is 20, and 4 with `global`, 2 with `catt`, nothing for any distance, and a little noise."""
    rng = random.Random(1)
    rows = [row(0, [], 20.0, "reference", cost={"seconds": 2.0, "iterations": 100})]
    for index in range(1, count):
        knowledge, attention, distance = rng.choice(["global", "logits"]), rng.choice(["none", "catt", "satt"]), rng.choice(["l1", "l2"])
        ap = 20 + 4 * (knowledge == "global") + 2 * (attention == "catt") + rng.gauss(0, noise)
        cost = {"seconds": 1.5, "iterations": 100}
        rows.append(row(index, [term(knowledge, (attention, "none", "none"), distance)], ap, cost=cost))
    return rows


def test_genes_are_what_a_policy_is_made_of():
    policy = {"terms": [term(), term("fgbg", ("catt", "none", "none"), "l2")], "distillers": [{"name": "fgd"}]}
    assert genes(policy) == {
        "knowledge global", "knowledge fgbg", "transform norm_N", "transform catt", "distance l1", "distance l2", "distiller fgd"
    }  # fmt: skip


def test_effects_are_found_with_their_uncertainty():
    found = {line["gene"]: line for line in insight(additive())["effects"]}
    assert found["knowledge global"]["effect"] - found["knowledge logits"]["effect"] == pytest.approx(4, abs=0.5)
    low, high = found["transform catt"]["interval"]
    assert low < 2 < high + 0.2
    assert low > 1
    assert found["distance l1"]["interval"][0] < 0 < found["distance l1"]["interval"][1]
    assert found["transform satt"]["interval"][0] < 0 < found["transform satt"]["interval"][1]
    assert insight(additive()) == insight(additive()), "the same every time"
    json.dumps(insight(additive()), allow_nan=False)


def test_what_the_top_shares():
    first, second = insight(additive())["shared"][:2]
    assert {first["gene"], second["gene"]} == {"knowledge global", "transform catt"}
    assert (first["top"], first["top_of"], first["all_of"]) == (8, 8, 79)
    assert first["p"] < 0.01


def test_the_chance_of_the_top_by_hand():
    # 10 candidates, 5 with catt, and those are the top 5: 1 of binomial(10, 5) = 252 ways
    rows = [row(i, [term(transforms=("catt" if i < 5 else "none", "none", "none"))], 30.0 - i) for i in range(10)]
    line = insight(rows)["shared"][0]
    assert (line["gene"], line["top"], line["all"]) == ("transform catt", 5, 5)
    assert line["p"] == pytest.approx(1 / 252)


def test_each_knowledge_against_no_distillation_by_hand():
    rows = [row(0, [], 20.0, "reference"), row(1, [term("global")], 23.0), row(2, [term("global")], 25.0), row(3, [term("logits")], 19.0)]
    rows.append(row(4, [term("global"), term("logits")], 30.0, "stage2"))  # of both, so of neither alone
    first, second = insight(rows)["knowledge"]
    # mean 24, s = sqrt(2), t(1) = 12.7062: half = 12.7062
    assert (first["knowledge"], first["candidates"], first["gain"], first["best_gain"]) == ("global", 2, 4.0, 5.0)
    # two values 2 apart: t(1) = 12.7062 times their deviation, sqrt(2), times sqrt(1 / 2 + 1)
    assert first["interval"] == pytest.approx([4 - 12.7062 * 3**0.5, 4 + 12.7062 * 3**0.5], abs=1e-3)
    assert (second["knowledge"], second["gain"], second["interval"]) == ("logits", -1.0, None)


def test_what_was_rejected_and_what_it_cost():
    rows = [
        *additive(count=6),
        row(6, [term("fgbg")], rejected={"gate": "descent", "detail": "the gap grew"}, cost={"seconds": 0.25}),
        row(7, [term("fgbg")], rejected={"gate": "descent", "detail": "the loss grew"}),
        row(8, [term()], failure={"kind": "not_finite", "detail": "step 3"}),
    ]
    found = insight(rows)
    assert [(line["gate"], line["candidates"]) for line in found["rejected"]] == [("descent", 2), ("training: not_finite", 1)]
    assert found["rejected"][0]["knowledge"] == {"fgbg": 2}
    assert found["rejected"][0]["examples"][0] == {"index": 6, "detail": "the gap grew"}
    assert found["cost"] == [
        {"stage": "reference", "candidates": 1, "measured": 1, "cost": {"seconds": 2.0, "iterations": 100}},
        {"stage": "stage1", "candidates": 8, "measured": 5, "cost": {"seconds": 7.75, "iterations": 500}},
    ]


def test_how_far_each_gate_can_be_trusted_is_of_the_funnel():
    figures = {
        "refused": 2,
        "audited": 1,
        "falsely_rejected": 0,
        "false_reject_rate": 0.0,
        "false_reject_interval": [0, 0.8],
        "seconds": 1.5,
    }
    assert insight([], funnel={"gates": {"descent": figures}})["gates"] == [{"gate": "descent", **figures}]
    assert insight([])["gates"] == insight([], funnel={"audited": 0})["gates"] == []


def test_rungs_do_not_mix():
    """Two of six came to rung 1, where AP is higher for everybody; effects are of rung 0, the top is of rung 1."""
    rows = []
    for index in range(6):
        trials = [{"rung": 0, "replicate": 0, "ap": 10.0 + index}, {"rung": 0, "replicate": 1, "ap": 12.0 + index}]
        if index in (1, 2):
            trials.append({"rung": 1, "replicate": 0, "ap": 40.0 - index})
        rows.append({**row(index, [term("global" if index % 2 else "logits")]), "trials": trials})
    found = insight(rows)
    assert found["rung"] == 0
    assert {line["knowledge"]: line["mean"] for line in found["knowledge"]} == {"global": 14.0, "logits": 13.0}
    assert found["shared"][0]["top_of"] == 5


def test_nothing_measured_teaches_nothing_but_what_failed():
    found = insight([row(0, [term()], failure={"kind": "bug", "detail": "x"})])
    assert (found["shared"], found["knowledge"], found["effects"]) == ([], [], [])
    assert found["rejected"][0]["candidates"] == 1
    assert insight([])["cost"] == []
