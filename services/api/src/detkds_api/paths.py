"""Which files a request may name: those below the registered folders, and no others, whatever links say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

NONE = "no folder is registered for reading; start the service with DETKDS_DATA_ROOTS=/folder[:/another]"


class OutsideError(ValueError):
    """A path that leads to no folder that may be read."""


def inside(text: str, roots: Sequence[Path], own: Sequence[Path] = ()) -> Path:
    """The resolved file or folder below one of `roots`, or of the service's `own`, which nobody registered (all resolved themselves).

    Resolving comes before every check, so that `..` and links are judged by where they lead; and whether something exists outside the
    roots is never told. Raises ValueError that says what would be right, OutsideError of a path that leads elsewhere.
    """
    if "://" in text:
        raise ValueError(f"{text!r} is an address, and nothing is fetched; put the file below a registered folder (DETKDS_DATA_ROOTS)")
    path = Path(text)
    if not roots and not own:
        raise OutsideError(NONE)
    if not path.is_absolute():
        raise ValueError(f"{text!r} is not an absolute path")
    try:
        resolved = path.resolve()
        there = os.path.exists(resolved)  # says no, where Path.exists raises, of a name that is too long for any file
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{text!r} cannot be followed: {error.__class__.__name__}") from None
    if not any(resolved.is_relative_to(root) for root in (*roots, *own)):
        told = f"{text!r} leads outside the registered folders {', '.join(map(str, roots))} (DETKDS_DATA_ROOTS)"
        raise OutsideError(told if roots else NONE)
    if not there:
        raise ValueError(absent(text))
    if not str(resolved).isprintable():
        raise ValueError(f"{text!r} leads to a name that is no text; rename it")
    return resolved


def absent(text: str) -> str:
    """What is said of a file that is not there, or not for who asks."""
    return f"{text!r} does not exist on the service's machine"
