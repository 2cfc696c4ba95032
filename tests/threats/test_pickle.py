"""Pickle in checkpoints: a payload that would write a file, in every format that torch reads, on every way by which weights come in."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

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


class Witness:
    """Stands in for a name and looks at what is allowed while a file is read."""

    allowed: ClassVar[list[Any]] = []

    def __new__(cls, *_: Any) -> "Witness":
        cls.allowed.append(torch.serialization.get_safe_globals())
        return super().__new__(cls)


def test_what_the_program_allows_is_not_allowed_to_a_file(tmp_path: Path) -> None:
    """As programs that read MMEngine's files otherwise do, by `add_safe_globals`, and MMEngine itself while it loads one."""
    from mmengine.logging import HistoryBuffer

    torch.save(Call(getattr, {}, "keys"), tmp_path / "a.pth")
    with torch.serialization.safe_globals([getattr, HistoryBuffer]):
        before = set(torch.serialization.get_safe_globals())
        Witness.allowed.clear()
        read_pickle(tmp_path / "a.pth", {"builtins.getattr": Witness})
        assert Witness.allowed == [[(Witness, "builtins.getattr")]]
        assert set(torch.serialization.get_safe_globals()) == before >= {getattr, HistoryBuffer}
        with pytest.raises(CheckpointError, match="it names getattr"):  # as `resume.pt` is read
            read_pickle(tmp_path / "a.pth")
        assert set(torch.serialization.get_safe_globals()) == before


def test_threads_read_at_once(tmp_path: Path) -> None:
    from mmengine.logging import HistoryBuffer

    log = [HistoryBuffer([1.0], [1]) for _ in range(100)]
    torch.save({"state_dict": {f"w{index}": torch.zeros(2) for index in range(100)}, "log": log}, tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(lambda _: len(read_checkpoint(tmp_path / "a.pth")[0]), range(24)))
    assert read == [100] * 24
    assert set(torch.serialization.get_safe_globals()) == before


ATTRIBUTES = ("detach", "numel", "element_size", "untyped_storage", "contiguous", "clone", "to", "__torch_function__")


def named_parameter() -> Call:
    given = dict.fromkeys(ATTRIBUTES, OrderedDict)
    return Call(torch._utils._rebuild_parameter_with_state, torch.ones(2), False, OrderedDict(), given)


def named_tensor() -> Call:
    given = dict.fromkeys(ATTRIBUTES, torch.device)
    return Call(torch._tensor._rebuild_from_type_v2, torch._utils._rebuild_parameter, nn.Parameter, (torch.ones(2), False, {}), given)


@pytest.mark.parametrize("tensor", [named_parameter, named_tensor])
def test_attributes_that_a_file_gives_its_tensors_are_dropped(tmp_path: Path, tensor: Callable[[], Call]) -> None:
    """PyTorch's restricted reader sets them, also under names of methods that who takes the tensor will call."""
    torch.save({"state_dict": {"w": tensor()}}, tmp_path / "a.pth")
    assert set(ATTRIBUTES) <= set(vars(read_pickle(tmp_path / "a.pth")["state_dict"]["w"]))
    weights, _ = read_checkpoint(tmp_path / "a.pth")
    assert type(weights["w"]) is torch.Tensor
    assert vars(weights["w"]) == {}
    assert weights["w"].tolist() == [1.0, 1.0]
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors", ("a",))
    assert read_checkpoint(tmp_path / "a.safetensors")[0]["w"].tolist() == [1.0, 1.0]


class Named:
    """A dictionary that has, when it is unpickled, other things in place of its methods."""

    def __init__(self, kind: type, **content: Any) -> None:
        self.kind, self.content = kind, content

    def __reduce__(self) -> tuple[Any, ...]:
        return self.kind, (), dict.fromkeys(("get", "items", "keys", "values"), torch.device), None, iter(self.content.items())


@pytest.mark.parametrize("kind", [OrderedDict, Counter])
def test_attributes_that_a_file_gives_its_dictionaries_are_dropped(tmp_path: Path, kind: type) -> None:
    meta = Named(kind, dataset_meta=Named(kind, classes=("a", "b")))
    torch.save(Named(kind, state_dict=Named(kind, w=torch.ones(2)), meta=meta), tmp_path / "a.pth")
    weights, metadata = read_checkpoint(tmp_path / "a.pth")
    assert {key: value.tolist() for key, value in weights.items()} == {"w": [1.0, 1.0]}
    assert metadata == {"classes": '["a", "b"]'}


def test_a_tensor_of_more_numbers_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    """Written out it would be 4 TiB."""
    vast = torch.zeros(1).expand(1 << 20, 1 << 20)
    told = r"'w' holds a tensor of 1099511627776 numbers, of which the file has 1; save the model's state_dict alone"
    for weight in (vast, nn.Parameter(vast)):
        torch.save({"state_dict": {"w": weight}}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=told):
            read_checkpoint(tmp_path / "a.pth")
        with pytest.raises(ConvertError, match=told):
            convert(tmp_path / "a.pth", tmp_path / "a.safetensors", ("a",))
    whole = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": whole.t(), "b": whole[1], "c": whole[:0], "d": whole[:1].expand(1, 3)}, tmp_path / "views.pth")
    weights, _ = read_checkpoint(tmp_path / "views.pth")
    assert weights["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (weights["b"].tolist(), weights["c"].tolist(), weights["d"].tolist()) == ([3, 4, 5], [], [[0, 1, 2]])


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
