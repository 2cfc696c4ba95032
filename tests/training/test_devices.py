"""Two processes that share each batch learn the same weights as one that sees it whole."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detkds_core.training import forks, parallel
from detkds_core.training.launch import run_together

from . import devices_program
from .devices_program import frozen_student, trained

PROGRAM = str(Path(devices_program.__file__))
TERM = {"knowledge": "global", "transforms": ["none", "none", "none"], "distance": "l2", "weight": 0.5, "auto": True}
MASKED = {**TERM, "transforms": ["mask", "none", "none"], "auto": False}
BALANCED = {**TERM, "distance": "l1", "weight": 0.2, "auto": False, "balanced": True}


@pytest.mark.parametrize("recipe", [{}, {"accumulate": 2, "precision": "bf16", "ema": 0.9}], ids=["fp32", "bf16 twice"])
def test_two_processes_equal_one_on_the_same_batches(spec, small_digits, tmp_path, recipe):
    job = spec(
        policy={"terms": [TERM, BALANCED, MASKED]},
        student=frozen_student(tmp_path, small_digits.classes),
        recipe={"iterations": 3, "optimizer": "sgd", "lr": 0.01, "schedule": "steps", "weight_decay": 1e-4, **recipe},
    )
    (tmp_path / "spec.json").write_text(json.dumps({**job, "recipe": {**job["recipe"], "devices": 2}}))
    assert run_together([sys.executable, PROGRAM, str(tmp_path / "spec.json"), str(tmp_path / "two.pt")], 2) == 0
    two, one = torch.load(tmp_path / "two.pt", weights_only=True), trained(job)
    coarse = "precision" in recipe  # in bf16 a sum over 2 images rounds otherwise than one over 4
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-5, atol=2e-4 if coarse else 1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert two["scales"].keys() == {"distill/0_global", "distill/1_global"}
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-2 if coarse else 1e-4)
    assert two["scales"] == pytest.approx(one["scales"], rel=2e-2 if coarse else 1e-4)
    moved = trained(spec(**{key: job[key] for key in ("policy", "student")}, recipe={"iterations": 1, "lr": 1e-9}))["weights"]
    learnt = max(float((one["weights"][name] - moved[name]).abs().max()) for name in moved)
    assert learnt > 1e-3  # far more than what the two may differ by


def test_a_process_that_fails_ends_the_others_and_its_code_is_known(tmp_path):
    program = "import os, sys, time; sys.exit(7) if os.environ['DETKDS_RANK'] == '1' else time.sleep(600)"
    began = time.monotonic()
    assert run_together([sys.executable, "-c", program], 2) == 7
    assert time.monotonic() - began < 20


def test_the_processes_end_with_who_started_them(tmp_path):
    child = f"import os, time; open(r'{tmp_path}/' + os.environ['DETKDS_RANK'], 'w').write(str(os.getpid())); time.sleep(600)"
    starter = f"from detkds_core.training.launch import run_together; import sys; run_together([sys.executable, '-c', {child!r}], 2)"
    process = subprocess.Popen([sys.executable, "-c", starter])
    deadline = time.monotonic() + 60
    while not all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pids = [int((tmp_path / rank).read_text()) for rank in "01"]
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def average_on_two(folder: Path) -> None:
    """What each of the two processes of the next test does."""
    with parallel.joined():
        one, two, three = (nn.Parameter(torch.zeros(2)) for _ in range(3))
        if parallel.rank() == 0:
            one.grad, two.grad = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0])
        else:
            one.grad = torch.tensor([0.0, 2.0])
        parallel.average_gradients([one, two, three])
        found = [None if p.grad is None else p.grad.tolist() for p in (one, two, three)]
        gathered = parallel.gathered([{"rank": parallel.rank()}])
        (folder / f"{parallel.rank()}.json").write_text(json.dumps([found, gathered]))


def test_gradients_are_averaged_and_one_that_is_missing_counts_as_nothing(tmp_path):
    root = Path(__file__).parents[2]
    program = f"from pathlib import Path; from tests.training.test_devices import average_on_two; average_on_two(Path(r'{tmp_path}'))"
    os.environ["PYTHONPATH"] = f"{root}:{os.environ.get('PYTHONPATH', '')}"
    assert run_together([sys.executable, "-c", program], 2) == 0
    for rank in range(2):
        found, gathered = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == [[1.0, 3.0], [0.5, 0.5], None]  # nobody used the third: it must not decay, so it has no gradient
        assert gathered == [{"rank": 0}, {"rank": 1}]


def trunk_on_two(folder: Path) -> None:
    """What each of the two processes of the next test does. The trunk was swept after the first one found it, before the second one did."""
    fork = forks.Fork({"w": torch.ones(2)}, {}, 2)

    def grow(*_: object) -> forks.Fork:
        parallel.meet()  # as its gradients do
        return fork

    forks.grow_trunk, forks._key = grow, lambda *_: "key"
    with parallel.joined():
        own = folder / f"cache-{parallel.rank()}"
        if parallel.rank() == 0:
            forks._write(own / "trunk_key.fork", fork)
        start = SimpleNamespace(device=torch.device("cpu"))
        kept = [forks.cached_trunk(start, None, 2, 3, folder / name)[1] for name in (own.name, "cache-0")]
        (folder / f"{parallel.rank()}.json").write_text(json.dumps(kept))


def test_a_trunk_that_one_process_misses_is_grown_by_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}")
    program = f"from pathlib import Path; from tests.training.test_devices import trunk_on_two; trunk_on_two(Path(r'{tmp_path}'))"
    assert run_together([sys.executable, "-c", program], 2) == 0
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[True, False]] * 2
