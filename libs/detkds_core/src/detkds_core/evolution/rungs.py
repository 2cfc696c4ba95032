"""How far a candidate is trained: rungs of more and more iterations, climbed by the best third (successive halving, asynchronous).

After Li et al. 2018 (ASHA, arXiv 1810.05934). Three things are ours. The first candidates pass every rung where the budget allows, and a
rung that does not order them as the full proxy does is left out. The full proxy is repeated with other seeds where the best two cannot
be told apart by it. And the end of the budget is kept for candidates that have begun to climb.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from statistics import fmean, pstdev

from detkds_core.evolution.history import History, generator

MIN_TAU = 0.0  # the lower bound of a rung's rank correlation with the full proxy below which it misleads
RESAMPLES = 200
ENOUGH = 20  # candidates at both rungs before a correlation says anything
REPLICATES = 3  # seeds of the full proxy, at most
CAPPED = True  # no more than a third of a rung climbs; asynchronous halving promotes twice as many
CLIMB_SHARE = 0.25  # of the budget, kept for climbing when nothing new is proposed any more


def calibrating(history: History) -> int:
    """How many of the first candidates pass every rung; 0 where the budget does not allow enough of them."""
    return history.spec.calibrators


def climbed(history: History) -> list[int]:
    """The rungs that are in use, lowest first: the full proxy, and those below it that order candidates as it does.

    A rung is left out once enough candidates were seen at both and the lower end of the 90 % interval of their Kendall tau is below
    MIN_TAU. Where all would be left out, the highest of them stays.
    """
    top = history.spec.top
    if not calibrating(history):
        return list(range(top + 1))
    useful = [rung for rung in range(top) if not misleads(history, rung)]
    return [*(useful or [top - 1]), top]


def misleads(history: History, rung: int) -> bool:
    found = agreement(history, rung)
    return found is not None and found[1] < MIN_TAU


def agreement(history: History, rung: int) -> tuple[float, float, float, int] | None:
    """Kendall's tau between a rung and the full proxy, the ends of its 90 % bootstrap interval, and over how many candidates.

    Over the candidates that passed both whatever they were worth (the calibration's), since those that were promoted are all good.
    """
    top, first = history.spec.top, calibrating(history)
    each = [history.means.get(index, {}) for index in range(first)]
    both = tuple((mine[rung], mine[top]) for mine in each if rung in mine and top in mine)
    return resampled_tau(both, history.spec.seed, rung) if len(both) >= ENOUGH else None


@lru_cache(maxsize=64)
def resampled_tau(both: tuple[tuple[float, float], ...], seed: int, rung: int) -> tuple[float, float, float, int]:
    """Kendall's tau of pairs, the ends of its 90 % bootstrap interval, and how many there are."""
    rng = generator(seed, "tau", rung, len(both))
    taus = sorted(kendall_tau([rng.choice(both) for _ in both]) for _ in range(RESAMPLES))
    return kendall_tau(both), taus[RESAMPLES // 20], taus[-RESAMPLES // 20 - 1], len(both)


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> float:
    """Kendall's tau-b: the share of pairs in the same order less that in the other, ties apart. 0 without any order.

    >>> kendall_tau([(1, 1), (2, 2), (3, 4), (4, 3)])
    0.6666666666666666
    """
    agree = left = right = 0
    for place, (a, b) in enumerate(pairs):
        for c, d in pairs[:place]:
            across, down = (a > c) - (a < c), (b > d) - (b < d)
            agree += across * down
            left += across != 0
            right += down != 0
    return agree / math.sqrt(left * right) if left and right else 0.0


def promotions(history: History, *, closing: bool) -> Iterator[tuple[int, list[int]]]:
    """(rung, candidates) that may climb now, the best first. The highest rung comes first.

    Never more than a third of a rung, also when later candidates turn out better than those that climbed: asynchronous halving otherwise
    promotes twice as many. They wait until half a group may climb, since the candidates of a job share the teacher. closing: nothing new is
    proposed any more, so that the best of a rung climb even if they are few, and those that have waited come last.
    """
    ladder = climbed(history)
    first = calibrating(history)
    for everybody in (False, True) if closing else (False,):
        for place in range(len(ladder) - 2, -1, -1):
            rung, above = ladder[place], ladder[place + 1]
            ranked = history.order(rung)
            choosy = above == ladder[-1] and not everybody
            able = [index for index in ranked if not waits(history, index)] if choosy else ranked
            gone = set().union(*history.entered[above:])
            calibrators = [index for index in ranked if index not in gone and index < first]
            room = max(len(able) // history.spec.eta, 1 if closing else 0)
            left = max(0, room - sum(index in history.entered[above] for index in able))
            best = [index for index in able[:room] if index not in gone][: left if CAPPED else room]
            chosen = list(dict.fromkeys([*calibrators, *best]))[: history.spec.group]
            if len(chosen) >= (1 if closing else max(1, history.spec.group // 2)):
                yield above, chosen


def waits(history: History, index: int) -> bool:
    """Whether a candidate is what combinations are made of, a single term or a reference: it passes the full proxy once none are to come.

    Which term serves best is seen well enough below, and references are confirmed anyway: what a small search has for the full proxy
    decides between combinations.
    """
    spec, one = history.spec, history.candidates[index]
    return spec.algorithm == "detkds" and spec.stage2_share > 0 and (one.stage == "reference" or len(one.policy.terms) == 1)


def replication(history: History) -> tuple[int, list[int]] | None:
    """(replicate, candidates) of the full proxy to repeat with the next seed: the best ones that it cannot tell apart; None if it can.

    Two candidates are apart when their means differ by more than the noise of both, which is that of the replicates so far, or a
    quarter of the spread of the full proxy where there are none.
    """
    top = history.spec.top
    ranked = history.order(top)
    if len(ranked) < 2:
        return None
    noise = seed_noise(history)
    leader = ranked[0]
    known = {index: history.values[index][top] for index in ranked[: history.spec.eta + 1]}
    rivals = [
        index
        for index in known
        if fmean(known[leader]) - fmean(known[index]) <= noise * math.sqrt(1 / len(known[leader]) + 1 / len(known[index]))
    ]
    asked = {index: sum(job.rung == top and index in job.members for job in history.jobs) for index in rivals}
    fewest = min(asked.values())
    chosen = [index for index in rivals if asked[index] == fewest][: history.spec.group]
    if len(rivals) < 2 or fewest >= REPLICATES:
        return None
    return fewest, chosen


def seed_noise(history: History) -> float:
    """The standard deviation of the full proxy between seeds: as measured, else a quarter of the spread of what is there, a guess."""
    top = history.spec.top

    def found() -> float:
        if (noise := measured_noise(history)) is not None:
            return noise
        known = [mine[top] for mine in history.values.values() if top in mine]
        return pstdev([fmean(values) for values in known]) / 4 if known else 0.0

    return history.remembered("seed noise", found)


def measured_noise(history: History) -> float | None:
    """The same, pooled over the candidates that were repeated; None where too few were."""
    top = history.spec.top
    repeated = [mine[top] for mine in history.values.values() if len(mine.get(top, ())) > 1]
    freedom = sum(len(values) - 1 for values in repeated)
    if freedom < 2:
        return None
    return math.sqrt(sum((value - fmean(values)) ** 2 for values in repeated for value in values) / freedom)


def shrunken(history: History, rung: int, value: float, replicates: int) -> float:
    """What a measurement at a rung says of a candidate beside all others there: nearer their mean, the noisier it is."""

    def found() -> tuple[int, float, float]:
        known = [mine[rung] for mine in history.means.values() if rung in mine]
        return len(known), fmean(known), pstdev(known)

    count, middle, spread = history.remembered(("spread", rung), found)
    if count < 3 or not spread:
        return value
    return middle + (value - middle) * max(0.0, 1 - seed_noise(history) ** 2 / replicates / spread**2)
