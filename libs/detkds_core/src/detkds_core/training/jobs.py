"""What the jobs of a trainer share, and a search's own: measure candidates, confirm finalists. Specifications: docs/architecture.md."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkds_core.catalogue import Recipe
from detkds_core.datasets import Dataset, report_ids, selection_ids
from detkds_core.detectors.pair import PairError
from detkds_core.evaluation.coco import Metrics
from detkds_core.evaluation.predict import detect, draws_masks, metrics_of
from detkds_core.policy import from_json
from detkds_core.training import parallel
from detkds_core.training.group import batches_for, new_learner, prepare, train
from detkds_core.training.learner import Learner, final_weights

Report = Callable[..., None]  # done, total, message, best_ap


def measure_candidates(spec: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Train the candidates of an `evaluate` or `confirm` job as one group from one start and measure each.

    `evaluate` measures on the selection images; `confirm` on the report images, and gives `selection_ap` as well, by which the winner
    is chosen, so that what is reported was not what was chosen by. A candidate that fails says why and costs the others nothing.
    The last weights are measured (their average where the recipe keeps one); `eval_every` is for the training of one student.
    """
    dataset = Dataset.from_json(spec["dataset"])
    recipe, warnings = resolved_recipe(spec, dataset)
    start = prepare(spec, spec["seed"])
    began = time.monotonic()
    learners: dict[int, Learner] = {}
    rows: dict[int, dict[str, Any]] = {}

    def learning_tokens(done: int, of: int) -> None:
        report(0, recipe.iterations + len(spec["candidates"]), f"the teacher learns MasKD's tokens: step {done} of {of}")

    for candidate in spec["candidates"]:
        index = candidate["index"]
        try:
            learners[index] = new_learner(start, from_json(candidate["policy"]), recipe, spec["seed"], learning_tokens)
        except PairError as error:
            rows[index] = _row(index, None, 0, 0.0, {"kind": "bad_data", "detail": str(error)})
    total = recipe.iterations + len(learners)
    if learners:
        batches = batches_for(next(iter(learners.values())), spec["dataset"]["train"], recipe, spec["seed"])
        train(
            list(learners.values()),
            start,
            batches,
            on_step=lambda done, _: report(done, total, f"training {len(learners)} candidates together"),
        )
    trained = time.monotonic() - began
    confirming = spec["kind"] == "confirm"
    ids = list(report_ids(dataset)) if confirming else selection(dataset, recipe)
    best: float | None = None
    for done, (index, learner) in enumerate(learners.items()):
        measuring = time.monotonic()
        metrics = None
        if learner.failure is None:
            with final_weights(learner) as model:
                metrics, _ = measure_together(model, dataset, ids, recipe)
                chosen_by = measure_together(model, dataset, selection_ids(dataset), recipe)[0] if confirming else None
            best = metrics.ap if best is None else max(best, metrics.ap)
        seconds = trained / len(learners) + time.monotonic() - measuring
        rows[index] = _row(index, metrics, recipe.iterations, seconds, learner.failure)
        if metrics is not None and chosen_by is not None:
            rows[index]["selection_ap"] = chosen_by.ap
        report(recipe.iterations + done + 1, total, f"measuring candidate {index} on {len(ids)} images", best)
    found = [rows[candidate["index"]] for candidate in spec["candidates"]]
    return {"candidates": found, "warnings": warnings, "environment": environment()}


class TrainingError(RuntimeError):
    """A training that could not end. kind: the failure kind of the job."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def resolved_recipe(spec: Mapping[str, Any], dataset: Dataset) -> tuple[Recipe, list[str]]:
    """A job's recipe in iterations, and what has to be said of it."""
    recipe = Recipe.from_json(spec["recipe"])
    counted = recipe.epochs is not None
    return recipe.resolved((dataset.train.count or len(dataset.train.load()["images"])) if counted else 0)


def selection(dataset: Dataset, recipe: Recipe) -> list[int]:
    """The images that candidates and checkpoints are chosen by."""
    return list(selection_ids(dataset))[: recipe.eval_images]


def measure_together(model: nn.Module, dataset: Dataset, ids: Sequence[int], recipe: Recipe) -> tuple[Metrics, list[dict[str, Any]]]:
    """COCO AP on images of val, and the detections behind it; every process detects on its share of the images."""
    parallel.share_buffers(model)
    annotations = dataset.val.load()
    own = list(ids)[parallel.rank() :: parallel.devices()]
    detections = parallel.gathered(
        detect(model, annotations, Path(dataset.val.images), own, image_size=recipe.image_size, short_side=recipe.short_side)
    )
    return metrics_of(annotations, detections, ids, masks=draws_masks(model)), detections


def figures(metrics: Metrics) -> dict[str, Any]:
    """AP in percent as results carry it; `segm` of detectors that draw masks, the rest is of boxes."""
    found: dict[str, Any] = {"ap": metrics.ap, "ap50": metrics.ap50, "ap75": metrics.ap75, "images": metrics.images}
    if metrics.segm is not None:
        found["segm"] = {"ap": metrics.segm.ap, "ap50": metrics.segm.ap50, "ap75": metrics.segm.ap75}
    return found


def environment() -> dict[str, str]:
    """What the figures were made with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    packages = {name: version(name) for name in ("detkds_core", "torch", "torchvision", "onedl-mmdetection", "faster-coco-eval")}
    threads = {"threads": str(torch.get_num_threads()), "devices": str(parallel.devices())}
    return {**packages, "python": platform.python_version(), "device": device, **threads}


def _row(index: int, metrics: Metrics | None, iterations: int, seconds: float, failure: dict[str, str] | None) -> dict[str, Any]:
    found = figures(metrics) if metrics is not None else dict.fromkeys(("ap", "ap50", "ap75", "images"))
    return {"index": index, **found, "iterations": iterations, "seconds": seconds, "failure": failure}
