"""What a search may spend: candidates, iterations or hours, as student iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from detkds_api.problems import FieldError, invalid, pointer
from detkds_core.evolution.rungs import REPLICATES
from detkds_core.evolution.spec import ETA
from detkds_core.policy import canonical_json, from_json, named_policies

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


def wanted_budget(
    wanted: SearchRequest, rungs: tuple[int, ...], confirmation: Mapping[str, Any], references: Sequence[Mapping[str, Any]], speed: Speed
) -> int:
    """Student iterations that the search may spend. references: all that it may have, as JSON. Raises InvalidInput."""
    given = [name for name in ("iterations", "hours", "wall_clock_hours") if getattr(wanted, name) is not None]
    if len(given) > 1:
        raise invalid([FieldError(pointer(given[1]), f"the budget is given in {given[0]} already; leave one of them out")])
    if wanted.hours is not None:
        return bought(wanted.hours, rungs, speed.pace)
    if wanted.wall_clock_hours is not None:
        spec = {
            "confirmation": confirmation,
            "references": references,
            "parallelism": wanted.parallelism or DEFAULT_PARALLELISM,
            "group": wanted.group or DEFAULT_GROUP,
            "fork": trunk_steps(rungs),
        }
        return bought_by_the_clock(wanted.wall_clock_hours, rungs, spec, speed)
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


def bought_by_the_clock(hours: float, rungs: tuple[int, ...], spec: Mapping[str, Any], speed: Speed) -> int:
    """Student iterations that so many hours leave to the search after its confirmation, with the workers that are there.

    Its trunks are left out too: one for each seed of the full proxy, at most, which all workers wait for. spec: of it confirmation,
    references, parallelism, group and fork. Raises InvalidInput where there is no worker, the pace is not known, or too little is left.
    """
    where = "/wall_clock_hours"
    if speed.pace is None:
        raise invalid([FieldError(where, NO_PACE)])
    confirming = expected_students(spec) * int(spec["confirmation"]["iterations"])
    confirmed = speed.clock_seconds(confirming, confirming_jobs(spec))
    if confirmed is None:
        raise invalid([FieldError(where, "no worker is there to say how fast it goes; start one, or give 'hours' of one device")])
    at_once = min(speed.workers, spec["parallelism"])
    after = confirmed + REPLICATES * int(spec.get("fork") or 0) * speed.pace
    iterations = int((hours * 3600 - after) * at_once / speed.pace)
    if iterations < rungs[-1]:
        least = (after + rungs[-1] * speed.pace / at_once) / 3600
        message = (
            f"confirmation and trunks take {after / 3600:.3g} hours of it with the workers that are there ({speed.workers}), and what is"
            f" left is less than one full proxy of {rungs[-1]} iterations; more than {least:.3g} hours, or fewer seeds, finalists or"
            " distillers"
        )
        raise invalid([FieldError(where, message)])
    return iterations


def trunk_steps(rungs: tuple[int, ...]) -> int:
    """Iterations of the common beginning that candidates fork from; 0 where all of them are trained from the start."""
    return rungs[-1] // 2 if len(rungs) > 1 else 0


def enough_for(candidates: int, rungs: tuple[int, ...]) -> int:
    """Student iterations that let so many candidates pass the lowest rung, a third of each rung the next, and the best repeat the last."""
    climbing: float = sum(candidates / ETA**place * rung for place, rung in enumerate(rungs))
    looks = candidates * LOOK if len(rungs) > 1 else 0
    spare = 6 * rungs[-1] if len(rungs) > 1 else 0  # replicates
    return math.ceil(climbing + looks) + spare


def expected_students(spec: Mapping[str, Any]) -> int:
    """How many students the confirmation will train: its entrants, with every seed."""
    return int(spec["confirmation"]["seeds"]) * expected_entrants(spec)


def expected_entrants(spec: Mapping[str, Any]) -> int:
    """How many policies the confirmation will measure: no distillation, the distillers, one more of the search's references (the best of
    those that are none of these), and the finalists; each policy once, as the evolver enters them. One more, where there are no such
    references, and an island's best turns out to be a policy that has a name."""
    confirmation = spec["confirmation"]
    distillers = confirmation.get("distillers", DEFAULT_REFERENCES[1:])
    named = {key_of("none"), *(key_of(one if isinstance(one, str) else one["policy"]) for one in distillers)}
    others = {key_of(one) for one in spec.get("references", ())} - named
    return len(named) + (1 if others else 0) + int(confirmation["finalists"])


def key_of(policy: str | Mapping[str, Any]) -> str:
    """What equal policies have in common. policy: its name, or JSON."""
    return canonical_json(named_policies()[policy].policy if isinstance(policy, str) else from_json(policy))


def confirming_jobs(spec: Mapping[str, Any]) -> int:
    """How many jobs the confirmation is, all of which may be under way at once."""
    return int(spec["confirmation"]["seeds"]) * math.ceil(expected_entrants(spec) / int(spec["group"]))
