"""Figures as text: for a terminal, and for the cells of the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detkds_core.report.data import Row
from detkds_core.report.statistics import Interval, mean_interval
from detkds_core.report.verdict import ap_intervals

HEADINGS = ("", "AP", "AP50", "AP75", "parameters", "images", "seeds")
UNEVEN = 0.05  # AP between the two halves of an interval: less is not seen in what is printed


def text_table(rows: Sequence[Row]) -> str:
    """The result table for a terminal: names to the left, figures to the right, with their 95 % intervals from two seeds on.

    No line ends in a space, nor the text in a newline. Without rows only the headings are left.
    """
    cells = [
        HEADINGS,
        *(
            (
                row.name,
                spread(interval),
                spread(mean_interval(row.ap50)),
                spread(mean_interval(row.ap75)),
                millions(row.parameters),
                str(row.images),
                seeds(row),
            )
            for row, interval in zip(rows, ap_intervals(rows), strict=True)
        ),
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def spread(interval: Interval) -> str:
    """`34.5 ±1.2`: a mean and half of its interval; `34.5 (32.1 to 35.6)` where that is not even; a mean without an interval alone."""
    mean, low, high = interval
    if math.isnan(low):
        return f"{mean:.1f}"
    even = abs((high - mean) - (mean - low)) < UNEVEN
    return f"{mean:.1f} ±{(high - low) / 2:.1f}" if even else f"{mean:.1f} ({low:.1f} to {high:.1f})"


STATES = {  # one and several candidates in a state of the ledger
    "MEASURED": ("measured", "measured"),
    "REJECTED": ("refused", "refused"),
    "DUPLICATE": ("double", "doubles"),
    "INFEASIBLE": ("infeasible", "infeasible"),
    "PROPOSED": ("not measured yet", "not measured yet"),
}


def tally(states: Iterable[str]) -> str:
    """`28 measured, 1 refused, 2 doubles`: how many candidates are in each state of the ledger; states of none are left out."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {words[counts[state] > 1]}" for state, words in STATES.items() if counts[state]) or "none"


def false_rejects(funnel: Mapping[str, Any]) -> str:
    """How often the gates refused a good candidate, by the audit of a search's funnel.

    `25 % (95 % interval 5 to 70 %): 1 of 4 that were refused and trained all the same is among the best third`. Searches from before there
    was an interval have the counts alone.
    """
    audited, false = funnel.get("audited", 0), funnel.get("falsely_rejected", 0)
    if not audited:
        return "not known: none was audited"
    counts = f"{false} of {audited} that {'were' if audited > 1 else 'was'} refused and trained all the same"
    counts += f" {'are' if false > 1 else 'is'} among the best third"
    if funnel.get("false_reject_rate") is None:
        return counts
    low, high = funnel["false_reject_interval"]
    return f"{100 * funnel['false_reject_rate']:.0f} % (95 % interval {100 * low:.0f} to {100 * high:.0f} %): {counts}"


GATE_HEADINGS = ("gate", "refused", "audited", "falsely refused", "seconds")


def gate_lines(funnel: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line under `GATE_HEADINGS` for each gate of a search's funnel, for the look that they share, and for all together.

    None for searches from before the gates were told apart. `falsely refused`: of the audited, with a 95 % interval.
    """
    gates = funnel.get("gates")
    if not gates:
        return []
    lines = [(gate, *_refusals(one), seconds(one["seconds"])) for gate, one in gates.items()]
    own = [one["seconds"] for one in gates.values() if one["seconds"] is not None]
    whole = funnel.get("look_seconds")
    if whole is not None and own:
        lines.append(("the look itself", "", "", "", seconds(max(0.0, whole - math.fsum(own)))))
    together = {**funnel, "refused": sum(one["refused"] for one in gates.values())}
    return [*lines, ("all", *_refusals(together), seconds(whole))]


def _refusals(one: Mapping[str, Any]) -> tuple[str, str, str]:
    """`4, 2, 1: 50 % (9 to 91 %)`: how many were refused, audited and falsely refused."""
    falsely = "–"
    if one["false_reject_rate"] is not None:
        low, high = one["false_reject_interval"]
        falsely = f"{one['falsely_rejected']}: {100 * one['false_reject_rate']:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)"
    return f"{one['refused']:,}", f"{one['audited']:,}", falsely


def seconds(value: float | None) -> str:
    """`130`, `4.20`, `< 0.01`; a dash where it is not known."""
    if value is None:
        return "–"
    if 0 < value < 0.01:
        return "< 0.01"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def millions(count: int) -> str:
    """`3.21 M`: a number of parameters; below a thousand in full, and `–` where nobody counted them."""
    if not count:
        return "–"
    if count >= 1_000_000:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.0f} k" if count >= 1000 else str(count)


def seeds(row: Row) -> str:
    """`3 (0, 1, 2)`: how many seeds and which; of more than five the first and the last, and how many alone where one is not known."""
    if None in row.seeds:
        return str(len(row.seeds))
    shown = ", ".join(map(str, row.seeds)) if len(row.seeds) <= 5 else f"{row.seeds[0]} .. {row.seeds[-1]}"
    return f"{len(row.seeds)} ({shown})"
