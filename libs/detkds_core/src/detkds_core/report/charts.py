"""The search as pictures: the fitness of every candidate in the order they were proposed, and what each operation adds to it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detkds_core.report.data import CandidatePoint

Theme = Literal["light", "dark"]


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of one theme; the islands' are Okabe and Ito's, apart for every kind of colour vision."""

    text: str
    faint: str
    line: str
    islands: dict[str, str]
    stage2: str


PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        text="#1c2430",
        faint="#6b7685",
        line="#d9dee5",
        islands={"global": "#0072b2", "fgbg": "#e69f00", "instance": "#009e73", "logits": "#b3578f", "localization": "#56b4e9"},
        stage2="#d55e00",
    ),
    "dark": Palette(
        text="#e7ebf0",
        faint="#98a3b3",
        line="#333c49",
        islands={"global": "#5aa9e6", "fgbg": "#f2b83b", "instance": "#3ccf9f", "logits": "#e391c4", "localization": "#a5dcff"},
        stage2="#ff8a4c",
    ),
}
MARKERS = {"global": "o", "fgbg": "s", "instance": "^", "logits": "v", "localization": "P"}


def fitness_chart(candidates: Sequence[CandidatePoint], theme: Theme) -> bytes:
    """A PNG with a transparent ground: a point a candidate, larger where it was trained longer, the running best of those that were
    trained longest as steps, the references as lines.

    What was not measured is a cross at the lower edge. Raises ValueError where nothing was: there is nothing to draw.
    """
    feasible = [(one.index, one.fitness) for one in candidates if one.fitness is not None]
    if not feasible:
        raise ValueError("no candidate has a fitness, so there is nothing to draw")
    palette = PALETTES[theme]
    figure = Figure(figsize=(8.4, 4.6), dpi=160)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    low, high = min(fitness for _, fitness in feasible), max(fitness for _, fitness in feasible)
    room = max(high - low, 1.0)
    axes.set_ylim(low - 0.12 * room, high + 0.10 * room)
    last = max(one.index for one in candidates)
    axes.set_xlim(-0.8, last + 0.8)

    searched = [one for one in candidates if one.stage != "reference"]
    rungs = sorted({max(one.rungs, default=0) for one in candidates if one.fitness is not None})
    draw_references(axes, [one for one in candidates if one.stage == "reference"], palette)
    draw_running_best(axes, trained_longest(searched), palette)
    for island in dict.fromkeys(one.island for one in searched if one.stage == "stage1" and one.island):
        points = [one for one in searched if one.stage == "stage1" and one.island == island]
        draw_points(axes, points, palette.islands.get(island, palette.faint), MARKERS.get(island, "o"), f"stage 1: {island}", rungs)
    draw_points(axes, [one for one in searched if one.stage == "stage2"], palette.stage2, "D", "stage 2: together", rungs)
    lost = [one.index for one in candidates if one.fitness is None]
    if lost:
        axes.scatter(lost, [low - 0.08 * room] * len(lost), marker="x", s=44, color=palette.faint, label="not measured", clip_on=False)

    axes.set_xlabel("candidate")
    axes.set_ylabel("AP on the selection images (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style(axes, palette)
    legend = axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, fontsize=11.5, handletextpad=0.4, columnspacing=1.4
    )
    for text in legend.get_texts():
        text.set_color(palette.text)
    return png(figure)


def effects_chart(effects: Sequence[Mapping[str, Any]], theme: Theme) -> bytes:
    """A PNG with a transparent ground: the effect of each gene (of `insight`) with its interval, the largest on top.

    What is surely above or below 0 is drawn strong, the rest faint. Raises ValueError without any effect.
    """
    if not effects:
        raise ValueError("there is no effect, so there is nothing to draw")
    palette = PALETTES[theme]
    figure = Figure(figsize=(8.4, 1.1 + 0.27 * len(effects)), dpi=160)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(0, color=palette.faint, linewidth=1.2, zorder=1)
    for place, one in enumerate(effects):
        low, high = one["interval"]
        kind, _, name = str(one["gene"]).partition(" ")
        colour = palette.islands.get(name, palette.text) if kind == "knowledge" else palette.text
        strength = 1.0 if low > 0 or high < 0 else 0.4
        axes.plot([low, high], [place, place], color=colour, alpha=strength, linewidth=2.2, zorder=2)
        axes.scatter([one["effect"]], [place], color=colour, alpha=strength, s=42, linewidths=0, zorder=3)
    axes.set_yticks(range(len(effects)), [str(one["gene"]) for one in effects])
    axes.set_ylim(len(effects) - 0.5, -0.5)
    axes.set_xlabel("effect on AP, the others held, with its 95 % interval")
    style(axes, palette)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=palette.line, linewidth=0.8)
    for label in axes.get_yticklabels():
        label.set_color(palette.text)
    return png(figure)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, bbox_inches="tight", pad_inches=0.05, metadata={"Software": None})
    return buffer.getvalue()


def draw_points(axes: Axes, points: Sequence[CandidatePoint], colour: str, marker: str, label: str, rungs: Sequence[int]) -> None:
    """rungs: those of all candidates, the lowest first; the points of the last are the largest."""
    shown = [(one.index, one.fitness, max(one.rungs, default=0)) for one in points if one.fitness is not None]
    if shown:
        sizes = [72 * (rungs.index(rung) + 1) / len(rungs) for _, _, rung in shown]
        places, heights, _ = zip(*shown, strict=True)
        axes.scatter(places, heights, s=sizes, color=colour, marker=marker, label=label, linewidths=0, zorder=3)


def trained_longest(candidates: Sequence[CandidatePoint]) -> list[CandidatePoint]:
    """Those that were measured at the highest rung of all of them."""
    measured = [one for one in candidates if one.fitness is not None]
    top = max((max(one.rungs, default=0) for one in measured), default=0)
    return [one for one in measured if max(one.rungs, default=0) == top]


def draw_running_best(axes: Axes, searched: Sequence[CandidatePoint], palette: Palette) -> None:
    places: list[int] = []
    heights: list[float] = []
    for one in sorted(searched, key=lambda one: one.index):
        if one.fitness is not None:
            places.append(one.index)
            heights.append(max(one.fitness, heights[-1]) if heights else one.fitness)
    if places:
        axes.step(places, heights, where="post", color=palette.text, linewidth=1.4, label="best so far of those trained longest", zorder=2)


def draw_references(axes: Axes, references: Sequence[CandidatePoint], palette: Palette) -> None:
    """A dashed line each, named beside its right end; names that would overlap are moved down."""
    low, high = axes.get_ylim()
    line = 0.06 * (high - low)  # height of a line of text
    free = high
    for height, name in sorted(((one.fitness, one.name or one.formula) for one in references if one.fitness is not None), reverse=True):
        axes.axhline(height, color=palette.faint, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
        place = min(height, free)
        free = place - line
        short = name if len(name) <= 22 else f"{name[:21]}…"
        axes.text(
            1.01,
            place,
            f"{height:.1f} {short}",
            transform=axes.get_yaxis_transform(),
            ha="left",
            va="center",
            color=palette.faint,
            fontsize=12,
        )


def style(axes: Axes, palette: Palette) -> None:
    axes.grid(axis="y", color=palette.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.faint, labelsize=12, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.line)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(palette.text)
        label.set_fontsize(13)
