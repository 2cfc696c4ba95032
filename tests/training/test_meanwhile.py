"""What a policy compares before the detector's own loss, and on a GPU beside it, is what it would compare afterwards."""

from contextlib import contextmanager

import pytest
import torch

from detkds_core.catalogue import Recipe
from detkds_core.losses.policy import comes_early, policy_losses
from detkds_core.policy import parse_formula
from detkds_core.training import steps
from detkds_core.training.batches import Batches
from detkds_core.training.group import new_learner, prepare, teacher_signals, train, view
from detkds_core.training.pull import undisturbed

MIXED = "l2(global) + 2·l1[region=assigned](localization) + kl(softmax_HW(logits)) + 0.1·l2[region=valuable](logits)"


def learner_of(text, wanted):
    recipe, start = Recipe.from_json(wanted["recipe"]), prepare(wanted, 3)
    return new_learner(start, parse_formula(text), recipe, 3), start, Batches(wanted["dataset"]["train"], recipe, 3)


@pytest.mark.parametrize(
    ("text", "early"),
    [(MIXED, [True, False, True, False]), ("l1(localization)", [True]), ("giou[region=assigned_score](localization)", [False])],
)
def test_early_and_late_are_those_of_one_look(text, early, spec):
    learner, start, batches = learner_of(text, spec(recipe={"iterations": 2}))
    assert [comes_early(term) for term in learner.policy.terms] == early
    model = learner.student.model
    with undisturbed(model):
        seen = view(start, learner.student, batches, 0, learner.needs)
        expected = policy_losses(learner.policy, seen.signals, seen.said, seen.scene)
        said = teacher_signals(start, model.data_preprocessor, batches[0], seen.inputs, learner.needs)
        steps.seed_step(seen.scene.seed, seen.scene.step, seen.scene.place)
        _, found = steps.losses_of(learner, seen.inputs, seen.samples, said, seen.scene, start.teacher)
    assert {name: loss.item() for name, loss in found.items()} == {name: loss.item() for name, loss in expected.items()}


def test_what_is_early_is_computed_before_the_detectors_own_loss(spec, monkeypatch):
    learner, start, batches = learner_of(MIXED, spec(recipe={"iterations": 2}))
    order = []
    own, compare = learner.student.model.bbox_head.loss_by_feat, steps.policy_losses

    def loss_by_feat(*args, **kwargs):
        order.append("own")
        return own(*args, **kwargs)

    def compared(*args, **kwargs):
        found = compare(*args, **kwargs)
        order.append(sorted(found))
        return found

    monkeypatch.setattr(learner.student.model.bbox_head, "loss_by_feat", loss_by_feat)
    monkeypatch.setattr(steps, "policy_losses", compared)
    train([learner], start, batches, last_step=1)
    assert order == [["distill/0_global", "distill/2_logits"], "own", ["distill/1_localization", "distill/3_logits"]]


@pytest.mark.gpu
@pytest.mark.parametrize("text", [MIXED, "5·l2(standardize(global))", "fgd", "mgd", "crosskd"])
def test_on_a_gpu_beside_is_the_same_as_one_after_the_other(text, spec, monkeypatch):
    @contextmanager
    def in_order(_device):
        yield lambda: None

    def weights():
        learner, start, batches = learner_of(text, spec(recipe={"iterations": 4}))
        assert start.device.type == "cuda"
        train([learner], start, batches)
        assert learner.failure is None
        return learner.read_losses(), [p.detach().clone() for p in learner.parameters()]

    losses, beside = weights()
    monkeypatch.setattr(steps, "beside", in_order)
    expected, after = weights()
    assert losses == pytest.approx(expected, rel=1e-3)
    for ours, other in zip(beside, after, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-2, atol=1e-4)
