"""Intervals, against tables of Student's t and by hand."""

import math

import pytest

from detkds_core.report import mean_interval, paired_difference


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


def test_refused():
    with pytest.raises(ValueError, match="got none"):
        mean_interval([])
    with pytest.raises(ValueError, match="2 on one side, 1 on the other"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        mean_interval([1.0, 2.0], confidence=95)
