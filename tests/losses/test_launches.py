"""What a GPU waits for: how many kernels a term launches, and that the host never asks the device for a number."""

import random
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detkds_core.losses import Scene, Signals, policy_losses
from detkds_core.losses.toys import each_tensor, toy_signals
from detkds_core.policy import PairFacts, Policy, SearchSpace, Term, formula, parse_formula
from detkds_core.policy.vocabulary import KNOWLEDGE, REGIONS, UNSEARCHED

Traffic = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "traffic.py"))["Traffic"]  # what the benchmark counts with
IMAGES, SHAPES = 4, ((13, 19), (7, 10), (4, 5), (2, 3), (1, 2))
SPACE = SearchSpace.of(PairFacts(images_per_batch=IMAGES, has_edges=True, has_points=True, regions=REGIONS), breadth="full")
BOX = torch.tensor([[5.0, 4.0, 22.0, 36.0], [40.0, 8.0, 70.0, 60.0], [90.0, 20.0, 140.0, 90.0]])
SCENE = Scene((BOX, BOX[:1], BOX[:0], BOX[1:]), (104, 152))
WAITING = {f"aten::{name}" for name in ("_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero", "_unique2")}


def sides() -> tuple[Signals, Signals]:
    student, teacher = toy_signals(1, IMAGES, SHAPES), toy_signals(0, IMAGES, SHAPES)
    return each_tensor(student, lambda x: x.requires_grad_()), teacher


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("l2(global)", 45),
        ("l1(norm_N(scale_r2(catt(global))))", 225),  # 353 when each step of each side was torch's own, and so on
        ("pear(norm_HW(satt(global)))", 305),  # 548
        ("ssim(scale(global))", 450),  # 975
        ("cor(norm_C(local_s4(catt(fgbg))))", 780),  # 1,471
        ("smooth_l1(norm_C(fgbg))", 225),  # 653
        ("l2(norm_C(mask(fgbg)))", 260),  # 345 when foreground and background were computed apart
        ("l1(norm_C(instance))", 310),  # 633
        ("cos(norm_HW(logits))", 190),  # 308
        ("giou(localization)", 140),  # 681
        ("l1(localization)", 60),  # 156
    ],
)
def test_a_term_on_five_levels_launches_few_kernels(text: str, most: int) -> None:
    student, teacher = sides()
    with Traffic() as seen:
        sum(policy_losses(parse_formula(text), student, teacher, SCENE).values()).backward()
    assert 20 < sum(seen.kernels.values()) <= most


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("l2(global)", 9.5),
        ("l1(norm_N(scale_r2(catt(global))))", 31),  # 38 when the pool came after the attention
        ("l2(norm_C(mask(fgbg)))", 21),  # 84 when foreground and background were computed apart, and each side normalised
        ("l1(norm_C(mask(fgbg)))", 35),  # 88
        ("l2[background=4](fgbg)", 10.5),  # 33
        ("l2[region=teacher_score](global)", 10),
    ],
)
def test_a_term_reads_and_makes_few_maps(text: str, most: float) -> None:
    """In maps of one side."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (Signals(*((torch.randn(2, channels, 40, 64, generator=generator),) for channels in (32, 2))) for _ in range(2))
    student.features[0].requires_grad_()
    scene = Scene((BOX, BOX[:1]), (320, 512))
    with Traffic() as seen:
        sum(policy_losses(parse_formula(text), student, teacher, scene).values()).backward()
    maps = sum(seen.moved.values()) / (student.features[0].numel() * 4)
    assert 5 < maps <= most


@pytest.mark.parametrize(("knowledge", "region"), [(knowledge, region) for knowledge in KNOWLEDGE for region in REGIONS[knowledge]])
def test_the_host_asks_the_device_for_nothing(knowledge: str, region: str) -> None:
    """By the profiler: where somebody watches through a dispatch mode, torch takes other paths, as in the backward of `prod`."""
    rng, student, teacher = random.Random(f"{knowledge} {region}"), *sides()
    for _ in range(6):
        term = replace(_sample(rng, knowledge, region), warm_up=0, stop=1.0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            sum(policy_losses(Policy((term,)), student, teacher, SCENE).values()).backward()
        seen = {event.key for event in profile.key_averages()}
        assert seen & {"aten::mul", "aten::mul_"}
        assert not seen & WAITING, formula(Policy((term,)))


def _sample(rng: random.Random, knowledge: str, region: str) -> Term:
    """A formula of a knowledge that looks there; what is legal at `assigned` is where no search looks."""
    drawn = "assigned" if region in UNSEARCHED else region
    return replace(next(term for term in iter(lambda: SPACE.sample(rng, knowledge), None) if term.region == drawn), region=region)
