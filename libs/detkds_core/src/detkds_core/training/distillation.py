"""The job that trains one student to its end: resumed after a kill, its best weights kept, exported and measured."""

import gc
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from detkds_core.catalogue import Recipe
from detkds_core.catalogue.recipe import size_warning, smaller_batch_warning
from detkds_core.datasets import Dataset, report_ids
from detkds_core.datasets.dataset import median_sides
from detkds_core.detectors.build import export_student, parameter_count, save_student
from detkds_core.detectors.checkpoints import read_pickle
from detkds_core.distillers import tokens_of
from detkds_core.evaluation.predict import measure
from detkds_core.policy import Policy, from_json, images_needed
from detkds_core.training import parallel
from detkds_core.training.group import DoesNotFitError, Start, batches_for, new_learner, prepare, start_warnings, train
from detkds_core.training.jobs import (
    Report,
    TrainingError,
    environment,
    figures,
    measure_together,
    not_finite_warnings,
    resolved_recipe,
    selection,
)
from detkds_core.training.learner import Learner, final_weights, restore, state_of

RESUME_SECONDS = 20.0  # a kill costs at most this much training
CURVE_POINTS = 500  # at most, every 10 iterations of a short training
LOADED_AP = 1.0  # percent; a teacher below it has not learnt this data set, or its weights are another detector's


@dataclass
class Run:
    """A training on its way, apart from its learner. best: iteration, AP on the selection images and weights; evaluations: all of them."""

    learner: Learner
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    seconds: float = 0.0  # of earlier attempts


def distill(spec: Mapping[str, Any], folder: Path, report: Report) -> dict[str, Any]:
    """Train one student under a policy, export it, and measure teacher and student on the report images.

    The teacher is measured first: an AP near 0 says that its checkpoint is not what was meant, before hours are spent. With
    `eval_every` the student is measured on the selection images on its way, and the best weights are what is exported and reported;
    the last ones are exported beside them. A batch that does not fit in the accelerator's memory is cut, and more of them make a step.

    The state is kept in `folder/../resume.pt`; a later attempt whose specification names it in `resume_from` reaches the same weights.
    It stays there at the end, with the teacher's detections: whoever has brought the files of the attempt to safety removes both.
    Among several processes (`parallel.joined`) the first one writes and reports; all return the same but for their curves' rounding.
    """
    dataset = Dataset.from_json(spec["dataset"])
    recipe, notes = resolved_recipe(spec, dataset)
    start, policy = prepare(spec, spec["seed"]), from_json(spec["policy"])
    size = size_warning(recipe, dataset.train.sides or median_sides(dataset.train.load()["images"]))
    found = [*spec.get("warnings", []), *([size] if size else []), *notes]
    found += [*start_warnings(start), *device_warnings(policy, recipe, parallel.devices())]
    warnings = list(dict.fromkeys(found))  # the API has told some already
    state = read_pickle(Path(spec["resume_from"])) if spec.get("resume_from") else None
    if recipe.eval_every is not None:
        selection(dataset, recipe)  # one on which nothing can be measured is told before hours are spent
    began = time.monotonic()
    if state is None:
        report(0, recipe.iterations + 2, f"measuring the teacher on {len(report_ids(dataset))} images")
        teacher = _measured_teacher(start, dataset, recipe, folder.parent / "teacher.json")
    else:
        teacher = state["teacher"]
        warnings = [*state["warnings"], *(one for one in warnings if one not in state["warnings"])]
        if state["recipe"]["batch"] < recipe.batch:  # it was cut to fit
            recipe = Recipe.from_json(state["recipe"])
    while True:
        run = None
        try:
            run = _begin(start, policy, recipe, spec["seed"], state, report)
            _train(run, start, dataset, recipe, spec, folder, report, {"teacher": teacher, "warnings": warnings}, began)
            break
        except (DoesNotFitError, torch.OutOfMemoryError) as error:  # the second: a later batch, of larger images
            smaller, reason = recipe.with_smaller_batch(images_needed(policy.terms)), str(error).partition("\n")[0]
            if smaller is None or parallel.devices() > 1:  # the others wait in a step that will not end: who started them starts again
                raise
        saved = folder.parent / "resume.pt"
        state = read_pickle(saved) if saved.is_file() else state  # what has been learnt stays learnt
        del run  # outside of the except block, whose traceback holds on to every tensor of the step
        gc.collect()
        torch.cuda.empty_cache()
        warnings = [*warnings, smaller_batch_warning(recipe, smaller, reason)]
        recipe = smaller
    if run.learner.failure is not None:
        raise TrainingError(**run.learner.failure)
    return _finish(run, start, dataset, recipe, spec, folder, report, teacher, warnings, began)


def device_warnings(policy: Policy, recipe: Recipe, devices: int) -> list[str]:
    """What has to be said of a policy that several devices train with, each on its share of a batch."""
    if devices == 1 or images_needed(policy.terms) == 1:
        return []
    share = recipe.batch // devices
    return [
        f"terms that compare the images of a batch with one another see the {share} of each of {devices} devices, not all {recipe.batch}"
    ]


def _begin(start: Start, policy: Policy, recipe: Recipe, seed: int, state: Mapping[str, Any] | None, report: Report) -> Run:
    def learning_tokens(done: int, total: int) -> None:
        report(0, recipe.iterations + 2, f"the teacher learns MasKD's tokens: step {done} of {total}")

    kept = tokens_of(policy, state["learner"]["distillers"]) if state is not None else None
    run = Run(new_learner(start, policy, recipe, seed, learning_tokens, kept))
    if state is not None:
        restore(run.learner, state["learner"])
        run.step, run.curve, run.seconds = state["step"], list(state["curve"]), state["seconds"]
        run.evaluations, run.best = list(state["evaluations"]), state["best"]
    return run


def _measured_teacher(start: Start, dataset: Dataset, recipe: Recipe, path: Path) -> dict[str, Any]:
    """The teacher's figures on the report images; its detections are kept in `path` for the end of the training."""
    assert start.teacher is not None
    metrics, detections = measure_together(start.teacher.model, dataset, report_ids(dataset), recipe)
    if parallel.rank() == 0:
        path.write_text(json.dumps(detections))
    return {**figures(metrics), "parameters": parameter_count(start.teacher.model)}


def _train(
    run: Run,
    start: Start,
    dataset: Dataset,
    recipe: Recipe,
    spec: Mapping[str, Any],
    folder: Path,
    report: Report,
    facts: Mapping[str, Any],
    began: float,
) -> None:
    saved = time.monotonic()
    total = recipe.iterations + 2
    point_every = 10 * -(-recipe.iterations // (10 * CURVE_POINTS))
    message = f"training the student; its teacher's AP is {facts['teacher']['ap']:.1f}"

    def after_step(done: int, _total: int) -> None:
        nonlocal saved
        run.step = done
        if done % point_every == 0 or done == recipe.iterations:
            run.curve.append({"iteration": done, **run.learner.read_losses()})
        if run.learner.failure is not None:
            return
        if recipe.eval_every is not None and (done % recipe.eval_every == 0 or done == recipe.iterations):
            _evaluate(run, dataset, recipe)
            report(done, total, message, run.best["ap"] if run.best is not None else None)
        else:
            report(done, total, message)
        if time.monotonic() - saved > RESUME_SECONDS and parallel.rank() == 0:
            _save(folder.parent / "resume.pt", run, recipe, facts, run.seconds + time.monotonic() - began)
            saved = time.monotonic()

    batches = batches_for(run.learner, spec["dataset"]["train"], recipe, spec["seed"])
    train([run.learner], start, batches, first_step=run.step, on_step=after_step)


def _evaluate(run: Run, dataset: Dataset, recipe: Recipe) -> None:
    """Measure the student on the selection images and keep its weights if there were none better; of equals those that learned longer."""
    with final_weights(run.learner) as model:
        metrics, _ = measure_together(model, dataset, selection(dataset, recipe), recipe)
        run.evaluations.append({"iteration": run.step, **figures(metrics)})
        if run.best is None or metrics.ap >= run.best["ap"]:
            weights = {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}
            run.best = {"iteration": run.step, "ap": metrics.ap, "weights": weights}


def _save(path: Path, run: Run, recipe: Recipe, facts: Mapping[str, Any], seconds: float) -> None:
    state = {
        "learner": state_of(run.learner),
        "step": run.step,
        "curve": run.curve,
        "evaluations": run.evaluations,
        "best": run.best,
        "recipe": recipe.to_json(),
        "seconds": seconds,
        **facts,
    }
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _finish(
    run: Run,
    start: Start,
    dataset: Dataset,
    recipe: Recipe,
    spec: Mapping[str, Any],
    folder: Path,
    report: Report,
    teacher: Mapping[str, Any],
    warnings: list[str],
    began: float,
) -> dict[str, Any]:
    """Measure what the training came to, and write it."""
    ids, total = report_ids(dataset), recipe.iterations + 2
    facts = {"detector": start.student_entry.name, "dataset_digest": dataset.digest, "seed": str(spec["seed"])}
    leads = parallel.rank() == 0
    files: dict[str, str] = {}
    with final_weights(run.learner) as model:
        if leads:
            last = save_student(model, folder, "student_last", dataset.classes, {**facts, "iteration": str(recipe.iterations)})
            files = {"checkpoint_last": last["checkpoint"], "checkpoint_last_pth": last["checkpoint_pth"]}
        if run.best is not None:
            model.load_state_dict(run.best["weights"])
        iteration = run.best["iteration"] if run.best is not None else recipe.iterations
        report(recipe.iterations + 1, total, f"measuring the student on {len(ids)} images")
        student, detections = measure_together(model, dataset, ids, recipe)
        if leads:
            files |= export_student(
                model,
                start.student_entry,
                folder,
                dataset=spec["dataset"],
                image_size=recipe.image_size,
                short_side=recipe.short_side,
                metadata={**facts, "iteration": str(iteration), "ap": f"{student.ap:.3f}"},
            )
            _write_detections(start, dataset, recipe, spec, folder, detections)
        parameters = parameter_count(model)
    report(total, total, "student exported", student.ap)
    measured = figures(student)
    return {
        **files,
        "student": {**measured, "parameters": parameters, "iteration": iteration},
        "teacher": dict(teacher),
        "inherited": start.inherited,
        "warnings": [
            *warnings,
            *teacher_warnings(teacher, student.ap),
            *not_finite_warnings("the teacher", teacher),
            *not_finite_warnings("the student", measured),
        ],
        "recipe": recipe.to_json(),
        "scales": run.learner.scales,
        "evaluations": run.evaluations,
        "curve": run.curve,
        "detections": "detections.json",
        "seconds": run.seconds + time.monotonic() - began,
        "environment": environment(),
    }


def teacher_warnings(teacher: Mapping[str, Any], student_ap: float) -> list[str]:
    """What is suspicious about a teacher's AP."""
    ap = teacher["ap"]
    if ap < LOADED_AP:
        return [
            f"the teacher's AP is {ap:.2f} on {teacher['images']} images: it has not learnt this data set, "
            "or its checkpoint holds the weights of something else"
        ]
    if ap < student_ap:
        return [f"the teacher's AP ({ap:.2f}) is below the student's ({student_ap:.2f})"]
    return []


def _write_detections(
    start: Start, dataset: Dataset, recipe: Recipe, spec: Mapping[str, Any], folder: Path, student: list[dict[str, Any]]
) -> None:
    """Both sides' detections on the report images; the teacher's were found before the training, perhaps by an earlier attempt."""
    kept = Path(spec.get("resume_from") or folder.parent / "resume.pt").parent / "teacher.json"
    if kept.exists():
        teacher = json.loads(kept.read_text())
    else:
        assert start.teacher is not None
        teacher = measure(
            start.teacher.model, spec["dataset"]["val"], report_ids(dataset), image_size=recipe.image_size, short_side=recipe.short_side
        )[1]
    (folder / "detections.json").write_text(json.dumps({"student": student, "teacher": teacher}))
