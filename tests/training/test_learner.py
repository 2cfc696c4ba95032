"""What a learner learns with: optimizer groups, averages, precision, accumulation, automatic weights; numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from detkds_core.catalogue import Recipe
from detkds_core.losses.signals import Scene, Signals
from detkds_core.policy import Policy, parse_formula
from detkds_core.training.group import batches_for, new_learner, prepare, train, weights_digest
from detkds_core.training.learner import Learner, average, final_weights, make_learner, make_optimizer
from detkds_core.training.steps import scaled, study, update

from . import devices_program
from .devices_program import frozen_student


class Line(nn.Module):
    """A detector of one weight and one bias, whose loss is (w * x + b) summed, times a factor that a test may set."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)
        self.factor = 1.0
        nn.init.constant_(self.layer.weight, 2.0)
        nn.init.constant_(self.layer.bias, 1.0)


class Pupil:
    """What a learner asks of a student."""

    adapters = None

    def __init__(self) -> None:
        self.model = Line()

    def losses(self, inputs, samples, needs, meanwhile=None):
        return {"loss": self.model.layer(inputs).float().sum() * self.model.factor}, Signals(features=())

    def parameters(self):
        return list(self.model.layer.parameters())


SGD = Recipe(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.1, schedule="steps", warm_up=0, milestones=(100,), clip=None)
SCENE = Scene(boxes=(), batch_shape=(1, 1))


def step(learner, recipe, *inputs, number=0):
    for part, value in enumerate(inputs):
        study(learner, torch.tensor([[value]]), [], Signals(features=()), replace(SCENE, step=number), recipe, None, part)
    update(learner, number, recipe)


def test_accumulated_gradients_are_means_and_so_are_the_losses():
    learner = make_learner(Pupil(), Policy(()), SGD)
    recipe = replace(SGD, accumulate=2)
    step(learner, recipe, 3.0, 5.0)
    # d(w x + b) = x, 1: means 4 and 1; losses 7 and 11
    assert learner.student.model.layer.weight.item() == pytest.approx(2.0 - 0.1 * 4)
    assert learner.student.model.layer.bias.item() == pytest.approx(1.0 - 0.1)
    assert learner.read_losses() == {"task": pytest.approx(9.0)}


def test_a_gradient_is_clipped_to_its_norm_or_left():
    learner = make_learner(Pupil(), Policy(()), SGD)
    step(learner, replace(SGD, clip=1.0), 3.0)  # gradient (3, 1), norm sqrt(10)
    assert learner.student.model.layer.weight.item() == pytest.approx(2.0 - 0.1 * 3 / 10**0.5, rel=1e-5)


def test_a_step_needs_what_has_not_stopped():
    policy = parse_formula("gid[stop=0.5] + l2(global) + l1[stop=0.1, region=proposals](logits) + l1[stop=0.2](localization)")
    learner = Learner(None, policy, None, None)
    found = [learner.needs_at(step, 100) for step in (0, 10, 20, 50)]
    of_gid = {"features", "logits", "boxes"}
    assert found == [of_gid | {"rois", "roi_scores"}, of_gid, of_gid, {"features"}]


def test_biases_outside_of_norms_learn_at_their_own_rate_and_decay():
    """MMDetection's FCOS: twice the rate, no decay."""
    recipe = replace(SGD, bias_lr_factor=2.0, bias_decay_factor=0.0, weight_decay=0.5)
    learner = make_learner(Pupil(), Policy(()), recipe)
    step(learner, recipe, 3.0)
    assert learner.student.model.layer.weight.item() == pytest.approx(2.0 - 0.1 * (3 + 0.5 * 2.0))
    assert learner.student.model.layer.bias.item() == pytest.approx(1.0 - 0.2 * 1)
    model = Line()
    for optimizer, groups in (("sgd", [(3, 0.5, 1.0), (1, 0.0, 2.0)]), ("adamw", [(1, 0.5, 1.0), (2, 0.0, 1.0), (1, 0.0, 2.0)])):
        made = make_optimizer([model], replace(recipe, optimizer=optimizer))
        assert [(len(g["params"]), g["weight_decay"], g["lr_factor"]) for g in made.param_groups] == groups
        assert made.param_groups[-1]["params"][0] is model.layer.bias  # and not the norm's


def test_an_average_follows_its_student():
    recipe = replace(SGD, ema=0.5)
    learner = make_learner(Pupil(), Policy(()), recipe)
    weight = learner.student.model.layer.weight
    step(learner, recipe, 3.0)  # 2.0 -> 1.7; the first step keeps 1/10 of the start
    assert learner.averaged["layer.weight"].item() == pytest.approx(0.1 * 2.0 + 0.9 * 1.7)
    step(learner, recipe, 3.0, number=1)  # 1.7 -> 1.4; keeps 2/11
    expected = 2 / 11 * 1.73 + 9 / 11 * 1.4
    assert learner.averaged["layer.weight"].item() == pytest.approx(expected)
    average(learner, 0.5, 1000)
    assert learner.averaged["layer.weight"].item() == pytest.approx((expected + 1.4) / 2)
    learner.student.model.norm.num_batches_tracked.fill_(7)
    average(learner, 0.5, 1000)
    with final_weights(learner) as model:
        assert model.layer.weight.item() == learner.averaged["layer.weight"].item() != pytest.approx(1.4)
        assert int(model.norm.num_batches_tracked) == 7
    assert weight.item() == pytest.approx(1.4)


def test_an_overflow_under_fp16_skips_the_step_and_ends_only_when_nothing_is_scaled():
    recipe = replace(SGD, precision="fp16")
    learner = make_learner(Pupil(), Policy(()), recipe)
    learner.student.model.factor = 1e35  # finite, but not times 2^16
    step(learner, recipe, 3.0)
    assert learner.failure is None
    assert learner.student.model.layer.weight.item() == 2.0
    assert learner.scaler.get_scale() == 2.0**15
    learner.student.model.factor = 1.0
    step(learner, recipe, 1.0)
    assert learner.student.model.layer.weight.item() == pytest.approx(1.9)  # unscaled before it moves the weight
    learner.student.model.layer.weight.register_hook(lambda grad: grad * float("inf"))
    for power in range(15, -1, -1):
        assert learner.scaler.get_scale() == 2.0**power
        step(learner, recipe, 1.0)
        assert learner.failure is None
    step(learner, recipe, 1.0)
    assert learner.failure["kind"] == "not_finite"
    assert "gradient" in learner.failure["detail"]


def test_a_loss_that_is_not_finite_in_any_part_of_a_step_ends_the_learner_unmoved():
    learner = make_learner(Pupil(), Policy(()), SGD)
    step(learner, replace(SGD, accumulate=2), float("inf"), 1.0)
    assert learner.failure["kind"] == "not_finite"
    assert "the loss is inf at iteration 0" in learner.failure["detail"]
    assert learner.student.model.layer.weight.item() == 2.0


def test_an_automatic_weight_is_fixed_at_the_first_loss_above_nothing():
    """ratio 0.5 of a task loss of 12 is 6; the term's weighted loss is 0.25, so its scale is 24."""
    policy = parse_formula("0.5·l1[auto](global) + 2·l2(global)")
    learner = make_learner(Pupil(), policy, SGD)
    first, second = "distill/0_global", "distill/1_global"

    def weighed(task, *values):
        losses = {first: torch.tensor(values[0]), second: torch.tensor(values[1])}
        found = scaled(learner, torch.tensor(task), losses, SCENE)
        return [float(found[first]), float(found[second])]

    assert weighed(12.0, 0.0, 3.0) == [0.0, 3.0]
    assert learner.scales == {}
    assert weighed(12.0, 0.25, 3.0) == [6.0, 3.0]
    assert learner.scales == {first: 24.0}
    assert weighed(9.0, 6.5, 3.0) == [6.5, 3.0]  # from here on the loss comes scaled, by what was fixed


def trained(spec, recipe, policy):
    devices_program.add_detector_without_batch_coupling()
    whole = Recipe.from_json({**spec["recipe"], **recipe})
    start = prepare(spec, 3)
    learner = new_learner(start, policy, whole, 3)
    batches = batches_for(learner, spec["dataset"]["train"], whole, 3)
    train([learner], start, batches)
    assert learner.failure is None, learner.failure
    return learner


def test_a_batch_in_parts_shows_the_images_of_the_whole(spec, small_digits, tmp_path):
    """A loss that is a mean over images has the same mean over the parts of a step, when norms do not couple the images."""
    job = spec(student=frozen_student(tmp_path, small_digits.classes))
    policy = parse_formula("1·l2(global) + 1·l2(mask(global)) + 1·l2(drop(global))")
    whole, halves = (trained(job, {"iterations": 2, "lr": 1e-9, **cut}, policy) for cut in ({"batch": 4}, {"batch": 2, "accumulate": 2}))
    for number in range(3):
        name = f"distill/{number}_global"
        assert halves.read_losses()[name] == pytest.approx(whole.read_losses()[name], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("family", ["gfl", "faster_rcnn"])
def test_half_precision_learns_like_full_and_its_losses_are_fp32(spec, small_digits, tmp_path, precision, family):
    from detkds_core.detectors.build import build_detector, save_weights

    torch.manual_seed(1)
    teacher = tmp_path / "teacher.safetensors"
    save_weights(build_detector(f"{family}_r18w16_fpn32", small_digits.classes), teacher, {})
    job = spec(teacher={"detector": f"{family}_r18w16_fpn32", "checkpoint": str(teacher)}, student={"detector": f"{family}_r18w8_fpn32"})
    policy = parse_formula("1·l2(global) + 1·l1(logits)")
    full = trained(job, {"iterations": 2}, policy)
    half = trained(job, {"iterations": 2, "precision": precision}, policy)
    assert all(value.dtype == torch.float32 for value in half.losses.values())
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())
    assert half.read_losses() == pytest.approx(full.read_losses(), rel=0.1)
    assert half.read_losses() != full.read_losses()
    assert weights_digest(half.student.model) != weights_digest(full.student.model)
