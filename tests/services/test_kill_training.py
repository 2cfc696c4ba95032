"""The same with the real trainer: killed while it trains, and its worker too, a search measures the same APs to the last digit."""

import json
from pathlib import Path
from typing import Any

import pytest

from detkds_core.datasets.digits import digits

from . import harness
from .harness import Api, until
from .test_kill import killed, measured, start_serve, stop

# The student starts as its own teacher: six steps make nothing worse than different, and every policy's AP is a figure of its own.
DETECTOR = {"detector": "gfl_r18w32_fpn32", "checkpoint": "digits_gfl_r18w32_fpn32"}
SEARCH: dict[str, Any] = {
    "dataset": "few-digits",
    "teacher": DETECTOR,
    "student": DETECTOR,
    "candidates": 4,
    "algorithm": "random",
    "parallelism": 1,
    "group": 2,
    "seed": 3,
    "recipe": {"iterations": 6, "batch": 4, "lr": 0.001, "image_size": 128},
    "confirmation": {"finalists": 1, "seeds": 3, "iterations": 2, "distillers": ["pkd"]},
}


def trained(api: Api, search: str) -> bytes:
    found = [
        {key: one[key] for key in ("index", "policy", "ap", "ap50", "ap75", "failure")}
        for one in api.pages(f"/searches/{search}/candidates")
    ]
    return json.dumps(found, sort_keys=True, indent=1).encode()


@pytest.mark.slow
def test_killed_while_it_trains_a_search_measures_the_same(tmp_path: Path) -> None:
    few = digits(tmp_path / "roots", train=24, val=16)
    splits = {
        name: {"annotations": str(split.annotations), "images": str(split.images)}
        for name, split in (("train", few.train), ("val", few.val))
    }
    process, api = start_serve(tmp_path, DETKDS_TRAINER=harness.REAL_TRAINER)
    try:
        api.register("few-digits", splits)

        def begin() -> str:
            return str(api.call("POST", "/searches", SEARCH)["id"])

        def trains(search: str) -> bool:
            """Whether a trainer is at its optimisation steps, neither importing nor measuring."""
            return "training" in api.get(f"/searches/{search}")["progress"]["message"] and bool(
                harness.pids(tmp_path, "detkds_worker.trainer")
            )

        undisturbed = begin()
        until(lambda: measured(api, undisturbed) == 4, 300, "4 candidates")
        api.call("POST", f"/searches/{undisturbed}/cancel")
        expected = trained(api, undisturbed)
        assert len({one["ap"] for one in json.loads(expected)}) > 2

        disturbed = begin()
        until(lambda: trains(disturbed), 60, "training")
        killed(tmp_path, "detkds_worker.trainer")
        until(lambda: measured(api, disturbed) == 2, 90, "2 candidates")
        until(lambda: trains(disturbed), 60, "training of the second group")
        killed(tmp_path, "-m detkds_worker ")
        until(lambda: measured(api, disturbed) == 4, 300, "4 candidates")
        api.call("POST", f"/searches/{disturbed}/cancel")
        assert trained(api, disturbed) == expected
    finally:
        stop(process)
    assert harness.processes_of(tmp_path) == {}
