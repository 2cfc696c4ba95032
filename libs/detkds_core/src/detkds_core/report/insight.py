"""What a search teaches beside its winner: what the top formulas share, what each knowledge earns, what each operation adds, what was
rejected and why, how far each gate can be trusted, and what every stage cost.

A row is a candidate: `{"index", "policy" (JSON), "stage", "island", "operator", "trials": [{"rung", "replicate", "ap"}], "rejected":
{"gate", "detail"} | None, "cost": {name: number} | None}`. In place of trials it may have one `"ap"` (and its `"rung"`), and in place of
a rejection the `"failure"` `{"kind", "detail"}` of its training. AP in percent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detkds_core.report.statistics import mean_interval

TOP_SHARE, TOP_LEAST = 0.1, 5  # of the measured candidates
LEAST = 3  # candidates with a gene, and without it, below which nothing is said of its effect
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of the ridge; the one that predicts left-out candidates best
BOOTSTRAPS = 400
EXAMPLES = 3  # rejected candidates that are named for each gate

Row = Mapping[str, Any]
Matrix = NDArray[np.float64]


class Measured(NamedTuple):
    """A candidate that was measured. rungs: its mean AP by rung."""

    row: Row
    genes: frozenset[str]
    rungs: dict[int, float]

    @property
    def rank(self) -> tuple[int, float]:
        """Best last: APs of different rungs do not compare, and who came further was better where they did."""
        rung = max(self.rungs)
        return rung, self.rungs[rung]


def insight(rows: Sequence[Row], seed: int = 0, funnel: Row | None = None) -> dict[str, Any]:
    """All six parts as JSON: `shared`, `knowledge`, `effects`, `rejected`, `gates`, `cost`.

    The first three are empty where nothing was measured. funnel: of the search's summary; without one nothing is said of the gates.
    """
    measured = [Measured(row, genes(row["policy"]), rungs) for row in rows if (rungs := by_rung(row))]
    counts = Counter(rung for one in measured for rung in one.rungs)
    # The rung that most candidates have: the only one where those that were stopped early still count.
    rung = max(counts, key=lambda rung: (counts[rung], -rung), default=0)
    return {
        "rung": rung,
        "candidates": len(rows),
        "measured": len(measured),
        "shared": shared(measured),
        "knowledge": knowledge(measured, rung),
        "effects": effects([one for one in measured if one.genes and rung in one.rungs], rung, seed),
        "rejected": rejected(rows),
        "gates": [{"gate": gate, **figures} for gate, figures in ((funnel or {}).get("gates") or {}).items()],
        "cost": cost(rows),
    }


def genes(policy: Mapping[str, Any]) -> frozenset[str]:
    """What a policy is made of: `knowledge global`, `transform catt`, `distance l1`, `distiller fgd`; weights and options are left out."""
    found = set()
    for term in policy.get("terms", ()):
        found |= {f"knowledge {term['knowledge']}", f"distance {term['distance']}"}
        found |= {f"transform {name}" for name in term.get("transforms", ()) if name != "none"}
    return frozenset(found | {f"distiller {one['name']}" for one in policy.get("distillers", ())})


def kinds(found: frozenset[str]) -> list[str]:
    """The knowledge among genes."""
    return sorted(gene.removeprefix("knowledge ") for gene in found if gene.startswith("knowledge "))


def by_rung(row: Row) -> dict[int, float]:
    """Mean AP of a candidate on each rung it was measured on; empty for none."""
    trials = row.get("trials") or ([{"rung": row.get("rung") or 0, "ap": row["ap"]}] if row.get("ap") is not None else [])
    found: dict[int, list[float]] = {}
    for trial in trials:
        if trial.get("ap") is not None:
            found.setdefault(int(trial["rung"]), []).append(float(trial["ap"]))
    return {rung: math.fsum(values) / len(values) for rung, values in found.items()}


def shared(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """How often each gene is among the top searched candidates and among all of them, the most telling first.

    p: how likely chance alone puts so many of its candidates at the top (hypergeometric; of one gene, not adjusted for their number).
    """
    searched = sorted((one for one in measured if one.row["stage"] != "reference"), key=lambda one: one.rank, reverse=True)
    top = searched[: max(TOP_LEAST, round(TOP_SHARE * len(searched)))]
    every, best = (Counter(gene for one in of for gene in one.genes) for of in (searched, top))
    lines = [
        {
            "gene": gene,
            "top": number,
            "top_of": len(top),
            "all": every[gene],
            "all_of": len(searched),
            "p": chance(number, len(top), every[gene], len(searched)),
        }
        for gene, number in best.items()
    ]
    return sorted(lines, key=lambda line: (line["p"], -line["top"], line["gene"]))


def chance(hits: int, drawn: int, marked: int, every: int) -> float:
    """The probability of at least so many hits among `drawn` of `every`, of which some are marked."""
    ways = sum(math.comb(marked, k) * math.comb(every - marked, drawn - k) for k in range(hits, min(marked, drawn) + 1))
    return ways / math.comb(every, drawn)


def knowledge(measured: Sequence[Measured], rung: int) -> list[dict[str, Any]]:
    """What each knowledge earned where it was used alone: its candidates' AP less that of no distillation (None: not measured there).

    interval: of the gain, 95 %, as that of two means, for no distillation was measured too, once, and is as uncertain as a candidate.
    """
    here = [one for one in measured if rung in one.rungs]
    alone = next((one.rungs[rung] for one in here if not one.genes), None)
    groups: dict[str, list[float]] = {}
    for one in here:
        used = kinds(one.genes)
        if len(used) == 1 and not any(gene.startswith("distiller ") for gene in one.genes):
            groups.setdefault(used[0], []).append(one.rungs[rung])
    lines = []
    for name, values in groups.items():
        interval = mean_interval(values)
        half = (interval.high - interval.mean) * math.sqrt(1 + len(values))  # s * sqrt(1 / n + 1) in place of s * sqrt(1 / n)
        gain = None if alone is None else interval.mean - alone
        lines.append(
            {
                "knowledge": name,
                "candidates": len(values),
                "mean": interval.mean,
                "best": max(values),
                "gain": gain,
                "best_gain": None if alone is None else max(values) - alone,
                "interval": None if gain is None or len(values) < 2 else [gain - half, gain + half],
            }
        )
    return sorted(lines, key=lambda line: (-line["mean"], line["knowledge"]))


def effects(measured: Sequence[Measured], rung: int, seed: int) -> list[dict[str, Any]]:
    """What each gene adds to the AP, the others held: a ridge regression of AP on the genes, with a 95 % bootstrap over the candidates.

    Of policies that distil. An effect is against what stood in the gene's place elsewhere, shrunk towards 0 as far as left-out candidates
    ask for; it is an association within this search, whose candidates were not drawn at random. Largest first; empty for fewer than twice
    LEAST candidates.
    """
    counts = Counter(gene for one in measured for gene in one.genes)
    names = sorted(gene for gene, number in counts.items() if LEAST <= number <= len(measured) - LEAST)
    if len(measured) < 2 * LEAST or not names:
        return []
    X = np.array([[gene in one.genes for gene in names] for one in measured], dtype=float)  # (candidates, genes)
    y = np.array([one.rungs[rung] for one in measured])
    penalty = min(PENALTIES, key=lambda penalty: left_out_error(X, y, penalty))
    found = ridge(X, y, penalty)
    rng = np.random.default_rng(seed)
    again = np.array([ridge(X[drawn], y[drawn], penalty) for drawn in rng.integers(len(y), size=(BOOTSTRAPS, len(y)))])
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    lines = [
        {"gene": gene, "candidates": counts[gene], "effect": float(effect), "interval": [float(a), float(b)]}
        for gene, effect, a, b in zip(names, found, low, high, strict=True)
    ]
    return sorted(lines, key=lambda line: (-line["effect"], line["gene"]))


def ridge(X: Matrix, y: Matrix, penalty: float) -> Matrix:
    """Coefficients of the columns of X; the mean is not penalised."""
    centred = X - X.mean(axis=0)
    solved: Matrix = np.linalg.solve(centred.T @ centred + penalty * np.eye(X.shape[1]), centred.T @ (y - y.mean()))
    return solved


def left_out_error(X: Matrix, y: Matrix, penalty: float) -> float:
    """Mean squared error of each candidate predicted from the others, in closed form."""
    centred = X - X.mean(axis=0)
    hat = centred @ np.linalg.solve(centred.T @ centred + penalty * np.eye(X.shape[1]), centred.T) + 1 / len(y)
    left = (y - y.mean()) - (hat - 1 / len(y)) @ (y - y.mean())
    return float(np.mean((left / np.maximum(1 - np.diag(hat), 1e-9)) ** 2))


def rejected(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What was not trained to the end, by gate: how many, of which knowledge, and the first few with the reason; most first."""
    gates: dict[str, list[tuple[Row, str]]] = {}
    for row in rows:
        if (why := row.get("rejected")) is not None:
            gates.setdefault(str(why["gate"]), []).append((row, str(why.get("detail", ""))))
        elif (failure := row.get("failure")) is not None:
            gates.setdefault(f"training: {failure['kind']}", []).append((row, str(failure.get("detail", ""))))
    lines = [
        {
            "gate": gate,
            "candidates": len(members),
            "share": len(members) / len(rows),
            "knowledge": dict(sorted(Counter(name for row, _ in members for name in kinds(genes(row["policy"]))).items())),
            "examples": [{"index": row["index"], "detail": detail} for row, detail in members[:EXAMPLES]],
        }
        for gate, members in gates.items()
    ]
    return sorted(lines, key=lambda line: (-int(str(line["candidates"])), str(line["gate"])))


def cost(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What each stage took: the sum over its candidates of every number that their costs name (`seconds`, `iterations`, ...)."""
    stages: dict[str, list[Row]] = {}
    for row in rows:
        stages.setdefault(str(row["stage"]), []).append(row)
    lines = []
    for stage, members in stages.items():
        spent: dict[str, float] = {}
        for row in members:
            for name, value in (row.get("cost") or {}).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    spent[name] = spent.get(name, 0) + value
        trained = sum(bool(by_rung(row)) for row in members)
        lines.append({"stage": stage, "candidates": len(members), "measured": trained, "cost": spent})
    return lines
