"""`GET /search-space`: what a search on a pair would choose from, with the figures that its preview has."""

import time
from dataclasses import replace

import pytest

from detkds_core.catalogue import DETECTORS, PAIRS

GFL, SMALL_GFL, RETINANET = "gfl_r18w32_fpn32", "gfl_r18w8_fpn32", "retinanet_r18w8_fpn32"


def space(service, **asked):
    answer = service.http.get("/search-space", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def errors(service, **asked):
    answer = service.http.get("/search-space", params=asked)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


@pytest.mark.parametrize("student", [SMALL_GFL, RETINANET])
def test_it_is_the_space_that_a_search_is_previewed_with(service, wanted, student):
    body = {**wanted, "student": {"detector": student}}
    preview = service.http.post("/searches/preview", json=body).json()
    told = space(service, teacher=GFL, student=student, dataset="shapes", batch=wanted["recipe"]["batch"])
    assert {one["name"]: one["formulas"] for one in told["knowledge"]} == preview["formulas"]
    assert told["excluded"] == preview["excluded"]
    searched = preview["spec"]["space"]
    weights = {one["name"]: one["weights"] for one in told["knowledge"]}
    assert weights["global"] == searched["feature_weights"]
    assert weights.get("logits", searched["response_weights"]) == searched["response_weights"]
    assert (told["classes"], told["images_per_batch"]) == (2, 2)


def test_names_are_told_by_place_and_only_those_that_a_legal_formula_has(service):
    told = space(service, pair="digits_gfl", space="full")
    assert (told["teacher"], told["student"], told["classes"], told["images_per_batch"]) == (GFL, "gfl_r18w16_fpn32", 10, 8)
    known = {one["name"]: one for one in told["knowledge"]}
    assert [one["place"] for one in known["global"]["transforms"]] == ["attention", "scale", "normalisation"]
    boxes = known["localization"]
    # Two transforms, seven distances, four regions: no points without RepPoints, no deltas at cells, no squared kl_edges.
    assert boxes["transforms"] == [{"place": "transform", "names": ["none", "pow2"]}]
    assert boxes["distances"] == ["l1", "iou", "giou", "diou", "kl_edges"]
    assert boxes["regions"] == ["all", "foreground", "assigned", "valuable"]
    assert boxes["lacking"] == {"proposals": "neither has a RoI head"}
    assert (boxes["combinations"], boxes["legal"], boxes["formulas"]) == (2 * 7 * 4, 4 * 9, 4 * 9)
    assert boxes["refused"] == {"boxes at cells, or of proposals": 4 * 3, "needs edges or points": 4 * 2}
    assert known["global"]["regions"] == ["all", "teacher_score"]
    one_image = {one["name"]: one for one in space(service, pair="digits_gfl", space="full", batch=1)["knowledge"]}
    gone = {"natt", "norm_N", "softmax_N", "logsoftmax_N", "mm", "sqrt"}  # sqrt needs natt before it
    before, after = ({name for place in one["global"]["transforms"] for name in place["names"]} for one in (known, one_image))
    assert before - after == gone, "what compares images needs two of them"


def test_published_weights_and_names_are_detkds_own(service):
    told = space(service, pair="digits_gfl", weights="published")
    known = {one["name"]: one for one in told["knowledge"]}
    assert known["global"]["weights"] == [1.0, 2.0, 5.0, 10.0]
    assert known["logits"]["weights"] == [0.1, 1.0, 2.0]
    assert known["global"]["combinations"] == 5 * 8 * 15 * 8
    assert all(one["regions"] == ["all"] and one["lacking"] == {} for one in known.values())


def test_a_pair_that_can_exchange_nothing_is_told_why(service, monkeypatch):
    monkeypatch.setitem(DETECTORS, "fine", replace(DETECTORS[GFL], name="fine", strides=(1, 2)))
    told = space(service, teacher="fine", student=SMALL_GFL)
    assert told["knowledge"] == []
    assert set(told["excluded"]) == {"global", "fgbg", "instance", "logits", "localization"}
    assert all(why.startswith("no pyramid level in common") for why in told["excluded"].values())


def test_wrong_parameters_are_named_with_what_would_be_right(service):
    pairs = ", ".join(PAIRS)
    assert errors(service) == {"?pair": f"is required: one of {pairs}; or give teacher and student, detectors of GET /detectors"}
    assert errors(service, teacher=GFL) == {"?student": f"is required, unless 'pair' names one of {pairs}"}
    found = errors(service, pair="digits", teacher="gfl", student="yolo", dataset="pets")
    assert found["?pair"].startswith("'digits' is not a pair of the catalogue; did you mean digits_gfl")
    assert found["?teacher"].startswith("'gfl' is not a known detector; one of ")
    assert found["?student"].startswith("'yolo' is not a known detector; did you mean yolox_s or yolox_tiny?")
    assert found["?dataset"] == "'pets' is not a known dataset; one of digits, trees, shapes; POST /datasets registers yours"
    assert errors(service, pair="digits_gfl", space="all") == {"?space": "'all' should be 'published' or 'full'"}
    assert "there is no parameter 'batches'; one of pair, teacher" in errors(service, pair="digits_gfl", batches=2)["?batches"]


def test_a_pair_is_counted_once(service):
    asked = {"pair": "digits_gfl", "space": "full", "batch": 7}
    first = space(service, **asked)
    began = time.monotonic()
    assert space(service, **asked, weights="published")["knowledge"][0]["formulas"] == first["knowledge"][0]["formulas"]
    assert time.monotonic() - began < 0.5, "the first answer takes seconds"


def test_a_batch_is_that_of_the_students_recipe(service):
    assert space(service, teacher="retinanet_r101_fpn", student="retinanet_r50_fpn")["images_per_batch"] == 4
    assert space(service, teacher=GFL, student=SMALL_GFL)["images_per_batch"] == 8
