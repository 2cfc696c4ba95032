"""Names that people type, and numbers of things that they read."""

from collections.abc import Collection
from difflib import get_close_matches


def counted(count: float, thing: str, things: str | None = None) -> str:
    """`1 iteration`, `1,500 iterations`, `0.5 epochs`; things: of more than one, where that is not `thing` with an s."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {things or f'{thing}s'}"


def meant(name: str, known: Collection[str]) -> str:
    """What a name that is not known may stand for: `did you mean a or b?`, or where none is like it `one of a, b, c`."""
    close = get_close_matches(name, known, n=3, cutoff=0.55)
    return f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(known)}"
