"""The three jobs of a trainer: measure candidates, confirm finalists, distil one student; specifications as in docs/architecture.md."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from detkds_core.catalogue import Recipe
from detkds_core.datasets import Dataset, report_ids, selection_ids
from detkds_core.detectors.build import export_student, parameter_count, read_pickle
from detkds_core.detectors.pair import PairError
from detkds_core.evaluation.coco import Metrics
from detkds_core.evaluation.predict import measure
from detkds_core.policy import from_json
from detkds_core.training.batches import Batches
from detkds_core.training.group import new_learner, prepare, train
from detkds_core.training.steps import Learner

Report = Callable[..., None]  # done, total, message, best_ap
RESUME_SECONDS = 20.0  # a kill costs at most this much training


def measure_candidates(spec: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Train the candidates of an `evaluate` or `confirm` job as one group from one start and measure each.

    `evaluate` measures on the selection images; `confirm` on the report images, and gives `selection_ap` as well, by which the winner
    is chosen, so that what is reported was not what was chosen by. A candidate that fails says why and costs the others nothing.
    """
    dataset, recipe = Dataset.from_json(spec["dataset"]), Recipe.from_json(spec["recipe"])
    start = prepare(spec, spec["seed"])
    began = time.monotonic()
    learners: dict[int, Learner] = {}
    rows: dict[int, dict[str, Any]] = {}
    for candidate in spec["candidates"]:
        index = candidate["index"]
        try:
            learners[index] = new_learner(start, from_json(candidate["policy"]), recipe, spec["seed"])
        except PairError as error:
            rows[index] = _row(index, None, 0, 0.0, {"kind": "bad_data", "detail": str(error)})
    total = recipe.iterations + len(learners)
    if learners:
        batches = Batches(spec["dataset"]["train"], recipe, spec["seed"])
        train(
            list(learners.values()),
            start,
            batches,
            on_step=lambda done, _: report(done, total, f"training {len(learners)} candidates together"),
        )
    trained = time.monotonic() - began
    confirming = spec["kind"] == "confirm"
    ids = _image_ids(dataset, recipe, report_images=confirming)
    best: float | None = None
    for done, (index, learner) in enumerate(learners.items()):
        measuring = time.monotonic()
        metrics = None
        if learner.failure is None:
            metrics, _ = measure(learner.student.model, spec["dataset"]["val"], ids, image_size=recipe.image_size)
            best = metrics.ap if best is None else max(best, metrics.ap)
        seconds = trained / len(learners) + time.monotonic() - measuring
        rows[index] = _row(index, metrics, recipe.iterations, seconds, learner.failure)
        if confirming and metrics is not None:
            chosen_by, _ = measure(learner.student.model, spec["dataset"]["val"], selection_ids(dataset), image_size=recipe.image_size)
            rows[index]["selection_ap"] = chosen_by.ap
        report(recipe.iterations + done + 1, total, f"measuring candidate {index} on {len(ids)} images", best)
    return {"candidates": [rows[candidate["index"]] for candidate in spec["candidates"]], "environment": environment()}


def distill(spec: Mapping[str, Any], folder: Path, report: Report) -> dict[str, Any]:
    """Train one student under a policy, export it, and measure teacher and student on the report images.

    The state is kept in `folder/../resume.pt`; a later attempt whose specification names it in `resume_from` reaches the same weights.
    """
    dataset, recipe = Dataset.from_json(spec["dataset"]), Recipe.from_json(spec["recipe"])
    start = prepare(spec, spec["seed"])
    policy = from_json(spec["policy"])
    learner = new_learner(start, policy, recipe, spec["seed"])
    resume, began, spent = folder.parent / "resume.pt", time.monotonic(), 0.0
    first_step, curve = 0, []
    if spec.get("resume_from"):
        state = read_pickle(Path(spec["resume_from"]))
        learner.student.model.load_state_dict(state["model"])
        if learner.student.adapters is not None:
            learner.student.adapters.load_state_dict(state["adapters"])
        learner.optimizer.load_state_dict(state["optimizer"])
        first_step, curve, spent = state["step"], state["curve"], state["seconds"]
    saved = time.monotonic()
    total = recipe.iterations + 2

    def after_step(done: int, _total: int) -> None:
        nonlocal saved
        if done % 10 == 0 or done == recipe.iterations:
            curve.append({"iteration": done, **learner.losses})
        report(done, total, "training the student")
        if time.monotonic() - saved > RESUME_SECONDS and learner.failure is None:
            _save_resume(resume, learner, done, curve, spent + time.monotonic() - began)
            saved = time.monotonic()

    train([learner], start, Batches(spec["dataset"]["train"], recipe, spec["seed"]), first_step=first_step, on_step=after_step)
    if learner.failure is not None:
        raise TrainingError(**learner.failure)
    ids = _image_ids(dataset, recipe, report_images=True)
    val = spec["dataset"]["val"]
    student, detections = measure(learner.student.model, val, ids, image_size=recipe.image_size)
    report(recipe.iterations + 1, total, f"measuring the teacher on {len(ids)} images", student.ap)
    assert start.teacher is not None
    teacher, teacher_detections = measure(start.teacher.model, val, ids, image_size=recipe.image_size)
    (folder / "detections.json").write_text(json.dumps({"student": detections, "teacher": teacher_detections}))
    metadata = {
        "detector": start.student_entry.name,
        "dataset_digest": dataset.digest,
        "seed": str(spec["seed"]),
        "ap": f"{student.ap:.3f}",
    }
    files = export_student(
        learner.student.model, start.student_entry, folder, dataset=spec["dataset"], image_size=recipe.image_size, metadata=metadata
    )
    report(total, total, "student exported", student.ap)
    resume.unlink(missing_ok=True)
    return {
        **files,
        "student": {**_figures(student), "parameters": parameter_count(learner.student.model)},
        "teacher": {**_figures(teacher), "parameters": parameter_count(start.teacher.model)},
        "curve": curve,
        "detections": "detections.json",
        "seconds": spent + time.monotonic() - began,
        "environment": environment(),
    }


class TrainingError(RuntimeError):
    """A training that could not end. kind: the failure kind of the job."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def environment() -> dict[str, str]:
    """What the figures were made with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    packages = {name: version(name) for name in ("detkds_core", "torch", "torchvision", "onedl-mmdetection", "faster-coco-eval")}
    return {**packages, "python": platform.python_version(), "device": device, "threads": str(torch.get_num_threads())}


def _image_ids(dataset: Dataset, recipe: Recipe, *, report_images: bool) -> list[int]:
    if report_images:
        return list(report_ids(dataset))
    return list(selection_ids(dataset))[: recipe.eval_images]


def _figures(metrics: Metrics) -> dict[str, Any]:
    return {"ap": metrics.ap, "ap50": metrics.ap50, "ap75": metrics.ap75, "images": metrics.images}


def _row(index: int, metrics: Metrics | None, iterations: int, seconds: float, failure: dict[str, str] | None) -> dict[str, Any]:
    figures = _figures(metrics) if metrics is not None else dict.fromkeys(("ap", "ap50", "ap75", "images"))
    return {"index": index, **figures, "iterations": iterations, "seconds": seconds, "failure": failure}


def _save_resume(path: Path, learner: Learner, step: int, curve: list[dict[str, float]], seconds: float) -> None:
    adapters = learner.student.adapters
    state = {
        "model": learner.student.model.state_dict(),
        "adapters": adapters.state_dict() if adapters is not None else {},
        "optimizer": learner.optimizer.state_dict(),
        "step": step,
        "curve": curve,
        "seconds": seconds,
    }
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)
