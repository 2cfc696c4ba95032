"""What is said of a search: every candidate in the category that the ledger has it in, and how the audit judges the gates."""

import pytest

from detkds_core.evolution import Candidate, Job, Outcome
from detkds_core.evolution.history import History
from detkds_core.evolution.summary import funnel, proportion, seconds_of, summarize
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


def test_a_bad_gate_does_not_hide_behind_a_good_one():
    # The best third of three is the 30; who reaches the second's 20 is as good. descent: 1 of 2 audited is; first_loss: 0 of 3.
    measured = [Outcome(ap) for ap in (30.0, 20.0, 10.0)]
    by_descent = [Outcome(25.0, rejected="descent"), Outcome(1.0, rejected="descent"), Outcome(None, rejected="descent")]
    by_loss = [*(Outcome(ap, rejected="first_loss") for ap in (1.0, 2.0)), Outcome(None, rejected="first_loss", failure="not_finite")]
    doubles = [Outcome(30.0, rejected="duplicate", same_as=0), Outcome(None, rejected="duplicate", same_as=0)]
    found = funnel(history([*measured, *by_descent, *by_loss, *doubles]))
    nothing = {"audited": 0, "falsely_rejected": 0, "false_reject_rate": None, "false_reject_interval": None, "seconds": None}
    assert list(found["gates"]) == ["duplicate", "first_loss", "descent"], "as a candidate meets them"
    audit = {"audited": 1, "falsely_rejected": 0, "false_reject_rate": 0.0}
    assert found["gates"]["duplicate"] == {"refused": 2, **nothing, **audit, "false_reject_interval": pytest.approx([0, 0.793], abs=1e-3)}
    loss, descent = found["gates"]["first_loss"], found["gates"]["descent"]
    assert (loss["refused"], loss["audited"], loss["falsely_rejected"], loss["false_reject_rate"]) == (3, 3, 0, 0.0)
    assert loss["false_reject_interval"] == pytest.approx([0.0, 0.5615], abs=1e-4)
    assert (descent["refused"], descent["audited"], descent["falsely_rejected"], descent["false_reject_rate"]) == (3, 2, 1, 0.5)
    # middle 0.5, half z / (1 + z^2 / 2) * sqrt(0.25 / 2 + z^2 / 16) = 0.4055
    assert descent["false_reject_interval"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert (found["audited"], found["falsely_rejected"], found["false_reject_rate"]) == (6, 1, 1 / 6), "together they look well"
    assert found["rejected"] == {"descent": 3, "first_loss": 2}
    assert (found["duplicates"], found["infeasible"]) == (2, 1)
    assert sum(gate["refused"] for gate in found["gates"].values()) == 3 + 2 + 2 + 1


def test_a_double_is_refused_falsely_where_it_is_good_and_what_counts_for_it_is_not():
    measured = [Outcome(ap) for ap in (30.0, 20.0, 10.0)]
    doubles = [Outcome(25.0, rejected="duplicate", same_as=2), Outcome(19.0, rejected="duplicate", same_as=2)]
    doubles += [Outcome(25.0, rejected="duplicate", same_as=0), Outcome(None, rejected="duplicate", same_as=2)]
    found = funnel(history([*measured, *doubles]))["gates"]["duplicate"]
    assert (found["refused"], found["audited"], found["falsely_rejected"]) == (4, 3, 1)


def test_what_the_gates_cost_by_hand():
    costs = [
        {"probe_seconds": 2.0, "gate_seconds": {"finite": 0.25, "descent": 1.0}},
        {"probe_seconds": 1.0, "gate_seconds": {"finite": 0.5}},
        {"probe_seconds": 0.5, "gate_seconds": {}},  # at a later rung it meets no gate
        {"train_seconds": 9.0},  # nobody said how long it was looked at
    ]
    made = history([Outcome(30.0), Outcome(None, rejected="first_loss")])
    found = funnel(made, iter(costs))
    assert found["look_seconds"] == 3.5
    assert {gate: one["seconds"] for gate, one in found["gates"].items()} == {"finite": 0.75, "first_loss": 0.0, "descent": 1.0}
    assert found["gates"]["descent"]["refused"] == 0, "a gate that refuses nobody costs its time all the same"
    assert summarize(made, costs)["funnel"] == found


def test_a_trainer_that_did_not_tell_the_gates_apart_leaves_their_cost_unknown():
    before, now, not_looked_at = {"probe_seconds": 2.0}, {"probe_seconds": 1.0, "gate_seconds": {"finite": 0.5}}, {"probe_seconds": 0.0}
    assert seconds_of([]) == (None, None)
    assert seconds_of([{"train_seconds": 1.0}]) == (None, None)
    assert seconds_of([before, now]) == (3.0, None)
    assert seconds_of([now, not_looked_at]) == (1.0, {"finite": 0.5})
    found = funnel(history([Outcome(30.0), Outcome(None, rejected="descent")]), [before, now])
    assert (found["look_seconds"], found["gates"]["descent"]["seconds"]) == (3.0, None)
