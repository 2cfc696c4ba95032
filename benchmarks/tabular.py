"""The tabular benchmark: policies of one pair on `digits`, each trained at every rung and at the full proxy with two seeds.

`python benchmarks/tabular.py make --workers 2` trains what is missing (many hours of one CPU core; a run that was stopped goes on, from
its own pieces and from what is merged) and `python benchmarks/tabular.py merge` writes what there is to `benchmarks/data/table.json`, which
`benchmarks/searchers.py` reads. `python benchmarks/tabular.py facts` prints what it says by itself.

The policies: the named ones that the pair can run, single terms of every knowledge over a part of the vocabulary, and combinations of
two to four of those terms. Terms are `balanced`: a weight is the ratio of gradients at the fork. A piece is a job of a search as a worker
gets it: a group of candidates at a rung, forked from a student that has learned without distillation for half of the proxy, or over the
whole proxy. The gates look at every candidate, and all are trained whatever they say.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import correlation, fmean, median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from detkds_core.catalogue import DETECTORS, PAIRS, Pair, exchange, pair_facts
from detkds_core.datasets import default_cache, load_dataset
from detkds_core.evolution.spec import GATES
from detkds_core.evolution.table import Table
from detkds_core.policy import (
    Policy,
    SearchSpace,
    Term,
    canonical,
    canonical_json,
    formula,
    from_json,
    named_policies,
    parse_formula,
    to_json,
)
from detkds_core.policy.named import cannot_run
from detkds_core.policy.vocabulary import FEATURES

PAIR = PAIRS["digits_gfl"]
FULL = PAIR.proxy.iterations
FORK = FULL // 2
RUNGS = (30, 60)  # iterations of a branch
SEEDS = (1, 2)
GROUP = 8
RATIOS = {"features": (0.3, 1.0, 3.0, 10.0, 30.0), "responses": (0.1, 0.3, 1.0, 3.0)}
SINGLES = {"global": 52, "fgbg": 52, "instance": 52, "logits": 44, "localization": 16}
COMBINATIONS = 92
VOCABULARY = (
    ("none", "satt", "catt", "natt"),
    ("none", "scale_r2", "local_s2", "multi_scale_r4"),
    ("none", "norm_HW", "norm_C", "norm_N", "standardize", "softmax_C", "softmax_HW", "logsoftmax_C"),
)
NAMED = {"maskd": "maskd[steps=200]"}  # the small teachers' maps have 32 channels: tokens are learnt in 200 steps
FILE = Path(__file__).parent / "data" / "table.json"


def offered() -> tuple[Any, Any, tuple[str, str]]:
    """What the pair can exchange, its facts, and the families of teacher and student."""
    teacher, student = DETECTORS[PAIR.teacher], DETECTORS[PAIR.student]
    offer = exchange(teacher, student)
    return offer, pair_facts(offer, student, 10, PAIR.proxy.batch), (teacher.family, student.family)


def named() -> dict[str, Policy]:
    """The named policies that the pair can run, each once, with no distillation first."""
    offer, facts, families = offered()
    found: dict[str, Policy] = {}
    for name, one in sorted(named_policies().items(), key=lambda item: item[0] != "none"):
        policy = canonical(parse_formula(NAMED[name]) if name in NAMED else one.policy)
        if not cannot_run(policy, offer, facts, families) and policy not in found.values():
            found[name] = policy
    return found


def policies() -> list[dict[str, Any]]:
    """The table's policies, in its order: {"name" or "island", "policy", "formula"}."""
    rng = Random(0)
    offer, facts, _ = offered()
    space = SearchSpace.of(facts, knowledge=offer.knowledge)
    rows = [({"name": name}, policy) for name, policy in named().items()]
    singles = []
    for knowledge, count in SINGLES.items():
        usual = [
            replace(term, weight=ratio, balanced=True)
            for term in space.formulas(knowledge)
            if len(term.transforms) == 1 or all(name in names for name, names in zip(term.transforms, VOCABULARY, strict=True))
            for ratio in RATIOS["features" if knowledge in FEATURES else "responses"]
        ]
        singles += rng.sample(usual, count)
    rows += [({"island": term.knowledge}, canonical(Policy((term,)))) for term in singles]
    known = {canonical_json(policy) for _, policy in rows}
    least = len(rows)
    while len(rows) < least + COMBINATIONS:
        islands = rng.sample(list(SINGLES), rng.choice((2, 2, 3, 4)))
        chosen = [rng.choice([term for term in singles if term.knowledge == island]) for island in islands]
        damped = [replace(term, weight=float(f"{term.weight / len(chosen) ** 0.5:.3g}")) for term in chosen]
        policy = canonical(Policy(tuple(damped)))
        if canonical_json(policy) not in known:
            known.add(canonical_json(policy))
            rows.append(({"island": None}, policy))
    return [{**of, "formula": formula(policy), "policy": to_json(policy)} for of, policy in rows]


def job(rows: list[dict[str, Any]], first: int, rung: int, seed: int) -> dict[str, Any]:
    """The job that measures a piece."""
    members = {index: row["policy"] for index, row in enumerate(rows[first : first + GROUP], first)}
    return evaluation(PAIR, members, seed=seed, rung=rung if rung < FULL else None, gates=GATES if rung == RUNGS[0] else ())


def evaluation(pair: Pair, policies: Mapping[int, dict[str, Any]], *, seed: int, rung: int | None, gates: Iterable[str]) -> dict[str, Any]:
    """What a worker would be told: to measure policies (JSON, by index) as a search does, and to train those too that a gate refuses.

    rung: iterations of a branch; None: of the whole proxy.
    """
    return {
        "kind": "evaluate",
        "dataset": load_dataset(pair.dataset, default_cache()).to_json(),
        "teacher": {"detector": pair.teacher, "checkpoint": pair.teacher_checkpoint},
        "student": {"detector": pair.student},
        "inherit": pair.inherit,
        "recipe": pair.proxy.to_json(),
        "seed": seed,
        "fork": pair.proxy.iterations // 2,
        "rung": rung,
        "stands_for": pair.full.iterations,
        "gates": list(gates),
        "candidates": [{"index": index, "policy": policy, "audit": True} for index, policy in policies.items()],
    }


def pieces(count: int) -> list[tuple[int, int, int]]:
    """(seed, rung, first policy) of each piece of work; every part of the list is of use by itself."""
    return [(seed, rung, first) for seed in SEEDS for first in range(0, count, GROUP) for rung in (FULL, *RUNGS)]


def work(folder: Path) -> None:
    """Train what nobody has claimed, until nothing is left."""
    import torch

    torch.set_num_threads(1)
    from detkds_core.detectors.runtime import prepare_mmdet

    prepare_mmdet()
    from detkds_core.training.jobs import measure_candidates

    rows = policies()
    for seed, rung, first in pieces(len(rows)):
        path = folder / f"{seed}-{rung}-{first}.json"
        if path.is_file():
            continue
        try:
            path.with_suffix(".claim").touch(exist_ok=False)
        except FileExistsError:
            continue
        measured = measure_candidates(job(rows, first, rung, seed), lambda *_args, **_more: None)["candidates"]
        path.with_suffix(".part").write_text(json.dumps([brief(row, rung) for row in measured]))
        path.with_suffix(".part").replace(path)
        print(path.name, flush=True)


def brief(row: dict[str, Any], rung: int) -> dict[str, Any]:
    """What the table keeps of a row."""
    kept: dict[str, Any] = {"ap": None if row["ap"] is None else round(row["ap"], 3), "seconds": round(row["seconds"], 2)}
    if row.get("lenient_ap") is not None:
        kept["lenient_ap"] = round(row["lenient_ap"], 3)
    if rung == RUNGS[0] and row["look"] is not None:
        look = row["look"]
        kept["look"] = {name: float(f"{look[name]:.4g}") for name in ("loss", "ratio", "agreement")}
        kept |= {"rejected": row["rejected"] and row["rejected"]["gate"], "same_as": row.get("same_as")}
    return kept


def unmerge(folder: Path) -> None:
    """What the data file has, as pieces that need not be made again."""
    known = json.loads(FILE.read_text()) if FILE.is_file() else {"runs": {}, "policies": []}
    if known["policies"] != policies():
        return
    for seed, rung, first in pieces(len(known["policies"])):
        path = folder / f"{seed}-{rung}-{first}.json"
        rows = known["runs"][f"{rung} {seed}"][first : first + GROUP]
        if not path.is_file() and None not in rows:
            path.write_text(json.dumps(rows))


def merge(folder: Path) -> None:
    """Everything that is there, as the data file; its seeds are those that are whole."""
    unmerge(folder)
    rows = policies()
    runs: dict[str, list[Any]] = {f"{rung} {seed}": [None] * len(rows) for seed in SEEDS for rung in (*RUNGS, FULL)}
    for seed, rung, first in pieces(len(rows)):
        path = folder / f"{seed}-{rung}-{first}.json"
        if path.is_file():
            runs[f"{rung} {seed}"][first : first + GROUP] = json.loads(path.read_text())
    dataset = load_dataset(PAIR.dataset, default_cache())
    facts = {
        "pair": PAIR.name,
        "dataset": dataset.digest,
        "images": PAIR.proxy.eval_images,
        "recipe": PAIR.proxy.to_json(),
        "fork": FORK,
        "rungs": [*RUNGS, FULL],
        "seeds": [seed for seed in SEEDS if not any(None in runs[f"{rung} {seed}"] for rung in (*RUNGS, FULL))],
    }
    head = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in facts.items())
    each = ",\n".join(map(json.dumps, rows))
    columns = ",\n".join(f"{json.dumps(key)}: {json.dumps(column)}" for key, column in runs.items())
    FILE.write_text(f'{{\n{head},\n"policies": [\n{each}\n],\n"runs": {{\n{columns}\n}}\n}}\n')
    missing = sum(one is None for column in runs.values() for one in column)
    print(f"{FILE}: {len(rows)} policies, {missing} of {len(rows) * len(runs)} measurements missing")


def facts(data: dict[str, Any]) -> None:
    """Print what the table says of policies, rungs, gates and combinations."""
    table, rows = Table(data), data["policies"]
    worths = [table.worth_of_row(row) for row in range(len(rows))]
    alone = worths[0]
    hours = sum(cell["seconds"] for column in data["runs"].values() for cell in column) / 3600
    print(f"{sum(map(len, data['runs'].values()))} measurements, {hours:.1f} hours of a core; seeds {table.seeds}, {data['images']} images")
    print(f"no distillation: {alone:.1f} AP; the best:")
    for worth, row in sorted(zip(worths, rows, strict=True), key=lambda one: -one[0])[:12]:
        print(f"  {worth:.1f} {row.get('name', '')} {row['formula']}")
    for kind, chosen in (
        ("drawn", [row for row, one in enumerate(rows) if "name" not in one]),
        ("named", [row for row, one in enumerate(rows) if one.get("name", "none") != "none"]),
    ):
        print(f"{kind}: {sum(worths[row] < alone for row in chosen)} of {len(chosen)} are worse than no distillation")
    lowest = [cell["ap"] or 0.0 for seed in table.seeds for cell in data["runs"][f"{table.rungs[0]} {seed}"]]
    print(f"AP after {table.rungs[0]} iterations: {min(lowest):.1f} to {max(lowest):.1f}, median {median(lowest):.1f}")
    for (rung, key), tau in table.taus().items():
        print(f"{rung} iterations by {key}: Kendall's tau {tau:.2f} with the full proxy of the other seed")
    for gate, (refused, falsely) in table.gates().items():
        print(f"{gate} refuses {refused} times, {falsely} times one of the best third at the full proxy")
    pairs = combined(table, rows)
    for name, of in (("mean", fmean), ("worst", min), ("best", max)):
        together = correlation([worth for worth, _ in pairs], [of(each) for _, each in pairs])
        print(f"a combination and the {name} of its terms alone: correlation {together:.2f} over {len(pairs)}")


def combined(table: Table, rows: list[dict[str, Any]]) -> list[tuple[float, list[float]]]:
    """The worth of each drawn combination, and those of its terms alone, whose weights it damps."""
    singles: dict[Term, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows):
        if row.get("island"):
            (term,) = from_json(row["policy"]).terms
            singles.setdefault(replace(term, weight=1.0), []).append((term.weight, table.worth_of_row(number)))
    found = []
    for number, row in enumerate(rows):
        terms = from_json(row["policy"]).terms
        if "name" not in row and len(terms) > 1:
            each = []
            for term in terms:
                undamped = term.weight * len(terms) ** 0.5
                each.append(min(singles[replace(term, weight=1.0)], key=lambda one: abs(one[0] - undamped))[1])
            found.append((table.worth_of_row(number), each))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("make", "merge", "work", "facts"))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long; what is under way is lost")
    parser.add_argument("--folder", type=Path, default=default_cache() / "table", help="where pieces are kept until they are merged")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.command == "merge":
        merge(folder)
    elif arguments.command == "facts":
        facts(json.loads(FILE.read_text()))
    elif arguments.command == "work":
        work(folder)
    else:
        load_dataset(PAIR.dataset, default_cache())  # made once, before several processes want it at once
        unmerge(folder)
        for claim in folder.glob("*.claim"):
            claim.unlink()
        workers = [subprocess.Popen([sys.executable, __file__, "work", "--folder", str(folder)]) for _ in range(arguments.workers)]
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
