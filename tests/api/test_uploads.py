"""`/checkpoints`: weights sent in parts and taken up again, checked once, read as tensors only, and used by id."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx2
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from detkds_api.gate import PART_BYTES
from detkds_api.intake import IntakeError, take_in
from detkds_api.service import Running
from detkds_api.settings import Settings
from detkds_api.uploads import LEFT_SECONDS, room
from detkds_core.store import Store, jobs
from detkds_core.store import distillations as trainings
from detkds_core.store.artifacts import Artifacts, UnreachableError, artifacts_at
from detkds_core.store.waiting import Fleets

from .conftest import free_port, running

CLASSES = ["circle", "square"]
OPERATOR = "0123456789abcdef0123456789abcdef"  # of the `guarded` service
OCTETS = {"Content-Type": "application/octet-stream"}


def weights(megabytes: float = 0.01, *, seed: int = 0, metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of random numbers that knows CLASSES."""
    values = np.random.default_rng(seed).random(int(megabytes * (1 << 20) / 4), dtype=np.float32)
    return save({"b.weight": values, "a.bias": values[:3]}, metadata={"classes": json.dumps(CLASSES), **(metadata or {})})


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def announced(http: httpx2.Client, content: bytes, **more: object) -> dict:
    body = {"name": "teacher.safetensors", "size": len(content), "sha256": digest(content), **more}
    answer = http.post("/checkpoints", json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def send(http: httpx2.Client, one: dict, content: bytes, number: int = 0) -> httpx2.Response:
    part = content[number * PART_BYTES : (number + 1) * PART_BYTES]
    return http.put(f"/checkpoints/{one['id']}/parts/{number}", content=part, headers=OCTETS)


def uploaded(http: httpx2.Client, content: bytes, **more: object) -> httpx2.Response:
    one = announced(http, content, **more)
    for number in range(one["parts"]):
        assert send(http, one, content, number).status_code == 200
    return http.post(f"/checkpoints/{one['id']}/complete")


def kept(service, one: dict) -> Path:
    return Path(service.settings.artifacts_place) / "checkpoints" / one["id"] / "weights.safetensors"


def test_a_file_is_sent_in_parts_taken_up_again_and_stored_anew(service):
    content = weights(9)
    one = announced(service.http, content)
    assert (one["state"], one["parts"], one["part_bytes"], one["received"]) == ("UPLOADING", 3, PART_BYTES, [])
    for number in (2, 0, 0):  # in any order, and again
        answer = send(service.http, one, content, number)
        assert answer.status_code == 200, answer.text
        part = content[number * PART_BYTES : (number + 1) * PART_BYTES]
        assert answer.json() == {"number": number, "bytes": len(part), "sha256": digest(part)}
    assert service.http.get(f"/checkpoints/{one['id']}").json()["received"] == [0, 2]
    early = service.http.post(f"/checkpoints/{one['id']}/complete")
    assert (early.status_code, early.json()["detail"]) == (409, "1 of 3 parts of teacher.safetensors are missing: 1")
    again = announced(service.http, content)
    assert (again["id"], again["received"]) == (one["id"], [0, 2])
    send(service.http, one, content, 1)
    done = service.http.post(f"/checkpoints/{one['id']}/complete").json()
    assert (done["state"], done["classes"], done["received"], done["detector"]) == ("READY", CLASSES, None, None)
    assert done["digest"] == digest(kept(service, one).read_bytes())
    assert done["bytes"] == kept(service, one).stat().st_size
    sent, stored = load_file_of(content), load_file(kept(service, one))
    assert sent.keys() == stored.keys()
    assert all((sent[name] == stored[name]).all() for name in sent)
    assert service.http.post(f"/checkpoints/{one['id']}/complete").json() == done
    assert announced(service.http, content)["state"] == "READY"
    assert send(service.http, one, content).status_code == 409
    assert not (Path(service.settings.artifacts_place) / "uploads" / one["id"]).exists()
    assert service.http.get("/checkpoints", params={"limit": 1}).json()["items"] == [done]


def load_file_of(content: bytes) -> dict:
    from safetensors.numpy import load

    return load(content)


def test_an_uploaded_teacher_is_used_by_its_id(service, wanted):
    done = uploaded(service.http, weights(seed=1, metadata={"detector": "gfl_r18w32_fpn32"})).json()
    teacher = {"detector": "gfl_r18w32_fpn32", "checkpoint": done["id"]}
    search = service.http.post("/searches", json={**wanted, "teacher": teacher})
    assert search.status_code == 202, search.text
    reference = f"artifact:checkpoints/{done['id']}/weights.safetensors#{done['digest']}"
    assert search.json()["spec"]["teacher"] == {"detector": "gfl_r18w32_fpn32", "checkpoint": reference}
    assert service.http.post("/searches/preview", json={**wanted, "teacher": teacher}).json()["disk"]["student"] == done["bytes"]
    body = {name: wanted[name] for name in ("dataset", "student", "recipe")}
    for checkpoint in (done["id"], reference):
        distillation = service.http.post("/distill", json={**body, "teacher": {**teacher, "checkpoint": checkpoint}, "policy": "pkd"})
        assert distillation.status_code == 202, distillation.text
        assert distillation.json()["spec"]["teacher"]["checkpoint"] == reference
    other = service.http.post("/searches", json={**wanted, "teacher": {"detector": "retinanet_r101_fpn", "checkpoint": done["id"]}})
    assert other.json()["errors"][0] == {
        "pointer": "/teacher/checkpoint",
        "message": "teacher.safetensors holds weights of gfl_r18w32_fpn32, not of retinanet_r101_fpn",
    }


def test_one_that_is_not_ready_or_not_there_is_refused_with_what_to_do(service, wanted):
    one = announced(service.http, weights(seed=2))
    for checkpoint, told in (
        (one["id"], f"checkpoint {one['id']} is UPLOADING; complete its upload first"),
        ("0198a3e0-77aa-7b11-8d2f-0c6c2c7e9f10", "there is no checkpoint 0198a3e0-77aa-7b11-8d2f-0c6c2c7e9f10; GET /checkpoints"),
    ):
        answer = service.http.post("/searches", json={**wanted, "teacher": {**wanted["teacher"], "checkpoint": checkpoint}})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["message"].startswith(told)


def test_a_file_that_is_not_what_was_announced_is_refused_with_both_digests(service):
    content = weights(seed=3)
    one = announced(service.http, content)
    send(service.http, one, content[:-1] + b"!")
    answer = service.http.post(f"/checkpoints/{one['id']}/complete")
    assert answer.status_code == 422
    found = digest(content[:-1] + b"!")
    told = f"expected {len(content)} bytes with SHA-256 {digest(content)}, found {len(content)} bytes with SHA-256 {found}; send it again"
    assert told in answer.json()["detail"]
    after = service.http.get(f"/checkpoints/{one['id']}").json()
    assert (after["state"], after["reason"]) == ("REFUSED", told)
    assert announced(service.http, content)["id"] != one["id"]


@pytest.mark.parametrize(
    ("number", "size", "status", "told"),
    [(0, 10, 422, "has {whole} bytes, 10 came"), (1, 10, 404, "has 1 parts, from 0 on; there is no part 1")],
)
def test_a_part_of_another_size_or_number_is_refused(service, number, size, status, told):
    content = weights(seed=4)
    one = announced(service.http, content)
    answer = service.http.put(f"/checkpoints/{one['id']}/parts/{number}", content=b"x" * size, headers=OCTETS)
    assert answer.status_code == status
    assert told.format(whole=len(content)) in answer.json()["detail"]


def test_no_part_is_taken_while_the_disk_is_nearly_full(service, monkeypatch):
    one = announced(service.http, weights(seed=5))
    monkeypatch.setattr(service.settings, "disk_free_gib", 1e9)
    before = service.http.post("/checkpoints", json={"name": "another", "size": 8, "sha256": digest(b"another")})
    for answer in (before, send(service.http, one, weights(seed=5))):
        assert (answer.status_code, answer.json()["type"]) == (507, "urn:detkds:problem:no-room")
        assert answer.json()["detail"].startswith("no file is taken: ")
    assert announced(service.http, weights(seed=5))["id"] == one["id"], "what is known is told"


def test_a_part_is_bounded_and_no_other_body_is_of_its_kind(service):
    one = announced(service.http, weights(seed=5))
    place = f"/checkpoints/{one['id']}/parts/0"
    large = service.http.put(place, content=b"x" * (PART_BYTES + 1), headers=OCTETS)
    assert (large.status_code, f"at most {PART_BYTES} bytes" in large.json()["detail"]) == (413, True)
    kind = service.http.put(place, json={})
    assert (kind.status_code, "send application/octet-stream" in kind.json()["detail"]) == (415, True)
    assert service.http.post("/checkpoints", content=b"{}", headers=OCTETS).status_code == 415


class Payload:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(path: Path, content: object) -> bytes:
    import torch

    torch.save(content, path)
    return path.read_bytes()


def test_a_pytorch_file_is_read_as_tensors_only(service, tmp_path):
    import torch

    state = {"state_dict": {"w": torch.arange(6.0).reshape(2, 3).T}, "meta": {"dataset_meta": {"classes": tuple(CLASSES)}}}
    done = uploaded(service.http, pickled(tmp_path / "a.pth", state), name="a.pth")
    assert done.json()["state"] == "READY", done.text
    assert done.json()["classes"] == CLASSES
    assert load_file(kept(service, done.json()))["w"].tolist() == [[0, 3], [1, 4], [2, 5]]
    plain = pickled(tmp_path / "b.pth", {"w": torch.ones(2)})
    nameless = uploaded(service.http, plain, name="b.pth")
    assert "it does not say which classes it knows; give them in the order of training" in nameless.json()["detail"]
    assert uploaded(service.http, plain, name="b.pth", classes=CLASSES).json()["classes"] == CLASSES
    for content, told in (
        (pickled(tmp_path / "c.pth", {"w": torch.ones(2), "epoch": 3}), "'epoch' holds a int, not a tensor"),
        (pickled(tmp_path / "d.pth", Payload(str(tmp_path / "ran"))), "cannot be read as tensors only"),
        (pickle.dumps(Payload(str(tmp_path / "ran"))), "cannot be read as tensors only"),
    ):
        answer = uploaded(service.http, content, name="c.pth", classes=CLASSES)
        assert answer.status_code == 422
        assert told in answer.json()["detail"], answer.text
        assert str(service.settings.home) not in answer.text
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"x" * 100, "the file: is no pytorch checkpoint"),
        ((10**6).to_bytes(8, "little") + b"{" * 50, "header"),
        ((2).to_bytes(8, "little") + b"{}", "it holds no tensor"),
        (weights()[:-4], "header"),
        (save({"w": np.zeros(1)}), "it does not say which classes"),
        (save({"w": np.zeros(1)}, metadata={"classes": "circle"}), "'classes' is not a JSON list of names"),
    ],
    ids=["noise", "cut header", "empty", "cut", "nameless", "badly named"],
)
def test_what_is_no_checkpoint_is_refused_with_the_reason(service, content, told):
    answer = uploaded(service.http, content)
    assert answer.status_code == 422
    assert told in answer.json()["detail"].lower().replace("json", "JSON"), answer.text


def test_other_classes_and_another_detector_than_the_senders_are_refused(service):
    named = weights(metadata={"detector": "gfl_r18w32_fpn32"}, seed=6)
    other = uploaded(service.http, named, classes=["cat", "dog"])
    assert "its header names the classes ['circle', 'square'], the request ['cat', 'dog']" in other.json()["detail"]
    other = uploaded(service.http, named, detector="retinanet_r101_fpn")
    assert "its header says that it holds weights of gfl_r18w32_fpn32, the request says retinanet_r101_fpn" in other.json()["detail"]
    assert uploaded(service.http, named, detector="gfl_r18w32_fpn32").json()["detector"] == "gfl_r18w32_fpn32"


def test_a_file_that_needs_more_memory_than_it_may_have_costs_nobody_else(tmp_path):
    """A zip whose tensor is a thousand times larger than the file."""
    import torch

    torch.save({"w": torch.zeros(400 << 20, dtype=torch.uint8)}, tmp_path / "large.pth")
    with zipfile.ZipFile(tmp_path / "large.pth") as large, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in large.infolist():
            bomb.writestr(entry.filename, large.read(entry))
    (tmp_path / "large.pth").unlink()
    assert (tmp_path / "bomb.pth").stat().st_size < 2 << 20
    with pytest.raises(IntakeError, match=r"memory|tensors only"):
        take_in(tmp_path / "bomb.pth", tmp_path / "weights.safetensors", classes=CLASSES, memory=1 << 30)


def test_a_file_of_the_services_machine_is_taken_from_a_registered_folder_only(service, tmp_path):
    (service.roots / "brought.safetensors").write_bytes(weights(seed=7))
    done = service.http.post("/checkpoints", json={"name": "brought", "path": str(service.roots / "brought.safetensors")})
    assert (done.status_code, done.json()["state"], done.json()["classes"]) == (201, "READY", CLASSES)
    assert done.json()["digest"] == digest(kept(service, done.json()).read_bytes())
    (tmp_path / "elsewhere.safetensors").write_bytes(weights(seed=7))
    (service.roots / "link.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    for path in (tmp_path / "elsewhere.safetensors", service.roots / "link.safetensors", service.roots / ".." / "x"):
        answer = service.http.post("/checkpoints", json={"name": "astray", "path": str(path)})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/path"
        assert "leads outside the registered folders" in answer.json()["errors"][0]["message"]
    folder = service.http.post("/checkpoints", json={"name": "folder", "path": str(service.roots)})
    assert "is no file" in folder.json()["detail"]


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"name": "x"}, {"/size", "/sha256"}),
        ({"name": "x", "size": 0, "sha256": "AB"}, {"/size", "/sha256"}),
        ({"name": "x", "size": 3, "path": "/data/x"}, {"/path"}),
        ({"name": "x", "url": "http://169.254.169.254/"}, {"/url", "/sha256"}),
        ({"name": "x", "size": 3, "sha256": "0" * 64, "detector": "resnet"}, {"/detector"}),
    ],
)
def test_a_wrong_announcement_names_its_fields(service, body, pointers):
    answer = service.http.post("/checkpoints", json=body)
    assert answer.status_code == 422
    assert {error["pointer"] for error in answer.json()["errors"]} == pointers


@pytest.mark.parametrize("name", ["service", "s3_service"])
def test_a_checkpoint_that_nothing_needs_is_deleted_with_its_files(name, request):
    service = request.getfixturevalue(name)
    artifacts = artifacts_at(service.settings.artifacts_place)
    done = uploaded(service.http, weights(seed=9), name="done").json()
    begun = announced(service.http, weights(9, seed=9), name="begun")
    send(service.http, begun, weights(9, seed=9))
    for one in (done, begun):
        files = [f"{folder}/{one['id']}" for folder in ("checkpoints", "uploads")]
        assert any(artifacts.names(each) for each in files)
        deleted = service.http.delete(f"/checkpoints/{one['id']}")
        assert (deleted.status_code, deleted.json()["state"]) == (200, one["state"])
        assert not any(artifacts.names(each) for each in files)
        assert service.http.get(f"/checkpoints/{one['id']}").status_code == 404
        assert service.http.delete(f"/checkpoints/{one['id']}").status_code == 404
    assert announced(service.http, weights(seed=9), name="done")["id"] != done["id"], "the same file can be brought again"


def test_a_checkpoint_in_use_is_kept_and_who_uses_it_is_told(service, wanted):
    one = uploaded(service.http, weights(seed=10), name="used").json()["id"]
    teacher = {"detector": "gfl_r18w32_fpn32", "checkpoint": one}
    search = service.http.post("/searches", json={**wanted, "teacher": teacher}).json()["id"]
    training = {name: wanted[name] for name in ("dataset", "student", "recipe")} | {"teacher": teacher, "policy": "pkd"}
    distillations = [service.http.post("/distill", json=training).json()["id"] for _ in range(3)]
    told = service.http.delete(f"/checkpoints/{one}")
    assert told.status_code == 409
    users = f"search {search} is QUEUED, distillation {distillations[2]} is QUEUED, distillation {distillations[1]} is QUEUED, 1 more"
    assert told.json()["detail"] == f"used is in use: {users}; cancel what has not ended, what a result rests on is kept"
    for path in (f"/searches/{search}", *(f"/distill/{each}" for each in distillations[1:])):
        assert service.http.post(f"{path}/cancel").status_code == 200
    with service.store.begin() as session:
        job = jobs.of_distillation(session, distillations[0]).id
        assert jobs.finish(session, jobs.claim(session, worker="w", lease_seconds=60, job_id=job), {})
        assert trainings.succeed(session, distillations[0])
    told = service.http.delete(f"/checkpoints/{one}")
    assert (told.status_code, f"used is in use: distillation {distillations[0]} has SUCCEEDED;" in told.json()["detail"]) == (409, True)
    assert kept(service, {"id": one}).exists()


def test_a_checkpoint_is_deleted_while_the_artifacts_cannot_be_reached(service, caplog):
    one = uploaded(service.http, weights(seed=11), name="away").json()
    place = Path(service.settings.artifacts_place)
    away = place.rename(place.with_name("away"))
    place.write_text("a file, where a folder should be")
    try:
        assert service.http.delete(f"/checkpoints/{one['id']}").status_code == 200
    finally:
        place.unlink()
        away.rename(place)
    assert "files that no checkpoint needs stay for now" in caplog.text
    assert service.http.get(f"/checkpoints/{one['id']}").status_code == 404
    assert kept(service, one).exists(), "until the evolver comes by"


def test_a_checkpoint_is_its_owners(guarded):
    url, _ = guarded
    content = weights(seed=8)

    def client(secret: str) -> httpx2.Client:
        return httpx2.Client(base_url=url, timeout=60, trust_env=False, headers={"Authorization": f"Bearer {secret}"})

    with client(OPERATOR) as operator:
        made = {
            (owner, scope): operator.post("/keys", json={"name": "k", "owner": owner, "scope": scope}).json()["secret"]
            for owner, scope in (("me", "run"), ("me", "read"), ("you", "run"))
        }
        with client(made["me", "run"]) as mine, client(made["you", "run"]) as yours, client(made["me", "read"]) as reader:
            one = announced(mine, content)
            assert send(yours, one, content).status_code == 404
            assert send(reader, one, content).status_code == 403
            assert send(mine, one, content).status_code == 200
            assert yours.post(f"/checkpoints/{one['id']}/complete").status_code == 404
            assert mine.post(f"/checkpoints/{one['id']}/complete").json()["state"] == "READY"
            assert reader.get(f"/checkpoints/{one['id']}").json()["state"] == "READY"
            assert yours.get(f"/checkpoints/{one['id']}").status_code == 404
            assert yours.get("/checkpoints").json()["items"] == []
            assert yours.delete(f"/checkpoints/{one['id']}").status_code == 404
            assert reader.delete(f"/checkpoints/{one['id']}").status_code == 403
            assert [found["id"] for found in operator.get("/checkpoints").json()["items"]] == [one["id"]]
            training = {"pair": "digits_gfl", "policy": "pkd", "recipe": {"iterations": 5}}
            teacher = {"detector": "gfl_r18w32_fpn32", "checkpoint": one["id"]}
            theirs = yours.post("/distill", json={**training, "teacher": teacher})
            assert f"there is no checkpoint {one['id']}" in theirs.json()["detail"]
            assert announced(yours, content)["id"] != one["id"]
            for seed in range(8):
                last = mine.post("/checkpoints", json={"name": f"n{seed}", "size": 3, "sha256": "0" * 64})
            assert last.status_code == 201
            many = mine.post("/checkpoints", json={"name": "n8", "size": 3, "sha256": "0" * 64})
            assert (many.status_code, "8 uploads of 'me' are not finished" in many.json()["detail"]) == (429, True)


@pytest.mark.parametrize("state", ["READY", "REFUSED"])
def test_what_is_decided_is_told_though_its_parts_cannot_be_removed(service, state, monkeypatch, caplog):
    """The artifacts go away in the moment after the decision."""

    def away(_artifacts, name):
        raise UnreachableError(f"{name}: no answer")

    content = weights(seed=12) if state == "READY" else save({"w": np.zeros(7)})  # without classes
    one = announced(service.http, content, name=f"decided {state}")
    assert send(service.http, one, content).status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(Artifacts, "remove", away)
        answer = service.http.post(f"/checkpoints/{one['id']}/complete")
    assert answer.status_code == (200 if state == "READY" else 422), answer.text
    assert service.http.get(f"/checkpoints/{one['id']}").json()["state"] == state
    assert "files that no checkpoint needs stay for now" in caplog.text
    artifacts = artifacts_at(service.settings.artifacts_place)
    assert artifacts.names(f"uploads/{one['id']}") == [f"uploads/{one['id']}/000000"], "until the evolver comes by"


def test_what_a_killed_service_left_goes_when_it_starts_again_and_what_may_be_in_use_stays(tmp_path):
    """As `kill -9` leaves it: in the midst of a check."""
    imports = ("detkds_api.uploads import room", "detkds_api.service import Running", "detkds_api.settings import Settings")
    code = "import os\n" + "".join(f"from {one}\n" for one in imports)
    code += "with room(Running(None, Settings(), None), 0) as one:\n    (one / 'whole').write_bytes(b'a file')\n    os.kill(os.getpid(), 9)"
    home = tmp_path / "home"
    home.mkdir()
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "DETKDS_HOME": str(home)}, timeout=60, check=False)
    others = home / "checkpoint-mine"  # of somebody who keeps files there
    others.mkdir()
    old, young = (path.parent for path in home.glob("*/*/whole"))
    long_ago = time.time() - LEFT_SECONDS - 60
    for path in (old, others):
        os.utime(path, (long_ago, long_ago))
    with running(Settings(home=home, port=free_port())):
        assert (old.exists(), young.exists(), others.exists()) == (False, True, True)
    os.utime(young, (long_ago, long_ago))
    with room(Running(Store(f"sqlite:///{home / 'detkds.sqlite'}"), Settings(home=home), Fleets()), 0) as folder:
        assert list(folder.parent.iterdir()) == [folder], "nor does the next check keep it"
    assert list(folder.parent.iterdir()) == []
