"""A balanced term's weight is the ratio of two gradients where the training starts; numbers of a line worked out by hand."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from detkds_core.catalogue import Recipe
from detkds_core.distillers import distiller_losses
from detkds_core.losses.policy import policy_losses
from detkds_core.losses.signals import Scene, Signals
from detkds_core.policy import Distiller, Policy, canonical, formula, from_json, parse_formula, to_json
from detkds_core.training.group import balance_weights, batches_for, new_learner, prepare, train, view, weights_digest
from detkds_core.training.learner import restore, state_of
from detkds_core.training.pull import balance, fixed, flat_gradient, parts_of, pulls, shared_parameters, sketch, undisturbed

SCENE = Scene(boxes=(), batch_shape=(1, 2))
BALANCED = parse_formula("0.5·l2[balanced](global) + 0.25·l1[balanced, warm_up=2](global) + 0.1·l2(standardize(fgbg))")


class Line:
    """A student whose feature is (w, 2 w) and whose own loss is 10 w; w = 3 is its backbone."""

    def __init__(self) -> None:
        self.model = nn.Module()
        self.model.backbone = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.model.backbone.weight, 3.0)

    def forward(self) -> tuple[torch.Tensor, Signals]:
        w = self.model.backbone.weight.view(())
        return 10 * w, Signals((torch.stack([w, 2 * w]).view(1, 1, 1, 2),))


def pulled(policy: Policy, teacher: list[float], all_terms: bool = True):
    line = Line()
    task, signals = line.forward()
    parts = parts_of(policy, all_terms)
    said = Signals((torch.tensor(teacher).view(1, 1, 1, 2),))
    return parts, pulls(line, task, signals, said, SCENE, [[part for _, part in parts]], half=False)[0]


def test_a_ratio_of_gradients_is_a_weight():
    """l2 to (1, 1): ((w-1)^2 + (2w-1)^2) / 2 = 14.5, slope (w-1) + 2 (2w-1) = 12; l1: slope (1 + 2) / 2 = 1.5; the task's is 10."""
    parts, pull = pulled(parse_formula("0.5·l2[balanced](global) + 2·l1(global)"), [1.0, 1.0])
    assert [name for name, _ in parts] == ["distill/0_global", None]
    assert pull.losses == (14.5, 7.0)
    assert pull.products.tolist() == [[144.0, 36.0], [36.0, 9.0]]
    assert pull.along.tolist() == [120.0, 30.0]
    assert pull.task == (30.0, 10.0)
    assert balance(parts, [pull]) == {"distill/0_global": pytest.approx(10 / 12)}
    # on a second batch, to (2, 2), the slope is 1 + 2 * 4 = 9: the mean ratio is (1.2 + 0.9) / 2
    _, second = pulled(parse_formula("0.5·l2[balanced](global) + 2·l1(global)"), [2.0, 2.0])
    assert balance(parts, [pull, second]) == {"distill/0_global": pytest.approx(1 / 1.05)}


def test_a_term_without_a_gradient_gets_no_weight():
    parts, pull = pulled(parse_formula("0.5·l2[balanced](global)"), [3.0, 6.0])
    assert pull.losses == (0.0,)
    assert balance(parts, [pull]) == {}
    parts, pull = pulled(parse_formula("l2[balanced](norm_C(global)) + l2(logits)"), [3.0, 6.0])
    assert "logits" in pull.error
    assert balance(parts, [pull]) == {}


def test_parts_keep_their_places_and_lose_their_schedules():
    ((first, one), (second, other), (third, rest)) = parts_of(BALANCED)
    assert [first, second, third] == ["distill/0_global", "distill/1_global", None]
    assert [[term.weight for term in part.terms] for part in (one, other, rest)] == [[1, 0, 0], [0, 1, 0], [0, 0, 0.1]]
    assert all(term.warm_up == 0 and not term.balanced for part in (one, other, rest) for term in part.terms)
    ((name, fgd),) = parts_of(parse_formula("0.5·fgd[balanced, warm_up=5, stop=0.5, decay=0]"))
    assert (name, fgd) == ("distill/fgd", parse_formula("fgd"))
    auto = parse_formula("l2[auto](global) + l1[balanced](global)")
    assert [name for name, _ in parts_of(auto)] == ["distill/0_global", "distill/1_global"]
    assert [name for name, _ in parts_of(auto, all_terms=False)] == ["distill/1_global"]


def test_a_sketch_is_linear_and_tells_directions_apart():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 1000, generator=generator)
    assert torch.allclose(sketch(a) + 2 * sketch(b), sketch(a.double() + 2 * b.double()))
    assert (sketch(a) / sketch(a).norm() - sketch(b) / sketch(b).norm()).norm() > 0.1


class Doubled(nn.Module):
    """A distiller whose two losses are the sum of the student's feature, (w, 2 w), and twice as much."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, student: Signals, teacher: Signals, scene: Scene) -> dict[str, torch.Tensor]:
        (feature,) = student.features
        return {f"distill/{self.name}_one": feature.sum(), f"distill/{self.name}_two": 2 * feature.sum()}


def test_a_distiller_is_balanced_as_a_whole():
    """Both losses are 9 w, of slope 9, beside the task's 10, whatever its weight; a distiller of fixed weight is no part."""
    policy = parse_formula("0.5·mgd[balanced] + 3·gid + l2[balanced](global)")
    parts = parts_of(policy, all_terms=False)
    assert [name for name, _ in parts] == ["distill/0_global", "distill/mgd"]
    line, mgd, gid = Line(), Doubled("mgd"), Doubled("gid")
    task, signals = line.forward()
    said = Signals((torch.ones(1, 1, 1, 2),))
    (pull,) = pulls(line, task, signals, said, SCENE, [[part for _, part in parts]], half=False, modules=[{"mgd": mgd}])
    assert pull.losses == (14.5, 27.0)
    assert pull.products.diagonal().tolist() == [144.0, 81.0]
    scales = balance(parts, [pull])
    assert scales == {"distill/0_global": pytest.approx(10 / 12), "distill/mgd": pytest.approx(10 / 9)}
    found = fixed(policy, scales)
    assert found.distillers == (Distiller("mgd", weight=0.5556), Distiller("gid", weight=3.0))  # 0.5 · 10 / 9, to four digits
    assert not found.terms[0].balanced
    for weighed in (policy, found):
        losses = distiller_losses(weighed, [mgd, gid], signals, said, SCENE, scales | {"distill/gid": 7.0})
        expected = {"distill/mgd_one": 0.5556 * 9, "distill/mgd_two": 0.5556 * 18, "distill/gid_one": 27.0, "distill/gid_two": 54.0}
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected)


def test_a_distiller_weighs_by_its_schedule_as_a_term_does():
    line = Line()
    _, signals = line.forward()
    said, plain = Signals((torch.ones(1, 1, 1, 2),)), parse_formula("0.5·mgd")
    whole = distiller_losses(plain, [Doubled("mgd")], signals, said, SCENE)["distill/mgd_one"].item()
    for text, step, share in (
        ("0.5·mgd[warm_up=10]", 4, 0.4),
        ("0.5·mgd[warm_up=10]", 30, 1),
        ("0.5·mgd[decay=0.2]", 50, 0.6),
        ("0.5·mgd[stop=0.5]", 49, 1),
    ):
        scene = replace(SCENE, step=step, total_steps=100)
        found = distiller_losses(parse_formula(text), [Doubled("mgd")], signals, said, scene)
        assert found["distill/mgd_one"].item() == pytest.approx(share * whole), text
    ended = replace(SCENE, step=50, total_steps=100)
    assert distiller_losses(parse_formula("0.5·mgd[stop=0.5]"), [Doubled("mgd")], signals, said, ended) == {}


def started(spec, policy, seed=3, **recipe):
    whole = Recipe.from_json({**spec["recipe"], **recipe})
    start = prepare(spec, seed)
    learner = new_learner(start, policy, whole, seed)
    return start, learner, batches_for(learner, spec["dataset"]["train"], whole, seed)


def test_once_fixed_the_weight_is_the_ratio_and_nothing_else_has_changed(spec):
    start, learner, batches = started(spec(), parse_formula("0.3·l2[balanced](norm_C(global)) + 0.1·kl[balanced, T=2](softmax_C(logits))"))
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = weights_digest(learner.student.model)
    balance_weights([learner], start, batches)
    drawn = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())
    assert weights_digest(learner.student.model) == before  # statistics of its norms too
    assert all(parameter.grad is None for parameter in learner.parameters())
    policy = fixed(learner.policy, learner.scales)
    assert not any(term.balanced for term in policy.terms)
    assert from_json(to_json(policy)) == policy
    shared = shared_parameters(learner.student.model)
    ratios = [[], []]
    with undisturbed(learner.student.model):
        for index in range(2):
            seen = view(start, learner.student, batches, index, learner.needs)
            own = flat_gradient(seen.task, shared).norm()
            for place, term in enumerate(policy.terms):
                alone = Policy((term,))
                (loss,) = policy_losses(alone, seen.signals, seen.said, seen.scene).values()
                ratios[place].append((flat_gradient(loss, shared).norm() / own).item())
    assert [sum(ratio) / 2 for ratio in ratios] == [pytest.approx(0.3, rel=1e-3), pytest.approx(0.1, rel=1e-3)]


def test_balanced_terms_train_alone_as_in_a_group_and_as_their_fixed_weights_do(spec):
    def trained(*policies):
        start, first, batches = started(spec(), policies[0])
        learners = [first, *(new_learner(start, one, batches.recipe, 3) for one in policies[1:])]
        train(learners, start, batches)
        assert [learner.failure for learner in learners] == [None] * len(learners)
        return learners

    together = trained(parse_formula("l2(logits)"), BALANCED, parse_formula("l1[balanced](logits)"))
    (alone,) = trained(BALANCED)
    assert alone.scales == together[1].scales
    assert alone.scales.keys() == {"distill/0_global", "distill/1_global"}
    assert weights_digest(alone.student.model) == weights_digest(together[1].student.model)
    (other,) = trained(fixed(alone.policy, alone.scales))
    assert other.scales == {}
    assert weights_digest(other.student.model) == weights_digest(alone.student.model)


def test_a_balanced_distiller_trains_as_the_weight_that_was_found_does_to_the_bit(spec):
    def trained(*policies):
        start, first, batches = started(spec(), policies[0])
        learners = [first, *(new_learner(start, one, batches.recipe, 3) for one in policies[1:])]
        train(learners, start, batches)
        assert [learner.failure for learner in learners] == [None] * len(learners)
        return learners

    policy = parse_formula("0.5·fgd[balanced] + 0.3·gid[balanced] + mgd + 0.2·l2[balanced](global)")
    _, grouped = trained(parse_formula("mgd[balanced]"), policy)
    (alone,) = trained(policy)
    assert alone.scales == grouped.scales
    assert alone.scales.keys() == {"distill/0_global", "distill/fgd", "distill/gid"}
    assert weights_digest(alone.student.model) == weights_digest(grouped.student.model)
    found = fixed(alone.policy, alone.scales)
    assert [(one.name, one.balanced) for one in found.distillers] == [("fgd", False), ("gid", False), ("mgd", False)]
    assert parse_formula(formula(found)) == from_json(to_json(found)) == canonical(found) == found
    (again,) = trained(found)
    assert again.scales == {}
    assert weights_digest(again.student.model) == weights_digest(alone.student.model)


def test_the_gradient_of_a_balanced_distiller_is_the_ratio_whatever_its_own_weights(spec):
    ratios = []
    for text in ("0.3·fgd[balanced]", "0.3·fgd[balanced, alpha=0.1, beta=0.05, gamma=0.05, lambda=0.0005]"):
        start, learner, batches = started(spec(), parse_formula(text))
        before = [weights_digest(module) for module in learner.distillers]
        balance_weights([learner], start, batches)
        assert [weights_digest(module) for module in learner.distillers] == before
        assert all(parameter.grad is None for parameter in learner.parameters())
        shared, lengths = shared_parameters(learner.student.model), []
        with undisturbed(learner.student.model):
            for index in range(2):
                seen = view(start, learner.student, batches, index, learner.needs)
                found = distiller_losses(fixed(learner.policy, learner.scales), learner.distillers, seen.signals, seen.said, seen.scene)
                length = flat_gradient(sum(found.values()), shared).norm()
                lengths.append((length / flat_gradient(seen.task, shared).norm()).item())
        ratios.append(sum(lengths) / 2)
    assert ratios == [pytest.approx(0.3, rel=1e-3)] * 2


def test_learners_that_stand_elsewhere_are_balanced_where_they_stand(spec):
    start, first, batches = started(spec(), BALANCED)
    second = new_learner(start, BALANCED, batches.recipe, 3)
    with torch.no_grad():
        second.student.model.backbone.conv1.weight.mul_(1.5)
    alone = second.student.model.state_dict()
    balance_weights([first, second], start, batches)
    again = new_learner(start, BALANCED, batches.recipe, 3)
    again.student.model.load_state_dict(alone)
    balance_weights([again], start, batches)
    assert second.scales == again.scales != first.scales


def test_a_resumed_training_keeps_the_weights_that_were_found(spec):
    start, learner, batches = started(spec(), BALANCED)
    train([learner], start, batches, last_step=1)
    again = new_learner(start, BALANCED, batches.recipe, 3)
    restore(again, copy.deepcopy(state_of(learner)))
    assert again.scales == learner.scales
    train([again], start, batches, first_step=1)
    train([learner], start, batches, first_step=1)
    assert weights_digest(again.student.model) == weights_digest(learner.student.model)


def test_what_cannot_be_balanced_ends_its_learner_alone(spec, teacher_file):
    """A student that is its teacher: features agree, so no weight makes their difference count."""
    same = {"detector": "gfl_r18w16_fpn32", "checkpoint": str(teacher_file)}
    start, learner, batches = started(spec(student=same), parse_formula("l2[balanced](global)"), iterations=1)
    with torch.no_grad():
        for module in learner.student.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum, module.training = 0.0, False
                module.train = lambda mode=True: None
    other = new_learner(start, parse_formula("l2(global)"), batches.recipe, 3)
    train([learner, other], start, batches)
    assert learner.failure["kind"] == "bad_data"
    assert learner.failure["detail"].startswith("distill/0_global cannot be balanced with the task: it has no gradient")
    assert other.failure is None
