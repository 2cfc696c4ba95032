"""Make a built-in teacher: `python benchmarks/train_teacher.py --dataset digits`. Its recipe, seed and AP travel in the file's metadata."""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from detkds_core.catalogue import PAIRS, Recipe
from detkds_core.catalogue.pairs import CHECKPOINTS

RECIPES = {
    "digits": Recipe(iterations=4000, batch=8, lr=2e-3, image_size=128, augment="none"),
    "trees": Recipe(iterations=4000, batch=4, lr=2e-3, image_size=256, augment="dihedral"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=RECIPES, default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="default: the catalogue's own file")
    arguments = parser.parse_args()
    from detkds_core.datasets import default_cache, load_dataset
    from detkds_core.training.teacher import train_teacher

    pair = next(pair for pair in PAIRS.values() if pair.dataset == arguments.dataset)
    recipe = RECIPES[arguments.dataset]
    recipe = replace(recipe, iterations=arguments.iterations or recipe.iterations)
    began = time.monotonic()

    def report(done: int, total: int, message: str) -> None:
        if done % 100 == 0 or done == total:
            spent = time.monotonic() - began
            print(f"{done}/{total} {message} {spent:.0f} s, {spent / done * (total - done):.0f} s left", file=sys.stderr, flush=True)

    out = arguments.out or CHECKPOINTS / f"{pair.teacher_checkpoint}.safetensors"
    figures = train_teacher(pair.teacher, load_dataset(arguments.dataset, default_cache()), recipe, arguments.seed, out, report)
    print(f"{out.name}: {figures} after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
