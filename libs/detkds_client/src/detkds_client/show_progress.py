"""How progress looks: one live line in a terminal, a line a change elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.live import Live
from rich.text import Text

from detkds_client.show import ap, checking_line, console, duration
from detkds_client.types import Dataset

BAR_WIDTH = 24  # characters


def best_so_far(document: Mapping[str, Any]) -> str:
    """The AP of a search or a distillation, at which rung, and on which images: APs of different rungs do not compare, and a student is
    measured on the report images once its training has ended."""
    progress = document["progress"]
    if progress["best_ap"] is None:
        return "best AP -"
    rung = (document.get("best") or {}).get("rung")
    at = f" at {rung:,} iterations" if rung is not None else ""
    trained = "best" not in document and progress["done"] == progress["total"]  # searches name their best candidate
    return f"AP {ap(progress['best_ap'])} on report images" if trained else f"best AP {ap(progress['best_ap'])}{at} on selection images"


def progress_line(document: Mapping[str, Any]) -> Text:
    """Step, bar, count, best AP and time left of a search or a distillation, in one line."""
    progress = document["progress"]
    filled = round(BAR_WIDTH * progress["fraction"])
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{progress['step']:<12} ", style="bold")
    line.append("━" * filled, style="cyan")
    line.append("━" * (BAR_WIDTH - filled), style="dim")
    line.append(f" {progress['done']}/{progress['total']}")
    line.append(f"   {best_so_far(document)}")
    line.append(f"   {duration(progress['seconds_left'])} left" if progress["seconds_left"] is not None else "")
    if said := document.get("waiting") or progress["message"]:
        line.append(f"   {said}", style="dim")
    return line


@contextmanager
def following() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that shows progress documents: one live line in a terminal, a line a change elsewhere."""
    screen = console()
    if not screen.is_terminal:
        last = ""

        def write(document: Mapping[str, Any]) -> None:
            nonlocal last
            progress = document["progress"]
            line = f"{document['state']} {progress['step']} {progress['done']}/{progress['total']} {best_so_far(document)}"
            line += f", waiting: {document['waiting']}" if document.get("waiting") else ""
            if line != last:
                left = f", {duration(progress['seconds_left'])} left" if progress["seconds_left"] is not None else ""
                print(line + left, flush=True)
                last = line

        yield write
        return
    with Live(console=screen, refresh_per_second=4, transient=True) as live:
        yield lambda document: live.update(progress_line(document))


@contextmanager
def checking(*, quiet: bool) -> Iterator[Callable[[Dataset], None]]:
    """A function that shows how far the check of a dataset is: in one live line of a terminal, nowhere else."""
    screen = console()
    if quiet or not screen.is_terminal:
        yield lambda dataset: None
        return
    with Live(console=screen, refresh_per_second=4, transient=True) as live:
        yield lambda dataset: live.update(Text(checking_line(dataset), no_wrap=True, overflow="ellipsis"))
