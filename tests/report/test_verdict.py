"""The sentence over a report says what the intervals allow, and no more."""

import pytest

from detkds_core.report import Row, compare, verdict


def row(name, role, ap, seeds=(0, 1, 2)):
    seeds = seeds[: len(ap)]
    return Row(name, role, seeds, tuple(ap), tuple(ap), tuple(ap), parameters=100, images=10)


ALONE = row("student alone", "alone", (25.0, 26.0, 27.0))
PKD = row("PKD", "reference", (28.0, 29.1, 29.9))  # alone + 3.0, 3.1, 2.9


def test_better_than_alone_and_than_the_reference():
    # differences to PKD 1.0, 0.9, 1.1: mean 1, half 0.248
    judged = verdict([ALONE, PKD, row("searched", "searched", (29.0, 30.0, 31.0))])
    assert judged.against_alone.outcome == "better"
    assert judged.against_reference.outcome == "better"
    assert judged.sentence == (
        "Distillation beat the student alone beyond noise: +4.0 AP (95 % interval +4.0 to +4.0, 3 paired seeds)."
        " The searched policy beat PKD beyond noise: +1.0 AP (95 % interval +0.8 to +1.2, 3 paired seeds)."
    )


def test_a_higher_mean_within_noise_is_not_called_better():
    # differences 5, -1, 2: mean 2, s = 3, half = 7.45
    judged = verdict([ALONE, row("searched", "searched", (30.0, 25.0, 29.0))])
    assert judged.against_alone.outcome == "within noise"
    assert "did not beat the student alone beyond noise: +2.0 AP (95 % interval -5.5 to +9.5" in judged.sentence
    assert "No hand-designed policy was measured" in judged.sentence


def test_worse_is_said():
    judged = verdict([ALONE, PKD, row("searched", "searched", (20.0, 21.1, 21.9))])
    assert judged.against_alone.outcome == "worse"
    assert "made the student worse than alone, beyond noise" in judged.sentence
    assert "was worse than PKD beyond noise: -8.0 AP" in judged.sentence


def test_one_seed_says_nothing_about_noise():
    judged = verdict([row("alone", "alone", (25.0,)), row("searched", "searched", (35.0,))])
    assert judged.against_alone.outcome == "one pair"
    assert judged.sentence.startswith("One seed cannot tell whether distillation beat the student alone: +10.0 AP (1 seed, no interval).")


def test_the_best_reference_is_the_one_to_beat():
    weak = row("weak", "reference", (20.0, 20.0, 20.0))
    judged = verdict([ALONE, weak, PKD, row("searched", "searched", (29.0, 30.0, 31.0))])
    assert judged.against_reference.second == "PKD"


def test_without_a_searched_policy_the_reference_is_judged():
    judged = verdict([ALONE, PKD])
    assert judged.against_alone.first == "PKD"
    assert judged.against_alone.outcome == "better"
    assert judged.against_reference is None


def test_only_shared_seeds_are_paired():
    other = row("other", "searched", (31.0, 30.0), seeds=(7, 1))
    comparison = compare(other, ALONE)
    assert comparison.seeds == (1,)
    assert comparison.differences == pytest.approx((4.0,))
    assert compare(row("other", "searched", (31.0,), seeds=(7,)), ALONE) is None


def test_nothing_measured():
    assert verdict([]).sentence == "No distilled student was measured."
    assert "is not known" in verdict([PKD]).sentence


def test_a_row_needs_one_value_a_seed():
    with pytest.raises(ValueError, match="row 'x': ap75 has 1 values for 2 seeds"):
        Row("x", "alone", (0, 1), (1.0, 2.0), (1.0, 2.0), (1.0,), 1, 1)
