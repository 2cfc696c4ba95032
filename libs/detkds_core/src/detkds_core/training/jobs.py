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
from detkds_core.detectors.pair import PairError, check_policy
from detkds_core.evaluation.coco import Metrics, lenient_ap
from detkds_core.evaluation.predict import detect, draws_masks, metrics_of
from detkds_core.evaluation.resampling import image_weights, resampled_ap
from detkds_core.policy import Policy, from_json, to_json
from detkds_core.training import parallel
from detkds_core.training.batches import Batches
from detkds_core.training.capacity import together
from detkds_core.training.ground import Ground, Looked, Report, ground_of, looked_at
from detkds_core.training.group import DoesNotFitError, Progress, Start, batches_for, prepare, start_warnings, train
from detkds_core.training.group import TrainingError as TrainingError
from detkds_core.training.learner import Learner, final_weights
from detkds_core.training.pull import fixed


def measure_candidates(spec: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Train the candidates of an `evaluate` or `confirm` job from one start, side by side, and measure each.

    `evaluate` measures on the selection images, and the lenient AP too where it is a rung; `confirm` on the report images, which no search
    sees, and gives `resampled_ap` as well: the APs on images drawn anew from them, the same draws for every policy and seed. A candidate
    that fails says why and costs the others nothing.
    What has to be said of all of them is in `warnings`, what of one in its row; neither depends on the machine or on what came before.
    The last weights are measured (their average where the recipe keeps one); `eval_every` is for the training of one student.

    With `fork` the candidates are looked at where a trunk of so many steps stands, and with `rung` they are branches of so many steps from
    there. With `gates`, a candidate that does not pass them is not trained, unless it is to be audited.
    """
    dataset = Dataset.from_json(spec["dataset"])
    recipe, warnings = resolved_recipe(spec, dataset)
    start = prepare(spec, spec["seed"])
    if spec["kind"] == "evaluate":
        selection(dataset, recipe)  # one on which nothing can be measured is told at once
    candidates = {candidate["index"]: candidate for candidate in spec["candidates"]}
    policies = {index: from_json(candidate["policy"]) for index, candidate in candidates.items()}
    rows: dict[int, dict[str, Any]] = {}
    for index, policy in policies.items():
        try:
            check_policy(policy, start.teacher_entry, start.student_entry, resize=bool(start.levels.strides))
        except PairError as error:
            rows[index] = _row(index, policy, failure={"kind": "bad_data", "detail": str(error)})
    able = {index: policy for index, policy in policies.items() if index not in rows}
    ground, trunk = ground_of(spec, start, recipe, report)
    looked = looked_at(spec, start, ground, able, report)
    trained = {index: policy for index, policy in able.items() if index not in looked.refused or candidates[index].get("audit")}
    measured = _measured(spec, start, ground, trained, looked, dataset, report)
    for index, policy in able.items():
        rows[index] = measured[index] if index in measured else _row(index, looked.resolved(index, policy))
        looked.tell(index, rows[index])
    found = [rows[index] for index in candidates]
    said = {"warnings": [*warnings, *start_warnings(start)], "inherited": start.inherited, "environment": environment()}
    return {"candidates": found, **said, **({"fork": trunk} if trunk else {})}


def _measured(
    spec: Mapping[str, Any],
    start: Start,
    ground: Ground,
    policies: Mapping[int, Policy],
    looked: Looked,
    dataset: Dataset,
    report: Report,
) -> dict[int, dict[str, Any]]:
    """The rows of the candidates: as many side by side as memory holds, the others after them."""

    def make(index: int, on_token_step: Progress | None = None) -> Learner:
        learner = ground.learner(start, policies[index], on_token_step)
        if index in looked.findings:
            learner.scales |= looked.findings[index].scales
        return learner

    def batches(learner: Learner) -> Batches:
        return batches_for(learner, spec["dataset"]["train"], ground.recipe, ground.seed)

    waiting = list(policies)
    most = together(start, lambda: make(waiting[0]), batches) if len(waiting) > 1 else 1
    passes = [waiting[place : place + most] for place in range(0, len(waiting), most)]
    rows: dict[int, dict[str, Any]] = {}
    while passes:
        members = passes.pop(0)
        try:
            rows |= _passed(spec, ground.recipe, start, {index: policies[index] for index in members}, make, batches, dataset, report)
        except (torch.OutOfMemoryError, DoesNotFitError):
            if len(members) == 1 or parallel.devices() > 1:
                raise
            passes[:0] = [members[: len(members) // 2], members[len(members) // 2 :]]
            torch.cuda.empty_cache()
    return rows


def _passed(
    spec: Mapping[str, Any],
    recipe: Recipe,
    start: Start,
    members: Mapping[int, Policy],
    make: Callable[[int, Progress], Learner],
    batches: Callable[[Learner], Batches],
    dataset: Dataset,
    report: Report,
) -> dict[int, dict[str, Any]]:
    """The rows of some candidates, trained side by side and measured one after the other."""
    total = recipe.iterations + len(members)
    count = len(spec["candidates"])
    company = f"{len(members)} candidates" if len(members) == count else f"{len(members)} of {count} candidates"
    began = time.monotonic()

    def learning_tokens(done: int, of: int) -> None:
        report(0, total, f"the teacher learns MasKD's tokens: step {done} of {of}")

    learners = {index: make(index, learning_tokens) for index in members}
    lasted = dict.fromkeys(learners, 0)

    def after_step(done: int, _of: int) -> None:
        lasted.update({index: done for index, learner in learners.items() if learner.failure is None})
        report(done, total, f"training {company} together")

    train(list(learners.values()), start, batches(next(iter(learners.values()))), on_step=after_step)
    trained = (time.monotonic() - began) / len(learners)
    confirming = spec["kind"] == "confirm"
    ids = list(report_ids(dataset)) if confirming else selection(dataset, recipe)
    best: float | None = None
    rows: dict[int, dict[str, Any]] = {}
    for done, (index, learner) in enumerate(learners.items()):
        measuring = time.monotonic()
        metrics = None
        if learner.failure is None:
            with final_weights(learner) as model:
                metrics, detections = measure_together(model, dataset, ids, recipe)
            best = metrics.ap if best is None else max(best, metrics.ap)
        cost = {"iterations": lasted[index], "train_seconds": trained, "measure_seconds": time.monotonic() - measuring}
        rows[index] = _row(index, fixed(members[index], learner.scales), metrics, recipe.iterations, cost, learner.failure)
        if metrics is not None and spec.get("rung") is not None:
            rows[index]["lenient_ap"] = lenient_ap(dataset.val.load(), detections, ids)
        if metrics is not None and confirming:
            drawn = resampled_ap(dataset.val.load(), detections, ids, image_weights(len(ids)))
            rows[index]["resampled_ap"] = [None if ap is None else round(ap, 3) for ap in drawn]
        report(recipe.iterations + done + 1, total, f"measuring candidate {index} on {len(ids)} images", best)
    return rows


def resolved_recipe(spec: Mapping[str, Any], dataset: Dataset) -> tuple[Recipe, list[str]]:
    """A job's recipe in iterations, and what has to be said of it."""
    recipe = Recipe.from_json(spec["recipe"])
    counted = recipe.epochs is not None
    return recipe.resolved((dataset.train.count or len(dataset.train.load()["images"])) if counted else 0)


def selection(dataset: Dataset, recipe: Recipe) -> list[int]:
    """The images that candidates and checkpoints are chosen by. Raises TrainingError where no box is on them."""
    ids = list(selection_ids(dataset))[: recipe.eval_images]
    on_them = set(ids)
    if not any(one["image_id"] in on_them and not one.get("iscrowd", 0) for one in dataset.val.load()["annotations"]):
        raise TrainingError(
            "bad_data",
            f"recipe.eval_images: the first {len(ids)} images of the selection half hold no box to measure on; give more, or none",
        )
    return ids


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
    """AP in percent as results carry it; `segm` of detectors that draw masks, the rest is of boxes. `not_finite`: only where there are."""
    found: dict[str, Any] = {"ap": metrics.ap, "ap50": metrics.ap50, "ap75": metrics.ap75, "images": metrics.images}
    if metrics.segm is not None:
        found["segm"] = {"ap": metrics.segm.ap, "ap50": metrics.segm.ap50, "ap75": metrics.segm.ap75}
    if metrics.not_finite:
        found["not_finite"] = metrics.not_finite
    return found


def not_finite_warnings(who: str, found: Mapping[str, Any]) -> list[str]:
    """What has to be said of figures whose detections were not all finite."""
    if not found.get("not_finite"):
        return []
    return [
        f"detections of {who} whose box or score is not finite: {found['not_finite']} on {found['images']} images; "
        "each counts as wrong and matches no object"
    ]


def environment() -> dict[str, str]:
    """What the figures were made with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    packages = {name: version(name) for name in ("detkds_core", "torch", "torchvision", "onedl-mmdetection", "faster-coco-eval")}
    threads = {"threads": str(torch.get_num_threads()), "devices": str(parallel.devices())}
    return {**packages, "python": platform.python_version(), "device": device, **threads}


def _row(
    index: int,
    policy: Policy,
    metrics: Metrics | None = None,
    iterations: int = 0,
    cost: Mapping[str, Any] | None = None,
    failure: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A candidate's row. policy: with the weights that were found. cost: what its training and its measurement took."""
    found = figures(metrics) if metrics is not None else dict.fromkeys(("ap", "ap50", "ap75", "images"))
    costs = {"iterations": 0, "probe_seconds": 0.0, "gate_seconds": {}, "train_seconds": 0.0, "measure_seconds": 0.0} | dict(cost or {})
    return {
        "index": index,
        **found,
        "iterations": iterations,
        "seconds": costs["train_seconds"] + costs["measure_seconds"],
        "failure": failure,
        "policy": to_json(policy),
        "look": None,
        "rejected": None,
        "cost": costs,
    }
