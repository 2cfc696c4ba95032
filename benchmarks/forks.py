"""How well a short training orders policies: rungs and fork points against the long trainings of a live comparison.

`python benchmarks/forks.py --pair digits_faster_rcnn --forks 60 120 200 --rungs 15 30 60` trains every policy that `benchmarks/live.py`
confirmed on this pair (`data/live.json`; without MasKD, whose tokens take longer than all this) as a branch from a trunk without
distillation, on 200 selection images, and prints Kendall's tau between its AP, or its lenient AP, and the mean AP of the confirmation:
the full schedule, five other seeds, other images. Warm-ups are as much shorter as in a search. `--scratch 120` trains them for so many
iterations from the common start. `--losses` prints the same for the detector's own loss on the way.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from live import FILE

from detkds_core.catalogue import PAIRS, Recipe
from detkds_core.datasets import default_cache, load_dataset
from detkds_core.detectors.runtime import prepare_mmdet
from detkds_core.evaluation.coco import lenient_ap
from detkds_core.evolution.rungs import resampled_tau
from detkds_core.policy import Policy, canonical, named_policies, parse_formula
from detkds_core.training.ground import in_proportion

IMAGES = 200
LEARNT = ("maskd",)


def policies(pair: str, seed: int) -> tuple[list[Policy], list[float]]:
    """What was confirmed, and its mean AP there."""
    rows = json.loads(FILE.read_text())[f"{pair} {seed}"]["rows"]
    kept = [row for row in rows if row["mean_ap"] is not None and not any(name in row["formula"] for name in LEARNT)]
    named = named_policies()
    return (
        [canonical(named[row["name"]].policy if row["name"] in named else parse_formula(row["formula"])) for row in kept],
        [row["mean_ap"] for row in kept],
    )


def trained(
    pair_name: str, some: list[Policy], *, seed: int, fork: int, iterations: int
) -> tuple[list[float], list[float], list[list[float]]]:
    """The AP and the lenient AP of every policy, and the detector's own loss at every step.

    fork: steps of the trunk; 0: all from the common start.
    """
    from detkds_core.training.forks import branch, branch_recipe, branch_seed, cached_trunk
    from detkds_core.training.group import batches_for, new_learner, prepare, train
    from detkds_core.training.jobs import measure_together, selection
    from detkds_core.training.learner import final_weights

    pair = PAIRS[pair_name]
    dataset = load_dataset(pair.dataset, default_cache())
    teacher = {"detector": pair.teacher, "checkpoint": pair.teacher_checkpoint}
    spec: dict[str, Any] = {
        "dataset": dataset.to_json(),
        "teacher": teacher,
        "student": {"detector": pair.student},
        "inherit": pair.inherit,
    }
    start = prepare(spec, seed)
    recipe: Recipe = replace(pair.full if fork > pair.proxy.iterations // 2 else pair.proxy, eval_images=IMAGES)
    if fork:
        trunk, _ = cached_trunk(start, recipe, fork, seed, default_cache() / "forks")
        recipe, seed = branch_recipe(recipe, iterations), branch_seed(seed)
        learners = [branch(start, trunk, policy, recipe, seed) for policy in some]
    else:
        recipe = replace(recipe, iterations=iterations)
        learners = [new_learner(start, policy, recipe, seed) for policy in some]
    losses: list[list[float]] = [[] for _ in learners]

    def after_step(_done: int, _of: int) -> None:
        for mine, learner in zip(losses, learners, strict=True):
            mine.append(learner.losses["task"].item())

    train(learners, start, batches_for(learners[0], spec["dataset"]["train"], recipe, seed), on_step=after_step)
    aps, lenient_aps = [0.0] * len(learners), [0.0] * len(learners)
    ids = selection(dataset, recipe)
    for place, learner in enumerate(learners):
        if learner.failure is None:
            with final_weights(learner) as model:
                metrics, detections = measure_together(model, dataset, ids, recipe)
            aps[place], lenient_aps[place] = metrics.ap, lenient_ap(dataset.val.load(), detections, ids)
    return aps, lenient_aps, losses


def said(what: str, values: list[float], final: list[float]) -> str:
    tau, low, high, count = resampled_tau(tuple(zip(values, final, strict=True)), 0, 0)
    return f"| {what} | {min(values):.1f} to {max(values):.1f} | {tau:.2f} ({low:.2f} to {high:.2f}) | {count} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", required=True, choices=sorted(PAIRS))
    parser.add_argument("--forks", type=int, nargs="*", default=[60])
    parser.add_argument("--rungs", type=int, nargs="*", default=[15, 30, 60])
    parser.add_argument("--scratch", type=int, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=1, help="of trunk and branches; 0 is the live search's own")
    parser.add_argument("--losses", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepare_mmdet()
    some, final = policies(arguments.pair, 0)
    print("| trained | AP | tau, 90 % interval | policies |\n|---|---|---|---|", flush=True)
    wanted = [(fork, rung) for fork in arguments.forks for rung in arguments.rungs] + [(0, iterations) for iterations in arguments.scratch]
    for fork, iterations in wanted:
        began = time.process_time()
        shorter = [in_proportion(policy, iterations / PAIRS[arguments.pair].full.iterations) for policy in some]
        aps, lenient_aps, losses = trained(arguments.pair, shorter, seed=arguments.seed, fork=fork, iterations=iterations)
        what = f"{iterations} iterations from a fork at {fork}" if fork else f"{iterations} iterations from the common start"
        print(said(f"{what} ({time.process_time() - began:.0f} CPU seconds)", aps, final), flush=True)
        print(said("its lenient AP", lenient_aps, final), flush=True)
        if arguments.losses:
            for step in (15, 30, 60, iterations):
                if step <= iterations:
                    last = [-sum(mine[step - 5 : step]) / 5 for mine in losses]
                    print(said(f"its own loss after {step}", last, final), flush=True)


if __name__ == "__main__":
    main()
