"""MMDetection is readied before any of these tests imports it, whatever their order."""

import pytest

from detkds_core.detectors.runtime import prepare_mmdet


@pytest.fixture(scope="session", autouse=True)
def _ready() -> None:
    prepare_mmdet()
