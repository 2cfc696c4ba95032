"""Built-in and user datasets in COCO format, checked before use. No torch."""

import os
from pathlib import Path

from detkds_core.datasets.dataset import Dataset, DatasetError, Split, image_ids, report_ids, selection_ids
from detkds_core.datasets.digits import digits

__all__ = ["Dataset", "DatasetError", "Split", "default_cache", "digits", "image_ids", "load_dataset", "report_ids", "selection_ids"]


def load_dataset(name: str, cache: Path) -> Dataset:
    """A built-in dataset by name, made in `cache` when it is missing there."""
    if name == "digits":
        return digits(cache)
    raise DatasetError(f"dataset: {name!r} is not built in; one of digits")


def default_cache() -> Path:
    """Where built-in datasets are kept: `DETKDS_CACHE`, else the user's cache folder."""
    if folder := os.environ.get("DETKDS_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detkds"
