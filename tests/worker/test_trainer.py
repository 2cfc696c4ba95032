"""The trainer as a process: killed and resumed, and on several devices."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from detkds_core.datasets.digits import digits
from detkds_core.training.launch import RANK
from detkds_worker import trainer

PROGRAM = [sys.executable, str(Path(__file__).with_name("trainer_program.py"))]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    dataset = digits(tmp_path_factory.mktemp("datasets"), train=24, val=12, size=64)
    return {
        "kind": "distill",
        "dataset": dataset.to_json(),
        "teacher": {"detector": "gfl_r18w32_fpn32", "checkpoint": "digits_gfl_r18w32_fpn32"},
        "student": {"detector": "gfl_r18w8_fpn32", "checkpoint": None},
        "recipe": {"iterations": 30, "batch": 4, "image_size": 64, "ema": 0.9, "accumulate": 2},
        "policy": {"terms": [{"knowledge": "global", "transforms": ["none"] * 3, "distance": "l2", "weight": 1.0, "auto": True}]},
        "seed": 3,
    }


def start(spec: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    return subprocess.Popen(
        [*PROGRAM, str(folder / "spec.json"), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


@pytest.mark.slow
def test_killed_outright_a_distillation_goes_on_to_the_same_weights(spec: dict[str, Any], tmp_path: Path) -> None:
    undisturbed = start(spec, tmp_path / "a" / "1")
    assert undisturbed.communicate()[1] is None
    assert undisturbed.returncode == 0
    killed = start(spec, tmp_path / "b" / "1")
    resume = tmp_path / "b" / "resume.pt"
    deadline = time.monotonic() + 300
    while not resume.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(1.0)  # somewhere in the middle of a step, or of writing the next state
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "b/1/result.json").exists()
    resumed = start({**spec, "resume_from": str(resume)}, tmp_path / "b" / "2")
    said = [json.loads(line) for line in resumed.communicate()[0].splitlines()]
    assert resumed.returncode == 0
    results = [json.loads((tmp_path / at / "result.json").read_text()) for at in ("a/1", "b/2")]
    assert results[0]["sha256"] == results[1]["sha256"]
    assert results[0]["curve"] == results[1]["curve"]
    assert said[0]["done"] > 1  # it did not begin anew


def run_on_two(spec: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, **recipe: Any) -> int:
    folder.mkdir(parents=True)
    monkeypatch.delenv(RANK, raising=False)
    return trainer.run_on_devices({**spec, "recipe": {**spec["recipe"], "devices": 2, **recipe}}, folder, PROGRAM)


@pytest.mark.slow
def test_two_devices_leave_one_result_of_one_student(spec: dict[str, Any], tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("LARGEST_BATCH", "1")  # of a device: the second refuses 2 of 4 images, and the job starts again with 1 of 2
    assert run_on_two(spec, tmp_path / "job" / "1", monkeypatch, iterations=4, eval_every=2, accumulate=1) == 0
    result = json.loads((tmp_path / "job/1/result.json").read_text())
    assert (result["recipe"]["batch"], result["recipe"]["accumulate"], result["environment"]["devices"]) == (2, 2, "2")
    (warning,) = [one for one in result["warnings"] if "did not fit" in one]
    assert warning.startswith("a batch of 4 images did not fit in memory: 2 at a time, 2 times a step")
    assert [one["iteration"] for one in result["evaluations"]] == [2, 4]
    found = json.loads((tmp_path / "job/1/detections.json").read_text())
    assert result["teacher"]["ap"] > 20
    assert len({one["image_id"] for one in found["teacher"]}) == 6  # all report images, found by two processes
    assert set(load_file(tmp_path / "job/1/student.safetensors")) == set(load_file(tmp_path / "job/1/student_last.safetensors"))
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {line["event"] for line in lines} == {"progress"}  # one voice
    assert lines[-1]["done"] == lines[-1]["total"] == 6


def test_a_failure_on_devices_is_told_as_one(spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {**spec, "teacher": {"detector": "gfl_r18w32_fpn32", "checkpoint": str(tmp_path / "gone.safetensors")}}
    assert run_on_two(gone, tmp_path / "job" / "1", monkeypatch) == 1
    failure = json.loads((tmp_path / "job/1/failure.json").read_text())
    assert failure["kind"] == "bad_data"
    assert "gone.safetensors" in failure["detail"]
    assert not (tmp_path / "job/1/result.json").exists()


def test_candidates_are_measured_on_devices_too(spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = [{"index": 4, "policy": {"terms": []}}, {"index": 5, "policy": spec["policy"]}]
    assert run_on_two({**spec, "kind": "evaluate", "candidates": candidates}, tmp_path / "job" / "1", monkeypatch, iterations=1) == 0
    result = json.loads((tmp_path / "job/1/result.json").read_text())
    assert [(row["index"], row["images"], row["failure"]) for row in result["candidates"]] == [(4, 6, None), (5, 6, None)]


def test_progress_tells_what_a_step_takes_while_a_phase_lasts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    moments = iter([100.0, 101.0, 101.1, 103.0, 104.0, 106.0])
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(moments))
    report = trainer.Reporter()
    for done, message in ((1, "training"), (5, "training"), (6, "training"), (15, "training"), (16, "measuring 0"), (17, "measuring 1")):
        report(done, 40, message)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [(line["done"], line["step_seconds"]) for line in lines]
    assert told == [(1, None), (5, 0.25), (15, 0.2), (16, None), (17, None)], "the third comes too soon after the second"
