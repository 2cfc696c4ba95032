"""What is said of a search: every candidate in the category that the ledger has it in, and how the audit judges the gates."""

import pytest

from detkds_core.evolution import Candidate, Job, Outcome
from detkds_core.evolution.history import History
from detkds_core.evolution.summary import funnel, proportion, summarize
from detkds_core.policy import Policy, Term

from .worlds import make_spec


def history(outcomes):
    """The history of one job at the first rung that was told these outcomes, by candidate."""
    made = History(make_spec(group=len(outcomes)))
    policies = [Policy((Term("global", ("none", "none", "none"), "l2", 1.0 + index),)) for index in range(len(outcomes))]
    new = tuple(Candidate(index, policy, "stage1", "global", (), "sample") for index, policy in enumerate(policies))
    made.asked(Job(0, 0, 0, tuple(range(len(new))), new))
    made.told(0, dict(enumerate(outcomes)))
    return made


def test_a_share_and_its_interval_by_hand():
    # z^2 = 3.8415. 0 of 3: from 0 to z^2 / (3 + z^2) = 0.5615. 1 of 4: middle (0.25 + z^2 / 8) / (1 + z^2 / 4) = 0.3725,
    # half z / (1 + z^2 / 4) * sqrt(0.1875 / 4 + z^2 / 64) = 0.3269
    share, interval = proportion(0, 3)
    assert (share, interval) == (0, pytest.approx([0.0, 0.5615], abs=1e-4))
    share, interval = proportion(1, 4)
    assert (share, interval) == (0.25, pytest.approx([0.0456, 0.6994], abs=1e-4))
    assert proportion(3, 3) == (1, pytest.approx([1 - 0.5615, 1.0], abs=1e-4))
    assert proportion(0, 0) is None


def test_a_refused_candidate_that_an_audit_finds_among_the_best_third_was_falsely_refused():
    measured = [Outcome(ap) for ap in (30.0, 20.0, 10.0)]  # a third of three is one: what reaches the second's 20 is as good
    refused = [Outcome(20.0, rejected="descent"), Outcome(19.9, rejected="descent"), Outcome(5.0, rejected="first_loss")]
    found = funnel(history([*measured, *refused, Outcome(None, rejected="descent")]))
    assert found["rejected"] == {"descent": 3, "first_loss": 1}
    assert (found["audited"], found["falsely_rejected"]) == (3, 1)
    assert found["false_reject_rate"] == pytest.approx(1 / 3)
    assert found["false_reject_interval"] == pytest.approx([0.0615, 0.7923], abs=1e-4)


def test_without_an_audit_the_rate_is_not_known():
    found = funnel(history([Outcome(30.0), Outcome(None, rejected="descent")]))
    assert (found["audited"], found["falsely_rejected"]) == (0, 0)
    assert (found["false_reject_rate"], found["false_reject_interval"]) == (None, None)


def test_an_audited_candidate_that_could_not_be_trained_was_refused_rightly_and_is_infeasible():
    found = funnel(history([Outcome(30.0), Outcome(None, rejected="descent", failure="not_finite")]))
    assert (found["rejected"], found["infeasible"]) == ({}, 1)
    assert (found["audited"], found["falsely_rejected"], found["false_reject_rate"]) == (1, 0, 0.0)


def test_a_double_is_no_refusal_though_a_gate_found_it():
    double = Outcome(None, rejected="duplicate", same_as=0)
    made = history([Outcome(30.0), double, Outcome(None, rejected="descent"), Outcome(None, failure="not_finite")])
    found = funnel(made)
    assert (found["proposed"], found["trained"][0]) == (4, 1)
    assert (found["rejected"], found["duplicates"], found["infeasible"], found["audited"]) == ({"descent": 1}, 1, 1, 0)
    everything = summarize(made)["all"]
    assert [everything[name] for name in ("proposed", "measured", "rejected", "duplicates", "infeasible")] == [4, 1, 1, 1, 1]
