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

from detkds_core.report.charts import MARKERS, PALETTES, effects_chart, fitness_chart
from detkds_core.report.data import CandidatePoint, ReportData, Row
from detkds_core.report.pictures import draw_detections, draw_truth
from detkds_core.report.statistics import mean_interval
from detkds_core.report.text import GATE_HEADINGS, false_rejects, gate_lines, millions, seeds, spread, tally
from detkds_core.report.verdict import Comparison, ap_intervals, verdict

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
    judged = data.verdict or verdict(data.rows)
    feasible = [one for one in data.candidates if one.fitness is not None]
    best_first = sorted(feasible, key=lambda one: one.rank)
    low, top = (ends(feasible)) if feasible else (0, 0)
    return template.render(
        data=data,
        verdict=judged,
        outcome=judged.against_alone.outcome if judged.against_alone else "not measured",
        rows=table_rows(data.rows),
        comparisons=[comparison_line(comparison) for comparison in judged.comparisons],
        terms=[
            *map(distiller_cells, data.policy.get("distillers", [])),
            *map(term_cells, data.policy.get("terms", [])),
        ],
        chart={theme: data_uri(fitness_chart(data.candidates, theme)) for theme in PALETTES} if feasible else None,
        top=[candidate_cells(one) for one in best_first[:TOP]],
        islands=island_cells(data.candidates),
        counts={
            "candidates": len(data.candidates),
            "references": sum(one.stage == "reference" for one in data.candidates),
            "states": tally(one.state for one in data.candidates),
        },
        rungs={"low": low, "top": top},
        false_rejects=false_rejects(data.funnel) if data.funnel else None,
        gates=[dict(zip(GATE_HEADINGS, line, strict=True)) for line in gate_lines(data.funnel)],
        panels=panel_cells(data),
        insight=insight_cells(data.insight) if data.insight else None,
    )


def ends(measured: Sequence[CandidatePoint]) -> tuple[int, int]:
    """The student iterations of the lowest and of the highest rung that anybody was measured at; 0 where they are not known."""
    known = [rung for one in measured for rung in one.rungs]
    return min(known, default=0), max(known, default=0)


def data_uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64,") + Markup(base64.b64encode(png).decode())


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The result table: figures as text, and the places (in percent of the widest) of each AP's bar, interval and seeds."""
    intervals = ap_intervals(rows)
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
                "formula": row.formula,
                "role": row.role,
                "ap": spread(interval),
                "ap50": spread(mean_interval(row.ap50)),
                "ap75": spread(mean_interval(row.ap75)),
                "parameters": millions(row.parameters),
                "images": row.images,
                "seeds": seeds(row),
                "bar": f"{interval.mean * scale:.2f}",
                "whisker": (f"{low * scale:.2f}", f"{(high - low) * scale:.2f}") if len(row.ap) > 1 else None,
                "dots": [f"{value * scale:.2f}" for value in row.ap] if len(row.ap) > 1 else [],
            }
        )
    return table


def comparison_line(comparison: Comparison) -> dict[str, Any]:
    mean, low, high = comparison.difference
    return {
        "names": f"{comparison.first} − {comparison.second}",
        "mean": f"{mean:+.1f}",
        "interval": "–" if math.isnan(low) else f"{low:+.1f} to {high:+.1f}",
        "seeds": str(len(comparison.seeds)),
        "images": str(comparison.images) if comparison.images else "not drawn",
        "each": ", ".join(f"{value:+.1f}" for value in comparison.differences),
        "outcome": comparison.outcome,
        "p": "–" if math.isnan(comparison.p) else f"{comparison.p:.3f}" if comparison.p >= 0.001 else "< 0.001",
    }


def term_cells(term: Mapping[str, Any]) -> dict[str, str]:
    """A term of the policy's JSON in words; options beside the usual ones are listed by name."""
    usual = {"knowledge", "transforms", "distance", "weight"}
    return {
        "knowledge": str(term.get("knowledge", "")),
        "transforms": " → ".join(str(name) for name in term.get("transforms", []) if name != "none") or "as it is",
        "distance": str(term.get("distance", "")),
        "weight": f"{term.get('weight', 1.0):.4g}",
        "options": ", ".join(option(name, value) for name, value in term.items() if name not in usual),
    }


def distiller_cells(distiller: Mapping[str, Any]) -> dict[str, str]:
    """A hand-designed distiller of the policy's JSON as a line among the terms."""
    settings = {**distiller.get("settings", {}), **({"balanced": True} if distiller.get("balanced") else {})}
    return {
        "knowledge": str(distiller["name"]),
        "transforms": "a distiller with parts of its own",
        "distance": "",
        "weight": f"{distiller.get('weight', 1.0):.4g}",
        "options": ", ".join(option(name, value) for name, value in settings.items()),
    }


def option(name: str, value: object) -> str:
    """`background 0.25`, `balanced`; a number with four digits."""
    if value is True:
        return name.replace("_", " ")
    return f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"


def candidate_cells(one: CandidatePoint) -> dict[str, str]:
    return {
        "index": str(one.index),
        "where": one.name or one.island or "together" if one.stage != "reference" else one.name or "reference",
        "stage": STAGES.get(one.stage, one.stage),
        "operator": one.operator,
        "fitness": f"{one.fitness:.1f}" if one.fitness is not None else "–",
        "rung": str(max(one.rungs)) if one.rungs else "–",
        "formula": one.formula,
    }


def island_cells(candidates: Sequence[CandidatePoint]) -> list[dict[str, str]]:
    """One line for the references, for each island in the order it first appears, and for stage 2.

    The mean is that of the lowest rung, where nearly all were measured; the best is at its own.
    """
    low, _ = ends([one for one in candidates if one.fitness is not None])
    groups: dict[str, list[CandidatePoint]] = {}
    for one in sorted(candidates, key=lambda one: one.index):
        name = {"reference": "references", "stage2": "stage 2: together"}.get(one.stage, one.island or "")
        groups.setdefault(name, []).append(one)
    lines = []
    for name, members in groups.items():
        feasible = [one for one in members if one.fitness is not None]
        best = min(feasible, key=lambda one: one.rank, default=None)
        entry = [one.rungs.get(low, one.fitness or 0.0) for one in feasible if low in one.rungs or not one.rungs]
        rest = tally(one.state for one in members if one.fitness is None)
        lines.append(
            {
                "name": name,
                "colour": colour_of(members[0]),
                "count": str(len(members)),
                "measured": str(len(feasible)),
                "rest": "–" if rest == "none" else rest,
                "mean": f"{fmean(entry):.1f}" if entry else "–",
                "best": candidate_cells(best)["fitness"] if best else "–",
                "rung": candidate_cells(best)["rung"] if best else "–",
                "formula": best.formula if best else "",
            }
        )
    return lines


def insight_cells(found: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of `insight` as text, and the picture of the effects."""

    def signed(value: float | None) -> str:
        return "–" if value is None else f"{value:+.2f}"

    def between(interval: Sequence[float] | None) -> str:
        return "–" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"

    return {
        "measured": f"{found['measured']} of {found['candidates']}",
        "rung": found["rung"],
        "shared": [
            {
                "gene": one["gene"],
                "top": f"{one['top']} of {one['top_of']}",
                "all": f"{one['all']} of {one['all_of']}",
                "p": f"{one['p']:.3f}" if one["p"] >= 0.001 else "< 0.001",
            }
            for one in found["shared"][:TOP]
        ],
        "knowledge": [
            {
                "name": one["knowledge"],
                "count": str(one["candidates"]),
                "gain": signed(one["gain"]),
                "interval": between(one["interval"]),
                "best": signed(one["best_gain"]),
            }
            for one in found["knowledge"]
        ],
        "effects": [
            {"gene": one["gene"], "count": str(one["candidates"]), "effect": f"{one['effect']:+.2f}", "interval": between(one["interval"])}
            for one in found["effects"]
        ],
        "chart": {theme: data_uri(effects_chart(found["effects"], theme)) for theme in PALETTES} if found["effects"] else None,
        "rejected": [
            {
                "gate": one["gate"],
                "count": f"{one['candidates']} ({100 * one['share']:.0f} %)",
                "knowledge": ", ".join(f"{name} {number}" for name, number in one["knowledge"].items()),
                "examples": "; ".join(f"{example['index']}: {example['detail']}" for example in one["examples"]),
            }
            for one in found["rejected"]
        ],
        "cost": [
            {
                "stage": STAGES.get(one["stage"], one["stage"]),
                "count": str(one["candidates"]),
                "measured": str(one["measured"]),
                "cost": ", ".join(
                    f"{number:.3g} {name}" if number < 10 else f"{number:,.0f} {name}" for name, number in one["cost"].items()
                ),
            }
            for one in found["cost"]
        ],
    }


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
