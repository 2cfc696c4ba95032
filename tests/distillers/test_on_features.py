"""FGD, MGD and MasKD: worked out by hand, and what they promise as parts of a training. Official figures: tests/golden."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detkds_core.distillers.fgd import FGD
from detkds_core.distillers.maskd import MasKD, MaskTokens
from detkds_core.distillers.mgd import MGD
from detkds_core.losses import Scene, Signals

MODULES: dict[str, Any] = {"fgd": FGD, "mgd": MGD, "maskd": MasKD}


def total(losses: dict[str, Tensor]) -> Tensor:
    assert all(name.startswith("distill/") and loss.shape == () for name, loss in losses.items())
    return torch.stack(list(losses.values())).sum()


def pair(channels: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Signals, Signals]:
    """Two levels of a student of the given channels and of a teacher of 8."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 6, 7), (2, 3, 4)]
    student, teacher = ([torch.randn(B, c, H, W, generator=generator).to(dtype) for B, H, W in shapes] for c in (channels, 8))
    return Signals(tuple(s.requires_grad_() for s in student)), Signals(tuple(t.requires_grad_() for t in teacher))


BOXES = Scene((torch.tensor([[4.0, 4.0, 20.0, 30.0]]), torch.zeros(0, 4)), (48, 56))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
def test_all_of_the_student_learns_and_the_teacher_does_not(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    distiller = MODULES[name]([6, 6], [8, 8])
    student, teacher = pair(dtype=dtype)
    loss = total(distiller(student, teacher, BOXES))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() > 0
    for feat in student.features:
        assert feat.grad is not None
        assert feat.grad.isfinite().all()
        assert feat.grad.abs().max() > 0
    assert all(feat.grad is None for feat in teacher.features)
    for parameter in distiller.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
    convs = [align for align in distiller.align if isinstance(align, nn.Conv2d)]
    assert [conv.weight.shape for conv in convs] == [(8, 6, 1, 1)] * 2


@pytest.mark.parametrize("name", MODULES)
def test_levels_that_do_not_fit_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="the student has 1 levels and the teacher 2"):
        MODULES[name]([8], [8, 8])
    distiller = MODULES[name]([8, 8], [8, 8])
    student, teacher = pair(8)
    with pytest.raises(ValueError, match="1 levels at the student and 2 at the teacher, the distiller was built for 2"):
        distiller(Signals(student.features[:1]), teacher, BOXES)
    with pytest.raises(ValueError, match=r"features of level 0 are \(2, 8, 3, 4\) at the student and \(2, 8, 6, 7\) at the teacher"):
        distiller(Signals(student.features[::-1]), teacher, BOXES)


def test_fgd_and_maskd_are_zero_at_identity() -> None:
    _, teacher = pair()
    for distiller in (FGD([8, 8], [8, 8]), MasKD([8, 8], [8, 8])):  # the GcBlocks start as the identity
        assert total(distiller(teacher, teacher, BOXES)).item() == pytest.approx(0, abs=1e-7)


def test_fgd_without_boxes_is_all_background() -> None:
    student, teacher = pair(8)
    nothing = Scene((torch.zeros(0, 4), torch.zeros(0, 4)), (48, 56))
    focal = FGD([8, 8], [8, 8], alpha=0.0)(student, teacher, nothing)["distill/fgd_focal"].item()
    assert focal > 0
    assert FGD([8, 8], [8, 8], alpha=1.0)(student, teacher, nothing)["distill/fgd_focal"].item() == focal


def test_fgd_by_hand() -> None:
    # One channel pair of equal strength everywhere: all attentions are 1. The box covers cells 0 and 1 of 3, area (1 + 1) * (1 + 1).
    teacher, student = torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 3)
    student[0, 0, 0] = torch.tensor([-1.0, 1.0, -1.0])  # squared error 4 at cells 0 and 2
    scene = Scene((torch.tensor([[0.0, 0.0, 8.0, 8.0]]),), (8, 24))
    losses = FGD([2], [2], alpha=1.0, beta=10.0, lambda_=100.0)(Signals((student,)), Signals((teacher,)), scene)
    assert losses["distill/fgd_focal"].item() == pytest.approx(4 / 4 + 10 * 4)
    assert losses["distill/fgd_attention"].item() == pytest.approx(0, abs=1e-6)
    assert losses["distill/fgd_relation"].item() == pytest.approx(100 * 8)


def test_mgd_masks_by_seed_and_step() -> None:
    torch.manual_seed(0)
    distiller = MGD([8, 8], [8, 8])
    student, teacher = pair(8)

    def value(**when: int) -> float:
        return total(distiller(student, teacher, Scene(BOXES.boxes, BOXES.batch_shape, **when))).item()

    first = value(seed=1, step=2)
    torch.rand(1)
    assert value(seed=1, step=2) == first
    assert len({first, value(seed=1, step=3), value(seed=2, step=2)}) == 3
    with pytest.raises(ValueError, match=r"mask_ratio: 1\.0"):
        MGD([8], [8], mask_ratio=1.0)


def test_mgd_by_hand() -> None:
    distiller = MGD([1], [1], alpha=0.5, mask_ratio=0.0)
    for parameter in distiller.parameters():
        nn.init.zeros_(parameter)
    teacher = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])
    loss = total(distiller(Signals((torch.ones_like(teacher),)), Signals((teacher,)), BOXES))
    assert loss.item() == pytest.approx(0.5 * (1 + 4 + 9 + 16) / 2)  # a generator of nothing, mean over two images
    by_l1 = MGD([1], [1], alpha=0.5, mask_ratio=0.0, l1=True)
    by_l1.load_state_dict(distiller.state_dict())
    loss = total(by_l1(Signals((torch.ones_like(teacher),)), Signals((teacher,)), BOXES))
    assert loss.item() == pytest.approx(0.5 * (1 + 2 + 3 + 4) / 2)


def test_maskd_by_hand() -> None:
    # One token of 0: masks of 1/2. Squared error 1 at both cells of one channel: (1/4 + 1/4) / (1/2 + 1/2).
    student, teacher = Signals((torch.zeros(1, 1, 1, 2),)), Signals((torch.ones(1, 1, 1, 2),))
    distiller = MasKD([1], [1], num_tokens=1, weight=3.0)
    nn.init.zeros_(distiller.mask_modules[0].mask_token)
    assert total(distiller(student, teacher, BOXES)).item() == pytest.approx(3 * 0.5)
    # Masks of student and teacher multiply from the warm-up on: (1/16 + 1/16) / (1/4 + 1/4).
    late = Scene(BOXES.boxes, BOXES.batch_shape, step=1000)
    assert total(distiller(student, teacher, late)).item() == pytest.approx(3 * 0.25)


def test_without_weights_each_token_counts_alike() -> None:
    # Tokens of sigmoid 1/2 and 3/4 on a feature of 1: per token, mask * squared error summed over mask's area is 1/2 and 3/4.
    distiller = MasKD([1], [1], num_tokens=2, weight_mask=False)
    tokens = distiller.mask_modules[0]
    tokens.mask_token.data = torch.tensor([[0.0], [torch.tensor(3.0).log()]])
    loss = total(distiller(Signals((torch.zeros(1, 1, 2, 2),)), Signals((torch.ones(1, 1, 2, 2),)), BOXES))
    assert loss.item() == pytest.approx((0.5 + 0.75) / 2)


def test_mask_tokens_are_learned_to_differ() -> None:
    torch.manual_seed(0)
    tokens = MaskTokens(8, num_tokens=3)
    feat = torch.randn(2, 8, 6, 7)
    seen, likeness = tokens(feat)
    assert seen.shape == feat.shape
    assert_close(tokens.weights(feat).sum(1), torch.ones(2))
    optimizer = torch.optim.Adam(tokens.parameters(), lr=0.05)
    start = likeness.item()
    assert start == pytest.approx(1, abs=0.02)  # fresh tokens give masks of 1/2, all alike
    for _ in range(50):
        optimizer.zero_grad()
        tokens(feat)[1].backward()
        optimizer.step()
    assert tokens(feat)[1].item() < 0.7 * start


def test_likeness_of_two_masks_by_hand() -> None:
    # Masks 1/2 and 3/4 at one position: dice = 2 * 3/8 / (1/4 + 9/16).
    tokens = MaskTokens(1, num_tokens=2)
    tokens.mask_token.data = torch.tensor([[0.0], [torch.tensor(3.0).log()]])
    assert tokens(torch.ones(1, 1, 1, 1))[1].item() == pytest.approx(0.75 / (13 / 16))
