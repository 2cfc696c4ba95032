"""Whether the intervals cover the truth as often as they say, in worlds whose truth is known."""

from dataclasses import dataclass

import numpy as np
import pytest

from detkds_core.report import Row, ap_interval, mean_interval, verdict
from detkds_core.report.verdict import Pair

IMAGES, DRAWS = 40, 40


@dataclass
class World:
    """AP = truth + luck of the seed + luck of the images + what the policy makes of either. images: spread over them, in AP."""

    truths: dict[str, tuple[str, float]]  # name -> role, true AP
    seeds: int = 5
    images: float = 0.0

    def rows(self, rng):
        drawn = rng.integers(IMAGES, size=(DRAWS, IMAGES))
        of_seeds = rng.normal(0, 2, self.seeds)
        of_images = rng.normal(0, 3 * self.images, IMAGES)
        rows = []
        for name, (role, truth) in self.truths.items():
            images = of_images + rng.normal(0, self.images, IMAGES)
            ap = truth + of_seeds + rng.normal(0, 0.7, self.seeds) + images.mean()
            resamples = ap[:, None] + (images[drawn].mean(axis=1) - images.mean())[None]  # (seeds, draws)
            drawn_anew = tuple(map(tuple, resamples)) if self.images else ()
            rows.append(Row(name, role, tuple(range(self.seeds)), tuple(ap), tuple(ap), tuple(ap), 1, IMAGES, drawn_anew))
        return rows

    def gain(self, name):
        return self.truths[name][1] - self.truths["none"][1]


def equals(searched, references):
    """No distillation, and many policies that are all worth the same."""
    return {
        "none": ("alone", 25.0),
        **{f"searched {n}": ("searched", 30.0) for n in range(searched)},
        **{f"reference {n}": ("reference", 30.0) for n in range(references)},
    }


def coverage(world, repeats):
    """How often three intervals have the truth: the result's gain and AP as reported, and the gain of the best without a correction."""
    rng = np.random.default_rng(0)
    hits = np.zeros(3)
    for _ in range(repeats):
        rows = world.rows(rng)
        by_name = {row.name: row for row in rows}
        judged = verdict(rows)
        reported = judged.against_alone
        ap = ap_interval(by_name[reported.first], judged.choices[reported.first])
        best = max(rows, key=lambda row: row.mean)
        pair = Pair(best, by_name["none"])
        naive = mean_interval(pair.differences, resamples=pair.resamples)
        hits += [
            reported.difference.low <= world.gain(reported.first) <= reported.difference.high,
            ap.low <= world.truths[reported.first][1] <= ap.high,
            naive.low <= world.gain(best.name) <= naive.high,
        ]
    return hits / repeats


def test_the_reported_gain_of_the_best_of_many_equals_covers_its_truth():
    """14 policies of the same worth: choosing the best of them is as optimistic as it can be."""
    reported, ap, uncorrected = coverage(World(equals(2, 12)), 500)
    assert reported >= 0.95
    assert ap >= 0.95
    assert uncorrected < reported - 0.04
    assert uncorrected < 0.93


def test_so_it_does_over_images_and_seeds():
    reported, ap, _ = coverage(World(equals(3, 5), images=4.0), 150)
    assert reported >= 0.93
    assert ap >= 0.93


def test_seeds_alone_would_not_cover_the_luck_of_the_images():
    """The reason for drawing images anew: a policy that these images suit looks better with every seed."""
    world = World({"none": ("alone", 25.0), "pkd": ("reference", 27.0)}, images=6.0)
    rng, hits = np.random.default_rng(1), np.zeros(2)
    for _ in range(200):
        none, pkd = world.rows(rng)
        pair = Pair(pkd, none)
        for place, resamples in enumerate([pair.resamples, ()]):
            interval = mean_interval(pair.differences, resamples=resamples)
            hits[place] += interval.low <= 2.0 <= interval.high
    with_images, seeds_alone = hits / 200
    assert with_images >= 0.92
    assert seeds_alone < with_images - 0.1


def test_resampling_the_seeds_themselves_would_be_too_narrow():
    """The reason for Student's t over the seeds: the percentiles of five values drawn anew do not cover as they say."""
    rng, hits = np.random.default_rng(2), np.zeros(2)
    for _ in range(1000):
        values = rng.normal(0, 1, 5)
        low, high = np.quantile(values[rng.integers(5, size=(400, 5))].mean(axis=1), [0.025, 0.975])
        interval = mean_interval(values.tolist())
        hits += [low <= 0 <= high, interval.low <= 0 <= interval.high]
    assert hits[0] / 1000 < 0.88
    assert hits[1] / 1000 == pytest.approx(0.95, abs=0.02)


def test_a_search_that_found_nothing_better_is_seldom_said_to_have():
    """Of equals, the searched policy is handed out in place of the best hand-designed one in 2.5 % of searches at most."""
    world, rng = World(equals(3, 3)), np.random.default_rng(3)
    assert np.mean([verdict(world.rows(rng)).returned == "searched" for _ in range(400)]) <= 0.025


def test_a_clear_difference_is_found():
    truths = {**equals(2, 3), "searched 0": ("searched", 33.0)}
    world, rng = World(truths, images=2.0), np.random.default_rng(4)
    assert np.mean([verdict(world.rows(rng)).returned == "searched" for _ in range(40)]) >= 0.8
