"""Recipes: strict JSON, lengths in epochs, learning rates scaled, batches cut."""

import json
from dataclasses import replace

import pytest

from detkds_core.catalogue import Recipe
from detkds_core.training.steps import learning_rate

COCO = 117_266  # training images of COCO that hold an object


def test_json_is_flat_and_comes_back_whole():
    recipe = Recipe(epochs=24, milestones=(16, 22), schedule="steps", train_short_sides=(480, 800), image_size=1333, precision="bf16")
    data = json.loads(json.dumps(recipe.to_json()))
    assert not any(isinstance(value, dict) for value in data.values())
    assert Recipe.from_json(data) == recipe


def test_mmdetections_1x_and_2x_in_iterations():
    """16 images a step: 7,330 iterations an epoch, tenfold down after epochs 8 and 11 of 12, or 16 and 22 of 24."""
    one = Recipe(epochs=12, batch=16, schedule="steps", milestones=(8, 11), eval_every=1)
    found, warnings = one.resolved(COCO)
    assert found.iterations == 87_950  # 12 * 117,266 / 16 = 87,949.5
    assert found.milestones == (58_633, 80_621)
    assert found.eval_every == 7_330
    assert (found.epochs, warnings) == (None, [])
    assert found.resolved(COCO) == (found, [])
    assert replace(one, epochs=24, milestones=(16, 22)).resolved(COCO)[0].milestones == (117_266, 161_241)
    assert replace(one, batch=4, accumulate=4).resolved(COCO)[0].iterations == 87_950
    assert replace(one, train_images=160).resolved(COCO)[0].iterations == 120


def test_the_learning_rate_is_scaled_and_said_so():
    recipe, (warning,) = Recipe(batch=4, accumulate=2, lr=0.02, auto_scale_lr=True).resolved(0)
    assert recipe.lr == pytest.approx(0.01)
    assert warning == "the learning rate was scaled from 0.02 to 0.01: 8 images a step instead of the 16 it was published for"
    assert recipe.resolved(0) == (recipe, [])
    assert Recipe(batch=16, lr=0.02, auto_scale_lr=True).resolved(0) == (Recipe(batch=16, lr=0.02), [])


@pytest.mark.parametrize(
    ("batch", "devices", "smaller"), [(8, 1, (4, 4)), (9, 1, (3, 6)), (8, 4, (4, 4)), (8, 8, None), (1, 1, None), (6, 2, (2, 6))]
)
def test_a_smaller_batch_keeps_the_images_of_a_step(batch, devices, smaller):
    recipe = Recipe(batch=batch, accumulate=2, devices=devices)
    found = recipe.with_smaller_batch()
    assert (found and (found.batch, found.accumulate)) == smaller
    assert found is None or found.images_per_step == recipe.images_per_step


@pytest.mark.parametrize(("least", "smaller"), [(1, (4, 4)), (2, (4, 4)), (3, None)])
def test_a_smaller_batch_leaves_each_device_what_the_policy_needs(least, smaller):
    found = Recipe(batch=8, accumulate=2, devices=2).with_smaller_batch(least)
    assert (found and (found.batch, found.accumulate)) == smaller


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"precision": "fp8"}, "recipe.precision: 'fp8' is not known; one of fp32, fp16, bf16"),
        ({"batch": 6, "devices": 4}, "recipe.batch: 6 images cannot be shared evenly by 4 devices"),
        ({"milestones": [11, 8]}, "recipe.milestones: [11, 8] does not rise"),
        ({"milestones": 8}, "recipe.milestones: 8 is not a list of integers from 1 on or null"),
        ({"ema": 1.0}, "recipe.ema: 1.0 is not a number between 0 and 1 or null (no average)"),
        ({"momentum": 1}, "recipe.momentum: 1 is not a number from 0 to below 1"),
        ({"auto_scale_lr": 1}, "recipe.auto_scale_lr: 1 is not true or false"),
        ({"accumulate": 0}, "recipe.accumulate: 0 is not an integer from 1 to 4096"),
        ({"epochs": 0}, "recipe.epochs: 0 is not a number above 0 and at most 100000.0 or null"),
        ({"short_side": 800}, "recipe.short_side: a shorter side above image_size (128, the longer side) has no effect"),
        ({"warm_up": -1}, "recipe.warm_up: -1 is not an integer from 0 on or null (500, or a twentieth of a short run)"),
        ({"clip": None, "lr": float("nan")}, "recipe.lr: nan is not a number above 0 and at most 10.0"),
        ({"iteration": 3}, "recipe.iteration: not a field; one of accumulate, augment"),
    ],
)
def test_every_wrong_field_is_named(fields, said):
    with pytest.raises(ValueError) as caught:
        Recipe.from_json(fields)
    assert str(caught.value).startswith(said)


def test_a_length_over_a_base_replaces_the_bases_length():
    base = Recipe(epochs=12, milestones=(8, 11), schedule="steps", eval_every=1)
    short = Recipe.from_json({"iterations": 50}, base)
    assert (short.iterations, short.epochs, short.milestones, short.eval_every) == (50, None, None, None)
    assert Recipe.from_json({"epochs": 3}, Recipe(eval_every=100)).eval_every is None
    assert Recipe.from_json({"lr": 0.1}, base) == replace(base, lr=0.1)
    assert Recipe.from_json({"epochs": 12}, base) == base


def test_milestones_follow_the_length() -> None:
    """The 1x schedule of a pair whose recipe is the 2x: a tenth of the rate after 8 and 11 of 12 epochs, not after 16 and 22."""
    twice = Recipe(epochs=24, milestones=(16, 22), schedule="steps", warm_up=0, batch=1, lr=1.0)
    for fields in ({"epochs": 12}, {"epochs": 12, "milestones": [8, 11]}):
        recipe, _ = Recipe.from_json(fields, twice).resolved(100)
        assert [round(learning_rate(recipe, 100 * epoch), 6) for epoch in (0, 7, 8, 10, 11)] == [1, 1, 0.1, 0.1, 0.01]
    with pytest.raises(
        ValueError, match=r"recipe.milestones: \[8, 12\] reach the end of 12 epochs, where the rate would not fall any more"
    ):
        Recipe.from_json({"epochs": 12, "milestones": [8, 12]}, twice)
