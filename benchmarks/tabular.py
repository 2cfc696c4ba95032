"""The tabular benchmark: policies of one pair on `digits`, each trained at every rung and at the full proxy with two seeds.

`python benchmarks/tabular.py make --workers 2` trains what is missing (many hours of one CPU core; a run that was stopped goes on) and
`python benchmarks/tabular.py merge` writes what there is to `benchmarks/data/table.json`, which `benchmarks/searchers.py` reads.

The policies: the named ones that the pair can run, single terms of every knowledge over a part of the vocabulary, and combinations of
two to four of those terms. A term's weight is found from its gradient at the fork: `rho` times the task's, on the shared parameters. Rungs
fork from a student that has learned without distillation for half of the proxy; the full proxy starts where a search's candidates do.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from detkds_core.catalogue import DETECTORS, PAIRS, exchange, pair_facts
from detkds_core.datasets import default_cache, load_dataset, report_ids, selection_ids
from detkds_core.policy import Policy, SearchSpace, canonical, canonical_json, formula, from_json, named_policies, to_json
from detkds_core.policy.named import cannot_run

PAIR = PAIRS["digits_gfl"]
FORK = PAIR.proxy.iterations // 2
RUNGS = (15, 30, 60)  # iterations of a branch
SEEDS = (1, 2)
PROBE_SEED = 0
GROUP = 8
RATIOS = (0.1, 0.3, 1.0, 3.0)
SINGLES = {"global": 52, "fgbg": 52, "instance": 52, "logits": 44, "localization": 16}
COMBINATIONS = 92
VOCABULARY = (
    ("none", "satt", "catt", "natt"),
    ("none", "scale_r2", "local_s2", "multi_scale_r4"),
    ("none", "norm_HW", "norm_C", "norm_N", "standardize", "softmax_C", "softmax_HW", "logsoftmax_C"),
)
NAMED = {"maskd": "maskd[steps=200]"}  # the small teachers' maps have 32 channels: tokens are learnt in 200 steps
FILE = Path(__file__).parent / "data" / "table.json"


def space() -> SearchSpace:
    teacher, student = DETECTORS[PAIR.teacher], DETECTORS[PAIR.student]
    offer = exchange(teacher, student)
    return SearchSpace.of(pair_facts(offer, student, 10, PAIR.proxy.batch), knowledge=offer.knowledge)


def named() -> dict[str, Policy]:
    """The named policies that the pair can run, each once, with no distillation first."""
    from detkds_core.policy import parse_formula

    teacher, student = DETECTORS[PAIR.teacher], DETECTORS[PAIR.student]
    offer = exchange(teacher, student)
    facts = pair_facts(offer, student, 10, PAIR.proxy.batch)
    found: dict[str, Policy] = {}
    for name, one in sorted(named_policies().items(), key=lambda item: item[0] != "none"):
        policy = parse_formula(NAMED[name]) if name in NAMED else one.policy
        if not cannot_run(policy, offer, facts, (teacher.family, student.family)) and canonical(policy) not in found.values():
            found[name] = canonical(policy)
    return found


def drawn() -> list[dict[str, Any]]:
    """The policies before their weights are known: [{"name"}] or [{"terms": [(term of weight 1, rho)], "island"}], in the table's order."""
    rng = Random(0)
    rows: list[dict[str, Any]] = [{"name": name, "policy": policy} for name, policy in named().items()]
    singles: list[tuple[str, Any, float]] = []
    for knowledge, count in SINGLES.items():
        usual = [
            (term, rho)
            for term in space().formulas(knowledge)
            if len(term.transforms) == 1 or all(name in names for name, names in zip(term.transforms, VOCABULARY, strict=True))
            for rho in RATIOS
        ]
        singles += [(knowledge, *one) for one in rng.sample(usual, count)]
    rows += [{"island": knowledge, "terms": [(term, rho)]} for knowledge, term, rho in singles]
    known = set()
    while len(known) < COMBINATIONS:
        size = rng.choice((2, 2, 3, 4))
        islands = rng.sample(list(SINGLES), size)
        chosen = [rng.choice([one for one in singles if one[0] == island]) for island in islands]
        key = frozenset(map(repr, chosen))
        if key not in known:
            known.add(key)
            rows.append({"island": None, "terms": [(term, rho / size**0.5) for _, term, rho in chosen]})
    return rows


def make_policies(folder: Path) -> list[dict[str, Any]]:
    """The table's policies with their weights, from a look at the fork; kept in the folder."""
    path = folder / "policies.json"
    if path.is_file():
        return json.loads(path.read_text())
    from detkds_core.training.probe import probe

    rows = drawn()
    start, forks = prepared(PROBE_SEED, folder)
    terms = list(dict.fromkeys(term for row in rows for term, _ in row.get("terms", ())))
    looks = dict(zip(terms, probe(start, forks, [Policy((term,)) for term in terms], PAIR.proxy, PROBE_SEED), strict=True))
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "policy" in row:
            policy, of = row["policy"], {"name": row["name"]}
        else:
            if any(looks[term].failure for term, _ in row["terms"]):
                continue
            policy = canonical(Policy(tuple(replace(term, weight=_short(rho / looks[term].ratio)) for term, rho in row["terms"])))
            of = {"island": row["island"], "ratios": {formula(Policy((term,))): rho for term, rho in row["terms"]}}
        found.setdefault(canonical_json(policy), {**of, "formula": formula(policy), "policy": to_json(policy)})
    path.write_text(json.dumps(list(found.values()), indent=1))
    return list(found.values())


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def prepared(seed: int, folder: Path) -> tuple[Any, Any]:
    """The common start of a seed, and its fork, which is made once."""
    import torch

    torch.set_num_threads(1)
    from detkds_core.detectors.runtime import prepare_mmdet

    prepare_mmdet()
    from detkds_core.training.forks import Fork, grow_trunk
    from detkds_core.training.group import prepare

    dataset = load_dataset(PAIR.dataset, default_cache()).to_json()
    teacher = {"detector": PAIR.teacher, "checkpoint": PAIR.teacher_checkpoint}
    spec = {"dataset": dataset, "teacher": teacher, "student": {"detector": PAIR.student}, "inherit": PAIR.inherit}
    start = prepare(spec, seed, torch.device("cpu"))
    path = folder / f"fork-{seed}.pt"
    if not path.is_file():
        fork = grow_trunk(start, PAIR.proxy, FORK, seed)
        torch.save({"weights": dict(fork.weights), "moments": fork.moments, "steps": fork.steps}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    kept = torch.load(path, weights_only=True)
    return start, Fork(kept["weights"], kept["moments"], kept["steps"])


def train_group(start: Any, fork: Any, policies: Sequence[Policy], rung: int, seed: int) -> list[dict[str, Any]]:
    """AP of each policy after a rung, or after the full proxy, in percent; `report`: on the report images, of the full proxy."""
    from detkds_core.evaluation.predict import measure
    from detkds_core.training.forks import branch, branch_recipe, branch_seed
    from detkds_core.training.group import batches_for, new_learner, train

    dataset = load_dataset(PAIR.dataset, default_cache())
    full = rung == PAIR.proxy.iterations
    recipe = PAIR.proxy if full else branch_recipe(PAIR.proxy, rung)
    made = [new_learner(start, one, recipe, seed) if full else branch(start, fork, one, recipe, seed) for one in policies]
    began = time.process_time()
    train(made, start, batches_for(made[0], start.train, recipe, seed if full else branch_seed(seed)))
    seconds = (time.process_time() - began) / len(made)
    rows = []
    for learner in made:
        row: dict[str, Any] = {"ap": None, "seconds": round(seconds, 2)}
        if learner.failure is None:
            chosen = list(selection_ids(dataset))[: recipe.eval_images]
            row["ap"] = _measured(measure, learner, dataset, chosen)
            if full:
                row["report"] = _measured(measure, learner, dataset, report_ids(dataset))
        rows.append(row)
    return rows


def _measured(measure: Any, learner: Any, dataset: Any, ids: Sequence[int]) -> float:
    return round(measure(learner.student.model, dataset.to_json()["val"], ids, image_size=PAIR.proxy.image_size)[0].ap, 3)


def shards(count: int) -> list[tuple[int, int, int]]:
    """(seed, rung, first policy) of each piece of work, in the order in which they are worth most."""
    rungs = (PAIR.proxy.iterations, *RUNGS)
    return [(seed, rung, first) for seed in SEEDS for first in range(0, count, GROUP) for rung in rungs]


def work(folder: Path) -> None:
    """Train what nobody has claimed, until nothing is left."""
    rows = json.loads((folder / "policies.json").read_text())
    ready: dict[int, tuple[Any, Any]] = {}
    for seed, rung, first in shards(len(rows)):
        path = folder / f"{seed}-{rung}-{first}.json"
        if path.is_file():
            continue
        try:
            path.with_suffix(".claim").touch(exist_ok=False)
        except FileExistsError:
            continue
        if seed not in ready:
            ready = {seed: prepared(seed, folder)}
        policies = [from_json(row["policy"]) for row in rows[first : first + GROUP]]
        measured = train_group(*ready[seed], policies, rung, seed)
        path.with_suffix(".part").write_text(json.dumps(measured))
        path.with_suffix(".part").replace(path)
        print(path.name, flush=True)


def merge(folder: Path) -> None:
    """Everything that is there, as the data file."""
    rows = json.loads((folder / "policies.json").read_text())
    runs: dict[str, list[Any]] = {}
    for seed, rung, first in shards(len(rows)):
        path = folder / f"{seed}-{rung}-{first}.json"
        key = f"{rung} {seed}"
        column = runs.setdefault(key, [None] * len(rows))
        if path.is_file():
            column[first : first + GROUP] = json.loads(path.read_text())
    dataset = load_dataset(PAIR.dataset, default_cache())
    facts = {
        "pair": PAIR.name,
        "dataset": dataset.digest,
        "images": {"selection": PAIR.proxy.eval_images, "report": len(report_ids(dataset))},
        "recipe": PAIR.proxy.to_json(),
        "fork": FORK,
        "rungs": [*RUNGS, PAIR.proxy.iterations],
        "seeds": list(SEEDS),
    }
    lines = [f'"{key}": {json.dumps(value)}' for key, value in facts.items()]
    each = ",\n".join(json.dumps(row) for row in rows)
    columns = ",\n".join(f"{json.dumps(key)}: {json.dumps(column)}" for key, column in runs.items())
    joined = ",\n".join(lines)
    FILE.write_text(f'{{\n{joined},\n"policies": [\n{each}\n],\n"runs": {{\n{columns}\n}}\n}}\n')
    missing = sum(one is None for column in runs.values() for one in column)
    print(f"{FILE}: {len(rows)} policies, {missing} of {len(rows) * len(runs)} measurements missing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("make", "merge", "work"))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long; what is under way is lost")
    parser.add_argument("--folder", type=Path, default=default_cache() / "table", help="where pieces are kept until they are merged")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.command == "merge":
        merge(folder)
    elif arguments.command == "work":
        work(folder)
    else:
        rows = make_policies(folder)
        print(f"{len(rows)} policies, {len(shards(len(rows)))} pieces", flush=True)
        for seed in SEEDS:
            prepared(seed, folder)
        for claim in folder.glob("*.claim"):
            claim.unlink()
        command = [sys.executable, __file__, "work", "--folder", str(folder)]
        workers = [subprocess.Popen(command) for _ in range(arguments.workers)]
        try:
            deadline = None if arguments.seconds is None else time.monotonic() + arguments.seconds
            for worker in workers:
                worker.wait(None if deadline is None else max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print("out of time")
        finally:
            for worker in workers:
                worker.kill()


if __name__ == "__main__":
    main()
