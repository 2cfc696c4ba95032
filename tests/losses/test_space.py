"""Every formula that the rules allow is a proper loss, and its canonical form computes the same.

A proper loss is finite, not negative, 0 where student and teacher agree, and has a gradient for the student alone where they do not.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from detkds_core.losses import Scene, Signals, policy_losses
from detkds_core.policy import PairFacts, Policy, Term, legality, pair_legality
from detkds_core.policy.canonical import canonical_term
from detkds_core.policy.vocabulary import DISTANCES, DIVERGENCES, KNOWLEDGE, SLOTS

H, W = 6, 7  # odd, so that pools pad
# One box leaves the image. No side is 4 cells long, where the samples of a region fall on cells up to rounding, and whether a masked cell
# has a direction is up to rounding too.
SCENE = Scene((torch.tensor([[5.0, 4.0, 22.0, 36.0]]), torch.tensor([[30.0, 18.0, 62.0, 38.0]])), (48, 56))


def formulas(knowledge: str) -> list[Term]:
    """All legal terms of a knowledge with options at their defaults."""
    slots = product(*(choices for _, choices in SLOTS[knowledge]))
    terms = [Term(knowledge, transforms, distance, 1.0) for transforms in slots for distance in DISTANCES[knowledge]]
    return [term for term in terms if not legality(term)]


def distinct(terms: list[Term]) -> list[Term]:
    return list(dict.fromkeys(map(canonical_term, terms)))


def signals(seed: int) -> Signals:
    """One level of everything: 2 images of 4 channels, 3 classes, 3 edge bins, boxes around their cells."""
    generator = torch.Generator().manual_seed(seed)
    features, logits, edges = (torch.randn(2, c, H, W, generator=generator) for c in (4, 3, 12))
    ys, xs = torch.meshgrid(torch.arange(H) * 8.0, torch.arange(W) * 8.0, indexing="ij")
    centres = torch.stack([xs, ys], dim=-1).view(-1, 2)
    sides = 4 + 12 * torch.rand(2, H * W, 4, generator=generator)
    boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=-1)
    return Signals((features,), (logits,), (boxes,), (edges,))


TEACHER, STUDENT = signals(0), signals(1)


def cast(given: Signals, dtype: torch.dtype, requires_grad: bool = False) -> Signals:
    def each(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.detach().to(dtype, copy=True).requires_grad_(requires_grad) for x in tensors)

    return Signals(each(given.features), each(given.logits), each(given.boxes), each(given.edges))


def loss_of(term: Term, student: Signals, teacher: Signals) -> Tensor:
    (loss,) = policy_losses(Policy((term,)), student, teacher, SCENE).values()
    return loss


def compared(given: Signals, term: Term) -> Tensor:
    """The tensor in which a term compares the detectors."""
    if term.knowledge == "localization":
        return (given.edges if term.distance == "kl_edges" else given.boxes)[0]
    return (given.logits if term.knowledge == "logits" else given.features)[0]


def faults(term: Term, halves: Iterator[tuple[Signals, Signals]]) -> list[str]:
    """What is improper about a term: empty for a proper loss."""
    student = cast(STUDENT, torch.float32, requires_grad=True)
    loss = loss_of(term, student, LEARNING_TEACHER)
    (gradient,) = torch.autograd.grad(loss, compared(student, term))
    with torch.no_grad():
        same = loss_of(term, TEACHER, TEACHER).item()
        half = loss_of(term, *next(halves)).item()
    value, slope = loss.item(), gradient.norm().item()
    found = []
    if not all(torch.tensor([value, slope, same, half]).isfinite()):
        found.append(f"not finite: loss {value}, gradient {slope}, at identity {same}, in half precision {half}")
    if value < 0:
        found.append(f"negative: {value}")
    # Relative to the loss, since area weights and softmaxes over a map make some losses small.
    if abs(same) > max(1e-5 * value, 1e-6):  # a cosine of 1 rounds by some 1e-7
        found.append(f"{same} at identity, {value} apart")
    if slope < 1e-5 * value:
        found.append(f"gradient {slope} of a loss of {value}")
    if any(x.grad is not None for x in (*LEARNING_TEACHER.features, *LEARNING_TEACHER.logits)):
        found.append("the teacher learns")
    return found


LEARNING_TEACHER = cast(TEACHER, torch.float32, requires_grad=True)


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_every_legal_formula_is_a_proper_loss(knowledge: str) -> None:
    terms = distinct(formulas(knowledge))
    types = [(cast(STUDENT, dtype), cast(TEACHER, dtype)) for dtype in (torch.float16, torch.bfloat16)]
    halves = (types[n % 2] for n in range(len(terms)))
    improper = {term: found for term in terms if (found := faults(term, halves))}
    assert not improper


@pytest.mark.parametrize("channels", [1, 2])
def test_every_formula_that_a_pair_with_few_classes_allows_is_a_proper_loss(channels: int) -> None:
    terms = [term for term in formulas("logits") if not pair_legality(term, PairFacts(score_channels=channels))]
    assert terms
    scores = [STUDENT.logits[0][:, :channels], TEACHER.logits[0][:, :channels]]
    for term in terms:
        student = scores[0].clone().requires_grad_()
        loss = loss_of(term, Signals((), (student,)), Signals((), (scores[1],)))
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.item() > 0, term
        assert gradient.norm().item() > 1e-5 * loss.item(), term


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_the_canonical_form_computes_the_same(knowledge: str) -> None:
    rng = random.Random(0)
    terms = formulas(knowledge)
    folded = [term for term in terms if canonical_term(term) != replace(term, weight=1.0)]
    for term in rng.sample(folded, min(200, len(folded))):
        original = with_options(term, rng)
        canonical = canonical_term(original)
        (value, slope), (other, other_slope) = (value_and_gradient(t) for t in (original, canonical))
        assert value == pytest.approx(other, rel=1e-4, abs=1e-6), (original, canonical)
        assert (slope - other_slope).norm() <= 1e-3 * slope.norm() + 1e-6, (original, canonical)


def with_options(term: Term, rng: random.Random) -> Term:
    """The term with a random value of every option that its formula has."""
    return replace(
        term,
        weight=rng.choice([0.5, 1.0, 6.0]),
        temperature=rng.choice([1.0, 2.0, 4.0]) if term.distance in DIVERGENCES else 1.0,
        shared_attention=rng.random() < 0.5 and term.transforms[0] in ("satt", "catt"),
        background=rng.choice([0.0, 0.5, 2.0]) if term.knowledge == "fgbg" else 0.5,
    )


def value_and_gradient(term: Term) -> tuple[float, Tensor]:
    student = cast(STUDENT, torch.float32, requires_grad=True)
    loss = loss_of(term, student, TEACHER)
    (gradient,) = torch.autograd.grad(loss, compared(student, term))
    return loss.item(), gradient
