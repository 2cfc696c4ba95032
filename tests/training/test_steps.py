"""Schedules with numbers worked out by hand."""

import math

import pytest
import torch

from detkds_core.catalogue import Recipe
from detkds_core.training.steps import learning_rate, seed_step, total_loss


def test_one_cycle_rises_for_three_tenths_and_falls_to_almost_nothing():
    recipe = Recipe(iterations=101, lr=1.0)
    assert learning_rate(recipe, 0) == pytest.approx(0.04)
    peak = 0.3 * 101
    assert learning_rate(recipe, 30) == pytest.approx(1 + (0.04 - 1) * (1 + math.cos(math.pi * 30 / peak)) / 2)
    assert learning_rate(recipe, 100) == pytest.approx(1e-4)
    rates = [learning_rate(recipe, step) for step in range(101)]
    assert max(rates) > 0.99
    assert rates.index(max(rates)) in (30, 31)


def test_steps_warm_up_and_fall_tenfold_twice():
    recipe = Recipe(iterations=12000, lr=0.02, optimizer="sgd", schedule="steps")
    assert learning_rate(recipe, 0) == pytest.approx(0.02 * 0.001)
    assert learning_rate(recipe, 250) == pytest.approx(0.02 * (0.001 + 0.999 / 2))
    assert learning_rate(recipe, 500) == pytest.approx(0.02)
    assert learning_rate(recipe, 7999) == pytest.approx(0.02)
    assert learning_rate(recipe, 8000) == pytest.approx(0.002)
    assert learning_rate(recipe, 11000) == pytest.approx(0.0002)


def test_milestones_and_warm_up_are_the_recipes():
    """MMDetection's 2x: epochs 16 and 22 of 24, here of 10 iterations each, after a warm-up of 50."""
    recipe, _ = Recipe(epochs=24, batch=1, lr=0.02, schedule="steps", warm_up=50, milestones=(16, 22)).resolved(10)
    rates = [learning_rate(recipe, step) for step in (0, 25, 50, 159, 160, 219, 220, 239)]
    assert rates == pytest.approx([0.00002, 0.02 * (0.001 + 0.999 / 2), 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])
    assert learning_rate(Recipe(lr=0.02, schedule="steps", warm_up=0), 0) == 0.02


def test_total_loss_adds_only_losses():
    losses = {"loss_cls": [torch.tensor(1.0), torch.tensor([2.0, 4.0])], "loss_bbox": torch.tensor(0.5), "acc": torch.tensor(90.0)}
    assert float(total_loss(losses)) == pytest.approx(1 + 3 + 0.5)


def test_the_draws_of_a_step_are_the_same_for_every_candidate():
    seed_step(3, 17)
    first = torch.rand(3)
    seed_step(3, 17)
    assert torch.equal(first, torch.rand(3))
    seed_step(3, 18)
    assert not torch.equal(first, torch.rand(3))
