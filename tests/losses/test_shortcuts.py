"""Terms of features are computed in fewer passes over maps than they have steps; what comes out is what the steps give one by one."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkds_core.losses import Scene, Signals, policy_losses
from detkds_core.losses.attention import ATTENTION, DRAWS, ROOTS, pooled_catt
from detkds_core.losses.distances import DISTANCES, kl_divergence, squares_of_units
from detkds_core.losses.regions import crop, ground_truth_regions, region_masks
from detkds_core.losses.transforms import NORMALISATION, POOL, SCALE, SOFTMAX_DIMS, norm_C_where, unit
from detkds_core.policy import PairFacts, Policy, SearchSpace, Term, formula, parse_formula

IMAGES, C, SHAPES, BATCH_SHAPE = 3, 4, ((6, 7), (3, 4)), (48, 56)
BOX = torch.tensor([[5.0, 4.0, 22.0, 36.0], [30.0, 18.0, 52.0, 38.0]])
SCENE = Scene((BOX, BOX[1:], BOX[:0]), BATCH_SHAPE, step=3, seed=7)
SPACE = SearchSpace.of(PairFacts(images_per_batch=IMAGES), knowledge=("global", "fgbg", "instance"), breadth="full")


def maps(seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(IMAGES, C, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES)


def step_by_step(term: Term, index: int, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """The loss of a term from every step of each side, as it is written, without what terms or sides have in common."""
    attention, scale, norm = term.transforms
    total = student[0].new_zeros(())
    for level, sides in enumerate(zip(student, teacher, strict=True)):
        regions = [(1.0, torch.ones(()))]
        if term.knowledge == "fgbg":
            inside, outside = region_masks(SCENE.boxes, SHAPES[level], BATCH_SHAPE)
            regions = [(1.0, inside), (term.background, outside)]
        for share, region in regions:
            ends = []
            for own, there in zip(sides, sides[::-1], strict=True):
                feat, other = own * region, there * region
                if attention in DRAWS:
                    feat = feat * DRAWS[attention](feat, (SCENE.seed, SCENE.step, index, level))
                elif term.shared_attention:
                    feat = feat * ROOTS[attention](other if own is sides[0] else feat)
                else:
                    feat = ATTENTION[attention](feat)
                feat = SCALE[scale](feat)
                if term.distance != "kl":
                    feat = NORMALISATION[norm](feat)
                if term.knowledge == "instance":
                    feat = crop(feat, ground_truth_regions(SCENE.boxes, SHAPES[level], BATCH_SHAPE, POOL.get(scale, 1)))
                ends.append(feat)
            if term.distance == "kl":
                loss = kl_divergence(*ends, SOFTMAX_DIMS[norm], term.temperature)
                values = ends[0].numel() // torch.Size([ends[0].shape[dim] for dim in SOFTMAX_DIMS[norm]]).numel()
            else:
                loss, values = DISTANCES[term.distance](*ends), ends[0].numel()
            total = total + share * (loss * values / IMAGES if term.reduction == "sum" else loss)
    return term.weight * total


def compared(policy: Policy, one_by_one: bool) -> tuple[Tensor, list[Tensor]]:
    student, teacher = [one.requires_grad_() for one in maps(1)], maps(2)
    if one_by_one:
        loss = sum(step_by_step(term, index, tuple(student), teacher) for index, term in enumerate(policy.terms))
    else:
        loss = sum(policy_losses(policy, Signals(tuple(student)), Signals(teacher), SCENE).values())
    loss.backward()
    return loss.detach(), [one.grad for one in student]


def check(policy: Policy) -> None:
    (value, slopes), (plain, expected) = compared(policy, False), compared(policy, True)
    size = max(slope.abs().max().item() for slope in expected)
    assert_close(value, plain, rtol=1e-6, atol=1e-12, msg=lambda text: f"{formula(policy)}: {text}")
    for slope, one in zip(slopes, expected, strict=True):
        assert_close(slope, one, rtol=1e-5, atol=1e-7 * size, msg=lambda text: f"{formula(policy)}: {text}")


@pytest.mark.parametrize("start", range(10))
def test_a_term_is_its_steps_one_by_one(start: int) -> None:
    rng = random.Random(start)
    for _ in range(40):
        term = replace(SPACE.sample(rng, rng.choice(SPACE.knowledge)), warm_up=0, stop=1.0, decay=1.0, region="all", auto=False)
        check(Policy((term,)))


@pytest.mark.parametrize("attention", ["none", "mask", "drop"])
@pytest.mark.parametrize("distance", ["l1", "l2", "smooth_l1", "cos", "pear", "kl"])
@pytest.mark.parametrize("norm", ["none", "norm_C", "softmax_C", "logsoftmax_C", "abs", "pow2", "leaky_relu", "exp"])
def test_positions_that_are_weighed(attention: str, distance: str, norm: str) -> None:
    """Foreground and background in one pass; a weight beside the distance where that knows its power. Weights are float32."""
    if (distance == "kl") != (norm == "softmax_C"):
        return
    for knowledge, scale, background in (("fgbg", "none", 0.5), ("fgbg", "scale", 4.0), ("fgbg", "none", 0.0), ("global", "none", 0.5)):
        plain = Term(knowledge, (attention, scale, norm), distance, 2.0, background=background)
        for reduction in ("mean", "sum") if distance in ("l1", "l2", "smooth_l1", "kl") else ("mean",):
            check(Policy((replace(plain, reduction=reduction),)))


def test_terms_that_share_what_a_shortcut_skips() -> None:
    texts = [
        "l1(norm_C(mask(fgbg)))",
        "l2(norm_C(fgbg))",
        "l1(scale_r2(catt(global)))",
        "l2(catt(global))",
        "pear_HW(norm_C(mask(instance)))",
    ]
    check(parse_formula(" + ".join([*texts, "l2(norm_C(mask(instance)))", "l1(standardize(scale_r2(catt(global))))", "cos(fgbg)"])))


@pytest.mark.parametrize("scale", POOL)
@pytest.mark.parametrize("shape", [(8, 12), (7, 9)])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_pool_of_channel_attention(scale: str, shape: tuple[int, int], last: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    feat = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)
    feat = (feat.contiguous(memory_format=torch.channels_last) if last else feat).requires_grad_()
    above = torch.randn(SCALE[scale](feat).shape, generator=generator, dtype=torch.float64)
    ours, theirs = pooled_catt(scale, feat, feat.detach())
    expected = SCALE[scale](ATTENTION["catt"](feat))
    assert_close(ours, expected)
    assert_close(theirs, expected)
    assert not theirs.requires_grad
    assert_close(*(torch.autograd.grad((one * above).sum(), feat)[0] for one in (ours, expected)))


def test_a_factor_of_positions_cancels_in_a_length() -> None:
    feat = torch.tensor([[[[3.0, 3.0, 0.0, 6.0]], [[4.0, 4.0, 0.0, 8.0]]]], requires_grad=True)
    kept = torch.tensor([[[[1.0, 0.0, 1.0, 1e-5]]]])
    ours, _ = norm_C_where(kept, feat, feat.detach())
    assert_close(ours, torch.tensor([[[[0.6, 0.0, 0.0, 0.6]], [[0.8, 0.0, 0.0, 0.8]]]]))
    above = torch.tensor([[[[1.0, 1.0, 1.0, 1.0]], [[2.0, 2.0, 2.0, 2.0]]]])
    assert_close(*(torch.autograd.grad((one * above).sum(), feat)[0] for one in (ours, unit(feat * kept, (1,)))))


def test_the_square_between_unit_vectors_is_told_by_their_angle() -> None:
    student = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[4.0, 3.0], [0.0, 5.0], [0.0, 0.0], [0.0, 0.0]])
    found = squares_of_units(student, teacher)
    assert_close(found, torch.tensor([(0.2**2 + 0.2**2) / 2, 0.5, 0.5, 0.0]))
    found.sum().backward()
    ours = student.detach().requires_grad_()
    (unit(ours, (1,)) - unit(teacher, (1,))).square().mean(1).sum().backward()
    assert_close(student.grad, ours.grad)
