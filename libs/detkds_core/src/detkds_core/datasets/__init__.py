"""Built-in and user datasets in COCO format, checked before use. No torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detkds_core.datasets.dataset import Dataset, DatasetError, Split, image_ids, report_ids, selection_ids
from detkds_core.datasets.digits import digits
from detkds_core.datasets.registration import BUILT_IN, register
from detkds_core.datasets.trees import trees

__all__ = [
    "BUILT_IN",
    "Dataset",
    "DatasetError",
    "Split",
    "default_cache",
    "digits",
    "image_ids",
    "load_dataset",
    "register",
    "report_ids",
    "selection_ids",
    "trees",
]


def load_dataset(source: str | Mapping[str, Any], cache: Path) -> Dataset:
    """A built-in dataset by name, made in `cache` when it is missing there, or a registered one from its stored JSON.

    Raises DatasetError for a name that is not built in.
    """
    if isinstance(source, Mapping):
        return Dataset.from_json(source)
    if source == "digits":
        return digits(cache)
    if source == "trees":
        return trees(cache)
    raise DatasetError(f"dataset: {source!r} is not built in; one of {', '.join(BUILT_IN)}, or register your own")


def default_cache() -> Path:
    """Where built-in datasets are kept: `DETKDS_CACHE`, else the user's cache folder."""
    if folder := os.environ.get("DETKDS_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detkds"
