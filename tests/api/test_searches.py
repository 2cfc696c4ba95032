"""`/searches`: what is stored, and what each mistake is told."""

import copy
import json
import threading

import pytest

from detkds_core.store import searches as stored


def errors(answer, status=422):
    """`{pointer: message}` of a problem."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


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
        "total": 12,
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
    assert spec["parallelism"] == spec["group"] == 4
    assert spec["recipe"]["iterations"] == 2
    assert spec["confirmation"] == {"finalists": 2, "seeds": 3, "iterations": 2}
    assert spec["dataset"]["classes"] == ["circle", "square"]
    assert spec["teacher"]["checkpoint"] == str(service.roots / "teacher.safetensors")
    assert spec["student"] == {"detector": "gfl_r18w8_fpn32", "checkpoint": None}
    assert spec["inherit"] is True
    assert service.http.get(answer.headers["location"]).json() == document


def test_an_unknown_detector_lists_the_known(service, wanted):
    found = errors(service.http.post("/searches", json=changed(wanted, "student.detector", "yolo")))
    assert list(found) == ["/student/detector"]
    assert "'yolo' is not a known detector; one of gfl_r18w8_fpn32, " in found["/student/detector"]


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
        ("candidates", 2001, "/candidates", "less than or equal to 2000"),
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
        ("teacher.weights", "x", "/teacher/weights", "one of detector, checkpoint"),
        ("budget", 3, "/budget", "one of name, pair, dataset"),
        ("confirmation", {"seeds": 2}, "/confirmation/seeds", "greater than or equal to 3"),
        ("group", 8, "/candidates", ""),
        ("parallelism", 2, "/parallelism", "at least 4"),
        ("pair", "digits_yolo", "/pair", "one of digits_gfl"),
        ("teacher.checkpoint", "teacher.safetensors", "/teacher/checkpoint", "not an absolute path"),
        ("teacher.checkpoint", "/etc/passwd", "/teacher/checkpoint", "outside the registered folders"),
        ("teacher.checkpoint", "https://example.org/teacher.safetensors", "/teacher/checkpoint", "not an absolute path"),
    ],
)
def test_every_mistake_is_told_where_it_is_and_what_would_be_right(service, wanted, path, value, where, message):
    body = json.dumps(changed(wanted, path, value))
    answer = service.http.post("/searches", content=body, headers={"Content-Type": "application/json"})
    if path == "group":  # larger than the parallelism that follows from it: possible
        assert answer.status_code == 202
        return
    assert message in errors(answer)[where]


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
