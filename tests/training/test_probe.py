"""A look at a policy where it would start; numbers of a line worked out by hand, and of small detectors against their gradients."""

import pytest
import torch

from detkds_core.catalogue import Recipe
from detkds_core.policy import Policy, parse_formula
from detkds_core.training.group import balance_weights, batches_for, new_learner, prepare, weights_digest
from detkds_core.training.probe import Look, _finding, probe
from detkds_core.training.pull import parts_of

from .test_balanced import pulled


def finding(formula: str, *teachers: list[float]):
    policy = parse_formula(formula)
    return _finding(policy, parts_of(policy), [pulled(policy, teacher)[1] for teacher in teachers])


def test_a_look_adds_up_the_parts():
    """To (1, 1): l2 is 14.5 with slope 12, l1 is 3.5 with slope 1.5, the task is 30 with slope 10 (test_balanced)."""
    found = finding("0.5·l2[balanced](global) + 2·l1(global)", [1.0, 1.0])
    assert found.scales == {"distill/0_global": pytest.approx(10 / 12)}
    assert found.look.ratio == pytest.approx((0.5 * 10 + 2 * 1.5) / 10, rel=5e-4)  # a found weight has four digits
    assert found.look.loss == pytest.approx(0.4167 * 14.5 + 7)
    assert found.first_loss == found.look.loss
    assert found.look.agreement == pytest.approx(1.0)
    assert sorted(map(abs, found.look.sketch)) == [0.0] * 15 + [1.0]  # a gradient of one number has one place
    assert [term.weight for term in found.resolved.terms] == [0.4167, 2.0]  # 0.5 · 10 / 12
    # an automatic weight: half of the task's loss of 30, at which the slope is 15 / 14.5 * 12
    automatic = finding("0.5·l2[auto](global)", [1.0, 1.0])
    assert automatic.look.loss == pytest.approx(15)
    assert automatic.look.ratio == pytest.approx(15 / 14.5 * 12 / 10)
    assert automatic.resolved.terms[0].auto  # it is fixed by the training


def test_a_look_is_a_mean_over_batches_and_agreement_has_a_sign():
    found = finding("l1(global)", [1.0, 1.0], [9.0, 9.0])  # slopes 1.5 and -1.5, losses 3.5 and 4.5
    assert found.look.loss == pytest.approx(4.0)
    assert found.look.ratio == pytest.approx(0.15)
    assert found.look.agreement == pytest.approx(0.0)
    assert found.first_loss == pytest.approx(3.5)


def test_what_cannot_be_trained_with_says_why():
    assert finding("l2(global)", [3.0, 6.0]).look.failure == {"kind": "no_gradient", "detail": "the policy does not move the student"}
    assert finding("l2[balanced](global)", [3.0, 6.0]).look.failure["detail"].startswith("distill/0_global does not move the student")
    missing = finding("l2(logits)", [1.0, 1.0]).look.failure
    assert missing["kind"] == "not_computable"
    assert "policy.terms[0] (logits): it needs logits" in missing["detail"]
    infinite = finding("l2(global)", [1e30, 1.0]).look.failure
    assert infinite["kind"] == "not_finite"
    assert "inf" in infinite["detail"]


def test_a_look_is_plain_json_and_back():
    for look in (finding("l1(global)", [1.0, 1.0]).look, finding("l2(logits)", [1.0, 1.0]).look):
        assert Look.from_json(look.to_json()) == look


def looked(spec, *formulas):
    job = spec()
    recipe = Recipe.from_json(job["recipe"])
    start = prepare(job, 3)
    learner = new_learner(start, Policy(()), recipe, 3)
    batches = batches_for(learner, start.train, recipe, 3)
    before = weights_digest(learner.student.model)
    findings, stills = probe(start, learner, batches, [parse_formula(text) for text in formulas])
    assert weights_digest(learner.student.model) == before
    assert [still.scene.step for still in stills] == [0, 1]
    return findings


def test_a_look_does_not_depend_on_its_company(spec):
    formulas = ["0.3·l2[balanced](standardize(global)) + l1(mask(fgbg))", "kl[T=2](softmax_C(logits))", "2·giou(localization)"]
    together = looked(spec, *formulas)
    for text, found in zip(formulas, together, strict=True):
        (alone,) = looked(spec, text)
        assert (alone.look, alone.scales, alone.first_loss) == (found.look, found.scales, found.first_loss)
        assert found.look.failure is None
    assert together[0].look.ratio > 0.3


def test_scales_are_those_that_a_training_finds(spec):
    text = "0.3·l2[balanced](standardize(global)) + 0.1·l1[balanced](logits)"
    (found,) = looked(spec, text)
    job = spec()
    recipe, start = Recipe.from_json(job["recipe"]), prepare(job, 3)
    learner = new_learner(start, parse_formula(text), recipe, 3)
    balance_weights([learner], start, batches_for(learner, start.train, recipe, 3))
    assert learner.scales == found.scales


def test_twins_have_one_sketch_and_others_another(spec):
    first, heavier, named, other = looked(spec, "l1(global)", "7·l1(global)", "2·l1(scale(global))", "l2(global)")

    def apart(one, two):
        return torch.dist(torch.tensor(one.look.sketch), torch.tensor(two.look.sketch)).item()

    assert apart(first, heavier) < 1e-5
    assert apart(first, named) < 1e-4
    assert apart(first, other) > 0.05
    assert heavier.look.ratio == pytest.approx(7 * first.look.ratio, rel=1e-4)
    assert torch.tensor(first.look.sketch).norm().item() == pytest.approx(1, abs=1e-5)
