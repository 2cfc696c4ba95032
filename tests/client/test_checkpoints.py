"""`detkds checkpoints`: sent, taken up again, and used."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from detkds_client.client import Client


@pytest.fixture
def teacher(tmp_path):
    """A checkpoint of three parts."""
    path = tmp_path / "teacher.safetensors"
    values = np.random.default_rng(len(str(tmp_path))).random(9 << 18, dtype=np.float32)
    save_file({"w": values}, path, metadata={"classes": json.dumps(["circle", "square"])})
    return path


def test_a_checkpoint_is_sent_listed_and_used_as_a_teacher(detkds, teacher, pairing):
    done = detkds("checkpoints", "upload", str(teacher), "--name", "mine")
    assert done.returncode == 0, done.stderr
    identity = done.stdout.split("DETECTOR:")[1].strip()
    assert "READY" in done.stdout
    assert identity in detkds("checkpoints").stdout
    again = json.loads(detkds("checkpoints", "upload", str(teacher), "--name", "mine", "--json").stdout)
    assert (again["id"], again["state"]) == (identity, "READY")
    pairing[pairing.index("--teacher") + 1] = f"gfl_r18w32_fpn32:{identity}"
    search = detkds("search", *pairing, "--candidates", "12", "--no-wait", "--json")
    assert search.returncode == 0, search.stderr
    assert f"checkpoints/{identity}/" in json.loads(search.stdout)["spec"]["teacher"]["checkpoint"]


def test_a_checkpoint_is_deleted_by_the_command(detkds, teacher):
    identity = json.loads(detkds("checkpoints", "upload", str(teacher), "--name", "unwanted", "--json").stdout)["id"]
    done = detkds("checkpoints", "delete", identity)
    assert (done.returncode, done.stdout) == (0, f"unwanted ({identity}) is deleted\n"), done.stderr
    assert identity not in detkds("checkpoints").stdout
    again = detkds("checkpoints", "delete", identity)
    assert (again.returncode, f"there is no checkpoint {identity}" in " ".join(again.stderr.split())) == (1, True)


class Tired(Exception):
    pass


def test_an_upload_that_broke_off_goes_on_where_it_was(service, teacher):
    def tire(done: int, size: int) -> None:
        if done == 8 << 20:
            raise Tired

    sent: list[str] = []
    with Client(service.url) as client:
        with pytest.raises(Tired):
            client.upload_checkpoint(teacher, on_progress=tire)
        (begun,) = (one for one in client.checkpoints() if one["state"] == "UPLOADING")
        assert client.checkpoint(begun["id"])["received"] == [0, 1]
        client.http.event_hooks["request"].append(lambda request: sent.append(f"{request.method} {request.url.path}"))
        done = client.upload_checkpoint(teacher)
    assert (done["id"], done["state"]) == (begun["id"], "READY")
    assert sent == ["POST /checkpoints", f"PUT /checkpoints/{done['id']}/parts/2", f"POST /checkpoints/{done['id']}/complete"]


def test_a_refusal_tells_why(detkds, tmp_path):
    (tmp_path / "teacher.safetensors").write_bytes(b"x" * 100)
    done = detkds("checkpoints", "upload", str(tmp_path / "teacher.safetensors"))
    assert done.returncode == 1
    assert "teacher.safetensors is refused: the file: is no PyTorch checkpoint" in " ".join(done.stderr.split())
    (refused,) = (one for one in json.loads(detkds("checkpoints", "--json").stdout) if one["state"] == "REFUSED")
    shown = detkds("checkpoints", "show", refused["id"])
    assert "REFUSED" in shown.stdout
    assert shown.stdout.splitlines()[-1] == refused["reason"] != ""
    gone = detkds("checkpoints", "upload", str(tmp_path / "nowhere"))
    assert (gone.returncode, gone.stderr) == (1, f"{tmp_path / 'nowhere'} is no file\n")


def test_a_file_of_the_services_machine_is_taken_in(detkds, service, teacher):
    (service.roots / "brought.safetensors").write_bytes(teacher.read_bytes())
    done = detkds("checkpoints", "add", str(service.roots / "brought.safetensors"), "--json")
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["name"], json.loads(done.stdout)["state"]) == ("brought.safetensors", "READY")


def test_an_address_is_fetched_from_allowed_hosts_alone(detkds):
    done = detkds("checkpoints", "add", "https://elsewhere.example/weights/w.safetensors?x=1", "--sha256", "0" * 64)
    assert done.returncode == 1
    assert "url: 'elsewhere.example' is no host that checkpoints may come from; none is allowed (DETKDS_CHECKPOINT_HOSTS)" in " ".join(
        done.stderr.split()
    )
