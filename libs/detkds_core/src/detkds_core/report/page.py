"""The report: one HTML file that stands alone, with pictures inside, readable on a phone, in light and in dark."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from detkds_core.report.charts import MARKERS, PALETTES, fitness_chart
from detkds_core.report.data import CandidatePoint, ReportData, Row
from detkds_core.report.pictures import draw_detections, draw_truth
from detkds_core.report.statistics import mean_interval
from detkds_core.report.text import millions, seeds, spread
from detkds_core.report.verdict import Comparison, compare, describe, verdict

TOP = 10
STAGES = {"reference": "reference", "stage1": "stage 1", "stage2": "stage 2"}


def write_report(path: Path, data: ReportData) -> None:
    """Write the report to `path` (UTF-8), its folder included. Nothing in it points outside, and it needs no script.

    What was not measured is left out or said to be missing: no candidates, no picture of the search; no panels, no images.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(data), encoding="utf-8")


def render(data: ReportData) -> str:
    """The report as HTML text; everything that was measured or named elsewhere is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    judged = verdict(data.rows)
    feasible = [one for one in data.candidates if one.fitness is not None]
    best_first = sorted(feasible, key=lambda one: (-(one.fitness or 0.0), one.index))
    return template.render(
        data=data,
        verdict=judged,
        outcome=judged.against_alone.outcome if judged.against_alone else "not measured",
        rows=table_rows(data.rows),
        comparisons=[comparison_line(comparison) for comparison in comparisons(data.rows)],
        terms=[term_cells(term) for term in data.policy.get("terms", [])],
        chart={theme: data_uri(fitness_chart(data.candidates, theme)) for theme in PALETTES} if feasible else None,
        top=[candidate_cells(one) for one in best_first[:TOP]],
        islands=island_cells(data.candidates),
        counts={
            "candidates": len(data.candidates),
            "infeasible": len(data.candidates) - len(feasible),
            "references": sum(one.stage == "reference" for one in data.candidates),
        },
        panels=panel_cells(data),
    )


def data_uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64,") + Markup(base64.b64encode(png).decode())


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The result table: figures as text, and the places (in percent of the widest) of each AP's bar, interval and seeds."""
    intervals = [mean_interval(row.ap) for row in rows]
    widest = max(
        (max([*row.ap, interval.high if math.isfinite(interval.high) else 0.0]) for row, interval in zip(rows, intervals, strict=True)),
        default=0.0,
    )
    scale = 100 / widest if widest > 0 else 0.0
    table = []
    for row, interval in zip(rows, intervals, strict=True):
        low, high = max(0.0, interval.low), interval.high
        table.append(
            {
                "name": row.name,
                "role": row.role,
                "ap": spread(row.ap),
                "ap50": spread(row.ap50),
                "ap75": spread(row.ap75),
                "parameters": millions(row.parameters),
                "images": row.images,
                "seeds": seeds(row),
                "bar": f"{interval.mean * scale:.2f}",
                "whisker": (f"{low * scale:.2f}", f"{(high - low) * scale:.2f}") if len(row.ap) > 1 else None,
                "dots": [f"{value * scale:.2f}" for value in row.ap] if len(row.ap) > 1 else [],
            }
        )
    return table


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Every distilled student against the student alone, then the searched policy against every reference, where seeds are shared."""
    alone = [row for row in rows if row.role == "alone"]
    references = [row for row in rows if row.role == "reference"]
    searched = [row for row in rows if row.role == "searched"]
    pairs = [(row, other) for row in [*searched, *references] for other in alone] + [
        (row, other) for row in searched for other in references
    ]
    return [comparison for first, second in pairs if (comparison := compare(first, second)) is not None]


def comparison_line(comparison: Comparison) -> dict[str, Any]:
    return {
        "names": f"{comparison.first} − {comparison.second}",
        "figures": describe(comparison),
        "each": ", ".join(f"{value:+.1f}" for value in comparison.differences),
        "outcome": comparison.outcome,
    }


def term_cells(term: Mapping[str, Any]) -> dict[str, str]:
    """A term of the policy's JSON in words; options beside the usual ones are listed by name."""
    usual = {"knowledge", "transforms", "distance", "weight"}
    return {
        "knowledge": str(term.get("knowledge", "")),
        "transforms": " → ".join(str(name) for name in term.get("transforms", []) if name != "none") or "as it is",
        "distance": str(term.get("distance", "")),
        "weight": f"{term.get('weight', 1.0):g}",
        "options": ", ".join(f"{name} {value}" for name, value in term.items() if name not in usual),
    }


def candidate_cells(one: CandidatePoint) -> dict[str, str]:
    return {
        "index": str(one.index),
        "where": one.name or one.island or "together" if one.stage != "reference" else one.name or "reference",
        "stage": STAGES.get(one.stage, one.stage),
        "operator": one.operator,
        "fitness": f"{one.fitness:.2f}" if one.fitness is not None else one.failure or "infeasible",
        "formula": one.formula,
    }


def island_cells(candidates: Sequence[CandidatePoint]) -> list[dict[str, str]]:
    """One line for the references, for each island in the order it first appears, and for stage 2."""
    groups: dict[str, list[CandidatePoint]] = {}
    for one in sorted(candidates, key=lambda one: one.index):
        name = {"reference": "references", "stage2": "stage 2: together"}.get(one.stage, one.island or "")
        groups.setdefault(name, []).append(one)
    lines = []
    for name, members in groups.items():
        feasible = [(one.fitness, one) for one in members if one.fitness is not None]
        best = max(feasible, key=lambda pair: (pair[0], -pair[1].index), default=None)
        lines.append(
            {
                "name": name,
                "colour": colour_of(members[0]),
                "count": str(len(members)),
                "infeasible": str(len(members) - len(feasible)),
                "mean": f"{fmean(fitness for fitness, _ in feasible):.1f}" if feasible else "–",
                "best": f"{best[0]:.1f}" if best else "–",
                "formula": best[1].formula if best else "",
            }
        )
    return lines


def colour_of(one: CandidatePoint) -> str:
    """The colour of the candidate's points in the picture of the search (of the light theme: a key has room for one)."""
    palette = PALETTES["light"]
    if one.stage == "stage2":
        return palette.stage2
    return palette.islands[one.island] if one.island in MARKERS else palette.faint


def panel_cells(data: ReportData) -> list[dict[str, Any]]:
    """Three pictures for each validation image, with what was found and what was wrong under them."""
    cells = []
    for panel in data.panels:
        truth = draw_truth(panel)
        pictures = [
            {"name": "ground truth", "note": f"{truth.objects} object{'' if truth.objects == 1 else 's'}", "uri": data_uri(truth.png)}
        ]
        for name, detections in (("student alone", panel.alone), ("distilled student", panel.distilled)):
            drawn = draw_detections(panel, detections, data.score_threshold)
            pictures.append(
                {"name": name, "note": f"{drawn.found} of {drawn.objects} found, {drawn.wrong} wrong", "uri": data_uri(drawn.png)}
            )
        cells.append({"title": panel.title, "pictures": pictures})
    return cells
