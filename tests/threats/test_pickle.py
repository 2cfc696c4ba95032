"""Pickle in checkpoints: a payload that would write a file, in every format that torch reads, on every way by which weights come in."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds_client.convert import ConvertError, convert
from detkds_core.detectors.checkpoints import CheckpointError, read_checkpoint, read_pickle


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def zipped(path: Path, payload: Payload) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "meta": payload}, path)


def legacy(path: Path, payload: Payload) -> None:
    torch.save({"state_dict": payload}, path, _use_new_zipfile_serialization=False)


def bare(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def tarred(path: Path, payload: Payload) -> None:
    """The oldest format, whose reader in torch had a hole of its own (CVE-2025-32434)."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(0) + pickle.dumps(payload) if name != "pickle" else pickle.dumps(payload)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


FORMATS = [zipped, legacy, bare, tarred]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that a payload would make."""
    return tmp_path / "the-payload-ran"


@pytest.mark.parametrize("write", FORMATS)
def test_the_payload_is_a_real_one(tmp_path: Path, trace: Path, write: Callable[[Path, Payload], None]) -> None:
    write(tmp_path / "evil.pth", Payload(trace))
    script = "import sys, torch\ntry: torch.load(sys.argv[1], weights_only=False)\nexcept Exception as error: print(error)"
    unguarded = {name: value for name, value in os.environ.items() if name != "TORCH_FORCE_WEIGHTS_ONLY_LOAD"}  # which the project sets
    command = [sys.executable, "-c", script, str(tmp_path / "evil.pth")]
    subprocess.run(command, env=unguarded, timeout=120, check=True, capture_output=True)
    assert trace.exists()


@pytest.mark.parametrize("write", FORMATS)
def test_no_reader_of_the_project_runs_it(tmp_path: Path, trace: Path, write: Callable[[Path, Payload], None]) -> None:
    evil = tmp_path / "evil.pth"
    write(evil, Payload(trace))
    for read in (read_checkpoint, read_pickle):  # of a teacher or a student; of `resume.pt`, with which a distillation goes on
        with pytest.raises(CheckpointError, match="cannot be read as tensors only"):
            read(evil)
    with pytest.raises(ConvertError, match="cannot be read as tensors only"):
        convert(evil, tmp_path / "evil.safetensors", ("a",))
    disguised = evil.rename(tmp_path / "evil.safetensors")
    with pytest.raises(Exception, match=r"(?i)header|safetensor|deserializ"):
        read_checkpoint(disguised)
    assert not trace.exists()


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors", "evil.pt", "evil.SAFETENSORS"])
def test_the_service_takes_no_pickle_under_any_name(service, wanted, refused, tmp_path, trace, write, name) -> None:
    path = service.roots / name
    write(path, Payload(trace))
    for role in ("teacher", "student"):
        choice = {"detector": wanted[role]["detector"], "checkpoint": str(path)}
        for url, more in (("/searches", {}), ("/searches/preview", {}), ("/distill", {"policy": "none"})):
            body = {key: value for key, value in wanted.items() if key != "candidates" or url != "/distill"}
            assert "safetensors" in refused(service.http.post(url, json={**body, role: choice, **more}))
    link = service.roots / f"link-{name}.safetensors"
    link.symlink_to(path)
    refused(
        service.http.post("/searches", json={**wanted, "teacher": {"detector": wanted["teacher"]["detector"], "checkpoint": str(link)}})
    )
    link.unlink()
    assert not trace.exists()


def test_a_trainer_that_finds_a_pickle_calls_it_bad_data(service, wanted, tmp_path, trace) -> None:
    """As if the checkpoint had been changed after it was looked at: the trainer itself reads tensors only."""
    evil = tmp_path / "teacher.pth"
    zipped(evil, Payload(trace))
    spec = service.http.post("/searches", json={**wanted, "name": "for its specification"}).json()["spec"]
    job = {name: spec[name] for name in ("dataset", "student", "recipe")} | {"kind": "evaluate", "inherit": True, "seed": 0}
    job |= {"teacher": {**spec["teacher"], "checkpoint": str(evil)}, "candidates": [{"index": 0, "policy": {"terms": []}}]}
    (tmp_path / "spec.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "detkds_worker.trainer", str(tmp_path / "spec.json"), str(tmp_path)]
    done = subprocess.run(command, timeout=300, check=False, capture_output=True)
    assert done.returncode == 1
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["kind"] == "bad_data"
    assert "cannot be read as tensors only" in failure["detail"]
    assert not trace.exists()


def test_a_state_to_go_on_from_is_tensors_only_too(service, wanted, tmp_path, trace) -> None:
    """`resume.pt` lies in the artifacts folder, which another process may reach."""
    (tmp_path / "1").mkdir()
    zipped(tmp_path / "resume.pt", Payload(trace))
    spec = service.http.post("/searches", json={**wanted, "name": "for its specification too"}).json()["spec"]
    job = {name: spec[name] for name in ("dataset", "teacher", "student", "recipe")} | {"kind": "distill", "inherit": True, "seed": 0}
    (tmp_path / "spec.json").write_text(json.dumps({**job, "policy": {"terms": []}, "resume_from": str(tmp_path / "resume.pt")}))
    command = [sys.executable, "-m", "detkds_worker.trainer", str(tmp_path / "spec.json"), str(tmp_path / "1")]
    done = subprocess.run(command, timeout=300, check=False, capture_output=True)
    assert (done.returncode, json.loads((tmp_path / "1" / "failure.json").read_text())["kind"]) == (1, "bad_data")
    assert not trace.exists()
