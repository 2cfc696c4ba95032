"""What a search finds for its budget, beside other searches: on synthetic landscapes, and on the measured table where it is complete.

`python benchmarks/searchers.py compare` (every algorithm at several budgets), `reach` (what it costs to find as much as the others
do with 100 and 300 full proxies), `ablation` (one lever at a time switched off) and `table` (`compare` on `data/table.json`).
A budget is in full proxies; a figure is the true worth of the recommended policy, the mean of the repeats with a 95 % bootstrap
interval. Repeat s is a search with seed s on landscape s, the same for all: differences are paired. `detkds` and `random_halving` have
rungs, gates and doubles told; the others train every candidate in full, as they were published. The table is searched without the
hand-designed policies in it. The search's constants were chosen on landscapes from 1000 on, never on those that are reported.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from detkds_core.evolution import Spec, combinations, islands, rungs, searchers
from detkds_core.evolution.history import History
from detkds_core.evolution.landscapes import Landscape, World, found, search
from detkds_core.evolution.searchers import ALGORITHMS
from detkds_core.evolution.spec import HALVING
from detkds_core.evolution.table import Table
from detkds_core.policy import Policy

FULL = 27  # iterations of a landscape's full proxy
RUNGS = (1, 3, 9, FULL)
GROUP = 4  # candidates of a job, where candidates share a teacher
LOOK = 1 / 135  # of a full proxy: what a candidate costs that a gate refuses
LIVE_RUNGS, LIVE_GROUP = (7, FULL), 8  # a search's by default
LIVE: dict[str, Any] = {"taus": (0.44,), "noise": (0.35, 0.2)}  # about what a rung of a quarter of the proxy has with long trainings
MIDDLE_RUNGS, MIDDLE = (7, 14, FULL), {"taus": (0.44, 0.6), "noise": (0.35, 0.3, 0.2)}  # with one of half of it, too
REFERENCES, DESIGNED = 12, 30  # how many hand-designed policies a live search knows; each is here the best of so many random ones
BUDGETS = (10, 30, 100, 300)
TABLE_BUDGETS = (5, 10, 20, 40)
GRID = (3, 5, 10, 20, 30, 60, 100)
TARGETS = (100, 300)  # full proxies of those who are to be reached
BARS = {("genetic", 300.0): 0.1, ("random", 300.0): 0.2}  # of their budget: `detkds` is to find as much with so little
RESAMPLES = 4000
FILE = Path(__file__).parent / "data" / "table.json"


def nothing(*_: Any) -> None:
    """No proposal; nobody waits."""


def no_moves(*_: Any) -> Iterator[Any]:
    """No combination."""
    return iter(())


def whole_group(history: History, _: int) -> int:
    """As many as a job may have, whatever is kept for those that climb."""
    return history.spec.group


LEVERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "gates": {"gates": False},
    "doubles": {"doubles": False},
    "rungs": {"rungs": False},
    "islands and combinations": {"algorithm": "random_halving"},
    "combinations (stage 2)": {"spec": {"stage2_share": 0.0}, "patch": [(searchers, "propose_combination", nothing)]},
    "migration": {"patch": [(islands, "MIGRATE", 0.0)]},
    "replication": {"patch": [(rungs, "REPLICATES", 1)]},
    "cap on promotions": {"patch": [(rungs, "CAPPED", False)]},
    "single terms and references that wait": {"patch": [(rungs, "waits", nothing)]},
    "references that spare": {"patch": [(searchers, "SPARED", 0)]},
    "grafts on hand-designed policies": {"patch": [(combinations, "grafted", no_moves)]},
    "a last group that leaves what climbs": {"patch": [(searchers, "begun", whole_group)]},
}


@contextmanager
def patched(changes: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Constants of modules changed for a while."""
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@cache
def measured_table() -> Table:
    if not FILE.is_file():
        raise SystemExit(f"{FILE}: not there; `python benchmarks/tabular.py make` and `merge` write it")
    return Table(json.loads(FILE.read_text()))


def one(kind: str, algorithm: str, budget: float, seed: int, lever: str, options: tuple[tuple[str, Any], ...]) -> float:
    """The worth of what one search recommends. options: of its landscape."""
    off = LEVERS[lever]
    algorithm = off.get("algorithm", algorithm)
    halves = algorithm in HALVING
    chosen = dict(options)
    live, middle, parallelism = chosen.pop("live", False), chosen.pop("middle", False), chosen.pop("parallelism", 1)
    world: World = measured_table() if kind == "table" else Landscape(seed, **chosen)
    if isinstance(world, Table):
        ladder = world.rungs if middle else (world.rungs[0], world.rungs[-1])
    else:
        ladder = (MIDDLE_RUNGS if middle else LIVE_RUNGS) if live else RUNGS
    full = ladder[-1]
    spec = Spec(
        knowledge=tuple(world.knowledge),
        budget=int(budget * full),
        seed=seed,
        references=(Policy(()), *(designed(world, seed) if live else ())),
        space=world,
        rungs=ladder if halves and off.get("rungs", True) else (full,),
        algorithm=algorithm,
        group=(LIVE_GROUP if live or kind == "table" else GROUP) if halves else 1,
        parallelism=parallelism,
        look=LOOK * full if halves else 0.0,
        lenient=kind == "table",
        **off.get("spec", {}),
    )
    seeds_of_table = [(rungs, "REPLICATES", min(rungs.REPLICATES, len(world.seeds)))] if isinstance(world, Table) else []
    with patched([*seeds_of_table, *off.get("patch", [])]):
        evolution = search(world, spec, gates=halves and off.get("gates", True), doubles=halves and off.get("doubles", True))
    return found(world, evolution)


def designed(world: World, seed: int) -> list[Policy]:
    """Policies of one term or two that are better than chance, as hand-designed ones are."""
    rng = random.Random(f"designed {seed}")
    found: list[Policy] = []
    while len(found) < REFERENCES:
        islands_of_each = [rng.sample(list(world.knowledge), rng.choice((1, 1, 2))) for _ in range(DESIGNED)]
        drawn = [world.admits(Policy(tuple(world.sample(rng, island) for island in mine))) for mine in islands_of_each]
        best = max((policy for policy in drawn if policy is not None), key=world.worth)
        if best not in found:
            found.append(best)
    return found


class Runs:
    """Searches by (algorithm, budget, lever), each once; the repeats of one in the order of their seeds."""

    def __init__(self, kind: str, seeds: Sequence[int], workers: int, options: dict[str, Any]) -> None:
        self.kind, self.seeds, self.options = kind, seeds, tuple(sorted(options.items()))
        self.pool = ProcessPoolExecutor(workers) if workers > 1 else None
        self.known: dict[tuple[str, float, str], np.ndarray] = {}

    def of(self, algorithm: str, budget: float, lever: str = "nothing") -> np.ndarray:
        """(repeats,) worths."""
        key = (algorithm, budget, lever)
        if key not in self.known:
            work = [(self.kind, algorithm, budget, seed, lever, self.options) for seed in self.seeds]
            mapped = self.pool.map(one, *zip(*work, strict=True)) if self.pool else map(one, *zip(*work, strict=True))
            self.known[key] = np.array(list(mapped))
        return self.known[key]


# --- figures


def interval(statistic: Callable[[np.ndarray], float], repeats: int) -> tuple[float, float]:
    """The 95 % bootstrap interval of a statistic of the repeats' places."""
    rng = np.random.default_rng(0)
    values = np.sort([statistic(rng.integers(repeats, size=repeats)) for _ in range(RESAMPLES)])
    return float(values[int(0.025 * RESAMPLES)]), float(values[int(0.975 * RESAMPLES) - 1])


def mean(values: np.ndarray, digits: int = 2, sign: str = "") -> str:
    """`1.34 (1.30 to 1.38)`."""
    low, high = interval(lambda places: float(values[places].mean()), len(values))
    return f"{values.mean():{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def cost(curve: Sequence[float], target: float, grid: Sequence[float] = GRID) -> float:
    """The budget at which a curve over the grid first reaches a target, between two of them by logarithm; infinite if it never does.

    >>> round(cost([1.0, 2.0, 3.0], 2.5, grid=[1, 10, 100]), 1)
    31.6
    """
    for place, value in enumerate(curve):
        if value >= target:
            if place == 0:
                return grid[0]
            part = (target - curve[place - 1]) / (value - curve[place - 1])
            return math.exp(math.log(grid[place - 1]) * (1 - part) + math.log(grid[place]) * part)
    return math.inf


def compare(runs: Runs, algorithms: Sequence[str], budgets: Sequence[float]) -> None:
    """A row an algorithm, and what detkds has more than random halving."""
    print("| algorithm | " + " | ".join(f"{budget:g}" for budget in budgets) + " |")
    print("|---" * (len(budgets) + 1) + "|")
    digits = 1 if runs.kind == "table" else 2
    for algorithm in algorithms:
        print(f"| {algorithm} | " + " | ".join(mean(runs.of(algorithm, budget), digits) for budget in budgets) + " |", flush=True)
    if {"detkds", "random_halving"} <= set(algorithms):
        differences = [mean(runs.of("detkds", budget) - runs.of("random_halving", budget), digits, "+") for budget in budgets]
        print("| detkds - random_halving | " + " | ".join(differences) + " |", flush=True)


def reach(runs: Runs, algorithms: Sequence[str], budgets: Sequence[float]) -> None:
    """What `detkds` costs that finds as much as others with these budgets; infinite where it takes more than the largest of the grid."""
    curves = np.stack([runs.of("detkds", budget) for budget in GRID])  # (budgets, repeats)
    print("detkds at " + ", ".join(f"{budget}: {row.mean():.2f}" for budget, row in zip(GRID, curves, strict=True)) + "\n")
    print("| algorithm | with | finds | detkds reaches it with | share of that | bar |\n|---|---|---|---|---|---|")
    for algorithm in algorithms:
        for budget in budgets:
            theirs = runs.of(algorithm, budget)

            def needed(places: np.ndarray, theirs: np.ndarray = theirs) -> float:
                return cost(curves[:, places].mean(axis=1).tolist(), float(theirs[places].mean()))

            whole = needed(np.arange(len(theirs)))
            low, high = interval(needed, len(theirs))
            share = f"{whole / budget:.3f} ({low / budget:.3f} to {high / budget:.3f})"
            bar = BARS.get((algorithm, budget), "")
            print(f"| {algorithm} | {budget:g} | {mean(theirs)} | {whole:.1f} | {share} | {bar} |", flush=True)


def ablation(runs: Runs, budgets: Sequence[float]) -> None:
    """What is lost when one lever is switched off."""
    print("| without | " + " | ".join(f"{budget:g} | lost" for budget in budgets) + " |")
    print("|---" * (2 * len(budgets) + 1) + "|")
    for lever in LEVERS:
        cells = []
        for budget in budgets:
            whole, without = runs.of("detkds", budget), runs.of("detkds", budget, lever)
            cells += [f"{without.mean():.2f}", mean(whole - without, sign="+") if lever != "nothing" else ""]
        print(f"| {lever} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("compare", "reach", "ablation", "table"))
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first repeat's seed; 1000 and on are for choosing constants")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--budgets", type=float, nargs="+", default=None, help="in full proxies")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--taus", type=float, nargs="+", default=None, help="rank correlations of the rungs with the full proxy")
    parser.add_argument("--live", action="store_true", help="rungs, groups and hand-designed references as a live search has them")
    parser.add_argument("--middle", action="store_true", help="with --live, and on the table: a rung of half the full proxy, too")
    parser.add_argument("--parallelism", type=int, default=1, help="jobs under way at once; each sees the results of so many fewer")
    parser.add_argument("--together", choices=("sum", "best", "mean"), default="sum", help="what a combination is worth, of its terms")
    arguments = parser.parse_args()
    options: dict[str, Any] = {"live": True, **(MIDDLE if arguments.middle else LIVE)} if arguments.live else {}
    if arguments.middle:
        options["middle"] = True
    if arguments.parallelism > 1:
        options["parallelism"] = arguments.parallelism
    if arguments.taus:
        options["taus"] = tuple(arguments.taus)
    if arguments.together != "sum":
        options["together"] = arguments.together
    seeds = range(arguments.first, arguments.first + arguments.repeats)
    runs = Runs("table" if arguments.command == "table" else "landscape", seeds, arguments.workers, options)
    try:
        report(arguments, runs)
    finally:
        if runs.pool:
            runs.pool.shutdown(cancel_futures=True)


def report(arguments: argparse.Namespace, runs: Runs) -> None:
    """Print what was asked for."""
    if arguments.command == "compare":
        compare(runs, arguments.algorithms, arguments.budgets or BUDGETS)
    elif arguments.command == "reach":
        reach(runs, [name for name in arguments.algorithms if name != "detkds"], arguments.budgets or TARGETS)
    elif arguments.command == "ablation":
        ablation(runs, arguments.budgets or (30, 100))
    else:
        table = measured_table()
        best = max(map(table.worth, table.policies))
        print(f"{len(table.policies)} policies: no distillation {table.worth(Policy(())):.1f}, the best {best:.1f}")
        compare(runs, arguments.algorithms, arguments.budgets or TABLE_BUDGETS)


if __name__ == "__main__":
    main()
