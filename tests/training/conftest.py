"""A small digits dataset and a small pair that trains in a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds_core.datasets import Dataset
from detkds_core.datasets.digits import digits
from detkds_core.detectors.runtime import prepare_mmdet


@pytest.fixture(scope="session", autouse=True)
def _ready() -> None:
    prepare_mmdet()


@pytest.fixture(scope="session")
def small_digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return digits(tmp_path_factory.mktemp("datasets"), train=24, val=12, size=64)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory, small_digits: Dataset) -> Path:
    """A teacher with random weights: enough for everything but AP."""
    from detkds_core.detectors.build import build_detector, save_weights

    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teachers") / "teacher.safetensors"
    save_weights(build_detector("gfl_r18w16_fpn32", small_digits.classes), path, {})
    return path


@pytest.fixture
def spec(small_digits: Dataset, teacher_file: Path) -> Callable[..., dict[str, Any]]:
    """A job's specification; keyword arguments replace its entries."""

    def make(**entries: Any) -> dict[str, Any]:
        recipe = {"iterations": 4, "batch": 4, "lr": 1e-3, "image_size": 64, "augment": "flip", **entries.pop("recipe", {})}
        base = {
            "kind": "evaluate",
            "dataset": small_digits.to_json(),
            "teacher": {"detector": "gfl_r18w16_fpn32", "checkpoint": str(teacher_file)},
            "student": {"detector": "gfl_r18w8_fpn32", "checkpoint": None},
            "inherit": True,
            "recipe": recipe,
            "seed": 3,
        }
        return {**base, **entries}

    return make
