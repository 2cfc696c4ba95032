"""A trunk is the beginning of a training without distillation; branches start where it stands, alone as in company."""

import os
from dataclasses import replace

import pytest
import torch

from detkds_core.catalogue import Recipe
from detkds_core.datasets.kept import sweep
from detkds_core.policy import Policy, canonical, parse_formula, to_json
from detkds_core.training import forks, jobs
from detkds_core.training.forks import branch, branch_recipe, branch_seed, cached_trunk, grow_trunk
from detkds_core.training.ground import in_proportion
from detkds_core.training.group import TrainingError, batches_for, new_learner, prepare, state_digest, train, weights_digest
from detkds_core.training.jobs import measure_candidates
from detkds_core.training.steps import learning_rate

SILENT = lambda *_: None  # noqa: E731 (a progress sink)
POLICIES = [parse_formula(text) for text in ("l2(logits)", "0.3·l2[balanced](standardize(global))", "2·l1(fgbg)")]


@pytest.fixture
def ground(spec):
    job = spec(recipe={"iterations": 6})
    return prepare(job, 3), Recipe.from_json(job["recipe"])


def same_moments(one, other) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name][key]) for name, state in one.items() for key, value in state.items())


def test_a_fork_is_the_state_of_a_training_without_distillation(ground):
    start, recipe = ground
    fork = grow_trunk(start, recipe, 2, 3)
    learner = new_learner(start, Policy(()), recipe, 3)
    train([learner], start, batches_for(learner, start.train, recipe, 3), last_step=2)
    model = learner.student.model
    assert state_digest(fork.weights) == weights_digest(model)
    assert fork.moments.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {name: learner.optimizer.state[parameter] for name, parameter in model.named_parameters() if name in fork.moments}
    assert same_moments(fork.moments, own)
    assert all(state["step"] == 2 for state in fork.moments.values())
    # trained on, a branch under the trunk's own recipe and seed is the undisturbed training
    again = branch(start, fork, Policy(()), recipe, 3)
    for one in (again, learner):
        train([one], start, batches_for(one, start.train, recipe, 3), first_step=2)
    assert weights_digest(again.student.model) == weights_digest(model)
    assert state_digest(fork.weights) != weights_digest(model)  # and the fork is as it was


def test_branches_learn_alone_as_in_a_group(ground):
    start, recipe = ground
    fork, short, seed = grow_trunk(start, recipe, 2, 3), branch_recipe(recipe, 3), branch_seed(3)

    def trained(*policies):
        learners = [branch(start, fork, policy, short, seed) for policy in policies]
        train(learners, start, batches_for(learners[0], start.train, short, seed))
        return [weights_digest(learner.student.model) for learner in learners]

    together = trained(*POLICIES)
    assert together == [trained(policy)[0] for policy in POLICIES]
    assert len(set(together)) == 3


def test_the_rate_of_a_branch_falls_from_the_peak_to_nothing(ground):
    _, recipe = ground
    short = branch_recipe(recipe, 5)
    rates = [learning_rate(short, step) for step in range(5)]
    assert rates[0] == recipe.lr
    assert rates[2] == pytest.approx((recipe.lr + recipe.lr / 1e4) / 2)
    assert rates[-1] == pytest.approx(recipe.lr / 1e4)
    assert (short.batch, short.image_size, short.iterations) == (recipe.batch, recipe.image_size, 5)


def test_the_average_of_a_branch_starts_at_the_fork(spec):
    job = spec(recipe={"iterations": 4, "ema": 0.9})
    start, recipe = prepare(job, 3), Recipe.from_json(job["recipe"])
    fork = grow_trunk(start, recipe, 2, 3)
    learner = branch(start, fork, Policy(()), branch_recipe(recipe, 2), branch_seed(3))
    assert state_digest(learner.averaged) == state_digest(fork.weights)


def test_a_kept_trunk_is_the_one_that_was_grown_and_a_damaged_one_is_made_again(ground, tmp_path, monkeypatch):
    start, recipe = ground
    fork, grown = cached_trunk(start, recipe, 2, 3, tmp_path)
    (file,) = tmp_path.iterdir()  # no partial file is left
    os.utime(file, (0, 0))
    kept, grown_again = cached_trunk(start, recipe, 2, 3, tmp_path)
    assert sweep(tmp_path, days=1) == 0, "a trunk that was just used is none that nobody uses"
    assert (grown, grown_again) == (True, False)
    assert kept.weights.keys() == fork.weights.keys()
    assert all(torch.equal(value, fork.weights[name]) for name, value in kept.weights.items())
    assert same_moments(kept.moments, fork.moments)
    assert kept.steps == 2
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b""):
        file.write_bytes(damaged)
        assert cached_trunk(start, recipe, 2, 3, tmp_path)[1] is True
        assert len(file.read_bytes()) == len(whole)
    others = [
        (start, recipe, 1, 3),
        (start, recipe, 2, 4),
        (start, Recipe.from_json({"lr": 2e-3}, recipe), 2, 3),
        (prepare_with(start, 1.5), recipe, 2, 3),
    ]
    monkeypatch.setattr(forks, "grow_trunk", lambda *_: fork)
    assert all(cached_trunk(*other, tmp_path)[1] for other in others)
    assert len(list(tmp_path.iterdir())) == 5
    assert cached_trunk(start, Recipe.from_json({"eval_images": 3}, recipe), 2, 3, tmp_path)[1] is False


def prepare_with(start, factor):
    return replace(start, weights={name: value * factor for name, value in start.weights.items()})


def job_of(spec, policies, **entries):
    candidates = [{"index": index, "policy": to_json(policy)} for index, policy in policies.items()]
    return spec(candidates=candidates, recipe={"iterations": 6}, **entries)


def told(row):
    """What of a row must not depend on its group."""
    return {name: row[name] for name in ("index", "ap", "ap50", "look", "policy", "rejected", "failure", "iterations")}


def test_a_rung_of_a_job_is_branches_from_one_trunk(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("DETKDS_CACHE", str(tmp_path))
    digests = {}
    final = jobs.final_weights

    def noted(learner):
        digests[learner.policy] = weights_digest(learner.student.model)
        return final(learner)

    monkeypatch.setattr(jobs, "final_weights", noted)
    policies = dict(enumerate([Policy(()), *POLICIES]))
    result = measure_candidates(job_of(spec, policies, fork=2, rung=3, gates=["finite"]), SILENT)
    assert (result["fork"]["steps"], result["fork"]["grown"]) == (2, True)
    rows = result["candidates"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row["iterations"] for row in rows] == [3] * 4
    assert [row["cost"]["iterations"] for row in rows] == [3] * 4
    assert rows[0]["look"] is None  # nothing to see without terms
    assert rows[2]["look"]["ratio"] == pytest.approx(0.3, rel=5e-4)  # a found weight has four digits
    assert not rows[2]["policy"]["terms"][0].get("balanced")
    together = dict(digests)
    alone = measure_candidates(job_of(spec, {2: POLICIES[1]}, fork=2, rung=3, gates=["finite"]), SILENT)
    assert alone["fork"]["grown"] is False
    assert told(alone["candidates"][0]) == told(rows[2])
    assert digests[POLICIES[1]] == together[POLICIES[1]]
    # the whole proxy starts from the beginning, with the weights that were found at the fork
    whole = measure_candidates(job_of(spec, {2: POLICIES[1]}, fork=2), SILENT)["candidates"][0]
    assert whole["iterations"] == 6
    assert (whole["look"], whole["policy"]) == (rows[2]["look"], rows[2]["policy"])
    plain = measure_candidates(job_of(spec, {2: POLICIES[1]}), SILENT)["candidates"][0]
    assert plain["look"] is None
    assert plain["policy"] != whole["policy"]


def test_a_shorter_training_warms_up_as_much_sooner(spec, tmp_path, monkeypatch):
    """A rung of 3 that stands for 12 is a quarter of it; what is told of the candidate is the policy that was asked about."""
    monkeypatch.setenv("DETKDS_CACHE", str(tmp_path))
    learnt = {}
    final = jobs.final_weights

    def noted(learner):
        learnt[len(learnt)] = learner.policy.terms[0].warm_up, weights_digest(learner.student.model)
        return final(learner)

    monkeypatch.setattr(jobs, "final_weights", noted)
    slow, quick = (replace(POLICIES[0], terms=(replace(POLICIES[0].terms[0], warm_up=steps),)) for steps in (8, 2))
    (row,) = measure_candidates(job_of(spec, {0: slow}, fork=2, rung=3, stands_for=12), SILENT)["candidates"]
    measure_candidates(job_of(spec, {0: quick}, fork=2, rung=3, stands_for=3), SILENT)
    measure_candidates(job_of(spec, {0: slow}, fork=2, rung=3), SILENT)  # of its own recipe: half
    measure_candidates(job_of(spec, {0: slow}, stands_for=2), SILENT)  # what stands for less is no slower
    assert [warm_up for warm_up, _ in learnt.values()] == [2, 2, 4, 8]
    assert learnt[0] == learnt[1]
    assert learnt[2][1] != learnt[1][1]
    assert row["policy"]["terms"][0]["warm_up"] == 8


def test_warm_ups_of_a_share_of_a_training():
    policy = parse_formula("l2[warm_up=500](global) + l1(logits) + maskd[masks_from=10] + fgd")
    tenth = parse_formula("l2[warm_up=50](global) + l1(logits) + maskd[masks_from=1] + fgd")
    assert canonical(in_proportion(policy, 0.1)) == canonical(tenth)
    least = parse_formula("l2[warm_up=1](global) + l1(logits) + maskd[masks_from=1] + fgd")
    assert canonical(in_proportion(policy, 1e-6)) == canonical(least), "what warms up begins at nothing, however short"
    assert dict(in_proportion(parse_formula("maskd"), 0.1).distillers[0].settings)["masks_from"] == 100, "by default too"
    assert in_proportion(policy, 1.0) == policy


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"rung": 3}, "rung: 3 iterations from a fork, but there is no fork"),
        ({"fork": 7, "rung": 3}, "fork: 7 steps of a training that has 6"),
        ({"gates": ["finite", "luck"]}, "gates: luck: none of finite, gradient, duplicate, first_loss, descent"),
    ],
)
def test_a_job_that_cannot_be_is_refused(spec, entries, message):
    with pytest.raises(TrainingError, match=message) as raised:
        measure_candidates(job_of(spec, {0: POLICIES[0]}, **entries), SILENT)
    assert raised.value.kind == "bad_data"
