"""`/datasets`: what is registered, and what is refused with which reason."""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import httpx2
import psutil
import pytest

from detkds_api import checking
from detkds_api.checking import Checker
from detkds_api.settings import Settings
from detkds_core.store import Store
from detkds_core.store import datasets as stored

from .conftest import KEY, checked, free_port, running, write_coco


def body(service, name="copy", **changes):
    """A registration of the dataset `shapes` under another name; changes: `val_images=path`."""
    paths = {
        f"{split}_{kind}": str(service.roots / split / file)
        for split in ("train", "val")
        for kind, file in (("annotations", "coco.json"), ("images", "images"))
    } | {place: str(path) for place, path in changes.items()}
    return {"name": name} | {
        split: {"annotations": paths[f"{split}_annotations"], "images": paths[f"{split}_images"]} for split in ("train", "val")
    }


def errors(answer):
    """What is wrong with a request, by field."""
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["message"] for error in answer.json()["errors"]}


def problems(service, body):
    """What the check of a dataset finds wrong, by field."""
    found = checked(service.http, body)
    assert (found["state"], found["digest"], found["classes"]) == ("REFUSED", None, [])
    return [(problem["pointer"], problem["message"]) for problem in found["problems"]]


def test_the_list_begins_with_what_is_built_in(service):
    items = service.http.get("/datasets").json()["items"]
    assert [(item["name"], item["builtin"]) for item in items[:3]] == [("digits", True), ("trees", True), ("shapes", False)]
    assert items[2]["classes"] == ["circle", "square"]
    assert (items[2]["train_images"], items[2]["val_images"]) == (6, 4)
    assert len(items[2]["digest"]) == 64
    assert [service.http.get(f"/datasets/{item['name']}").json() for item in items[:3]] == items[:3]


@pytest.mark.parametrize("name", ["nothing", "Capital", "a%20b", "%00", "x" * 300])
def test_a_name_that_is_nobodys_is_not_there(service, name):
    assert service.http.get(f"/datasets/{name}").status_code == 404


def test_a_wrong_cursor_is_told(service):
    assert list(errors(service.http.get("/datasets", params={"cursor": "not a cursor"}))) == ["?cursor"]


def test_the_names_of_what_is_built_in_are_those_of_the_library():
    from detkds_api.datasets import BUILTIN
    from detkds_core.datasets import BUILT_IN

    assert BUILTIN == BUILT_IN


def test_the_same_files_are_checked_once(service):
    answer = service.http.post("/datasets", json=body(service, "again"))
    assert (answer.status_code, answer.headers["location"]) == (202, "/datasets/again")
    assert answer.json()["state"] == "CHECKING"
    first = checked(service.http, body(service, "again"))
    assert first["state"] == "READY"
    answer = service.http.post("/datasets", json=body(service, "again"))
    assert (answer.status_code, answer.json()) == (200, first)
    other = body(service, "again", train_annotations=service.roots / "val/coco.json", train_images=service.roots / "val/images")
    other["val"] = body(service)["train"]
    answer = service.http.post("/datasets", json=other)
    assert answer.status_code == 409
    assert "choose another name" in answer.json()["detail"]


def test_the_digest_follows_the_content_not_the_place(service):
    shutil.copytree(service.roots / "train", service.roots / "moved")
    moved = body(service, "moved", train_annotations=service.roots / "moved/coco.json", train_images=service.roots / "moved/images")
    digests = {item["name"]: item["digest"] for item in service.http.get("/datasets").json()["items"]}
    assert checked(service.http, moved)["digest"] == digests["shapes"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.json", "relative.json", "/", "~/data.json"])
def test_a_path_outside_the_registered_folders_is_refused(service, path):
    assert list(errors(service.http.post("/datasets", json=body(service, train_annotations=path)))) == ["/train/annotations"]


def test_a_path_that_is_not_there_is_told(service):
    found = errors(service.http.post("/datasets", json=body(service, val_images=service.roots / "nowhere")))
    assert "does not exist" in found["/val/images"]


def test_what_lies_outside_is_not_told_to_exist_or_not(service):
    there, not_there = (
        errors(service.http.post("/datasets", json=body(service, train_annotations=path)))["/train/annotations"].replace(path, "PATH")
        for path in ("/etc/passwd", "/etc/no-such-file")
    )
    assert there == not_there


def test_a_link_out_of_the_folder_is_refused(service, tmp_path):
    (tmp_path / "images").mkdir()
    link = service.roots / "link"
    link.symlink_to(tmp_path / "images")
    assert "leads outside" in errors(service.http.post("/datasets", json=body(service, train_images=link)))["/train/images"]


def test_a_file_name_in_the_annotations_cannot_lead_out_either(service):
    content = json.loads((service.roots / "train/coco.json").read_text())
    content["images"][0]["file_name"] = "../../../../../../etc/passwd"
    path = service.roots / "escaping.json"
    path.write_text(json.dumps(content))
    found = problems(service, body(service, train_annotations=path))
    assert all(pointer.startswith("/train/") for pointer, _ in found)


def test_wrong_content_is_told_with_its_place_and_checked_again_once_it_is_mended(service):
    right = (service.roots / "train/coco.json").read_text()
    content = json.loads(right)
    content["annotations"][2]["bbox"] = [60, 60, 30, 30]
    content["annotations"][3]["category_id"] = 77
    path = service.roots / "wrong.json"
    path.write_text(json.dumps(content))
    asked = body(service, "mended", train_annotations=path)
    found = problems(service, asked)
    assert {pointer for pointer, _ in found} == {"/train/annotations"}
    messages = [message for _, message in found]
    assert any("annotations[2]" in message for message in messages)
    assert any("annotations[3]" in message and "77" in message for message in messages)
    search = service.http.post("/searches", json={**service.search(), "dataset": "mended"})
    assert errors(search)["/dataset"] == "'mended' was refused; mend it and register it again (GET /datasets/mended)"
    path.write_text(right)
    answer = service.http.post("/datasets", json=asked)
    assert (answer.status_code, answer.json()["state"], answer.json()["problems"]) == (202, "CHECKING", [])
    assert checked(service.http, asked)["state"] == "READY"


def test_annotations_that_have_changed_since_are_not_taken_for_those_that_were_checked(service):
    shutil.copytree(service.roots / "train", service.roots / "changing")
    asked = body(
        service, "changing", train_annotations=service.roots / "changing/coco.json", train_images=service.roots / "changing/images"
    )
    assert checked(service.http, asked)["state"] == "READY"
    content = json.loads((service.roots / "changing/coco.json").read_text())
    content["annotations"][0]["bbox"] = [9, 9, 20, 20]
    (service.roots / "changing/coco.json").write_text(json.dumps(content))
    answer = service.http.post("/datasets", json=asked)
    assert answer.status_code == 409
    assert "and the annotations of train have changed since; choose another name" in answer.json()["detail"]


def test_what_is_not_ready_can_be_removed(service):
    same = body(service, "unwanted")
    same["val"] = same["train"]
    assert problems(service, same)
    assert service.http.delete("/datasets/unwanted").json()["state"] == "REFUSED"
    assert service.http.get("/datasets/unwanted").status_code == service.http.delete("/datasets/unwanted").status_code == 404
    assert checked(service.http, body(service, "unwanted"))["state"] == "READY"
    for name in ("unwanted", "digits"):
        assert service.http.delete(f"/datasets/{name}").status_code == 409


def test_a_name_that_is_no_text_is_refused_and_harms_no_list(service):
    odd = os.fsencode(service.roots) + b"/bild\xe9r"
    shutil.copytree(os.fsencode(service.roots / "train"), odd)
    (service.roots / "plain").symlink_to(os.fsdecode(odd))
    found = errors(service.http.post("/datasets", json=body(service, "odd", train_images=service.roots / "plain/images")))
    assert "leads to a name that is no text; rename it" in found["/train/images"]
    assert service.http.get("/datasets").status_code == 200


def test_halves_that_are_no_words_are_none(service):
    content = json.loads((service.roots / "val/coco.json").read_text())
    for image in content["images"]:
        image["half"] = ["selection"]
    (service.roots / "halved.json").write_text(json.dumps(content))
    assert checked(service.http, body(service, "halved", val_annotations=service.roots / "halved.json"))["state"] == "READY"


def test_images_in_train_and_val_are_a_leak(service):
    same = body(service, "leak")
    same["val"] = same["train"]
    assert "learned by heart" in problems(service, same)[0][1]


@pytest.mark.parametrize("name", ["digits", "Capital", "with space", "", "x" * 65, "../up"])
def test_names_are_bounded_and_built_in_ones_taken(service, name):
    assert service.http.post("/datasets", json=body(service, name)).status_code in (409, 422)


def test_without_a_registered_folder_nothing_is_read(tmp_path):
    from detkds_api.paths import inside

    with pytest.raises(ValueError, match="DETKDS_DATA_ROOTS"):
        inside(str(Path(tmp_path)), [])


@pytest.fixture
def alone(tmp_path):
    """Makes services of a database of their own whose checks a test drives: `alone()`."""
    settings = Settings(home=tmp_path / "home", port=free_port(), data_roots=(tmp_path,))
    store = Store(settings.url)
    store.migrate()
    splits = {split: write_coco(tmp_path / split, 3, shade=shade) for split, shade in (("train", 0), ("val", 100))}
    made = []

    def service():
        made.append(Checker(settings))
        return made[-1]

    service.store, service.settings, service.splits = store, settings, splits
    yield service
    for one in made:
        for check in one.checks:
            check.end()
        one.store.close()
    store.close()


def ask(alone, name="shapes"):
    with alone.store.begin() as session:
        stored.ask(session, name=name, owner=None, asked=alone.splits)


def known(alone, name="shapes"):
    with alone.store.read() as session:
        return stored.get(session, name)


def drive(checker, until, seconds=30):
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        checker.step()
        time.sleep(0.02)


def expire(alone):
    """Let the leases of all checks run out."""
    from sqlalchemy import update

    from detkds_core.store.clock import db_time
    from detkds_core.store.models import Lease

    with alone.store.begin() as session:
        session.execute(update(Lease).values(expires_at=db_time(-1)))


def test_of_two_services_one_checks(alone):
    ask(alone)
    one, other = alone(), alone()
    one.step()
    other.step()
    assert (len(one.checks), len(other.checks)) == (1, 0)
    drive(one, lambda: known(alone).state == "READY")
    assert known(alone).attempts == 1


def test_a_check_goes_on_elsewhere_when_its_service_died_and_who_wakes_up_late_decides_nothing(alone):
    ask(alone)
    late, other = alone(), alone()
    late.step()
    os.kill(late.checks[0].process.pid, signal.SIGSTOP)
    expire(alone)
    drive(other, lambda: known(alone).state == "READY")
    digest = known(alone).digest
    with alone.store.begin() as session:
        assert not stored.refuse(session, "shapes", holder=late.checks[0].holder, problems=[])
    os.kill(late.checks[0].process.pid, signal.SIGCONT)
    drive(late, lambda: not late.checks)
    assert (known(alone).state, known(alone).digest, known(alone).attempts) == ("READY", digest, 2)


def gone(checker, check):
    return check not in checker.checks


def test_a_check_that_is_killed_is_begun_anew_and_a_third_time_told(alone, monkeypatch):
    ask(alone)
    checker = alone()
    for attempt in (1, 2, 3):
        drive(checker, lambda: checker.checks)
        assert known(alone).attempts == attempt
        killed = checker.checks[0]
        os.kill(killed.process.pid, signal.SIGKILL)
        drive(checker, partial(gone, checker, killed))
    assert known(alone).state == "REFUSED"
    (problem,) = known(alone).problems
    assert problem["message"].startswith("the check ended 3 times without an answer: it ended with exit code -9 (it may have 4096 MiB")
    ask(alone)
    drive(checker, lambda: known(alone).state == "READY")


def test_a_check_that_takes_its_service_with_it_again_and_again_is_refused(alone):
    ask(alone)
    for number in range(checking.MOST_ATTEMPTS):
        with alone.store.begin() as session:
            assert stored.begin_check(session, "shapes", holder=str(number), seconds=-1)
    checker = alone()
    checker.step()
    assert checker.checks == []
    assert known(alone).problems[0]["message"] == "its check was begun 10 times, and each time the service ended before it"


def test_a_service_with_other_folders_leaves_a_check_to_one_that_has_them(alone, monkeypatch, tmp_path):
    ask(alone)
    blind = Checker(alone.settings.model_copy(update={"data_roots": (tmp_path / "other",)}))
    blind.step()
    assert (blind.checks, known(alone).state, known(alone).attempts) == ([], "CHECKING", 0)
    monkeypatch.setattr(checking, "PATIENCE_SECONDS", 0.0)
    drive(blind, lambda: known(alone).state == "REFUSED")
    assert "is outside the folders that data may come from" in known(alone).problems[0]["message"]


def test_one_check_that_cannot_be_looked_at_does_not_hold_up_the_others(alone, monkeypatch):
    for name in ("a", "b", "c"):
        ask(alone, name)
    checker = alone()
    checker.step()
    read = checking.Check.read

    def broken(check):
        if check.name == "a":
            raise RuntimeError("of this test")
        read(check)

    monkeypatch.setattr(checking.Check, "read", broken)
    drive(checker, lambda: {known(alone, name).state for name in ("b", "c")} == {"READY"})
    assert known(alone, "a").state == "CHECKING"


def test_a_check_that_fails_says_why_in_the_log_of_the_service(alone, monkeypatch, caplog):
    monkeypatch.setattr(checking, "ATTEMPTS", 1)
    with alone.store.begin() as session:
        stored.ask(session, name="shapes", owner=None, asked={**alone.splits, "val": {"annotations": alone.splits["val"]["annotations"]}})
    checker = alone()
    drive(checker, lambda: known(alone).state == "REFUSED")
    assert "without an answer" in known(alone).problems[0]["message"]
    assert any("KeyError: 'images'" in getattr(record, "crash", "") for record in caplog.records)


def test_memory_is_bounded_by_what_is_read_and_by_the_machine(tmp_path):
    def sparse(name, size):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        return {"annotations": str(tmp_path / name), "images": "/"}

    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert checking.memory_for({"train": sparse("t", 1 << 20), "val": sparse("v", 0)}) == checking.MEMORY + (16 << 20)
    assert checking.memory_for({"train": sparse("huge", 1 << 40), "val": sparse("v", 0)}) <= max(checking.MEMORY, machine // 2)


def test_a_check_that_hangs_is_ended(alone, monkeypatch):
    monkeypatch.setattr(checking, "SILENCE_SECONDS", 0.5)
    ask(alone)
    checker = alone()
    checker.step()
    os.kill(checker.checks[0].process.pid, signal.SIGSTOP)
    hung = checker.checks[0]
    drive(checker, partial(gone, checker, hung))
    assert hung.process.returncode == -9
    monkeypatch.undo()
    drive(checker, lambda: known(alone).state == "READY")


def test_a_check_has_bounded_memory(alone, monkeypatch):
    monkeypatch.setattr(checking, "memory_for", lambda asked: 200 << 20)
    content = json.loads(Path(alone.splits["train"]["annotations"]).read_text())
    content["annotations"] *= 200_000
    Path(alone.splits["train"]["annotations"]).write_text(json.dumps(content))
    ask(alone)
    checker = alone()
    drive(checker, lambda: known(alone).state == "REFUSED")
    wanted = "checking it needs more than 200 MiB of memory; without masks to learn, remove segmentations"
    assert known(alone).problems[0]["message"] == wanted


def test_few_are_checked_at_once(alone):
    for number in range(5):
        ask(alone, f"shapes{number}")
    checker = alone()
    most = 0

    def all_ready():
        nonlocal most
        most = max(most, len(checker.checks))
        return all(known(alone, f"shapes{number}").state == "READY" for number in range(5))

    drive(checker, all_ready)
    assert most == checking.AT_ONCE


def test_a_service_that_ends_leaves_no_process_and_gives_its_checks_back(alone):
    with running(alone.settings):
        ask(alone)
        deadline = time.monotonic() + 30
        while not (found := [p for p in psutil.Process().children() if "detkds_api.check" in p.cmdline()]):
            assert time.monotonic() < deadline
            time.sleep(0.005)
    assert not any(process.is_running() for process in found)
    if known(alone).state == "CHECKING":  # else it was faster than the test
        assert known(alone).attempts == 0
    checker = alone()
    drive(checker, lambda: known(alone).state == "READY")


def test_more_than_may_wait_are_turned_away(service, monkeypatch):
    monkeypatch.setattr("detkds_api.datasets.MOST_UNCHECKED", 0)
    answer = service.http.post("/datasets", json=body(service, "one-too-many"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    assert service.http.get("/datasets/one-too-many").status_code == 404
    assert service.http.post("/datasets", json=body(service, "shapes")).status_code == 200, "nothing waits"


def test_of_one_owner_few_may_wait_and_a_refused_one_is_its_owners(alone, monkeypatch, tmp_path):
    monkeypatch.setattr("detkds_api.checking.AT_ONCE", 0)
    settings = alone.settings.model_copy(update={"api_key": KEY, "port": free_port()})
    with running(settings) as url:
        operator = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY.get_secret_value()}"}, trust_env=False)
        clients = {}
        for owner in ("ann", "bob"):
            secret = operator.post("/keys", json={"name": "k", "owner": owner, "scope": "run"}).json()["secret"]
            clients[owner] = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}, trust_env=False)
        ask_as = lambda owner, name: clients[owner].post("/datasets", json={"name": name, **alone.splits})  # noqa: E731
        assert [ask_as("ann", f"a{number}").status_code for number in range(11)] == [202] * 10 + [429]
        assert ask_as("bob", "b").status_code == 202
        with alone.store.begin() as session:
            stored.begin_check(session, "a0", holder="h", seconds=30)
            stored.refuse(session, "a0", holder="h", problems=[{"pointer": "", "message": "m"}] * 9)
        assert ask_as("bob", "a0").status_code == 409
        assert clients["bob"].delete("/datasets/a0").status_code == 403
        assert [len(one["problems"]) for one in clients["ann"].get("/datasets").json()["items"] if one["name"] == "a0"] == [3]
        assert len(clients["ann"].get("/datasets/a0").json()["problems"]) == 9
        assert ask_as("ann", "a0").status_code == 202
        assert clients["ann"].delete("/datasets/a0").json()["state"] == "CHECKING"
        assert operator.delete("/datasets/b").status_code == 200
        for client in (operator, *clients.values()):
            client.close()
