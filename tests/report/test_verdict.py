"""The sentence over a report says what the intervals allow, and no more."""

import json
from dataclasses import replace

import pytest

from detkds_core.report import Row, Verdict, compare, verdict
from detkds_core.report.verdict import describe


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


def test_worse_than_the_reference_is_said_and_the_reference_is_the_result():
    judged = verdict([ALONE, PKD, row("searched", "searched", (20.0, 21.1, 21.9))])
    assert judged.against_reference.outcome == "worse"
    assert judged.returned == "reference"
    # PKD - alone: 3.0, 3.1, 2.9: mean 3, s = 0.1, the largest p of three, so half 0.248
    assert judged.against_alone.first == "PKD"
    assert judged.against_alone.difference == pytest.approx((3.0, 2.7516, 3.2484), abs=1e-3)
    assert judged.sentence == (
        "Distillation with PKD beat the student alone beyond noise: +3.0 AP (95 % interval +2.8 to +3.2, 3 paired seeds)."
        " The searched policy was worse than PKD beyond noise: -8.0 AP (95 % interval -8.0 to -8.0, 3 paired seeds). So the result is PKD."
    )
    searched_alone = next(one for one in judged.comparisons if (one.first, one.second) == ("searched", "student alone"))
    assert searched_alone.outcome == "worse"


def test_worse_than_alone_is_said():
    judged = verdict([ALONE, row("searched", "searched", (20.0, 21.1, 21.9))])
    assert judged.against_alone.outcome == "worse"
    assert "made the student worse than alone, beyond noise" in judged.sentence
    assert judged.returned == "searched"


def test_within_noise_of_the_best_distiller_the_distiller_is_the_result():
    """The searched policy has the higher mean, by 0.5, -0.1 and 0.2: mean 0.2, s = 0.3, half 0.745."""
    weak = row("cwd", "reference", (26.0, 27.0, 28.0))
    judged = verdict([ALONE, weak, PKD, row("candidate 4", "searched", (28.5, 29.0, 30.1))])
    assert judged.against_reference.outcome == "within noise"
    assert judged.against_reference.difference == pytest.approx((0.2, -0.545, 0.945), abs=1e-3)
    assert (judged.returned, judged.reference, judged.searched) == ("reference", "PKD", "candidate 4")
    assert judged.why == (
        "The searched policy and PKD, the best of 2 hand-designed policies, do not differ beyond noise:"
        " +0.2 AP (95 % interval -0.5 to +0.9, 3 paired seeds). So the result is PKD."
    )


def test_the_best_of_equals_needs_more_than_one_that_was_not_chosen():
    """One searched policy beats PKD by 0.4, 0.2 and 0.3: s = 0.1, t = 0.3 * sqrt(3) / 0.1 = 5.196, p = 0.0351; of three: 3 times that."""
    ahead = row("a", "searched", (28.4, 29.3, 30.2))
    one = verdict([PKD, ahead])
    assert one.against_reference.outcome == "better"
    assert (one.against_reference.p, one.against_reference.choices) == (pytest.approx(0.0351, abs=1e-4), 1)
    equals = [row("b", "searched", (28.2, 29.3, 30.2)), row("c", "searched", (28.4, 29.2, 30.1))]
    among = verdict([PKD, ahead, *equals])
    assert among.choices == {"a": 3, "PKD": 1}
    assert (among.against_reference.p, among.against_reference.choices) == (pytest.approx(3 * 0.0351, abs=3e-4), 3)
    assert among.against_reference.outcome == "within noise"
    assert among.returned == "reference"


def test_that_it_was_chosen_counts_against_all_distillers():
    """Against another distiller as against the best one: a - cwd is 2.4, 2.2, 2.3, so t = 2.3 * sqrt(3) / 0.1 = 39.8, p = 0.00063 alone."""
    equals = [row(name, "searched", (28.4, 29.3, 30.2 - by)) for name, by in (("a", 0.0), ("b", 0.1), ("c", 0.2))]
    cwd = row("cwd", "reference", (26.0, 27.1, 27.9))
    judged = {(one.first, one.second): one for one in verdict([PKD, cwd, *equals]).comparisons}
    assert judged["a", "cwd"].choices == 3
    assert judged["a", "cwd"].p == pytest.approx(3 * 0.00063, abs=1e-4)


def test_who_is_far_behind_was_no_choice():
    behind = row("behind", "searched", (10.0, 11.01, 11.99))
    judged = verdict([PKD, row("a", "searched", (28.4, 29.3, 30.2)), behind])
    assert judged.against_reference.choices == 1
    assert judged.choices == {"a": 1, "PKD": 1}


def test_all_others_are_compared_too_and_adjusted_together():
    weak, poor = row("cwd", "reference", (26.0, 27.1, 27.9)), row("mgd", "reference", (25.2, 26.0, 27.1))
    judged = verdict([ALONE, weak, poor, PKD, row("a", "searched", (29.0, 30.0, 31.0)), row("b", "searched", (28.9, 30.1, 31.0))])
    pairs = {(one.first, one.second): one for one in judged.comparisons}
    assert list(pairs) == [
        ("a", "student alone"), ("a", "PKD"), ("PKD", "student alone"),
        ("b", "student alone"), ("cwd", "student alone"), ("mgd", "student alone"), ("a", "cwd"), ("a", "mgd"),
    ]  # fmt: skip
    # mgd - alone: 0.2, 0.0, 0.1: mean 0.1, s = 0.1, t(2) = 1.732, p = 0.2254, the largest of five, so unadjusted
    assert pairs["mgd", "student alone"].p == pytest.approx(0.2254, abs=1e-4)


def test_the_images_count_where_they_were_drawn():
    """Seeds that all differ by 1; on two draws of the images by 0 and by 2: the interval is that of the images."""
    first = replace(row("a", "searched", (26.0, 27.0, 28.0)), resamples=((25.0, 27.0), (26.0, 28.0), (27.0, 29.0)))
    second = replace(ALONE, resamples=((25.0, 25.0), (26.0, 26.0), (27.0, 27.0)))
    comparison = compare(first, second)
    assert comparison.difference == pytest.approx((1.0, 0.0, 2.0))
    assert (comparison.outcome, comparison.images) == ("within noise", 10)
    assert "(95 % interval +0.0 to +2.0, 3 paired seeds, 10 images)" in describe(comparison)
    assert compare(first, ALONE).images == 0
    assert compare(first, replace(second, images=11)).images == 0, "draws of other images do not pair"


def test_a_verdict_survives_as_json():
    judged = verdict([ALONE, PKD, row("a", "searched", (29.0, 30.0, 31.0)), row("b", "searched", (28.9,))])
    again = Verdict.from_json(json.loads(json.dumps(judged.to_json(), allow_nan=False)))
    assert (again.sentence, again.returned, again.why) == (judged.sentence, judged.returned, judged.why)
    assert again.against_reference == judged.against_reference
    assert len(again.comparisons) == len(judged.comparisons)
    named = Verdict.from_json(judged.to_json(), {"a": "the searched"})
    assert named.against_reference.first == "the searched"


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
