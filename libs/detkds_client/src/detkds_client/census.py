"""`detkds census`: the search space in numbers, beside those of the official code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from detkds_core.policy import PairFacts
from detkds_core.policy.census import Census, census
from detkds_core.policy.vocabulary import BREADTHS, KNOWLEDGE


class CensusError(Exception):
    """Why there is nothing to count."""


def censuses(images: int, knowledge: Sequence[str] = ()) -> list[Census]:
    """How many formulas a pair has that can exchange everything, at each knowledge's own place. Raises CensusError."""
    for name in knowledge:
        if name not in KNOWLEDGE:
            raise CensusError(f"{name!r} is not a kind of knowledge; one of {', '.join(KNOWLEDGE)}")
    facts = PairFacts(images_per_batch=images, has_edges=True, has_points=True)
    return [census(kind, facts, breadth) for kind in knowledge or KNOWLEDGE for breadth in BREADTHS]


def numbers(knowledge: Sequence[str] = ()) -> None:
    """Compute every formula on toy tensors, in a process of its own: this one does without torch. Raises CensusError."""
    names = [argument for kind in knowledge for argument in ("--knowledge", kind)]
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "detkds_core.losses.census", *names])
    if done.returncode:
        raise CensusError("the numerical census did not end well; its message stands above")
