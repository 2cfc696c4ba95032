"""Which recipe a request comes to: of the pair, of the student's configuration, of the search whose winner is trained, or the defaults."""

import json

import pytest

from detkds_core.catalogue import DETECTORS, PAIRS, Recipe
from detkds_core.catalogue.recipe import WHOLE
from detkds_core.catalogue.schedules import PROXY_STEPS
from detkds_core.store import datasets, distillations, results, searches

PKD = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0}]}
RETINANET = "retinanet_r50_fpn"
SOURCE = "MMDetection's retinanet/retinanet_r50_fpn_1x_coco.py"


@pytest.fixture
def request_for(wanted):
    """A distillation of a student without a pair; its dataset has 6 training images of 64 px."""

    def body(student, **changes):
        return {**{name: wanted[name] for name in ("dataset", "teacher")}, "student": {"detector": student}, "resize": True, **changes}

    return body


def distilled(service, body):
    answer = service.http.post("/distill", json={"policy": "pkd", **body})
    assert answer.status_code == 202, answer.text
    return answer.json()["spec"]


def refused(service, body, path="/distill"):
    answer = service.http.post(path, json={"policy": "pkd", **body} if path == "/distill" else body)
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


def test_a_wrong_number_hides_no_wrong_word(service, request_for):
    told = refused(service, request_for(RETINANET, recipe={"lr": -1, "optimizer": "adam"}))
    assert told["/recipe/lr"].startswith("-1")
    assert told["/recipe/optimizer"] == "'adam' is not known; one of adamw, sgd"


def test_without_a_pair_a_student_has_its_configurations_recipe(service, request_for):
    spec = distilled(service, request_for(RETINANET))
    published = DETECTORS[RETINANET].training.to_json()
    assert spec["recipe"] == published | {"batch": 4, "accumulate": 4, "warm_up": None}  # 500 would not end: 12 epochs are 5 iterations
    assert spec["recipe_from"] == {"base": SOURCE, "given": []}
    found = {name: spec["recipe"][name] for name in ("image_size", "short_side", "lr", "optimizer", "epochs", "milestones", "batch")}
    assert found == {
        "image_size": 1333,
        "short_side": 800,
        "lr": 0.01,
        "optimizer": "sgd",
        "epochs": 12,
        "milestones": [8, 11],
        "batch": 4,
    }


def test_a_small_student_has_the_defaults(service, request_for):
    spec = distilled(service, request_for("retinanet_r18w8_fpn32"))
    assert spec["recipe_from"] == {"base": "the defaults for small detectors", "given": []}
    assert (spec["recipe"]["iterations"], spec["recipe"]["epochs"], spec["recipe"]["image_size"], spec["recipe"]["lr"]) == (
        300,
        None,
        128,
        0.002,
    )
    assert "warnings" not in spec


def test_a_pairs_recipe_is_the_pairs(service):
    spec = distilled(service, {"pair": "digits_gfl", "recipe": {"iterations": 5}})
    assert spec["recipe"] == {**PAIRS["digits_gfl"].full.to_json(), "iterations": 5}
    assert spec["recipe_from"] == {"base": "the pair digits_gfl", "given": ["iterations"]}


def test_a_batch_of_ones_own_scales_the_rate_and_a_rate_of_ones_own_is_taken(service, request_for):
    spec = distilled(service, request_for(RETINANET, recipe={"batch": 4, "image_size": 64}))
    assert spec["warnings"] == ["the learning rate was scaled from 0.01 to 0.0025: 4 images a step instead of the 16 that the rate is for"]
    assert spec["recipe_from"]["given"] == ["batch", "image_size"]
    spec = distilled(service, request_for(RETINANET, recipe={"batch": 4, "image_size": 64, "lr": 0.003}))
    assert (spec["recipe"]["lr"], spec["recipe"]["auto_scale_lr"], spec.get("warnings")) == (0.003, False, None)


def test_a_published_step_is_split_for_the_devices_and_images_that_it_is_for(service, request_for):
    def forwards(student, **recipe):
        found = distilled(service, request_for(student, recipe=recipe))["recipe"]
        return found["batch"], found["accumulate"]

    assert forwards("rtmdet_s") == (16, 16)
    assert forwards(RETINANET, devices=2) == (8, 2)
    assert forwards(RETINANET, devices=8) == (16, 1)
    assert forwards(RETINANET, image_size=640) == (16, 1)
    assert forwards(RETINANET, batch=16) == (16, 1), "who says how a step is made has it so"
    assert forwards(RETINANET, accumulate=2) == (16, 2)
    spec = service.http.post("/searches/preview", json=request_for("rtmdet_s", candidates=12)).json()["spec"]
    assert (spec["recipe"]["batch"], spec["recipe"]["accumulate"]) == (16, 16)


def test_a_published_pairs_step_is_the_pairs(service, wanted):
    pair = "retinanet_r101_r50"
    body = {"pair": pair, **{name: wanted[name] for name in ("dataset", "teacher")}, "resize": True}
    assert distilled(service, body)["recipe"] == PAIRS[pair].full.to_json() | {"warm_up": None}  # its 24 epochs are 5 iterations


def test_null_leaves_out_what_cannot_be_null(service, request_for):
    spec = distilled(service, request_for(RETINANET, recipe={"epochs": 2, "iterations": None, "batch": None, "clip": None}))
    assert (spec["recipe"]["epochs"], spec["recipe"]["batch"], spec["recipe"]["clip"]) == (2, 4, None)
    assert spec["recipe_from"]["given"] == ["clip", "epochs"]


def test_another_optimizer_at_the_old_ones_rate_is_told(service, request_for):
    spec = distilled(service, request_for(RETINANET, recipe={"optimizer": "adamw", "image_size": 64}))
    assert spec["warnings"] == ["the learning rate of 0.01 is that of sgd, and the optimizer is adamw now; give lr too"]


def test_images_that_are_shown_far_larger_are_told(service, request_for):
    said = "the training images of 64 x 64 px (medians of longer and shorter sides) are shown as 800 x 800 px (recipe.image_size 1333)"
    assert distilled(service, request_for(RETINANET))["warnings"] == [f"{said}: 12.5 times larger"]
    body = request_for(RETINANET, candidates=12)
    assert f"{said}: 12.5 times larger" in service.http.post("/searches/preview", json=body).json()["spec"]["warnings"]


def test_a_dataset_of_an_earlier_version_does_not_say_how_large_its_images_are(service, request_for):
    with service.store.begin() as session:
        record = datasets.get(session, "shapes")
        whole, record.data = record.data, json.loads(json.dumps(record.data))
        assert record.data["train"].pop("sides") == [64, 64]
    assert "warnings" not in distilled(service, request_for(RETINANET))
    with service.store.begin() as session:
        datasets.get(session, "shapes").data = whole


def test_a_search_measures_its_candidates_with_an_affordable_part(service, request_for):
    def searched(**recipe):
        answer = service.http.post("/searches", json=request_for(RETINANET, candidates=12, recipe=recipe))
        assert answer.status_code == 202, answer.text
        return answer.json()["spec"]

    spec = searched(epochs=12)  # 5 iterations on 6 images
    assert (spec["recipe"]["epochs"], spec["rungs"], spec["recipe_from"]["base"]) == (12, [1, 5], SOURCE)
    with service.store.begin() as session:
        record = datasets.get(session, "shapes")
        whole, record.data = record.data, json.loads(json.dumps(record.data))
        record.data["train"]["count"] = 100_000
    spec = searched()
    assert (spec["recipe"]["epochs"], spec["recipe"]["iterations"], spec["rungs"][-1]) == (None, PROXY_STEPS, PROXY_STEPS)
    assert spec["recipe_from"] == {"base": f"{SOURCE}, shortened for a search", "given": []}
    spec = searched(epochs=1)  # 100,000 / 16
    assert (spec["recipe"]["epochs"], spec["rungs"][-1]) == (1, 6250)
    with service.store.begin() as session:
        datasets.get(session, "shapes").data = whole


def winner_of(service, body, **changed):
    """The specification of the training of a search's winner. changed: of the search's specification before."""
    search_id = service.http.post("/searches", json=body).json()["id"]
    with service.store.begin() as session:
        search = searches.get(session, search_id)
        search.spec = {name: value for name, value in {**search.spec, **changed}.items() if value is not None}
        searches.start(session, search)
        searches.confirm(session, search)
        results.create(session, search, policy=PKD, ap=31.5, metrics={}, evidence={}, artifacts={}, environment={})
        searches.succeed(session, search)
    return search_id, distilled(service, {"policy": {"search": search_id}})


def test_a_winner_is_trained_by_the_whole_recipe_with_what_its_search_was_given(service, request_for):
    short = {**DETECTORS[RETINANET].training.to_json(), "iterations": PROXY_STEPS, "epochs": None, "batch": 8}
    body = request_for(RETINANET, candidates=12, recipe={"batch": 8})
    _, spec = winner_of(service, body, recipe=short)
    assert (spec["recipe"]["epochs"], spec["recipe"]["batch"], spec["recipe"]["lr"]) == (12, 8, 0.01)
    assert spec["recipe_from"] == {"base": SOURCE, "given": ["batch"]}


@pytest.fixture
def many_images(service):
    """100,000 training images instead of 6: 12 epochs are 75,000 steps of 16."""
    with service.store.begin() as session:
        record = datasets.get(session, "shapes")
        whole, record.data = record.data, json.loads(json.dumps(record.data))
        record.data["train"]["count"] = 100_000
    yield
    with service.store.begin() as session:
        datasets.get(session, "shapes").data = whole


@pytest.mark.usefixtures("many_images")
@pytest.mark.parametrize(
    ("student", "given", "found", "left"),
    [
        (RETINANET, {"iterations": 2000}, {"epochs": 12, "milestones": [8, 11]}, "iterations"),
        (RETINANET, {"eval_every": 100, "batch": 8}, {"epochs": 12, "eval_every": 1, "batch": 8}, "eval_every"),
        (RETINANET, {"milestones": [1000, 1300]}, {"epochs": 12, "milestones": [8, 11]}, "milestones"),
        (RETINANET, {"warm_up": 100, "precision": "fp16"}, {"epochs": 12, "warm_up": 100, "precision": "fp16"}, None),
        (RETINANET, {"train_images": 2000, "lr": 0.02}, {"train_images": None, "lr": 0.02, "epochs": 12}, "train_images"),
        (RETINANET, {"epochs": 24, "eval_every": 2}, {"epochs": 24, "eval_every": 2, "milestones": None}, None),
        ("rtmdet_s", {"eval_every": 200}, {"epochs": 300, "eval_every": 10}, "eval_every"),
        ("deformable_detr_r50", {"milestones": [30]}, {"epochs": 50, "milestones": [40]}, "milestones"),
        ("gfl_r18w8_fpn32", {"iterations": 60, "eval_every": 20}, {"iterations": 300, "eval_every": None}, "eval_every, iterations"),
        ("gfl_r18w8_fpn32", {"iterations": 1000, "eval_every": 20}, {"iterations": 1000, "eval_every": 20}, None),
    ],
)
def test_how_long_candidates_are_trained_is_not_the_winners_length(service, request_for, student, given, found, left):
    search_id, spec = winner_of(service, request_for(student, candidates=12, recipe=given))
    assert {name: spec["recipe"][name] for name in found} == found
    lost = left.split(", ") if left else []
    assert spec["recipe_from"]["given"] == sorted(given.keys() - {*lost})
    notes = [note for note in spec.get("warnings", []) if "candidates" in note]
    said = f"of the recipe that search {search_id} was given, {left} stays with its candidates; give here what of that this training is"
    assert notes == ([f"{said} to have"] if left else [])


@pytest.mark.usefixtures("many_images")
def test_a_search_that_was_given_a_whole_recipe_leaves_its_length_to_its_candidates(service, request_for):
    published = DETECTORS[RETINANET].training.to_json()
    length = {"epochs": None, "iterations": 500, "milestones": [400], "eval_every": 50}
    adamw = {"optimizer": "adamw", "momentum": 0.5, "lr": 1e-4, "auto_scale_lr": False}  # whose momentum has no effect
    search_id, spec = winner_of(service, request_for(RETINANET, candidates=12, recipe={**published, **length, **adamw}))
    assert spec["recipe"] == {**published, **adamw}
    assert spec["recipe_from"]["base"] == SOURCE
    said = f"of the recipe that search {search_id} was given, epochs, eval_every, iterations, milestones stays with its candidates"
    assert [note for note in spec["warnings"] if note.startswith(said)]


def test_a_winner_whose_students_configuration_is_another_by_now_has_the_searchs_recipe(service, request_for):
    old = {**DETECTORS["rtmdet_s"].training.to_json(), "epochs": None, "iterations": 100, "schedule": "steps", "warm_up": 50}
    origin = {"base": "the configuration it had", "given": ["warm_up"]}
    search_id, spec = winner_of(service, request_for("rtmdet_s", candidates=12), recipe=old, recipe_from=origin)
    assert spec["recipe"] == old
    assert spec["recipe_from"] == {"base": f"the search {search_id}", "given": ["warm_up"]}
    said = f"what search {search_id} was given does not go over MMDetection's rtmdet/rtmdet_s_8xb32-300e_coco.py (recipe.warm_up: 50 has "
    assert [note for note in spec["warnings"] if note.startswith(said)]


def test_the_same_key_finds_what_an_earlier_version_made_of_the_same_request(service, request_for):
    """It kept no request, did not measure images, and had the defaults for all that was left out."""

    def asked(**recipe):
        body = request_for(RETINANET, policy="pkd", recipe={"batch": 2, **recipe})
        return service.http.post("/distill", json=body, headers={"Idempotency-Key": "of-before"})

    made = asked().json()["id"]
    with service.store.begin() as session:
        one = distillations.get(session, made)
        spec = json.loads(json.dumps(one.spec))
        del spec["recipe_from"], spec["dataset"]["train"]["sides"]
        one.request, one.spec = None, {**spec, "recipe": Recipe(batch=2).to_json()}
    assert asked().json()["id"] == made
    assert asked(batch=4).json()["type"] == "urn:detkds:problem:idempotency-key-reused"


def test_a_winner_of_a_search_of_an_earlier_version_is_trained_by_the_searchs_recipe(service, request_for):
    old = {"iterations": 7, "batch": 2, "image_size": 64, "warm_up": 500}
    search_id, spec = winner_of(service, request_for(RETINANET, candidates=12), recipe=old, recipe_from=None)
    assert {name: spec["recipe"][name] for name in old} == {**old, "warm_up": None}  # which had no effect
    assert spec["recipe_from"] == {"base": f"the search {search_id}", "given": []}


@pytest.mark.parametrize(
    ("student", "recipe", "where", "said"),
    [
        (RETINANET, {"epochs": 2, "iterations": 9}, "iterations", "9 beside 2 epochs has no effect; give the length in one of the two"),
        (RETINANET, {"warm_up": 5}, "warm_up", "5 iterations do not end within the 5 of the run"),
        (RETINANET, {"eval_every": 13}, "eval_every", "13 epochs are longer than the run of 12"),
        (RETINANET, {"schedule": "one_cycle", "milestones": [8]}, "milestones", "[8] has no effect under the schedule one_cycle"),
        ("gfl_r18w8_fpn32", {"momentum": 0.95}, "momentum", "0.95 has no effect under adamw; leave it out, or give optimizer sgd"),
        ("gfl_r18w8_fpn32", {"base_batch": 8}, "base_batch", "8 has no effect without auto_scale_lr"),
    ],
)
def test_what_would_have_no_effect_is_refused(service, request_for, student, recipe, where, said):
    body = request_for(student, recipe=recipe)
    (found,) = refused(service, body).items()
    assert found[0] == f"/recipe/{where}"
    assert found[1].startswith(said)
    assert f"/recipe/{where}" in refused(service, {**body, "candidates": 12}, "/searches")


def test_a_whole_recipe_may_be_asked_for_again(service, request_for):
    """As a client reads it from a specification, with what has no effect in it."""
    spec = distilled(service, request_for(RETINANET))
    assert distilled(service, request_for(RETINANET, recipe=spec["recipe"]))["recipe"] == spec["recipe"]
    assert distilled(service, request_for("gfl_r18w8_fpn32", recipe=spec["recipe"]))["recipe"] == spec["recipe"]


def test_fields_are_described_with_their_defaults(service):
    schema = service.http.get("/openapi.json").json()["components"]["schemas"]["RecipeChoice"]
    told = {name: field["description"] for name, field in schema["properties"].items()}
    assert all("default: " in description for description in told.values())
    assert told["iterations"] == "optimisation steps; default: 300"
    assert told["auto_scale_lr"].endswith("default: false")
    assert told["train_images"] == "null: all; default: null"
    assert "without one from MMDetection's configuration of the student" in " ".join(schema["description"].split())
    bounds = {
        name: (field["anyOf"][0]["minimum"], field["anyOf"][0]["maximum"]) for name, field in schema["properties"].items() if name in WHOLE
    }
    assert bounds == WHOLE


def test_detectors_say_how_they_are_trained(service):
    found = {one["name"]: one["training"] for one in service.http.get("/detectors").json()["detectors"]}
    assert found[RETINANET] == DETECTORS[RETINANET].training.to_json()
    assert found["gfl_r18w8_fpn32"] is None
