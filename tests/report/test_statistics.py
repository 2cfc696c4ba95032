"""Intervals, against tables of Student's t and by hand."""

import math

import numpy as np
import pytest

from detkds_core.report import mean_interval, paired_difference
from detkds_core.report.statistics import error_of, holm, p_value


def test_three_values_by_hand():
    # mean 2, s = 1, t(2) = 4.3027: half = 4.3027 / sqrt(3) = 2.4841
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.4841, 4.4841), abs=1e-4)


def test_two_values_by_hand():
    # mean 5, s = sqrt(2), t(1) = 12.7062: half = 12.7062 * sqrt(2) / sqrt(2)
    assert mean_interval([4.0, 6.0]) == pytest.approx((5.0, -7.7062, 17.7062), abs=1e-4)


def test_narrower_at_less_confidence():
    # t(2) at 90 % = 2.9200
    mean, low, high = mean_interval([1.0, 2.0, 3.0], confidence=0.9)
    assert (mean, high - low) == pytest.approx((2.0, 2 * 2.9200 / math.sqrt(3)), abs=1e-4)


def test_one_value_has_a_mean_and_no_interval():
    interval = mean_interval([28.9])
    assert interval.mean == 28.9
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_pairing_removes_what_both_share():
    # Seeds differ by 10 AP, the two detectors by 1.1, 0.9 and 1.0 on each of them: mean 1, s = 0.1, half = 4.3027 * 0.1 / sqrt(3) = 0.2484.
    difference = paired_difference([21.1, 30.9, 41.0], [20.0, 30.0, 40.0])
    assert difference == pytest.approx((1.0, 0.7516, 1.2484), abs=1e-4)
    assert mean_interval([21.1, 30.9, 41.0]).low < 30.0 < mean_interval([21.1, 30.9, 41.0]).high


def test_of_several_the_lower_bound_alone_moves():
    # of three: t(2) at 1 - 0.025 / 3 = 7.6488 below, t(2) at 97.5 % = 4.3027 above; s / sqrt(3) = 0.57735
    mean, low, high = mean_interval([1.0, 2.0, 3.0], choices=3)
    assert (mean, low, high) == pytest.approx((2.0, 2 - 7.6488 * 0.57735, 2 + 4.3027 * 0.57735), abs=1e-3)


def test_images_and_seeds_add_up():
    """Without a spread over the seeds the interval is the percentiles of the draws; with both it is wider than with either."""
    draws = [-1.0, -0.5, 0.0, 0.5, 1.0]
    alone = mean_interval([2.0, 2.0, 2.0], resamples=[[2 + d for d in draws]] * 3)
    assert alone == pytest.approx((2.0, 1.0, 3.0))
    seeds = mean_interval([1.9, 2.0, 2.1])
    both = mean_interval([1.9, 2.0, 2.1], resamples=[[2 + d for d in draws]] * 3)
    assert both.low < min(alone.low, seeds.low)
    assert both.high > max(alone.high, seeds.high)


def test_draws_that_are_all_too_low_move_nothing():
    """AP on drawn images is a little biased; how far the draws spread counts, not where they lie."""
    assert mean_interval([2.0, 2.0], resamples=[[0.0, 1.0], [0.0, 1.0]]) == pytest.approx((2.0, 1.5, 2.5))


def test_a_draw_that_has_no_ap_is_left_out():
    assert mean_interval([2.0, 2.0], resamples=[[1.0, None, 3.0], [1.0, None, 3.0]]) == pytest.approx((2.0, 1.0, 3.0))
    assert error_of([1.0, 3.0], [[None], [None]]).images.tolist() == [0.0]


def test_p_by_hand():
    # mean 2, s = 1: t(2) = 2 / (1 / sqrt(3)) = 3.4641, two-sided p = 0.0742
    assert [p_value([1.0, 2.0, 3.0]), p_value([-1.0, -2.0, -3.0])] == pytest.approx([0.0742] * 2, abs=1e-4)
    assert p_value([1.0, 2.0, 3.0], choices=3) == pytest.approx(3 * 0.0742, abs=3e-4)
    assert p_value([-1.0, -2.0, -3.0], choices=3) == pytest.approx(0.0742, abs=1e-4), "being chosen makes nothing look worse"
    assert math.isnan(p_value([1.0]))
    assert p_value([0.0, 0.0]) == 1.0


@pytest.mark.parametrize("values", [[0.1, 0.9, 0.7, 0.4], [0.4, 0.9, 0.7, 0.5], [-0.3, 0.2, 0.4]])
@pytest.mark.parametrize("choices", [1, 4])
def test_p_is_below_five_percent_just_where_the_interval_excludes_zero(values, choices):
    draws = [[value + d for d in (-0.2, -0.1, 0.0, 0.3)] for value in values]
    low, high = mean_interval(values, resamples=draws, choices=choices)[1:]
    assert (p_value(values, draws, choices) < 0.05) == (low > 0 or high < 0)


def test_holm_by_hand():
    # 0.01 < 0.05 / 3; 0.02 < 0.05 / 2; 0.04 < 0.05: all rejected
    assert np.array(holm([0.02, 0.01, 0.04])) == pytest.approx(np.array([(0.04, 0.025), (0.03, 0.05 / 3), (0.04, 0.05)]))
    # 0.03 is not below 0.05 / 2, so 0.04 is not rejected either, though it is below 0.05
    assert np.array(holm([0.04, 0.03, 0.001])) == pytest.approx(np.array([(0.06, 0.025), (0.06, 0.025), (0.003, 0.05 / 3)]))
    adjusted = holm([0.01, math.nan])
    assert adjusted[0] == pytest.approx((0.01, 0.05))
    assert math.isnan(adjusted[1].adjusted)
    assert holm([]) == []


def test_refused():
    with pytest.raises(ValueError, match="resamples: 1 rows for 2 values"):
        mean_interval([1.0, 2.0], resamples=[[1.0]])
    with pytest.raises(ValueError, match="got none"):
        mean_interval([])
    with pytest.raises(ValueError, match="2 on one side, 1 on the other"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        mean_interval([1.0, 2.0], confidence=95)
