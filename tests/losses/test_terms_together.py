"""Several terms at once: the same as each alone, shared work or not; one gradient for all; nothing that waits for a GPU."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detkds_core.losses import Scene, Signals, policy_losses
from detkds_core.losses.toys import each_tensor, tensors_of, toy_signals
from detkds_core.policy import PairFacts, Policy, SearchSpace, Term, parse_formula
from detkds_core.policy.vocabulary import KNOWLEDGE, REGIONS

IMAGES, SHAPES = 3, ((9, 11), (5, 6))
SPACE = SearchSpace.of(PairFacts(images_per_batch=IMAGES, has_edges=True, has_points=True, regions=REGIONS), breadth="full")
BOXES = (torch.tensor([[5.0, 4.0, 22.0, 36.0], [40.0, 8.0, 70.0, 60.0]]), torch.zeros(0, 4), torch.tensor([[30.0, 18.0, 62.0, 38.0]]))
SCENE = Scene(BOXES, (72, 88), step=3, seed=5, total_steps=10)


def sides(dtype: torch.dtype = torch.float32) -> tuple[Signals, Signals]:
    student, teacher = toy_signals(1, IMAGES, SHAPES), toy_signals(0, IMAGES, SHAPES)
    return each_tensor(student, lambda x: x.to(dtype).requires_grad_()), each_tensor(teacher, lambda x: x.to(dtype))


def slopes(loss: Tensor, student: Signals) -> list[Tensor]:
    found = torch.autograd.grad(loss, tensors_of(student), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if slope is None else slope for x, slope in zip(tensors_of(student), found, strict=True)]


def random_policy(rng: random.Random) -> Policy:
    """Up to 5 terms, of which some begin alike, so that they share work."""
    terms = [SPACE.sample(rng, rng.choice(KNOWLEDGE)) for _ in range(rng.randint(1, 5))]
    features = [SPACE.sample(rng, "global") for _ in range(2)]
    alike = [replace(term, transforms=(*features[0].transforms[:2], term.transforms[2])) for term in features]
    chosen = [*terms, *alike][-5:] if rng.random() < 0.5 else terms
    return Policy(tuple(term for term in chosen if not SPACE.contains(term)))


@pytest.mark.parametrize("seed", range(25))
def test_a_policy_is_the_sum_of_its_terms(seed: int) -> None:
    policy = random_policy(random.Random(seed))
    student, teacher = sides()
    together = policy_losses(policy, student, teacher, SCENE)
    expected = [torch.zeros_like(x) for x in tensors_of(student)]
    for index, term in enumerate(policy.terms):
        # What is drawn depends on the place of a term: in those before it stand terms that have ended.
        ended = (replace(term, stop=0.1),) * index
        alone = policy_losses(Policy((*ended, term)), student, teacher, SCENE)
        name = f"distill/{index}_{term.knowledge}"
        assert_close(together[name], alone[name], rtol=1e-5, atol=1e-7)
        expected = [before + slope for before, slope in zip(expected, slopes(alone[name], student), strict=True)]
    found = slopes(torch.stack(list(together.values())).sum(), student)
    size = torch.stack([x.norm() for x in expected]).norm()
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * size + 1e-9


SHARING = parse_formula(
    "2·l1(norm_N(scale_r2(catt(global)))) + l2(scale_r2(catt(global))) + pear(catt(global)) + l1(norm_C(catt(instance)))"
    " + l2(norm_HW(catt(instance))) + l1[region=assigned](logits) + giou(localization)"
)


def test_factors_that_differ_and_losses_alone() -> None:
    student, teacher = sides()
    losses = list(policy_losses(SHARING, student, teacher, SCENE).values())
    each = [slopes(loss, student) for loss in losses]
    weighted = slopes(sum(factor * loss for factor, loss in enumerate(losses)), student)
    for number, slope in enumerate(weighted):
        assert_close(slope, sum(factor * one[number] for factor, one in enumerate(each)), rtol=1e-4, atol=1e-7)


def test_a_second_backward_and_a_common_factor() -> None:
    student, teacher = sides()
    total = sum(policy_losses(SHARING, student, teacher, SCENE).values())
    first = slopes(total, student)
    for _ in range(2):
        for one, other in zip(slopes(3 * total, student), first, strict=True):
            assert_close(one, 3 * other, rtol=1e-4, atol=1e-7)


def test_what_was_computed_before_the_loss_gets_the_gradient_too() -> None:
    student, teacher = sides()
    factor = torch.tensor(2.0, requires_grad=True)
    scaled = replace(student, features=tuple(factor * x for x in student.features))
    (loss,) = policy_losses(parse_formula("l2(global)"), scaled, teacher, SCENE).values()
    loss.backward()
    expected = sum((2 * (2 * s - t) * s).mean() for s, t in zip(student.features, teacher.features, strict=True))
    assert factor.grad is not None
    assert factor.grad.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_a_gradient_there_are_values_alone() -> None:
    student, teacher = sides()
    expected = policy_losses(SHARING, student, teacher, SCENE)
    with torch.no_grad():
        found = policy_losses(SHARING, student, teacher, SCENE)
    assert not any(loss.requires_grad for loss in found.values())
    assert {name: loss.item() for name, loss in found.items()} == {name: loss.item() for name, loss in expected.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = sides(dtype)
    whole = [each_tensor(side, lambda x: x.detach().float().requires_grad_()) for side in (student, teacher)]
    halves, wholes = policy_losses(SHARING, student, teacher, SCENE), policy_losses(SHARING, *whole, SCENE)
    assert {name: loss.item() for name, loss in halves.items()} == {name: loss.item() for name, loss in wholes.items()}
    for half, one in zip(slopes(sum(halves.values()), student), slopes(sum(wholes.values()), whole[0]), strict=True):
        assert half.dtype == dtype
        assert_close(half, one.to(dtype))


class Operations(TorchDispatchMode):
    """The names of the operations that were called, and the bytes that they made and that somebody keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ == "index":
            assert not any(x is not None and x.dtype == torch.bool for x in args[1]), "what a mask selects is counted on the host"
        return func(*args, **(kwargs or {}))


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero", "repeat_interleave"}


def test_nothing_waits_for_the_device() -> None:
    student, teacher = sides()
    rng = random.Random(3)
    terms = [SPACE.sample(rng, knowledge) for knowledge in KNOWLEDGE for _ in range(8)]
    regions = [replace(Term("global", ("none",) * 3, "l1", 1.0), region="teacher_score")]
    with Operations() as seen:
        for policy in (Policy((*terms, *regions)), SHARING):
            sum(policy_losses(policy, student, teacher, SCENE).values()).backward()
    assert seen.names & {"mul", "bmm", "embedding_bag", "_embedding_bag"}
    assert not seen.names & WAITING


def test_nothing_is_kept_between_the_signals_and_the_losses() -> None:
    student, teacher = sides()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        losses = policy_losses(SHARING, student, teacher, SCENE)
        during = len(kept)
        total = sum(losses.values())
    assert during > 0  # the graphs of the terms, which are gone
    assert len(kept) == during
    functions = {type(losses_of).__name__ for losses_of in _functions(total)}
    assert functions <= {"AddBackward0", "_KnownBackward", "AccumulateGrad"}


def _functions(loss: Tensor) -> list[Any]:
    """Every node of the graph of a loss."""
    found, wait = [], [loss.grad_fn]
    while wait:
        node = wait.pop()
        if node is not None and node not in found:
            found.append(node)
            wait += [following for following, _ in node.next_functions]
    return found
