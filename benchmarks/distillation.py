"""What distillation is worth on a built-in pair: policies side by side, the same seeds, start and batches for all.

`python benchmarks/distillation.py --pair digits_gfl --policies none pkd cwd --seeds 101 102 103`
A policy is a name of `detkds policies` or a formula. AP in percent on the report images; differences are paired by seed.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from detkds_core.catalogue import PAIRS, Recipe
from detkds_core.datasets import default_cache, load_dataset
from detkds_core.policy import Policy, named_policies, parse_formula, to_json
from detkds_core.report.statistics import mean_interval, paired_difference


def read_policy(text: str) -> Policy:
    known = named_policies()
    return known[text].policy if text in known else parse_formula(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, default="digits_gfl")
    parser.add_argument("--policies", nargs="+", default=["none", "pkd"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[101, 102, 103])
    parser.add_argument("--recipe", type=json.loads, default={}, help="JSON over the pair's full recipe")
    parser.add_argument("--student", default=None)
    parser.add_argument("--teacher-checkpoint", default=None)
    parser.add_argument("--no-inherit", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="figures as JSON")
    arguments = parser.parse_args()
    from detkds_core.detectors.runtime import prepare_mmdet

    prepare_mmdet()
    from detkds_core.training.jobs import environment, measure_candidates

    pair = PAIRS[arguments.pair]
    dataset = load_dataset(pair.dataset, default_cache())
    recipe = Recipe.from_json(arguments.recipe, base=pair.full)
    policies = [read_policy(text) for text in arguments.policies]
    figures: dict[str, list[dict]] = {text: [] for text in arguments.policies}
    for seed in arguments.seeds:
        began = time.monotonic()
        spec = {
            "kind": "confirm",
            "dataset": dataset.to_json(),
            "teacher": {"detector": pair.teacher, "checkpoint": arguments.teacher_checkpoint or pair.teacher_checkpoint},
            "student": {"detector": arguments.student or pair.student, "checkpoint": None},
            "inherit": not arguments.no_inherit,
            "recipe": recipe.to_json(),
            "seed": seed,
            "candidates": [{"index": i, "policy": to_json(policy)} for i, policy in enumerate(policies)],
        }
        rows = measure_candidates(spec, lambda *_: None)["candidates"]
        for text, row in zip(arguments.policies, rows, strict=True):
            figures[text].append(row)
        print(
            f"seed {seed}: {time.monotonic() - began:.0f} s",
            *(f"{t} {r['ap'] if r['ap'] is None else round(r['ap'], 2)}" for t, r in zip(arguments.policies, rows, strict=True)),
            flush=True,
        )
    first = [row["ap"] for row in figures[arguments.policies[0]]]
    images = figures[arguments.policies[0]][0]["images"]
    print(f"\n{pair.dataset} ({dataset.digest[:12]}), {images} report images, {recipe.iterations} iterations, seeds {arguments.seeds}")
    for text, rows in figures.items():
        ap = [row["ap"] for row in rows]
        if None in ap:
            print(f"{text:40} failed: {next(row['failure'] for row in rows if row['failure'])}")
            continue
        mean, gain = mean_interval(ap), paired_difference(ap, first)
        against = f"to {arguments.policies[0]}: {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
        print(f"{text:40} AP {mean.mean:5.2f} [{mean.low:5.2f}, {mean.high:5.2f}]  {against}")
    if arguments.out:
        arguments.out.write_text(
            json.dumps(
                {
                    "pair": pair.name,
                    "recipe": recipe.to_json(),
                    "seeds": arguments.seeds,
                    "figures": figures,
                    "digest": dataset.digest,
                    "environment": environment(),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
