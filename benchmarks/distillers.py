"""Every hand-designed distiller against no distillation: pairs x seeds, the same start and batches for all of a seed.

`python benchmarks/distillers.py --pairs digits_gfl digits_gfl_fcos digits_faster_rcnn trees_gfl_fcos --seeds 1 2 3 --workers 2`

Published weights, those of the student's kind where both were published. AP in percent on the report images; 95 % t intervals,
differences paired by seed. What a pair cannot run is listed with the reason. Figures are kept in --out after every group, and a run that
was stopped goes on there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from detkds_core.catalogue import DETECTORS, PAIRS, Pair, Recipe, exchange, pair_facts
from detkds_core.datasets import default_cache, load_dataset, report_ids
from detkds_core.policy import Policy, formula, named_policies, parse_formula
from detkds_core.policy.named import cannot_run, suiting
from detkds_core.report.statistics import mean_interval, paired_difference

# MasKD's tokens are learnt in 200 steps: the small teachers' maps are of 32 channels, and 2,000 would take longer than all trainings.
STEPS = 200
EVERYBODY = ("ld_main", "gid", "crosskd")  # listed with the reason where a pair cannot run them
GROUP = 4


def read_policy(text: str) -> Policy:
    known = named_policies()
    return known[text].policy if text in known else parse_formula(text)


def wanted(pair: Pair) -> list[str]:
    """No distillation, and what suits the pair: MasKD and what is with it, as a formula with its steps."""
    teacher, student = DETECTORS[pair.teacher], DETECTORS[pair.student]
    offer = exchange(teacher, student)
    names = suiting(
        offer,
        pair_facts(offer, student, len(load_dataset(pair.dataset, default_cache()).classes), 2),
        (teacher.family, student.family),
        student.stages,
    )
    return ["none", *(_taught(name) for name in (*names, *(one for one in EVERYBODY if one not in names)))]


def _taught(name: str) -> str:
    policy = named_policies()[name].policy
    if not any(one.name == "maskd" for one in policy.distillers):
        return name
    distillers = tuple(
        replace(one, settings=tuple(sorted({**dict(one.settings), "steps": float(STEPS)}.items()))) if one.name == "maskd" else one
        for one in policy.distillers
    )
    return formula(replace(policy, distillers=distillers))


def reasons(pair: Pair, recipe: Recipe, policy: Policy, classes: int) -> list[tuple[str, str]]:
    """Why the pair cannot run the policy."""
    teacher, student = DETECTORS[pair.teacher], DETECTORS[pair.student]
    offer = exchange(teacher, student)
    return cannot_run(policy, offer, pair_facts(offer, student, classes, recipe.batch), (teacher.family, student.family))


def train_group(pair: Pair, recipe: Recipe, seed: int, texts: list[str]) -> dict[str, dict]:
    """Train a student under each policy side by side and measure it on the report images."""
    import torch

    torch.set_num_threads(1)
    from detkds_core.detectors.runtime import prepare_mmdet

    prepare_mmdet()
    from detkds_core.evaluation.predict import measure
    from detkds_core.training.group import batches_for, new_learner, prepare, train

    dataset = load_dataset(pair.dataset, default_cache())
    teacher = {"detector": pair.teacher, "checkpoint": pair.teacher_checkpoint}
    start = prepare(
        {"dataset": dataset.to_json(), "teacher": teacher, "student": {"detector": pair.student}, "inherit": pair.inherit}, seed
    )
    learners = {text: new_learner(start, read_policy(text), recipe, seed) for text in texts}
    split = dataset.to_json()["train"]
    began = time.monotonic()
    train(list(learners.values()), start, batches_for(next(iter(learners.values())), split, recipe, seed))
    seconds = (time.monotonic() - began) / len(texts)
    rows = {}
    for text, learner in learners.items():
        row: dict = {"seconds": seconds, "failure": learner.failure, "ratio": learner.read_losses().get("ratio")}
        if learner.failure is None:
            metrics, _ = measure(learner.student.model, dataset.to_json()["val"], report_ids(dataset), image_size=recipe.image_size)
            row |= {"ap": metrics.ap, "ap50": metrics.ap50, "ap75": metrics.ap75, "images": metrics.images}
        rows[text] = row
    return rows


def table(pair: Pair, recipe: Recipe, seeds: list[int], texts: list[str], rows: dict[str, dict]) -> str:
    """A pair's figures under these policies as a markdown table."""
    dataset = load_dataset(pair.dataset, default_cache())
    alone = [rows[f"{pair.name} {seed} none"]["ap"] for seed in seeds]
    lines = [
        f"**{pair.name}** ({pair.title}): {len(report_ids(dataset))} report images, {recipe.iterations} iterations of {recipe.batch}, "
        f"seeds {', '.join(map(str, seeds))}, dataset digest `{dataset.digest[:12]}`",
        "",
        "| distiller | AP | AP50 | AP75 | against no distillation |",
        "|---|---|---|---|---|",
    ]
    for text in texts:
        if faults := reasons(pair, recipe, read_policy(text), len(dataset.classes)):
            lines.append(f"| {text} | cannot run: {faults[0][1]} | | | |")
            continue
        found = [rows[f"{pair.name} {seed} {text}"] for seed in seeds]
        if failed := next((row["failure"] for row in found if row["failure"]), None):
            lines.append(f"| {text} | failed: {failed['detail'][:100]} | | | |")
            continue
        ap, ap50, ap75 = (mean_interval([row[name] for row in found]) for name in ("ap", "ap50", "ap75"))
        gain = paired_difference([row["ap"] for row in found], alone)
        against = "" if text == "none" else f"{gain.mean:+.1f} ({gain.low:.1f} to {gain.high:.1f})"
        lines.append(f"| {text} | {ap.mean:.1f} ±{ap.high - ap.mean:.1f} | {ap50.mean:.1f} | {ap75.mean:.1f} | {against} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", nargs="+", choices=PAIRS, default=["digits_gfl", "digits_gfl_fcos", "digits_faster_rcnn", "trees_gfl_fcos"]
    )
    parser.add_argument("--policies", nargs="+", help="names or formulas, in place of every hand-designed distiller")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "distillers.json")
    parser.add_argument("--group", nargs="+", help=argparse.SUPPRESS)  # one group, in a process of its own: pair, seed, policies
    arguments = parser.parse_args()
    recipes = {
        name: Recipe.from_json({"iterations": arguments.iterations, "epochs": None}, base=PAIRS[name].full) for name in arguments.pairs
    }
    if arguments.group:
        pair, seed, *texts = arguments.group
        print("\n" + json.dumps(train_group(PAIRS[pair], recipes[pair], int(seed), texts)))
        return
    for name in arguments.pairs:  # made once, before several processes want them at once
        load_dataset(PAIRS[name].dataset, default_cache())
    kept = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"rows": {}}
    if kept.get("iterations", arguments.iterations) != arguments.iterations:
        sys.exit(f"{arguments.out} holds figures of {kept['iterations']} iterations; give another --out")
    rows = kept["rows"]
    listed = {name: arguments.policies or wanted(PAIRS[name]) for name in arguments.pairs}
    groups = []
    for seed in arguments.seeds:
        for name in arguments.pairs:
            classes = len(load_dataset(PAIRS[name].dataset, default_cache()).classes)
            texts = [
                text
                for text in dict.fromkeys(("none", *listed[name]))
                if f"{name} {seed} {text}" not in rows and not reasons(PAIRS[name], recipes[name], read_policy(text), classes)
            ]
            groups += [(name, seed, texts[i : i + GROUP]) for i in range(0, len(texts), GROUP)]
    running: list[tuple[tuple[str, int, list[str]], subprocess.Popen[str]]] = []
    began, total = time.monotonic(), len(groups)
    while groups or running:
        while groups and len(running) < arguments.workers:
            group = groups.pop(0)
            options = ["--iterations", str(arguments.iterations), "--pairs", group[0], "--group", group[0], str(group[1]), *group[2]]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            child = subprocess.Popen([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, env=environment)
            running.append((group, child))
        for entry in [entry for entry in running if entry[1].poll() is not None]:
            running.remove(entry)
            (name, seed, texts), child = entry
            if child.returncode:
                sys.exit(f"{name}, seed {seed}, {' '.join(texts)}: the training ended with {child.returncode}")
            assert child.stdout is not None
            found = json.loads(child.stdout.read().splitlines()[-1])
            rows |= {f"{name} {seed} {text}": row for text, row in found.items()}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps({"iterations": arguments.iterations, "rows": rows}, indent=1))
            done = total - len(groups) - len(running)
            shown = " ".join(f"{text} {row.get('ap', float('nan')):.1f}" for text, row in found.items())
            print(f"{done}/{total}, {time.monotonic() - began:.0f} s: {name} seed {seed}: {shown}", flush=True)
        time.sleep(0.2)
    print()
    for name in arguments.pairs:
        print(table(PAIRS[name], recipes[name], arguments.seeds, listed[name], rows) + "\n")


if __name__ == "__main__":
    main()
