"""The confirmation of a search as rows of the result table: from what the service has stored of it, as `GET /results/ID` tells it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from detkds_core.report.data import Row
from detkds_core.report.statistics import Interval

SEARCHED = "student, searched policy"  # the best of those that the search found


def confirmed_rows(metrics: Mapping[str, Any], parameters: int = 0, written: Callable[[str], str] = str) -> list[Row]:
    """Whom the confirmation of a search has measured: no distillation, hand-designed policies, then the finalists, in the order that it
    measured them in; without those that no seed could train, and nothing where there was no confirmation.

    metrics: of the search's result. parameters: of the student, which a confirmation does not count; 0: not known. written: how a
    formula is shown.
    """
    names = row_names(metrics)
    found = [one for one in metrics.get("rows", ()) if one["ap"]]
    return [
        confirmed_row(one, names[one["name"]], parameters, written)
        for role in ("alone", "reference", "searched")
        for one in found
        if one["role"] == role
    ]


def confirmed_row(line: Mapping[str, Any], name: str, parameters: int, written: Callable[[str], str]) -> Row:
    """One line of `metrics["rows"]`. An AP that was not measured, or that has no bounds, is NaN."""
    low, high = numbers(line["interval"])
    return Row(
        name=name,
        role=line["role"],
        seeds=tuple(line["seeds"]),
        ap=numbers(line["ap"]),
        ap50=numbers(line["ap50"]),
        ap75=numbers(line["ap75"]),
        parameters=parameters,
        images=line["images"] or 0,
        interval=Interval(line["mean_ap"], low, high),
        formula=written(line["formula"]) if line["role"] != "alone" and line.get("formula") else "",
    )


def row_names(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What the table calls those that the service measured."""
    best = (metrics.get("searched") or {}).get("entrant")
    names = {}
    for one in metrics.get("rows", ()):
        searched = SEARCHED if one["entrant"] == best else f"student, {one['name']}"
        names[one["name"]] = {"alone": "student alone", "reference": f"student, {one['name']}", "searched": searched}[one["role"]]
    return names


def rung_means(measured: Iterable[tuple[int, float | None]]) -> dict[int, float]:
    """A candidate's AP by rung, the mean over its seeds there. measured: rung and AP of each measurement, None where there is no AP."""
    found: dict[int, list[float]] = {}
    for rung, ap in measured:
        if ap is not None:
            found.setdefault(rung, []).append(ap)
    return {rung: fmean(values) for rung, values in found.items()}


def numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    """JSON's null is NaN."""
    return tuple(math.nan if value is None else value for value in values)
