"""What a policy's loss promises whatever its formula: schedule, weights, regions, sharing, dtypes, errors."""

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor

from detkds_core.losses import Scene, Signals, needs, policy_losses
from detkds_core.policy import Policy, Term

BOX = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
NOTHING = torch.zeros(0, 4)


def term(
    knowledge: str = "global",
    transforms: tuple[str, ...] = ("none", "none", "none"),
    distance: str = "l1",
    weight: float = 1.0,
    **options: Any,
) -> Term:
    return Term(knowledge, transforms, distance, weight, **options)


def loss_of(a_term: Term, student: Tensor, teacher: Tensor, scene: Scene) -> Tensor:
    (loss,) = policy_losses(Policy((a_term,)), Signals((student,)), Signals((teacher,)), scene).values()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    return loss


def random_maps(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).requires_grad_(), torch.randn(shape, generator=generator)


def scene(*boxes: Tensor, step: int = 0, seed: int = 0, total_steps: int = 1) -> Scene:
    return Scene(boxes, (16, 16), step, seed, total_steps)


def test_each_term_has_its_name_and_its_weight() -> None:
    student, teacher = torch.tensor([[[[1.0, 2], [3, 4]]]]), torch.tensor([[[[1.0, 1], [5, 2.5]]]])
    policy = Policy((term(weight=2.0), term("logits", ("none",), "l2", weight=1.0)))
    signals = Signals((student,), logits=(torch.zeros(1, 1, 1, 1),)), Signals((teacher,), logits=(torch.full((1, 1, 1, 1), log(3)),))
    losses = policy_losses(policy, *signals, scene(NOTHING))
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {"distill/0_global": 2 * 4.5 / 4, "distill/1_logits": 0.25**2}
    )


def test_no_distillation_has_no_loss_and_needs_nothing() -> None:
    assert policy_losses(Policy(()), Signals(()), Signals(()), scene()) == {}
    assert needs(Policy(())) == frozenset()


def test_a_policy_needs_the_signals_of_its_terms_and_no_others() -> None:
    features = [term(k) for k in ("global", "fgbg", "instance")]
    assert all(needs(Policy((t,))) == {"features"} for t in features)
    assert needs(Policy((term("logits", ("none",)),))) == {"logits"}
    for distance in ("l1", "iou", "giou"):
        assert needs(Policy((term("localization", ("none",), distance),))) == {"boxes", "logits"}
    assert needs(Policy((term("localization", ("none",), "kl_edges"),))) == {"edges", "logits"}
    assert needs(Policy((features[0], term("localization", ("none",), "kl_edges")))) == {"features", "edges", "logits"}


def test_levels_are_summed() -> None:
    ones, zeros = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    small = torch.ones(2, 3, 2, 2)
    losses = policy_losses(Policy((term(),)), Signals((ones, 3 * small)), Signals((zeros, 0 * small)), scene(NOTHING, NOTHING))
    assert losses["distill/0_global"].item() == 1 + 3


def test_foreground_and_background() -> None:
    # 4 x 4 cells of 4 pixels; the box covers cells 0 to 2 both ways, 9 cells of weight 1/9; the other 7 cells weigh 1/7.
    student, teacher = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    student[..., 0, 0] = 9.0
    student[..., 3, 3] = 70.0
    assert loss_of(term("fgbg"), student, teacher, scene(BOX)).item() == pytest.approx(9 / 9 / 16 + 0.5 * 70 / 7 / 16)
    assert loss_of(term("fgbg", background=0.0), student, teacher, scene(BOX)).item() == pytest.approx(1 / 16)
    assert loss_of(term("fgbg", background=2.0), student, teacher, scene(BOX)).item() == pytest.approx(1 / 16 + 2 * 10 / 16)
    # Its own distance, unlike the official code, which always takes l1.
    expected = (1**2 + 0.5 * 10**2) / 16
    assert loss_of(term("fgbg", distance="l2"), student, teacher, scene(BOX)).item() == pytest.approx(expected)


@pytest.mark.parametrize("scale", ["none", "scale_r1", "scale_r2", "multi_scale_r4"])
def test_instances_are_found_on_the_scaled_map(scale: str) -> None:
    # The maps differ by 1 in the lower right quarter alone, and the box lies inside it on every scale. On a pooled map the unscaled box
    # would lie outside, where RoIAlign gives 0.
    student = torch.zeros(1, 2, 16, 16)
    student[..., 8:, 8:] = 1
    box = torch.tensor([[10.0, 10.0, 16.0, 16.0]])
    loss = loss_of(term("instance", ("none", scale, "none")), student, torch.zeros(1, 2, 16, 16), scene(box))
    assert loss.item() == pytest.approx(1)


def test_instances_weigh_alike_whatever_their_image() -> None:
    student = torch.zeros(2, 1, 4, 4)
    student[1] = 3.0
    boxes = (BOX, torch.cat([BOX, BOX]))
    assert loss_of(term("instance"), student, torch.zeros(2, 1, 4, 4), scene(*boxes)).item() == pytest.approx((0 + 3 + 3) / 3)


@pytest.mark.parametrize("distance", ["l1", "l2", "smooth_l1", "pear", "cos", "kl"])
@pytest.mark.parametrize("knowledge", ["fgbg", "instance"])
def test_no_boxes_is_no_loss_and_still_a_function_of_the_student(knowledge: str, distance: str) -> None:
    student, teacher = random_maps(2, 3, 4, 4)
    normalisation = "softmax_C" if distance == "kl" else "norm_C"
    loss = loss_of(term(knowledge, ("catt", "none", normalisation), distance), student, teacher, scene(NOTHING, NOTHING))
    assert loss.item() == 0
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("knowledge", ["fgbg", "instance"])
def test_an_image_without_boxes_beside_one_with(knowledge: str) -> None:
    student, teacher = random_maps(2, 3, 4, 4)
    loss = loss_of(term(knowledge, ("satt", "none", "norm_C"), "cos"), student, teacher, scene(NOTHING, BOX))
    loss.backward()
    assert loss.item() > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_scene_and_batch_must_have_as_many_images() -> None:
    student, teacher = random_maps(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"policy.terms\[0\] \(fgbg\): the scene has boxes for 1 images, the batch 2"):
        loss_of(term("fgbg"), student, teacher, scene(BOX))


@pytest.mark.parametrize(
    ("step", "options", "share"),
    [
        (0, {}, 1.0),
        (0, {"warm_up": 4}, 0.0),
        (1, {"warm_up": 4}, 0.25),
        (4, {"warm_up": 4}, 1.0),
        (9, {"warm_up": 4}, 1.0),
        (4, {"stop": 0.5}, 1.0),
        (5, {"stop": 0.5}, 0.0),
        (9, {"stop": 1.0}, 1.0),
        (10, {"stop": 1.0}, 1.0),
        (2, {"warm_up": 8, "stop": 0.5}, 0.25),
    ],
)
def test_schedule(step: int, options: dict[str, Any], share: float) -> None:
    student, teacher = torch.ones(1, 1, 2, 2).requires_grad_(), torch.zeros(1, 1, 2, 2)
    loss = loss_of(term(weight=8.0, **options), student, teacher, scene(NOTHING, step=step, total_steps=10))
    loss.backward()
    assert loss.item() == pytest.approx(8 * share)
    assert student.grad is not None
    assert student.grad.sum().item() == pytest.approx(8 * share)


def test_student_and_teacher_share_one_mask() -> None:
    student, teacher = random_maps(2, 3, 20, 20)
    masked = term(transforms=("mask", "none", "none"))
    with torch.no_grad():
        assert loss_of(masked, teacher, teacher, scene(NOTHING, NOTHING)).item() == 0
        ones = loss_of(masked, torch.ones(2, 3, 20, 20), torch.zeros(2, 3, 20, 20), scene(NOTHING, NOTHING)).item()
    assert ones == pytest.approx(0.35, abs=0.08)  # 800 positions: a standard deviation is 0.017; two masks would keep 0.12
    loss_of(masked, student, teacher, scene(NOTHING, NOTHING)).backward()
    assert student.grad is not None
    seen = student.grad.abs().sum(1) > 0
    assert seen.float().mean().item() == pytest.approx(ones, abs=1e-3)


def test_the_mask_follows_from_seed_step_term_and_level() -> None:
    student, teacher = (x.detach() for x in random_maps(1, 2, 20, 20))
    masked = term(transforms=("mask", "none", "none"))

    def value(**when: int) -> float:
        return loss_of(masked, student, teacher, scene(NOTHING, **when)).item()

    torch.manual_seed(1)
    first = value(seed=3, step=5)
    torch.manual_seed(2)
    assert value(seed=3, step=5) == first
    assert len({first, value(seed=4, step=5), value(seed=3, step=6)}) == 3
    twice = policy_losses(Policy((masked, masked)), Signals((student, student)), Signals((teacher, teacher)), scene(NOTHING))
    assert twice["distill/0_global"].item() != twice["distill/1_global"].item()
    level_0 = loss_of(masked, student, teacher, scene(NOTHING)).item()
    assert twice["distill/0_global"].item() != pytest.approx(2 * level_0, rel=1e-6)


@pytest.mark.parametrize("attention", ["satt", "catt"])
def test_shared_attention_is_the_teachers_on_both_sides(attention: str) -> None:
    student, teacher = random_maps(2, 3, 4, 4)
    shared = term(transforms=(attention, "none", "none"), distance="l2", shared_attention=True)
    dims = (1,) if attention == "satt" else (2, 3)
    strength = teacher.abs().mean(dims, keepdim=True) / 0.5
    weights = strength.exp() / strength.exp().sum((2, 3) if attention == "satt" else (1,), keepdim=True)
    weights = weights * (16 if attention == "satt" else 3)
    expected = (weights * (student - teacher) ** 2).mean()
    assert loss_of(shared, student, teacher, scene(NOTHING, NOTHING)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_logits_pass_the_sigmoid_except_under_kl() -> None:
    student, teacher = torch.zeros(1, 2, 1, 1), torch.tensor([log(3), -log(3)]).view(1, 2, 1, 1)  # sigmoid 1/2, 1/2 and 3/4, 1/4

    def value(a_term: Term) -> float:
        (loss,) = policy_losses(Policy((a_term,)), Signals((), logits=(student,)), Signals((), logits=(teacher,)), scene(NOTHING)).values()
        return loss.item()

    assert value(term("logits", ("none",), "l1")) == pytest.approx(0.25)
    assert value(term("logits", ("norm_C",), "l1")) == pytest.approx((abs(3 / 10**0.5 - 0.5**0.5) + abs(1 / 10**0.5 - 0.5**0.5)) / 2)
    kl = 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5)  # softmax of the raw scores: 9/10, 1/10
    assert value(term("logits", ("softmax_C",), "kl")) == pytest.approx(kl)
    half = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)  # at temperature 2: 3/4, 1/4
    assert value(term("logits", ("softmax_C",), "kl", temperature=2.0)) == pytest.approx(4 * half)


def localized(distance: str, student: Signals, teacher: Signals) -> Tensor:
    (loss,) = policy_losses(Policy((term("localization", ("none",), distance),)), student, teacher, scene(NOTHING)).values()
    return loss


@pytest.mark.parametrize(("distance", "value"), [("l1", 0.75 * 0.5 / 4), ("iou", 0.75 * 0.5), ("giou", 0.75 * 0.5)])
def test_localization_weighs_boxes_by_the_teachers_score(distance: str, value: float) -> None:
    # Two cells with scores 3/4 and 1/4; the first box is half as wide as the teacher's, the second is equal. A cell is 8 pixels.
    theirs = torch.tensor([[[0.0, 0, 16, 8], [4, 4, 16, 16]]])
    ours = torch.tensor([[[0.0, 0, 8, 8], [4, 4, 16, 16]]]).requires_grad_()
    scores = torch.tensor([log(3), -log(3)]).view(1, 1, 1, 2)
    loss = localized(distance, Signals((), boxes=(ours,)), Signals((), logits=(scores,), boxes=(theirs,)))
    assert loss.item() == pytest.approx(value)
    loss.backward()
    assert ours.grad is not None
    assert ours.grad[0, 0].abs().max() > 0


def test_localization_without_candidates_is_zero() -> None:
    ours = torch.rand(1, 2, 4).requires_grad_()
    teacher = Signals((), logits=(torch.zeros(1, 1, 1, 2),), boxes=(torch.zeros(1, 2, 4),))  # no box has an area
    for distance in ("l1", "iou", "giou"):
        loss = localized(distance, Signals((), boxes=(ours,)), teacher)
        loss.backward()
        assert loss.item() == 0
    assert ours.grad is not None
    assert ours.grad.abs().max() == 0


def test_edges_weigh_cells_by_the_teachers_score() -> None:
    # One cell of score 3/4 differs on its left side, the other, of 1/4, does not.
    student = torch.zeros(1, 8, 1, 2).requires_grad_()
    teacher = torch.zeros(1, 8, 1, 2)
    teacher[0, 0, 0, 0] = log(3)
    scores = torch.tensor([log(3), -log(3)]).view(1, 1, 1, 2)
    loss = localized("kl_edges", Signals((), edges=(student,)), Signals((), logits=(scores,), edges=(teacher,)))
    assert loss.item() == pytest.approx(0.75 * (0.75 * log(1.5) + 0.25 * log(0.5)) / 4)


def test_missing_and_misfit_signals_are_named() -> None:
    feat = torch.ones(1, 2, 2, 2)
    logits = Policy((term(), term("logits", ("none",))))
    with pytest.raises(ValueError, match=r"policy.terms\[1\] \(logits\): it needs logits, which the teacher does not give"):
        policy_losses(logits, Signals((feat,), (feat,)), Signals((feat,)), scene(NOTHING))
    with pytest.raises(ValueError, match="2 levels at the student and 1 at the teacher"):
        policy_losses(Policy((term(),)), Signals((feat, feat)), Signals((feat,)), scene(NOTHING))
    with pytest.raises(ValueError, match=r"features of level 0 is \(1, 2, 2, 2\) at the student and \(1, 3, 2, 2\) at the teacher"):
        policy_losses(Policy((term(),)), Signals((feat,)), Signals((torch.ones(1, 3, 2, 2),)), scene(NOTHING))
    with pytest.raises(ValueError, match="teacher's logits on 1 levels, got 0"):
        localized("l1", Signals((), boxes=(torch.ones(1, 4, 4),)), Signals((), boxes=(torch.ones(1, 4, 4),)))


def test_norm_n_on_one_image_names_the_term() -> None:
    with pytest.raises(ValueError, match=r"policy.terms\[0\] \(global\): 'norm_N' compares the images"):
        loss_of(term(transforms=("catt", "scale_r2", "norm_N")), *random_maps(1, 3, 4, 4), scene(NOTHING))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_change_the_loss(dtype: torch.dtype) -> None:
    student, teacher = random_maps(2, 3, 8, 8)
    policy = Policy((term(transforms=("catt", "scale_r2", "norm_N")), term("instance", ("none", "none", "softmax_HW"), "kl")))
    plain = policy_losses(policy, Signals((student,)), Signals((teacher,)), scene(BOX, BOX))
    with torch.autocast("cpu", dtype=dtype):
        cast = policy_losses(policy, Signals((student,)), Signals((teacher,)), scene(BOX, BOX))
    assert {n: v.item() for n, v in cast.items()} == {n: v.item() for n, v in plain.items()}


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = random_maps(2, 3, 4, 4)
    teacher.requires_grad_()
    loss_of(term(transforms=("satt", "none", "none"), shared_attention=True), student, teacher, scene(NOTHING, NOTHING)).backward()
    assert student.grad is not None
    assert teacher.grad is None
