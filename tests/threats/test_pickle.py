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
from detkds_core.detectors.checkpoints import STAND_INS, CheckpointError, Unread, read_checkpoint, read_pickle


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


def among_losses(path: Path, payload: Payload) -> None:
    """Within an object that is read as nothing: a Runner's record of losses."""
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer([1.0], [1])
    history._log_history = payload
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "message_hub": {"log_scalars": {"loss": history}}}, path)


FORMATS = [zipped, legacy, bare, tarred, among_losses]


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


class Call:
    """What calls `function` with `arguments` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("zipfile", [True, False])
def test_what_a_file_may_name_beside_tensors_is_never_looked_up(tmp_path: Path, zipfile: bool) -> None:
    """`getattr` on MMEngine's class is how its record of losses is written; the real ones would lead from there to all of Python."""
    from mmengine.logging import HistoryBuffer

    reach = Call(getattr, Call(getattr, HistoryBuffer, "__init__"), "__globals__")
    torch.save({"reached": reach}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipfile)
    with torch.serialization.safe_globals([getattr, HistoryBuffer]):
        assert torch.load(tmp_path / "a.pth", weights_only=True)["reached"] is HistoryBuffer.__init__.__globals__
    reached = read_pickle(tmp_path / "a.pth", STAND_INS)["reached"]
    assert type(reached) is Unread
    with pytest.raises(CheckpointError, match="tensors only"):
        read_pickle(tmp_path / "a.pth")
    torch.save({"state_dict": {"w": reach}}, tmp_path / "b.pth", _use_new_zipfile_serialization=zipfile)
    with pytest.raises(CheckpointError, match="'w' holds an object of another library, not a tensor"):
        read_checkpoint(tmp_path / "b.pth")


def test_what_stands_in_keeps_nothing() -> None:
    made = Unread("anything", key=1)
    made.__setstate__({"__class__": str})
    assert not hasattr(made, "__dict__")
    assert [name for name in vars(Unread) if callable(vars(Unread)[name])] == ["__new__", "__init__", "__setstate__"]
    assert set(STAND_INS.values()) == {dict, Unread}


@pytest.mark.parametrize("function", [os.system, exec, eval, __import__, subprocess.run, io.open])
def test_any_other_name_is_refused_and_told(tmp_path: Path, trace: Path, function: Any) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}, "meta": Call(function, f"touch {trace}")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=rf"cannot be read as tensors only \(it names [\w.]*{function.__name__}\); save its"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not trace.exists()


def test_a_training_s_file_imports_nothing(tmp_path: Path) -> None:
    import numpy as np
    from mmengine.logging import HistoryBuffer

    torch.save({"state_dict": {"w": torch.zeros(2)}, "log": HistoryBuffer([1.0], [1]), "best": np.float64(1)}, tmp_path / "a.pth")
    script = (
        "import sys, pathlib\nfrom detkds_core.detectors.checkpoints import read_checkpoint\n"
        "print(list(read_checkpoint(pathlib.Path(sys.argv[1]))[0]), 'mmengine' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.pth")]
    done = subprocess.run(command, timeout=120, check=True, capture_output=True, text=True)
    assert done.stdout == "['w'] False\n"


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
