"""Milliseconds of a training step, alone and as a group on one teacher forward: `python benchmarks/step_time.py --threads 1`."""

import argparse
import os
import time
from dataclasses import replace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--student", default="gfl_r18w8_fpn32")
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    # read when torch is first imported
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from detkds_core.catalogue import PAIRS
    from detkds_core.datasets import default_cache, load_dataset
    from detkds_core.detectors.runtime import prepare_mmdet
    from detkds_core.policy import named_policies

    prepare_mmdet()
    from detkds_core.training.batches import Batches
    from detkds_core.training.group import new_learner, prepare, train

    pair = PAIRS["digits_gfl"]
    recipe = replace(pair.full, iterations=arguments.steps)
    dataset = load_dataset(pair.dataset, default_cache()).to_json()
    teacher = {"detector": pair.teacher, "checkpoint": pair.teacher_checkpoint}
    start = prepare({"dataset": dataset, "teacher": teacher, "student": {"detector": arguments.student}, "inherit": True}, seed=0)
    for names in (["none"], ["none"], ["pkd"], ["none", "pkd", "cwd", "dist"]):  # the first once more: it also warms up
        learners = [new_learner(start, named_policies()[name].policy, recipe, seed=0) for name in names]
        began = time.perf_counter()
        train(learners, start, Batches(dataset["train"], recipe, seed=0))
        print(f"{' '.join(names):20} {1000 * (time.perf_counter() - began) / arguments.steps:7.1f} ms a step, {arguments.threads} threads")


if __name__ == "__main__":
    main()
