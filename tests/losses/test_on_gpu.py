"""On a GPU, where sums run over maps in other kernels, losses and gradients are those of the CPU."""

import random
from dataclasses import replace

import pytest
import torch

from detkds_core.losses import Scene, policy_losses
from detkds_core.losses.signals import Signals
from detkds_core.losses.toys import each_tensor, toy_signals
from detkds_core.policy import PairFacts, Policy, SearchSpace, Term, formula
from detkds_core.policy.vocabulary import KNOWLEDGE, REGIONS

SHAPES = ((13, 19), (7, 10), (2, 3), (1, 2))
BOX = torch.tensor([[5.0, 4.0, 22.0, 36.0], [40.0, 8.0, 70.0, 60.0], [90.0, 20.0, 140.0, 90.0]])
BOXES = (BOX, BOX[:1], BOX[:0], BOX[1:])
SPACE = SearchSpace.of(PairFacts(images_per_batch=len(BOXES), has_edges=True, has_points=True, regions=REGIONS), breadth="full")
STEEP = ("exp", "pow4", "min_max_normalize")  # where rounding of the sum of thousands shows


def computed(term: Term, device: str) -> tuple[float, torch.Tensor]:
    """The loss and its gradient over all levels, of maps as convolutions leave them."""

    def placed(x: torch.Tensor) -> torch.Tensor:
        x = x.to(device)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    student = each_tensor(toy_signals(1, len(BOXES), SHAPES), lambda x: placed(x).requires_grad_())
    student = replace(student, assigned=tuple(map(placed, student.assigned)), valuable=tuple(map(placed, student.valuable)))
    teacher = each_tensor(toy_signals(0, len(BOXES), SHAPES), placed)
    (loss,) = policy_losses(Policy((term,)), student, teacher, Scene(tuple(boxes.to(device) for boxes in BOXES), (104, 152))).values()
    loss.backward()
    return loss.item(), torch.cat([x.grad.flatten().cpu() for x in _compared(student) if x.grad is not None])


def _compared(student: Signals) -> list[torch.Tensor]:
    return [*student.features, *student.logits, *student.boxes, *student.edges, *student.points]


@pytest.mark.gpu
@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_a_term_is_the_same_on_a_gpu(knowledge: str) -> None:
    rng = random.Random(knowledge)
    for _ in range(60):
        term = SPACE.sample(rng, knowledge)
        if term.region in ("proposals", "masks") or set(STEEP) & set(term.transforms):
            continue
        if term.region == "assigned" and rng.random() < 0.5:
            term = replace(term, region="assigned_score")
        here, slope = computed(term, "cpu")
        there, other = computed(term, "cuda")
        assert there == pytest.approx(here, rel=1e-3, abs=1e-6), formula(Policy((term,)))
        assert (slope - other).norm() <= 1e-2 * slope.norm(), formula(Policy((term,)))
