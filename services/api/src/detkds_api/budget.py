"""What a search may spend: candidates, iterations or hours, as student iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from detkds_api.problems import FieldError, invalid, pointer
from detkds_core.evolution.spec import ETA

if TYPE_CHECKING:
    from detkds_api.search_request import SearchRequest

LOOK = 4  # iterations that a look at a candidate costs, about
NO_PACE = "no iteration of this pair with this recipe has been measured yet; give 'candidates' or 'iterations' the first time"
DEFAULT_REFERENCES = ("none", "pkd")  # and others that suit the pair, as many as the budget allows
DEFAULT_PARALLELISM = 2
DEFAULT_GROUP = 4  # candidates that share batches and teacher: less for each, and still fine-grained progress


class Speed(NamedTuple):
    """pace: seconds that a student iteration of a pair took before, where it is known. workers: that are there now."""

    pace: float | None
    workers: int

    def clock_seconds(self, iterations: float, at_once: int) -> float | None:
        """How long so many iterations take where so many jobs may be under way at once; None where nothing is known."""
        return iterations * self.pace / min(self.workers, at_once) if self.pace and self.workers else None


def wanted_budget(wanted: SearchRequest, rungs: tuple[int, ...], confirmation: Mapping[str, Any], speed: Speed) -> int:
    """Student iterations that the search may spend. Raises InvalidInput."""
    given = [name for name in ("iterations", "hours", "wall_clock_hours") if getattr(wanted, name) is not None]
    if len(given) > 1:
        raise invalid([FieldError(pointer(given[1]), f"the budget is given in {given[0]} already; leave one of them out")])
    if wanted.hours is not None:
        return bought(wanted.hours, rungs, speed.pace)
    if wanted.wall_clock_hours is not None:
        parallelism, group = wanted.parallelism or DEFAULT_PARALLELISM, wanted.group or DEFAULT_GROUP
        return bought_by_the_clock(wanted.wall_clock_hours, rungs, confirmation, speed, parallelism, group)
    if wanted.iterations is not None:
        if wanted.iterations < rungs[-1]:
            raise invalid([FieldError("/iterations", f"{wanted.iterations} are less than one full proxy of {rungs[-1]} iterations")])
        return wanted.iterations
    if wanted.candidates is None:
        message = "is required, unless 'iterations', 'hours' or 'wall_clock_hours' say how much the search may spend"
        raise invalid([FieldError("/candidates", message)])
    return enough_for(wanted.candidates, rungs)


def bought(hours: float, rungs: tuple[int, ...], pace: float | None) -> int:
    """Student iterations of so many hours of one device. Raises InvalidInput where the pace is not known, or too little is bought."""
    if pace is None:
        raise invalid([FieldError("/hours", NO_PACE)])
    iterations = int(hours * 3600 / pace)
    if iterations < rungs[-1]:
        message = f"buys {iterations} iterations at {pace:.3g} s each, less than one full proxy of {rungs[-1]}"
        raise invalid([FieldError("/hours", message)])
    return iterations


def bought_by_the_clock(
    hours: float, rungs: tuple[int, ...], confirmation: Mapping[str, Any], speed: Speed, parallelism: int, group: int
) -> int:
    """Student iterations that so many hours leave to the search after its confirmation, with the workers that are there.

    Raises InvalidInput where there is no worker, the pace is not known, or too little is left.
    """
    where = "/wall_clock_hours"
    if speed.pace is None:
        raise invalid([FieldError(where, NO_PACE)])
    confirming = expected_students({"confirmation": confirmation}) * int(confirmation["iterations"])
    after = speed.clock_seconds(confirming, confirming_jobs(confirmation, group))
    if after is None:
        raise invalid([FieldError(where, "no worker is there to say how fast it goes; start one, or give 'hours' of one device")])
    at_once = min(speed.workers, parallelism)
    iterations = int((hours * 3600 - after) * at_once / speed.pace)
    if iterations < rungs[-1]:
        least = (after + rungs[-1] * speed.pace / at_once) / 3600
        message = (
            f"the confirmation takes {after / 3600:.3g} hours of it with the workers that are there ({speed.workers}), and what is left is"
            f" less than one full proxy of {rungs[-1]} iterations; more than {least:.3g} hours, or fewer seeds, finalists or distillers"
        )
        raise invalid([FieldError(where, message)])
    return iterations


def enough_for(candidates: int, rungs: tuple[int, ...]) -> int:
    """Student iterations that let so many candidates pass the lowest rung, a third of each rung the next, and the best repeat the last."""
    climbing: float = sum(candidates / ETA**place * rung for place, rung in enumerate(rungs))
    looks = candidates * LOOK if len(rungs) > 1 else 0
    spare = 6 * rungs[-1] if len(rungs) > 1 else 0  # replicates
    return math.ceil(climbing + looks) + spare


def expected_students(spec: Mapping[str, Any]) -> int:
    """How many students the confirmation will train: no distillation, the distillers and the finalists, with every seed."""
    confirmation = spec["confirmation"]
    distillers = confirmation.get("distillers", DEFAULT_REFERENCES[1:])
    return int(confirmation["seeds"]) * (1 + len(distillers) + int(confirmation["finalists"]))


def confirming_jobs(confirmation: Mapping[str, Any], group: int) -> int:
    """How many jobs the confirmation is, all of which may be under way at once."""
    each = expected_students({"confirmation": confirmation}) // int(confirmation["seeds"])
    return int(confirmation["seeds"]) * math.ceil(each / group)
