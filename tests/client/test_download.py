"""`detkds results ID --checkpoint`: the student, and what MMDetection needs beside it."""

import json
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from detkds_client.client import Client
from detkds_client.connection import DigestError, ProblemError
from detkds_core.store import distillations, jobs, results

EVALUATIONS = [{"iteration": step, "ap": ap, "ap50": 2 * ap, "ap75": ap / 2, "images": 40} for step, ap in ((8, 1.0), (16, 3.0), (24, 2.0))]
METRICS = {"student": {"ap": 1.0, "images": 300, "iteration": 16}, "evaluations": EVALUATIONS}


@pytest.fixture
def result_id(service, wanted):
    """The result of a distillation whose trainer left all its files, after three measurements on its way."""
    folder = Path(service.settings.artifacts_place) / "made" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"checkpoint": "student.safetensors", "checkpoint_pth": "student.pth", "config": "student_config.py"}
    files |= {"checkpoint_last": "student_last.safetensors", "checkpoint_last_pth": "student_last.pth"}
    for kind, name in files.items():
        (folder / name).write_text(kind)
    body = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")}
    one = service.http.post("/distill", json={**body, "policy": "none"}).json()["id"]
    with service.store.begin() as session:
        claim = jobs.claim(session, worker="test", lease_seconds=30, job_id=jobs.of_distillation(session, one).id)
        jobs.finish(session, claim, {})
        artifacts = {kind: f"made/1/{name}" for kind, name in files.items()}
        row = distillations.get(session, one)
        made = results.create(
            session, row, policy={"terms": []}, ap=1.0, metrics=METRICS, evidence={"seed": 4}, artifacts=artifacts, environment={}
        )
        distillations.succeed(session, one)
        return made.id


def test_a_pth_comes_with_its_configuration(detkds, result_id, tmp_path):
    done = detkds("results", result_id, "--checkpoint", str(tmp_path / "student.pth"))
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"student.pth": "checkpoint_pth", "student.py": "config"}
    assert f"its MMDetection configuration in {tmp_path / 'student.py'}" in done.stdout
    detkds("results", result_id, "--checkpoint", str(tmp_path / "s.safetensors"))
    assert (tmp_path / "s.safetensors").read_text() == "checkpoint"
    assert not (tmp_path / "s.py").exists()


def test_the_last_weights_come_beside_the_best(detkds, result_id, tmp_path):
    best, last = tmp_path / "best.safetensors", tmp_path / "last.safetensors"
    done = detkds("results", result_id, "--checkpoint", str(best), "--last", str(last))
    assert done.returncode == 0, done.stderr
    assert (best.read_text(), last.read_text()) == ("checkpoint", "checkpoint_last")
    assert done.stdout.splitlines()[-2:] == [f"The student is in {best}.", f"The weights of the end of its training are in {last}."]
    pth = tmp_path / "alone" / "end.pth"
    pth.parent.mkdir()
    done = detkds("results", result_id, "--last", str(pth), "--json")
    assert json.loads(done.stdout)["id"] == result_id, done.stderr
    assert {path.name: path.read_text() for path in pth.parent.iterdir()} == {"end.pth": "checkpoint_last_pth", "end.py": "config"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--last", "{}/x.bin"), "{}/x.bin is neither .safetensors nor .pth"),
        (("--checkpoint", "{}/x.pth", "--last", "{}/x.pth"), "--checkpoint and --last are both {}/x.pth; give two names"),
        (("--checkpoint", "{}/x.pth", "--last", "{}/x.bin"), "{}/x.bin is neither .safetensors nor .pth"),
    ],
)
def test_a_name_that_cannot_be_taken_is_refused_before_anything_is_fetched(detkds, result_id, tmp_path, arguments, told):
    done = detkds("results", result_id, *(one.format(tmp_path) for one in arguments))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{told.format(tmp_path)}\n")
    assert not list(tmp_path.glob("x.*"))


def test_a_result_without_last_weights_says_so(detkds, service, result_id, tmp_path):
    with service.store.begin() as session:
        row = results.get(session, result_id)
        row.artifacts = {kind: name for kind, name in row.artifacts.items() if kind != "checkpoint_last"}
    done = detkds("results", result_id, "--last", str(tmp_path / "last.safetensors"))
    assert (done.returncode, done.stderr) == (1, f"result {result_id} has no last checkpoint; its trainer left none\n")
    with service.store.begin() as session:
        row = results.get(session, result_id)
        row.artifacts = {kind: name for kind, name in row.artifacts.items() if kind != "checkpoint_last_pth"}
    done = detkds("results", result_id, "--last", str(tmp_path / "last.pth"))
    assert done.stderr == f"result {result_id} has no last PyTorch checkpoint; its trainer left none\n"


def test_what_it_was_measured_at_on_its_way_is_shown(detkds, result_id):
    lines = [" ".join(line.split()) for line in detkds("results", result_id).stdout.splitlines()]
    assert "student the weights of iteration 16, the best of 3 by AP on 40 selection images" in lines
    assert "--last last.safetensors fetches those of iteration 24, the last" in lines
    assert lines[-5:] == [
        "measured on its way, seed 4, on 40 selection images",
        "iteration AP AP50 AP75",
        "8 1.0 2.0 0.5",
        "16 3.0 6.0 1.5 the best: exported",
        "24 2.0 4.0 1.0",
    ]


def test_a_folder_that_is_not_there_is_named(detkds, result_id, tmp_path):
    done = detkds("results", result_id, "--checkpoint", str(tmp_path / "nowhere" / "student.pth"))
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path / 'nowhere' / 'student.pth'} cannot be written: No such file or directory\n"


def test_the_policy_and_the_report_of_a_result(service, detkds, result_id, tmp_path):
    with Client(service.url) as client:
        assert client.result_policy(result_id) == {"policy": {"terms": []}, "formula": "none", "config": "config"}
        page = client.report(result_id)
        with pytest.raises(ProblemError, match="there is no result none"):
            client.report("none")
    assert page.startswith("<!doctype html>")
    done = detkds("results", result_id, "--report", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert f"The report is in {tmp_path / 'report.html'}." in done.stdout.replace("\n", "")
    done = detkds("results", result_id, "--report", str(tmp_path / "nowhere" / "report.html"))
    assert (done.returncode, done.stderr) == (1, f"{tmp_path / 'nowhere' / 'report.html'} cannot be written: No such file or directory\n")


class Breaking:
    """A proxy that passes requests on and cuts the first answers off in the middle, or changes a byte of them."""

    def __init__(self, upstream: str, cuts: int, *, spoil: bool = False) -> None:
        self.place = urlsplit(upstream)
        self.cuts, self.spoil, self.asked = cuts, spoil, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, socket.create_connection((self.place.hostname, self.place.port)) as server:
                request = client.recv(65536)
                self.asked.append(request)
                server.sendall(request.replace(b"Connection: keep-alive", b"Connection: close"))
                answer = b""
                while piece := server.recv(65536):
                    answer += piece
                if self.cuts:
                    self.cuts -= 1
                    answer = answer[:-150_000]
                client.sendall(answer[:-1] + b"!" if self.spoil else answer)


@pytest.fixture
def breaking(service):
    made = []

    def make(cuts: int, **kwargs: bool) -> Breaking:
        made.append(Breaking(service.url, cuts, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.listener.close()


def test_a_download_that_breaks_off_goes_on_where_it_was(service, result_id, tmp_path, breaking):
    content = bytes(range(250)) * 1600
    (Path(service.settings.artifacts_place) / "made" / "1" / "student.safetensors").write_bytes(content)
    proxy = breaking(cuts=2)
    with Client(proxy.url) as client:
        client.download_checkpoint(result_id, tmp_path / "student.safetensors")
    assert (tmp_path / "student.safetensors").read_bytes() == content
    assert [b"range: bytes=" in request.lower() for request in proxy.asked] == [False, True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]


def test_a_download_that_was_changed_on_its_way_is_refused(result_id, tmp_path, breaking):
    proxy = breaking(cuts=0, spoil=True)
    with Client(proxy.url) as client, pytest.raises(DigestError, match=r"expected SHA-256 [0-9a-f]{64}, received"):
        client.download_checkpoint(result_id, tmp_path / "student.safetensors")
    assert list(tmp_path.iterdir()) == []
