"""Names that people type."""

from collections.abc import Collection
from difflib import get_close_matches


def meant(name: str, known: Collection[str]) -> str:
    """What a name that is not known may stand for: `did you mean a or b?`, or where none is like it `one of a, b, c`."""
    close = get_close_matches(name, known, n=3, cutoff=0.55)
    return f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(known)}"
