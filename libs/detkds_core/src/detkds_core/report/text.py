"""Figures as text: for a terminal, and for the cells of the page."""

from __future__ import annotations

from collections.abc import Sequence

from detkds_core.report.data import Row
from detkds_core.report.statistics import mean_interval

HEADINGS = ("", "AP", "AP50", "AP75", "parameters", "images", "seeds")


def text_table(rows: Sequence[Row]) -> str:
    """The result table for a terminal: names to the left, figures to the right, `mean ±half interval` from two seeds on.

    No line ends in a space, nor the text in a newline. Without rows only the headings are left.
    """
    cells = [
        HEADINGS,
        *(
            (row.name, spread(row.ap), spread(row.ap50), spread(row.ap75), millions(row.parameters), str(row.images), seeds(row))
            for row in rows
        ),
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def spread(values: Sequence[float]) -> str:
    """`34.5 ±1.2`: the mean and half of its 95 % t interval; one value stands alone."""
    mean, _, high = mean_interval(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ±{high - mean:.1f}"


def millions(count: int) -> str:
    """`3.21 M`: a number of parameters; below a thousand in full."""
    if count >= 1_000_000:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.0f} k" if count >= 1000 else str(count)


def seeds(row: Row) -> str:
    """`3 (0, 1, 2)`: how many seeds and which; of more than five the first and the last."""
    shown = ", ".join(map(str, row.seeds)) if len(row.seeds) <= 5 else f"{row.seeds[0]} .. {row.seeds[-1]}"
    return f"{len(row.seeds)} ({shown})"
