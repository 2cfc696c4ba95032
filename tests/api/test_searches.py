"""`/searches`: what is stored, and what each mistake is told."""

import copy
import json
import threading

import pytest

from detkds_core.store import jobs, workers
from detkds_core.store import searches as stored


def errors(answer, status=422):
    """`{pointer: message}` of a problem."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


def accepted(service, wanted):
    """The specification of a search that the service takes."""
    answer = service.http.post("/searches", json=wanted)
    assert answer.status_code == 202, answer.text
    return answer.json()["spec"]


def measure_one(service, search_id, **figures):
    """Propose and measure a policy of a search, as the evolver would."""
    policy = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 1.0}]}
    proposal = {"index": 0, "policy": policy, "stage": "stage1", "island": "global", "operator": "seed", "parents": []}
    with service.store.begin() as session:
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search_id)
        stored.propose(session, search_id, [proposal], ["k0"])
        stored.try_out(session, search_id, 0, [0], rung=1, replicate=0, seed=1, job_id=job.id)
        assert stored.measure(session, search_id, 0, 0, {"ap": 20.0, "ap50": 40.0, "ap75": 18.0, "images": 4} | figures)


def changed(document, path, value):
    """A copy of the document with one place changed: path `teacher.detector`."""
    document = copy.deepcopy(document)
    place = document
    *parents, last = path.split(".")
    for part in parents:
        place = place[part]
    place[last] = value
    return document


def test_a_search_is_stored_before_it_is_answered(service, wanted):
    answer = service.http.post("/searches", json={**wanted, "name": "first"})
    assert answer.status_code == 202, answer.text
    document = answer.json()
    assert answer.headers["location"] == f"/searches/{document['id']}"
    assert document["state"] == "QUEUED"
    assert document["progress"] == {
        "step": "waiting",
        "done": 0,
        "total": 20,  # student iterations that are expected: 12 candidates of 1, a third of them of 2; the budget is 80
        "fraction": 0.0,
        "best_ap": None,
        "seconds_left": None,
        "message": "",
    }
    with service.store.begin() as session:
        spec = stored.get(session, document["id"]).spec
    assert spec["seed"] == 3
    assert spec["candidates"] == 12
    assert spec["knowledge"] == ["global", "fgbg", "instance", "logits", "localization"]
    assert [len(policy["terms"]) for policy in spec["references"]] == [0, 1]  # no distillation, PKD
    assert (spec["group"], spec["parallelism"]) == (4, 2)  # candidates of a job, jobs at once
    assert spec["recipe"]["iterations"] == 2
    assert (spec["algorithm"], spec["rungs"], spec["budget"], spec["mode"]) == ("detkds", [1, 2], 80, "strict")
    assert spec["gates"] == ["finite", "gradient", "duplicate", "first_loss", "descent"]
    assert spec["space"]["balanced"] is True
    confirmation = spec["confirmation"]
    assert (confirmation["finalists"], confirmation["seeds"], confirmation["iterations"]) == (2, 5, 2)
    names = [one["name"] for one in confirmation["distillers"]]
    assert {"fitnets", "pkd", "cwd", "fgd", "mgd", "ld", "crosskd_gfl"} <= set(names), "all that this pair can run"
    assert not {"none", "pkd_two_stage", "crosskd", "detkds_fcos"} & set(names), "and that are meant for it"
    assert spec["dataset"]["classes"] == ["circle", "square"]
    assert spec["teacher"]["checkpoint"] == str(service.roots / "teacher.safetensors")
    assert spec["student"] == {"detector": "gfl_r18w8_fpn32", "checkpoint": None}
    assert spec["inherit"] is True
    assert service.http.get(answer.headers["location"]).json() == document


def test_an_unknown_detector_is_answered_with_those_that_are_called_alike(service, wanted):
    found = errors(service.http.post("/searches", json=changed(wanted, "student.detector", "yolo")))
    assert list(found) == ["/student/detector"]
    assert "'yolo' is not a known detector; did you mean yolox_s or yolox_tiny?" in found["/student/detector"]


def test_a_student_with_masks_needs_segmentations(service, wanted):
    masks = changed(wanted, "student.detector", "mask_rcnn_r18w8_fpn32")
    found = errors(service.http.post("/searches", json=masks))
    assert found == {
        "/student/detector": "mask_rcnn_r18w8_fpn32 learns masks too: no training annotation of this dataset has a segmentation; "
        "give a detector without masks, or a dataset with segmentations"
    }


def test_maskd_learns_with_a_teacher_of_masks_from_segmentations_alone(service, wanted):
    masks = {**wanted, "teacher": {**wanted["teacher"], "detector": "mask_rcnn_r18w32_fpn32"}}
    asked = {**masks, "references": ["none", "maskd"], "confirmation": {"distillers": ["maskd[steps=0]"]}}
    found = errors(service.http.post("/searches", json=asked))
    assert list(found) == ["/references/1"]
    assert "'maskd' first learns with the teacher, which learns masks too: no training annotation" in found["/references/1"]


def test_an_unknown_dataset_lists_the_known(service, wanted):
    found = errors(service.http.post("/searches", json={**wanted, "dataset": "/data/coco"}))
    assert "one of digits, trees, shapes" in found["/dataset"]


def test_a_teacher_with_other_classes_is_refused(service, wanted):
    other = changed(wanted, "teacher.checkpoint", str(service.roots / "other.safetensors"))
    message = errors(service.http.post("/searches", json=other))["/teacher/checkpoint"]
    assert "3 classes where the dataset has 2" in message
    assert "it does not know circle, square" in message
    assert "the dataset does not have cat, dog, cow" in message


def test_a_student_start_with_other_classes_is_refused(service, wanted):
    other = changed(wanted, "student.checkpoint", str(service.roots / "other.safetensors"))
    assert list(errors(service.http.post("/searches", json=other))) == ["/student/checkpoint"]


def test_an_illegal_term_is_named_by_its_place(service, wanted):
    good = {"knowledge": "global", "transforms": ["none", "none", "norm_C"], "distance": "l2", "weight": 2.0}
    bad = {**good, "transforms": ["none", "none", "norm_X"]}
    found = errors(service.http.post("/searches", json={**wanted, "references": ["none", {"terms": [good, bad]}]}))
    assert list(found) == ["/references/1/terms/1/transforms/2"]
    assert "norm_X" in found["/references/1/terms/1/transforms/2"]
    assert "norm_C" in found["/references/1/terms/1/transforms/2"]  # what would be right


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        ("candidates", 3, "/candidates", "greater than or equal to 4"),
        ("candidates", 100_001, "/candidates", "less than or equal to 100000"),
        ("candidates", None, "/candidates", "is required, unless 'iterations', 'hours' or"),
        ("references", ["none", "pkd", "fgd", "cwd", "mgd", "ld"] + [f"{n}·l1(global)" for n in range(2, 8)], "/candidates", "at least 13"),
        ("iterations", 0, "/iterations", "greater than or equal to 1"),
        ("iterations", 1, "/iterations", "1 are less than one full proxy of 2 iterations"),
        ("hours", 0, "/hours", "greater than 0"),
        ("hours", float("inf"), "/hours", "finite"),
        ("hours", 1.0, "/hours", "give 'candidates' or 'iterations' the first time"),
        ("algorithm", "annealing", "/algorithm", "'detkds', 'random', 'random_halving', 'evolution', 'genetic', 'tpe' or 'nsga2'"),
        ("weights", "learned", "/weights", "'balanced' or 'published'"),
        ("mode", "loose", "/mode", "'strict' or 'logged'"),
        ("rungs", [2], "/rungs", "not rising numbers from 1 to below the full proxy's 2 iterations"),
        ("rungs", [0], "/rungs", "not rising numbers"),
        ("rungs", [1, 1], "/rungs", "not rising numbers"),
        ("rungs", "all", "/rungs", "valid list"),
        ("group", 0, "/group", "greater than or equal to 1"),
        ("group", 65, "/group", "less than or equal to 64"),
        ("candidates", "12", "/candidates", "valid integer"),
        ("candidates", 12.5, "/candidates", "valid integer"),
        ("candidates", True, "/candidates", "valid integer"),
        ("seed", -1, "/seed", "greater than or equal to 0"),
        ("seed", 2**31, "/seed", "less than or equal"),
        ("name", "", "/name", "at least 1"),
        ("name", "x" * 121, "/name", "at most 120"),
        ("name", "a\u0000b", "/name", "cannot be printed"),
        ("name", "\ud800", "/name", "unicode"),
        ("knowledge", [], "/knowledge", "at least 1"),
        ("knowledge", ["global", "global"], "/knowledge/1", "twice"),
        ("knowledge", ["color"], "/knowledge/0", "'global', 'fgbg'"),
        ("references", ["nobody"], "/references/0", "one of none"),
        ("references", ["pkd", "pkd"], "/references/1", "same policy"),
        ("recipe.lr", 0, "/recipe/lr", "greater than 0"),
        ("recipe.lr", float("inf"), "/recipe/lr", "finite"),
        ("recipe.optimizer", "lion", "/recipe/optimizer", "one of adamw, sgd"),
        ("recipe.learning_rate", 0.1, "/recipe/learning_rate", "one of iterations, epochs, batch"),
        ("teacher", "my_retina", "/teacher", """'my_retina' should be an object: {"detector": ..., "checkpoint": ...}"""),
        ("teacher.weights", "x", "/teacher/weights", "one of detector, checkpoint"),
        ("budget", 3, "/budget", "one of name, pair, dataset"),
        ("confirmation", {"seeds": 2}, "/confirmation/seeds", "greater than or equal to 3"),
        ("confirmation", {"distillers": ["pkd", "ftinets"]}, "/confirmation/distillers/1", "not a named policy"),
        ("confirmation", {"distillers": "none"}, "/confirmation/distillers", "'all'"),
        ("parallelism", 0, "/parallelism", "greater than or equal to 1"),
        ("pair", "digits_yolo", "/pair", "did you mean digits_gfl"),
        ("teacher.checkpoint", "teacher.safetensors", "/teacher/checkpoint", "not an absolute path"),
        ("teacher.checkpoint", "/etc/passwd", "/teacher/checkpoint", "outside the registered folders"),
        ("teacher.checkpoint", "https://example.org/teacher.safetensors", "/teacher/checkpoint", "nothing is fetched"),
    ],
)
def test_every_mistake_is_told_where_it_is_and_what_would_be_right(service, wanted, path, value, where, message):
    body = json.dumps(changed(wanted, path, value))
    answer = service.http.post("/searches", content=body, headers={"Content-Type": "application/json"})
    assert message in errors(answer)[where]


def test_group_and_parallelism_do_not_depend_on_one_another(service, wanted):
    """A job trains `group` candidates; `parallelism` counts jobs."""
    for group, parallelism in ((8, 1), (1, 8)):
        answer = service.http.post("/searches", json={**wanted, "group": group, "parallelism": parallelism})
        assert answer.status_code == 202, answer.text
        assert (answer.json()["spec"]["group"], answer.json()["spec"]["parallelism"]) == (group, parallelism)


def test_candidates_buy_the_budget(service, wanted):
    """All pass the lowest rung after a look of 4 iterations, a third of each the next; six full proxies repeat the best."""
    spec = accepted(service, {**wanted, "candidates": 36, "recipe": {**wanted["recipe"], "iterations": 16}})
    assert spec["rungs"] == [4, 16]
    assert spec["budget"] == 36 * (4 + 4) + 12 * 16 + 6 * 16
    assert accepted(service, {**wanted, "candidates": 36, "algorithm": "random"})["budget"] == 36 * 2


def test_a_budget_in_iterations_needs_no_candidates(service, wanted):
    del wanted["candidates"]
    spec = accepted(service, {**wanted, "iterations": 5000})
    assert (spec["budget"], spec["candidates"]) == (5000, None)
    both = accepted(service, {**wanted, "iterations": 5000, "candidates": 20})
    assert (both["budget"], both["candidates"]) == (5000, 20)
    found = errors(service.http.post("/searches", json={**wanted, "iterations": 5000, "hours": 1.0}))
    assert found == {"/hours": "the budget is given in iterations already; leave one of them out"}


def test_hours_are_converted_by_what_the_pair_took_before(service, wanted):
    recipe = {**wanted["recipe"], "batch": 1}  # of no other test, for the pace is that of the newest search with the recipe
    del wanted["candidates"]
    wanted = {**wanted, "recipe": recipe, "hours": 0.5}
    for path in ("/searches", "/searches/preview"):
        message = errors(service.http.post(path, json=wanted))["/hours"]
        assert message.startswith("no iteration of this pair with this recipe has been measured yet")
    first = service.http.post("/searches", json={**wanted, "hours": None, "candidates": 12}).json()["id"]
    measure_one(service, first, iterations=20, seconds=5.0)
    assert accepted(service, wanted)["budget"] == 7200  # 1,800 s at 0.25 s
    bought = service.http.post("/searches/preview", json=wanted).json()
    assert (bought["iterations"], bought["seconds_an_iteration"]) == (7200, 0.25)
    assert bought["trunk_iterations"] in (1, 2, 3), "half a proxy of 2 iterations for each seed of it"
    iterations = 7200 + bought["trunk_iterations"] + bought["confirmation_iterations"]
    assert bought["seconds"] == pytest.approx(iterations * 0.25, abs=0.051)
    little = errors(service.http.post("/searches", json={**wanted, "hours": 0.0001}))
    assert little == {"/hours": "buys 1 iterations at 0.25 s each, less than one full proxy of 2"}


@pytest.fixture
def two_workers(service):
    with service.store.begin() as session:
        for name in ("w1", "w2"):
            workers.present(session, name, seconds=60)
        workers.present(session, "gone", seconds=-1)
    yield
    with service.store.begin() as session:
        for name in ("w1", "w2", "gone"):
            workers.leave(session, name)


def test_hours_by_the_clock_buy_what_the_workers_do_in_them_after_the_confirmation(service, wanted, two_workers):
    del wanted["candidates"]
    wanted["recipe"]["batch"] = 5  # of no other test
    first = service.http.post("/searches", json={**wanted, "candidates": 12}).json()["id"]
    measure_one(service, first, iterations=20, seconds=10.0)
    confirmation = {"seeds": 3, "finalists": 2, "iterations": 100, "distillers": ["pkd", "fgd"]}
    wanted |= {"wall_clock_hours": 0.5, "confirmation": confirmation}
    # 3 seeds of 6 students of 100 iterations at 0.5 s by two workers are 450 s: no distillation, two distillers, FitNets (of the default
    # references the first that is none of these) and two finalists. Both wait 1.5 s for the trunks of three seeds, an iteration each, and
    # have 1,348.5 s left for the search.
    spec = accepted(service, wanted)
    assert (spec["budget"], spec["asked"]) == (2697 * 2, {"wall_clock_hours": 0.5})
    assert accepted(service, {**wanted, "parallelism": 1})["budget"] == 2697
    assert accepted(service, {**wanted, "parallelism": 9})["budget"] == 2697 * 2
    bought = service.http.post("/searches/preview", json=wanted).json()
    trunks = bought["trunk_iterations"]
    assert (bought["iterations"], bought["workers"], bought["clock_seconds"]) == (5394, 2, 1798.5 + trunks * 0.5)
    assert bought["seconds"] == (5394 + trunks + 1800) * 0.5
    # The references that are given are distillers too: 375 s, and nobody else is confirmed.
    assert accepted(service, {**wanted, "references": ["none", "pkd"]})["budget"] == (1425 * 2 - 3) * 2
    little = errors(service.http.post("/searches", json={**wanted, "wall_clock_hours": 0.1}))
    assert little == {
        "/wall_clock_hours": "confirmation and trunks take 0.125 hours of it with the workers that are there (2), and what is left is less"
        " than one full proxy of 2 iterations; more than 0.126 hours, or fewer seeds, finalists or distillers"
    }
    both = errors(service.http.post("/searches", json={**wanted, "hours": 1.0}))
    assert both == {"/wall_clock_hours": "the budget is given in hours already; leave one of them out"}


def test_hours_by_the_clock_need_a_worker_and_a_pace(service, wanted):
    del wanted["candidates"]
    wanted["recipe"]["batch"] = 6  # of no other test
    wanted["wall_clock_hours"] = 1.0
    message = errors(service.http.post("/searches", json=wanted))["/wall_clock_hours"]
    assert message.startswith("no iteration of this pair with this recipe has been measured yet")
    first = service.http.post("/searches", json={**wanted, "wall_clock_hours": None, "candidates": 12}).json()["id"]
    measure_one(service, first, iterations=20, seconds=10.0)
    found = errors(service.http.post("/searches", json=wanted))
    assert found == {"/wall_clock_hours": "no worker is there to say how fast it goes; start one, or give 'hours' of one device"}
    bought = service.http.post("/searches/preview", json={**wanted, "wall_clock_hours": None, "candidates": 12}).json()
    assert (bought["workers"], bought["clock_seconds"]) == (0, None)


def test_the_same_key_is_done_once_though_an_hour_buys_more_by_now(service, wanted):
    del wanted["candidates"]
    wanted["recipe"]["batch"] = 7  # of no other test
    first = service.http.post("/searches", json={**wanted, "candidates": 12}).json()["id"]
    measure_one(service, first, iterations=20, seconds=10.0)
    key = {"Idempotency-Key": "an-hour"}
    made = service.http.post("/searches", json={**wanted, "hours": 1.0}, headers=key).json()
    measure_one(service, made["id"], iterations=20, seconds=5.0)
    again = service.http.post("/searches", json={**wanted, "hours": 1.0}, headers=key).json()
    assert (again["id"], again["spec"]["budget"]) == (made["id"], 7200)
    assert service.http.post("/searches", json={**wanted, "hours": 2.0}, headers=key).status_code == 422


def test_a_repeat_is_answered_though_nobody_is_left_who_told_how_fast_it_goes(service, wanted):
    del wanted["candidates"]
    wanted["recipe"]["batch"] = 9  # of no other test
    first = service.http.post("/searches", json={**wanted, "candidates": 12}).json()["id"]
    measure_one(service, first, iterations=20, seconds=10.0)
    key, by_the_clock = {"Idempotency-Key": "by-the-clock"}, {**wanted, "wall_clock_hours": 5.0}
    with service.store.begin() as session:
        workers.present(session, "w1", seconds=60)
    made = service.http.post("/searches", json=by_the_clock, headers=key)
    assert made.status_code == 202
    with service.store.begin() as session:
        workers.leave(session, "w1")
    again = service.http.post("/searches", json=by_the_clock, headers=key)
    assert (again.status_code, again.json()["id"]) == (202, made.json()["id"])
    assert service.http.post("/searches", json=by_the_clock).status_code == 422


@pytest.mark.parametrize("algorithm", ["detkds", "random_halving"])
def test_halving_algorithms_have_rungs_and_gates(service, wanted, algorithm):
    wanted["recipe"]["iterations"] = 120
    spec = accepted(service, {**wanted, "algorithm": algorithm})
    assert (spec["algorithm"], spec["rungs"], spec["fork"], spec["look"]) == (algorithm, [30, 120], 60, 4)
    assert spec["gates"]
    assert accepted(service, {**wanted, "algorithm": algorithm, "rungs": [10, 50]})["rungs"] == [10, 50, 120]
    alone = accepted(service, {**wanted, "algorithm": algorithm, "rungs": []})
    assert (alone["rungs"], alone["fork"]) == ([120], 0)


@pytest.mark.parametrize("algorithm", ["random", "evolution", "genetic", "tpe", "nsga2"])
def test_the_other_algorithms_measure_at_the_full_proxy_only(service, wanted, algorithm):
    spec = accepted(service, {**wanted, "algorithm": algorithm})
    assert (spec["algorithm"], spec["rungs"], spec["fork"], spec["look"], spec["gates"]) == (algorithm, [2], 0, 0, [])
    found = errors(service.http.post("/searches", json={**wanted, "algorithm": algorithm, "rungs": [1]}))
    assert found == {"/rungs": f"'{algorithm}' measures every candidate at the full proxy; leave them out"}


def test_published_weights_are_the_numbers_of_the_paper(service, wanted):
    balanced, published = (accepted(service, {**wanted, "weights": weights})["space"] for weights in ("balanced", "published"))
    assert (balanced["balanced"], published["balanced"]) == (True, False)
    assert balanced["feature_weights"] == [0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
    assert balanced["response_weights"] == [0.03, 0.1, 0.3, 1.0, 3.0]
    assert published["feature_weights"] != balanced["feature_weights"]


def test_a_preview_says_what_the_search_would_do_and_starts_nothing(service, wanted):
    wanted["recipe"]["iterations"] = 120
    before = service.http.get("/searches").json()["items"][:1]
    answer = service.http.post("/searches/preview", json=wanted)
    assert answer.status_code == 200, answer.text
    bought = answer.json()
    assert service.http.get("/searches").json()["items"][:1] == before
    assert bought["spec"] == accepted(service, wanted)
    assert bought["spec"]["budget"] / 2 < bought["iterations"] <= bought["spec"]["budget"], "its 12 candidates may end it before"
    assert bought["trunk_iterations"] in (60, 120, 180)
    assert [rung["iterations"] for rung in bought["rungs"]] == bought["spec"]["rungs"] == [30, 120]
    reach = [rung["candidates"] for rung in bought["rungs"]]
    assert reach == sorted(reach, reverse=True)
    assert reach[0] == bought["proposed"] == 12
    assert 1 <= reach[-1] <= 4
    assert (set(bought["formulas"]), bought["excluded"]) == (set(bought["spec"]["knowledge"]), {})
    assert all(count > 0 for count in bought["formulas"].values())
    confirmation = bought["spec"]["confirmation"]
    students = confirmation["seeds"] * (1 + len(confirmation["distillers"]) + confirmation["finalists"])
    assert bought["confirmation_iterations"] == students * 120
    assert bought["seconds"] is bought["seconds_an_iteration"] is None


@pytest.mark.parametrize(
    ("changes", "proposed"),
    [
        ({"candidates": 12, "iterations": 10**9}, (12, 12)),  # more than so few candidates can use
        ({"candidates": 400}, (280, 400)),  # scaled from a part of it
        ({"candidates": None, "iterations": 2400}, (30, 100)),
        ({"candidates": None, "iterations": 24_000}, (300, 1000)),
        ({"candidates": None, "iterations": 2400, "algorithm": "random"}, (20, 20)),
        ({"candidates": None, "iterations": 24_000, "algorithm": "evolution"}, (200, 200)),
    ],
)
def test_a_preview_grows_with_the_budget_and_stops_at_the_candidates(service, wanted, changes, proposed):
    wanted["recipe"]["iterations"] = 120
    bought = service.http.post("/searches/preview", json={**wanted, **changes}).json()
    least, most = proposed
    assert least <= bought["proposed"] <= most
    reach = [rung["candidates"] for rung in bought["rungs"]]
    assert reach == sorted(reach, reverse=True)
    assert reach[0] <= bought["proposed"]
    assert sum(count * (rung["iterations"] / 2) for count, rung in zip(reach, bought["rungs"], strict=True)) <= bought["iterations"]


def test_a_preview_is_refused_as_the_search_would_be(service, wanted):
    for wrong in ({"algorithm": "random", "rungs": [1]}, {"candidates": None}, {"references": ["nobody"]}, {"iterations": 1}):
        answers = [service.http.post(path, json={**wanted, **wrong}) for path in ("/searches", "/searches/preview")]
        assert errors(answers[0]) == errors(answers[1])
    body = changed(wanted, "student.detector", "retinanet_r18w8_fpn32")
    bought = service.http.post("/searches/preview", json=body).json()
    assert bought["excluded"]["logits"] == "the teacher has 1 prediction a cell, the student 3"
    assert "logits" not in bought["formulas"]


def test_all_mistakes_are_told_at_once(service):
    body = {"candidates": 12, "dataset": "x", "teacher": {"detector": "a", "checkpoint": "b"}, "student": {"detector": "c"}}
    found = errors(service.http.post("/searches", json=body))
    assert set(found) == {"/dataset", "/teacher/detector", "/teacher/checkpoint", "/student/detector"}


def test_without_a_pair_all_three_are_needed(service):
    assert "digits_gfl" in errors(service.http.post("/searches", json={"candidates": 12}))["/pair"]
    found = errors(service.http.post("/searches", json={"candidates": 12, "dataset": "shapes"}))
    assert set(found) == {"/teacher", "/student"}
    assert "digits_gfl" in found["/teacher"]


def test_paths_are_judged_by_where_they_lead(service, wanted, tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((service.roots / "teacher.safetensors").read_bytes())
    link = service.roots / "link.safetensors"
    link.symlink_to(outside)
    for path in (link, service.roots / ".." / outside.name, service.roots / "sub" / ".." / ".." / ".." / "etc" / "passwd"):
        found = errors(service.http.post("/searches", json=changed(wanted, "teacher.checkpoint", str(path))))
        assert "outside the registered folders" in found["/teacher/checkpoint"]
    inner = service.roots / "inner.safetensors"
    inner.symlink_to(service.roots / "teacher.safetensors")
    assert service.http.post("/searches", json=changed(wanted, "teacher.checkpoint", str(inner))).status_code == 202


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x80\x02}q\x00.", "not a safetensors file"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        ((3000).to_bytes(8, "little") + b"[" * 3000, "not a safetensors file"),
    ],
    ids=["empty", "pickle", "huge header", "no weights", "deep header"],
)
def test_a_file_that_is_no_checkpoint_is_refused(service, wanted, content, message):
    path = service.roots / "broken.safetensors"
    path.write_bytes(content)
    found = errors(service.http.post("/searches", json=changed(wanted, "teacher.checkpoint", str(path))))
    assert message in found["/teacher/checkpoint"]


def test_a_pickle_is_refused_with_what_to_do(service, wanted):
    (service.roots / "teacher.pth").write_bytes(b"anything")
    found = errors(service.http.post("/searches", json=changed(wanted, "teacher.checkpoint", str(service.roots / "teacher.pth"))))
    assert "detkds convert" in found["/teacher/checkpoint"]


def test_a_pair_that_cannot_exchange_a_knowledge_says_why(service, wanted):
    body = changed(wanted, "student.detector", "retinanet_r18w8_fpn32")
    found = errors(service.http.post("/searches", json={**body, "knowledge": ["global", "logits"]}))
    assert found["/knowledge/1"] == "this pair cannot exchange 'logits': the teacher has 1 prediction a cell, the student 3"


def test_the_same_key_is_done_once(service, wanted):
    first = service.http.post("/searches", json={**wanted, "name": "once"}, headers={"Idempotency-Key": "k-1"})
    again = service.http.post("/searches", json={**wanted, "name": "once"}, headers={"Idempotency-Key": "k-1"})
    assert first.status_code == again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    other = service.http.post("/searches", json={**wanted, "name": "once", "seed": 4}, headers={"Idempotency-Key": "k-1"})
    assert other.status_code == 422
    assert other.json()["type"] == "urn:detkds:problem:idempotency-key-reused"


def test_the_same_key_at_once_is_done_once(service, wanted):
    answers = []

    def post():
        answers.append(service.http.post("/searches", json={**wanted, "name": "race"}, headers={"Idempotency-Key": "k-race"}))

    threads = [threading.Thread(target=post) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_cancel_ends_a_search_and_says_so_again(service, wanted):
    one = service.http.post("/searches", json=wanted).json()
    assert service.http.post(f"/searches/{one['id']}/cancel").json()["state"] == "CANCELLED"
    assert service.http.post(f"/searches/{one['id']}/cancel").json()["state"] == "CANCELLED"


def test_the_list_is_read_page_by_page_without_gap_or_repetition(service, wanted):
    mine = [service.http.post("/searches", json={**wanted, "name": f"page {number}"}).json()["id"] for number in range(5)]
    seen, cursor = [], None
    while True:
        parameters = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = service.http.get("/searches", params=parameters).json()
        assert len(page["items"]) <= 2
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert [one for one in seen if one in mine] == mine[::-1]  # the newest first


def test_a_list_can_be_narrowed_to_a_state(service, wanted):
    one = service.http.post("/searches", json=wanted).json()["id"]
    service.http.post(f"/searches/{one}/cancel")
    states = {item["state"] for item in service.http.get("/searches", params={"state": "CANCELLED"}).json()["items"]}
    assert states == {"CANCELLED"}
    assert "?state" in errors(service.http.get("/searches", params={"state": "DONE"}))


@pytest.mark.parametrize("parameters", [{"limit": 0}, {"limit": 201}, {"limit": "many"}, {"cursor": "not a cursor"}, {"cursor": "%00"}])
def test_wrong_list_parameters_are_told(service, parameters):
    assert list(errors(service.http.get("/searches", params=parameters))) == [f"?{next(iter(parameters))}"]


@pytest.mark.parametrize("path", ["/searches/none", "/searches/none/candidates", "/searches/" + "x" * 300, "/searches/%E2%82%AC"])
def test_a_search_that_is_not_there_is_404(service, path):
    answer = service.http.get(path)
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:detkds:problem:not-found"
    assert service.http.post("/searches/none/cancel").status_code == 404


def test_distillers_to_compare_with_are_named_written_or_told_in_full(service, wanted):
    """Each once, however it is written; one without a name gets a number."""
    pkd = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0}]}
    asked = ["fgd", "5·l2(standardize(global))", pkd, "2·l1(global)"]
    answer = service.http.post("/searches", json={**wanted, "confirmation": {"seeds": 3, "distillers": asked}})
    assert answer.status_code == 202, answer.text
    distillers = answer.json()["spec"]["confirmation"]["distillers"]
    assert [one["name"] for one in distillers] == ["fgd", "pkd", "distiller 3"]
    assert distillers[1]["policy"] == pkd


def test_progress_of_a_confirmation_counts_students(service, wanted):
    search_id = service.http.post("/searches", json={**wanted, "confirmation": {"seeds": 3, "distillers": ["pkd"]}}).json()["id"]
    with service.store.begin() as session:
        search = stored.get(session, search_id)
        stored.start(session, search)
        stored.confirm(session, search)
        for seed in (4, 5, 6):
            job = jobs.enqueue(session, kind="confirm", spec={"candidates": []}, search_id=search_id)
            members = [{"entrant": n, "candidate": n, "name": str(n), "role": "searched", "policy": {"terms": []}} for n in range(2)]
            stored.enter(session, search_id, job_id=job.id, seed=seed, entrants=members)
        stored.measure_again(session, search_id, 0, 4, {"ap": 20.0})
    progress = service.http.get(f"/searches/{search_id}").json()["progress"]
    assert (progress["step"], progress["done"], progress["total"]) == ("confirming", 1, 6)
    # what the search trained, nothing here, is behind it whatever was expected, and one of 6 students of 2 iterations
    assert progress["fraction"] == pytest.approx(2 / 12, abs=1e-4)


def test_progress_of_a_search_counts_student_iterations(service, wanted):
    search_id = service.http.post("/searches", json={**wanted, "confirmation": {"seeds": 3, "distillers": ["pkd"]}}).json()["id"]
    with service.store.begin() as session:
        stored.start(session, stored.get(session, search_id))
        spec = {"candidates": [{"index": 1}, {"index": 2}], "rung": 1}
        job = jobs.enqueue(session, kind="evaluate", spec=spec, search_id=search_id)
        claim = jobs.claim(session, worker="w", lease_seconds=30, job_id=job.id)
        jobs.renew(session, claim, lease_seconds=30, progress={"done": 1, "total": 2, "message": "training"})
    measure_one(service, search_id, iterations=5, seconds=1.0)
    progress = service.http.get(f"/searches/{search_id}").json()["progress"]
    assert (progress["step"], progress["done"], progress["total"], progress["best_ap"]) == ("searching", 5, 20, 20.0)
    assert progress["message"] == "training"
    # 5 are measured, 2 of 1 iteration are half way; the confirmation takes 3 seeds of 4 students of 2 iterations
    assert progress["fraction"] == pytest.approx((5 + 1) / (20 + 24), abs=1e-4)


def test_progress_is_of_what_the_preview_expects_and_ends_at_what_was_done(service, wanted):
    bought = service.http.post("/searches/preview", json=wanted).json()
    expected = bought["iterations"] - bought["look_iterations"]
    assert expected == sum(rung["iterations"] * rung["candidates"] for rung in bought["rungs"]) == bought["spec"]["expected"]
    search_id = service.http.post("/searches", json=wanted).json()["id"]
    with service.store.begin() as session:
        stored.start(session, stored.get(session, search_id))
    measure_one(service, search_id, iterations=expected + 3, seconds=1.0)
    found = service.http.get(f"/searches/{search_id}").json()
    assert (found["progress"]["done"], found["progress"]["total"]) == (expected + 3, expected + 3), "more was needed"
    assert found["best"]["rung"] == 1
    paid = {**wanted, "candidates": None, "iterations": 80}
    assert service.http.post("/searches", json=paid).json()["progress"]["total"] == 80, "the budget ends it"
    many = {**wanted, "candidates": 300, "iterations": 10**9}
    assert service.http.post("/searches", json=many).json()["progress"]["total"] == 300 + 200 + 12


def test_a_candidate_is_told_with_its_rung_its_weights_and_why_it_was_refused(service, wanted):
    search_id = service.http.post("/searches", json=wanted).json()["id"]
    term = {"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2"}
    measure_one(
        service, search_id, iterations=5, seconds=1.0, policy={"terms": [{**term, "weight": 7.5}]}, look={"loss": 2.0, "sketch": [1.0]}
    )
    refused = {"gate": "descent", "detail": "its loss rises"}
    with service.store.begin() as session:
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search_id)
        common = {"stage": "stage1", "island": "global", "operator": "mutate", "parents": [0]}
        proposals = [{**common, "index": n, "policy": {"terms": [{**term, "weight": n + 1.0}]}, "audit": n == 2} for n in (1, 2)]
        stored.propose(session, search_id, proposals, ["k1", "k2"])
        stored.try_out(session, search_id, 1, [1, 2], rung=1, replicate=0, seed=1, job_id=job.id)
        stored.measure(session, search_id, 1, 1, {"same_as": 0, "iterations": 4})
        stored.measure(session, search_id, 1, 2, {"ap": 1.0, "rejected": refused, "iterations": 5})
    first, double, audited = service.http.get(f"/searches/{search_id}/candidates").json()["items"]
    assert (first["state"], first["rung"], first["iterations"], first["look"]) == ("MEASURED", 1, 5, {"loss": 2.0})
    assert (first["formula"], first["resolved"]) == ("l2(standardize(global))", "7.5·l2(standardize(global))")
    assert (double["state"], double["same_as"], double["ap"], double["resolved"]) == ("DUPLICATE", 0, None, None)
    assert (audited["state"], audited["rejected"], audited["audit"], audited["ap"]) == ("REJECTED", refused, True, None)
    best = service.http.get(f"/searches/{search_id}").json()["best"]
    assert (best["index"], best["formula"], best["policy"]["terms"][0]["weight"]) == (0, "7.5·l2(standardize(global))", 7.5)


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "CONFIRMING", "CANCELLED"])
def test_a_search_from_before_there_were_rungs_can_be_looked_at(service, wanted, state):
    document = service.http.post("/searches", json=wanted).json()
    new = ("budget", "rungs", "algorithm", "eta", "look", "audit", "calibration", "fork", "gates", "mode", "expected")
    spec = {name: value for name, value in document["spec"].items() if name not in new}
    spec["confirmation"] = {"finalists": 2, "seeds": 3, "iterations": 2}
    with service.store.begin() as session:
        old = stored.create(session, name="old", spec=spec, dataset=spec["dataset"])
        if state in ("RUNNING", "CONFIRMING"):
            stored.start(session, old)
        if state == "CONFIRMING":
            stored.confirm(session, old)
        if state == "CANCELLED":
            stored.cancel(session, old.id)
    seen = service.http.get(f"/searches/{old.id}")
    assert seen.status_code == 200, seen.text
    progress = seen.json()["progress"]
    # 12 candidates of 2 iterations; 3 seeds of no distillation, PKD and two finalists
    assert (progress["done"], progress["total"]) == ((0, 12) if state == "CONFIRMING" else (0, 24))
    assert old.id in [one["id"] for one in service.http.get("/searches").json()["items"]]


def test_optunas_algorithms_are_refused_where_it_is_missing(service, wanted, monkeypatch):
    monkeypatch.setattr("detkds_api.search_request.find_spec", lambda name: None)
    found = errors(service.http.post("/searches", json={**wanted, "algorithm": "tpe"}))
    assert found == {"/algorithm": "'tpe' needs Optuna, which is not installed here: pip install 'detkds_core[optuna]'"}


def test_the_ledger_of_a_search_is_read_as_it_is_stored(service, wanted):
    made = service.http.post("/searches", json=wanted).json()["id"]
    answer = service.http.get(f"/searches/{made}/ledger")
    assert (answer.status_code, answer.text) == (200, "")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    with service.store.begin() as session:
        stored.record(session, made, 0, ['{"asked":{"index":0}}', '{"told":0}'])
    assert service.http.get(f"/searches/{made}/ledger").text == '{"asked":{"index":0}}\n{"told":0}\n'
    assert service.http.get("/searches/0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa/ledger").status_code == 404
