"""Climbing by hand: who is promoted, which rung misleads, who is measured again."""

import random
from dataclasses import replace

import pytest

from detkds_core.evolution import Candidate, Job, Outcome
from detkds_core.evolution.history import History
from detkds_core.evolution.rungs import agreement, calibrating, climbed, kendall_tau, promotions, replication, seed_noise, shrunken
from detkds_core.policy import Policy, Term

from .worlds import make_spec


def single(index):
    return Candidate(index, Policy((Term("global", ("none", "none", "none"), "l2", 1.0 + index),)), "stage1", "global", (), "sample")


def pair(index):
    terms = (*single(index).policy.terms, Term("logits", ("none",), "l2", 1.0))
    return Candidate(index, Policy(terms), "stage2", None, (), "combine")


def history(rows, pairs=(), **changes):
    """A history of jobs: (rung, replicate, {candidate: ap}); candidates come with their first job. pairs: who has two terms."""
    made = History(make_spec(**{"calibration": 0, "group": 10, **changes}))
    known = 0
    for number, (rung, replicate, values) in enumerate(rows):
        new = tuple((pair if index in pairs else single)(index) for index in sorted(values) if index >= known)
        known += len(new)
        made.asked(Job(number, rung, replicate, tuple(values), new))
        made.told(number, {index: Outcome(ap) for index, ap in values.items()})
    return made


def promotion(made, *, closing):
    return next(promotions(made, closing=closing), None)


def test_the_best_third_is_promoted_best_first():
    assert promotion(history([(0, 0, {0: 1.0, 1: 5.0, 2: 3.0, 3: 2.0, 4: 4.0, 5: 0.0})], group=4), closing=False) == (1, [1, 4])


def test_who_was_promoted_is_not_again():
    rows = [(0, 0, {0: 1.0, 1: 5.0, 2: 3.0, 3: 2.0, 4: 4.0, 5: 0.0}), (1, 0, {1: 6.0})]
    assert promotion(history(rows, group=2), closing=False) == (1, [4])


def test_no_more_than_a_third_climbs_also_when_better_ones_come_later():
    rows = [(0, 0, {0: 1.0, 1: 5.0, 2: 3.0}), (1, 0, {1: 6.0}), (0, 0, {3: 7.0, 4: 0.0}), (0, 0, {5: 8.0})]
    assert promotion(history(rows, group=2), closing=False) == (1, [5])


def test_half_a_group_climbs_together():
    six = [(0, 0, {0: 1.0, 1: 5.0, 2: 3.0, 3: 2.0, 4: 4.0, 5: 0.0})]
    assert promotion(history(six, group=6), closing=False) is None, "two are less than half of six"
    assert promotion(history(six, group=6), closing=True) == (1, [1, 4])


def test_two_are_too_few_until_the_search_closes():
    few = history([(0, 0, {0: 1.0, 1: 5.0})])
    assert promotion(few, closing=False) is None
    assert promotion(few, closing=True) == (1, [1])


def test_the_higher_rung_climbs_first():
    rows = [(0, 0, {index: float(index) for index in range(9)}), (1, 0, {8: 8.0, 7: 9.0, 6: 7.0})]
    assert promotion(history(rows, group=2, stage2_share=0.0), closing=False) == (2, [7])
    assert promotion(history(rows, group=2, algorithm="random_halving"), closing=False) == (2, [7])


def test_single_terms_pass_the_full_proxy_once_no_combination_has_a_way_to_go():
    rows = [(0, 0, {index: float(index) for index in range(12)}), (1, 0, {index: float(index) for index in range(6, 12)})]
    singles = history(rows, group=2)
    assert promotion(singles, closing=False) is None, "they wait for what they are combined to"
    assert promotion(singles, closing=True) == (2, [11, 10])
    assert promotion(history(rows, group=2, pairs=(6, 7, 8)), closing=False) == (2, [8]), "the best third of the combinations"
    fewer = [rows[0], (1, 0, {9: 9.0, 10: 10.0, 11: 11.0}), (0, 0, {12: 20.0, 13: 15.0, 14: 0.0, 15: 0.0, 16: 0.0, 17: 0.0})]
    closed = history(fewer, group=2, pairs=range(12, 18))
    assert promotion(closed, closing=True) == (1, [12, 13]), "at the end too what was combined goes first"


def test_with_one_rung_below_the_full_proxy_single_terms_wait_there():
    rows = [(0, 0, {index: float(index) for index in range(6)})]
    singles = history(rows, group=2, rungs=(10, 90))
    assert promotion(singles, closing=False) is None
    assert promotion(singles, closing=True) == (1, [5, 4])
    assert promotion(history(rows, group=2, rungs=(10, 90), pairs=(0, 1, 2, 3)), closing=False) == (1, [3])


def test_references_wait_as_single_terms_do_for_they_are_confirmed_anyway():
    made = History(make_spec(calibration=0, group=2, rungs=(10, 90)))
    candidates = [replace(pair(index), stage="reference" if index < 3 else "stage2") for index in range(6)]
    made.asked(Job(0, 0, 0, tuple(range(6)), tuple(candidates)))
    made.told(0, {index: Outcome(10.0 - index) for index in range(6)})
    assert promotion(made, closing=False) == (1, [3])
    made.asked(Job(1, 1, 0, (3,), ()))
    made.told(1, {3: Outcome(9.0)})
    assert promotion(made, closing=False) is None
    assert promotion(made, closing=True) == (1, [0]), "at the end the best goes, whatever it is"


def test_no_more_than_a_group_climbs_at_once():
    assert promotion(history([(0, 0, {index: float(index) for index in range(9)})], group=2), closing=False) == (1, [8, 7])


def test_kendall_tau_by_hand_and_by_scipy():
    assert kendall_tau([(1, 1), (2, 2), (3, 3)]) == 1
    assert kendall_tau([(1, 3), (2, 2), (3, 1)]) == -1
    assert kendall_tau([(1, 1), (2, 1)]) == 0
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(0)
    pairs = [(rng.randrange(8), rng.randrange(8)) for _ in range(40)]
    assert kendall_tau(pairs) == pytest.approx(stats.kendalltau(*zip(*pairs, strict=True)).statistic)


def test_calibration_needs_a_quarter_of_the_budget():
    # 30 through 10 + 30 + 90 iterations are 3,900; a quarter of the budget pays for them from 15,600 on
    assert calibrating(history([], calibration=30, budget=15_599)) == 0
    assert calibrating(history([], calibration=30, budget=15_600)) == 30


def test_a_rung_that_misleads_is_left_out():
    rng = random.Random(1)
    worth = {index: rng.gauss(30, 2) for index in range(30)}
    noise = {index: rng.gauss(30, 2) for index in range(30)}
    near = {index: value + rng.gauss(0, 0.3) for index, value in worth.items()}
    rows = [(0, 0, noise), (1, 0, near), (2, 0, worth)]
    calibrated = history(rows, calibration=30, budget=100_000, group=30)
    assert climbed(calibrated) == [1, 2]
    tau, low, high, count = agreement(calibrated, 1)
    assert low <= tau <= high
    assert (tau > 0.7, count) == (True, 30)
    assert agreement(calibrated, 0)[1] < 0.2


def test_calibrators_pass_every_rung_whatever_they_are_worth():
    made = history([(0, 0, {index: float(index) for index in range(9)})], calibration=9, budget=100_000)
    assert promotion(made, closing=False) == (1, list(range(8, -1, -1)))


def test_the_best_two_are_measured_again_while_the_full_proxy_cannot_tell_them_apart():
    full = {0: 30.0, 1: 30.1, 2: 20.0, 3: 25.0}
    rows = [(0, 0, full), (1, 0, full), (2, 0, full)]
    assert replication(history(rows)) == (1, [1, 0])
    apart = {0: 30.0, 1: 40.0, 2: 20.0, 3: 25.0}
    assert replication(history([(0, 0, apart), (1, 0, apart), (2, 0, apart)])) is None


def test_noise_is_pooled_over_those_measured_again():
    full = {0: 30.0, 1: 31.0, 2: 20.0}
    rows = [(0, 0, full), (1, 0, full), (2, 0, full), (2, 1, {0: 32.0, 1: 31.0})]
    # deviations of 0: -1, +1; of 1: 0, 0; two degrees of freedom: sqrt(2 / 2)
    assert seed_noise(history(rows)) == pytest.approx(1.0)


def test_a_noisy_measurement_says_less():
    full = {0: 30.0, 1: 34.0, 2: 26.0}
    rows = [(0, 0, full), (1, 0, full), (2, 0, full), (2, 1, {0: 32.0, 1: 34.0})]
    made = history(rows)
    alone, twice = shrunken(made, 2, 34.0, 1), shrunken(made, 2, 34.0, 2)
    assert 30 < alone < twice < 34


def test_a_search_without_a_full_proxy_ranks_what_there_is():
    made = history([(0, 0, {0: 1.0, 1: 5.0, 2: 3.0})])
    assert seed_noise(made) == 0.0
    assert shrunken(made, 0, 5.0, 1) == 5.0


def test_a_calibrator_ranks_where_it_is_among_the_best():
    # nine calibrators pass all rungs; the best third of the full proxy is 8, 7, 6, of the lowest rung 0, 3 and 9, which is none
    full = {index: float(index) for index in range(9)}
    lowest = {0: 9.0, 1: 1.0, 2: 0.0, 3: 8.0, 4: 2.0, 5: 3.0, 6: 4.0, 7: 5.0, 8: 6.0}
    made = history([(0, 0, lowest), (1, 0, full), (2, 0, full), (0, 0, {9: 8.5, 10: 0.5})], calibration=9, budget=100_000)
    earned = {one.candidate.index: (one.rung, one.fitness) for one in made.ranked}
    assert [one.candidate.index for one in made.ranked] == [8, 7, 6, 0, 9, 3, 5, 4, 1, 10, 2]
    assert (earned[8], earned[6], earned[0], earned[3], earned[1]) == ((2, 8.0), (2, 6.0), (0, 9.0), (0, 8.0), (0, 1.0))


def test_the_few_that_climbed_first_do_not_rank_before_better_ones_that_wait():
    below = {index: float(index) for index in range(8)}
    # 0 and 1 have climbed early; at the rung that all share, the others are better
    made = history([(0, 0, below), (1, 0, {0: 20.0, 1: 21.0})])
    assert [one.candidate.index for one in made.ranked] == [7, 6, 5, 4, 3, 2, 1, 0]
    # when eight are there, it is the higher rung that ranks them
    made = history([(0, 0, below | {8: 99.0}), (1, 0, {index: 20.0 - index for index in range(8)})])
    assert [one.candidate.index for one in made.ranked] == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_short_trainings_are_ordered_by_their_lenient_ap_and_the_full_proxy_by_its_ap():
    made = History(make_spec(calibration=0, lenient=True))
    made.asked(Job(0, 0, 0, (0, 1, 2), tuple(map(single, range(3)))))
    made.told(0, {0: Outcome(0.2, lenient_ap=9.0), 1: Outcome(0.1, lenient_ap=12.0), 2: Outcome(0.3, lenient_ap=7.0)})
    assert made.order(0) == [1, 0, 2]
    made.asked(Job(1, made.spec.top, 0, (0, 1)))
    made.told(1, {0: Outcome(5.0, lenient_ap=1.0), 1: Outcome(4.0, lenient_ap=2.0)})
    assert made.order(made.spec.top) == [0, 1]


def test_a_rung_goes_by_its_ap_once_half_of_it_has_one_that_tells():
    made = History(make_spec(calibration=0, lenient=True))
    made.asked(Job(0, 0, 0, (0, 1), tuple(map(single, range(2)))))
    made.told(0, {0: Outcome(0.2, lenient_ap=9.0), 1: Outcome(2.0, lenient_ap=8.0)})
    assert made.values == {0: {0: [0.2]}, 1: {0: [2.0]}}, "one of two: half"
    made.asked(Job(1, 0, 0, (2,), (single(2),)))
    made.told(1, {2: Outcome(0.9, lenient_ap=12.0)})
    assert made.values == {0: {0: [9.0]}, 1: {0: [8.0]}, 2: {0: [12.0]}}
    assert [one.candidate.index for one in made.ranked] == [2, 0, 1]
    made.asked(Job(2, 0, 0, (3, 4), (single(3), single(4))))
    made.told(2, {3: Outcome(1.0, lenient_ap=1.0), 4: Outcome(None, failure="not_finite")})
    assert made.order(0) == [1, 3, 2, 0]
    assert [(one.candidate.index, one.fitness) for one in made.ranked] == [(1, 2.0), (3, 1.0), (2, 0.9), (0, 0.2)]
    assert made.means == {0: {0: 0.2}, 1: {0: 2.0}, 2: {0: 0.9}, 3: {0: 1.0}}


def test_without_a_lenient_ap_it_is_the_ap():
    made = History(make_spec(calibration=0, lenient=True))
    made.asked(Job(0, 0, 0, (0, 1), (single(0), single(1))))
    made.told(0, {0: Outcome(3.0), 1: Outcome(2.0)})
    assert made.values == {0: {0: [3.0]}, 1: {0: [2.0]}}
    with pytest.raises(ValueError, match=r"outcome.lenient_ap: nan is not finite"):
        Outcome(1.0, lenient_ap=float("nan"))
