"""Train a detector on its own, without a teacher: how the built-in teachers were made."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkds_core.catalogue import PAIRS, Recipe, detector
from detkds_core.catalogue.pairs import CHECKPOINTS
from detkds_core.datasets import Dataset, default_cache, load_dataset, report_ids, selection_ids
from detkds_core.detectors.build import build_detector, save_weights
from detkds_core.detectors.checkpoints import load_weights
from detkds_core.detectors.pair import Levels, Student
from detkds_core.evaluation.predict import measure
from detkds_core.policy import Policy
from detkds_core.training.group import Start, batches_for, default_device, train
from detkds_core.training.learner import final_weights, make_learner

Progress = Callable[[int, int, str], None]


def train_teacher(name: str, dataset: Dataset, recipe: Recipe, seed: int, path: Path, report: Progress) -> dict[str, Any]:
    """Train detector `name` from scratch, write it as a half-precision safetensors file, and measure what was written.

    The file's metadata carries classes, recipe, seed, dataset digest and AP. Returns its figures on the selection and the report images.
    """
    recipe, _ = recipe.resolved(dataset.train.count)
    torch.manual_seed(seed)
    entry, device = detector(name), default_device()
    model = build_detector(name, dataset.classes).to(device).train()
    learner = make_learner(Student(model, range(len(entry.strides))), Policy(()), recipe)
    start = Start(None, entry, entry, {}, dataset.classes, Levels((), ()), device)

    def after_step(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            report(done, total, f"loss {learner.read_losses()['task']:.3f}")

    train([learner], start, batches_for(learner, dataset.to_json()["train"], recipe, seed), on_step=after_step)
    if learner.failure is not None:
        raise RuntimeError(f"the teacher's training failed: {learner.failure['detail']}")
    facts: dict[str, str] = {
        "detector": name,
        "classes": json.dumps(list(dataset.classes)),
        "recipe": json.dumps(recipe.to_json()),
        "seed": str(seed),
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with final_weights(learner) as weighted:
        save_weights(weighted, path, facts, torch.float16)
        figures = measure_file(name, dataset, path, recipe)
        save_weights(weighted, path, {**facts, "ap": json.dumps(figures)}, torch.float16)
    return figures


def measure_file(name: str, dataset: Dataset, path: Path, recipe: Recipe) -> dict[str, Any]:
    """AP of a checkpoint on the selection and the report images of a dataset."""
    model: nn.Module = build_detector(name, dataset.classes)
    load_weights(model, path)
    figures = {}
    for part, ids in (("selection", selection_ids(dataset)), ("report", report_ids(dataset))):
        metrics, _ = measure(
            model.to(default_device()), dataset.to_json()["val"], list(ids), image_size=recipe.image_size, short_side=recipe.short_side
        )
        figures[part] = {"ap": metrics.ap, "ap50": metrics.ap50, "ap75": metrics.ap75, "images": metrics.images}
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m detkds_core.training.teacher --pair digits_gfl`: make a pair's teacher anew by its own recipe."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pair", choices=PAIRS, default="digits_gfl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=None, help="default: the recipe's")
    parser.add_argument("--out", type=Path, default=None, help="default: the file that ships with the project")
    wanted = parser.parse_args(arguments)
    pair = PAIRS[wanted.pair]
    recipe = replace(pair.teaching, iterations=wanted.iterations or pair.teaching.iterations)
    out = wanted.out or CHECKPOINTS / f"{pair.teacher_checkpoint}.safetensors"
    began = time.monotonic()

    def report(done: int, total: int, message: str) -> None:
        if done % 100 == 0 or done == total:
            spent = time.monotonic() - began
            print(f"teacher {done}/{total} {message}, {spent / done * (total - done):.0f} s left", file=sys.stderr, flush=True)

    figures = train_teacher(pair.teacher, load_dataset(pair.dataset, default_cache()), recipe, wanted.seed, out, report)
    print(f"{out.name}: {json.dumps(figures)} after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
