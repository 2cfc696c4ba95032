"""What a fresh process sees of `prepare_mmdet`."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detkds_core.detectors.runtime import prepare_mmdet


def fresh(program: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter, in which nothing is imported yet."""
    return subprocess.run(
        [sys.executable, *flags, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300, check=False
    )


def test_nothing_is_printed_and_nothing_warned_in_a_fresh_interpreter():
    program = """
import io, logging, sys
from detkds_core.detectors.runtime import prepare_mmdet
prepare_mmdet()
prepare_mmdet()
from mmdet.registry import MODELS
MODELS.build({"type": "ResNet", "depth": 18, "base_channels": 4}).init_weights()
MODELS.build({"type": "RetinaHead", "num_classes": 2, "in_channels": 4}).num_anchors
handlers = [h for name in [None, *logging.root.manager.loggerDict] for h in logging.getLogger(name).handlers]
assert not any(isinstance(getattr(h, "stream", None), io.StringIO) for h in handlers), "a log handler kept the silenced stream"
print("ready", file=sys.stderr)

from mmengine.logging import print_log
print_log("of interest", "current", level=logging.WARNING)
print_log("of none", "current", level=logging.INFO)
"""
    done = fresh(program, "-W", "always")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    before, after = done.stderr.split("ready\n")
    assert before == ""
    assert "of interest" in after  # what concerns the user still arrives, and not on stdout
    assert "of none" not in after


def test_the_scope_is_mmdets_and_checkpoints_load_as_tensors_only(tmp_path: Path):
    prepare_mmdet()
    from mmengine.registry import DefaultScope

    assert DefaultScope.get_current_instance().scope_name == "mmdet"
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    torch.save({"state_dict": {"w": torch.ones(2)}, "path": tmp_path}, tmp_path / "object.pth")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(tmp_path / "object.pth", weights_only=False)


def test_a_switch_that_lets_pickles_in_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    prepare_mmdet.cache_clear()
    prepare_mmdet()
    torch.save({"w": torch.ones(2)}, tmp_path / "tensors.pth")
    assert torch.load(tmp_path / "tensors.pth")["w"].tolist() == [1, 1]
    with pytest.raises(KeyError):
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]


def test_a_compiled_mmcv_is_used_when_present(tmp_path: Path):
    # a module that the import system finds as mmcv._ext, as it would find the compiled one
    (tmp_path / "_ext.py").write_text(
        "def __getattr__(name):\n"
        "    if name.startswith('__'):\n"
        "        raise AttributeError(name)\n"
        "    def op(*args, **kwargs):\n"
        "        raise RuntimeError('compiled ' + name)\n"
        "    return op\n"
    )
    program = f"""
import mmcv
mmcv.__path__.append({str(tmp_path)!r})
from detkds_core.detectors import ops
assert ops.install() is False
import torch
from mmcv.ops import nms
try:
    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except RuntimeError as error:
    assert str(error) == "compiled nms", error
else:
    raise AssertionError("the bridge answered")
"""
    done = fresh(program)
    assert done.returncode == 0, done.stderr


def test_the_bridge_reports_itself():
    assert prepare_mmdet() is True
    import importlib.util

    from mmcv.ops import get_compiler_version

    assert get_compiler_version() == "none, ops by torchvision"
    assert importlib.util.find_spec("mmcv._ext") is not None
