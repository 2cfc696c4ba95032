"""Built-in and user datasets in COCO format, checked before use. No torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detkds_core.datasets import cache as built
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
    "on_this_machine",
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


def on_this_machine(wanted: Mapping[str, Any], cache: Path) -> Dataset:
    """The dataset of a job's specification, as its JSON, with the files that it has on this machine.

    A built-in one is taken from where it was made when this machine sees that folder, else from `cache`, made there when it is missing.
    Any other lies where it was registered. Raises DatasetError: it cannot be made here, or what is made has another digest.
    """
    dataset = Dataset.from_json(wanted)
    if dataset.name not in BUILT_IN:
        return dataset
    seen = built.load(dataset.train.annotations.parent)
    if seen is not None and seen.digest == dataset.digest:
        return seen
    made = load_dataset(dataset.name, cache)
    if made.digest != dataset.digest:
        raise DatasetError(
            f"dataset: expected {dataset.name!r} with digest {dataset.digest}, this machine makes one with {made.digest} (in "
            f"{made.train.annotations.parent}); give it the release, scikit-learn and Pillow of the machine that took the request"
        )
    return made


def default_cache() -> Path:
    """Where built-in datasets are kept: `DETKDS_CACHE`, else the user's cache folder."""
    if folder := os.environ.get("DETKDS_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detkds"
