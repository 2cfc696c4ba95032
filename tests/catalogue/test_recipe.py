"""Recipes: strict JSON, lengths in epochs, learning rates scaled, batches cut."""

import json
import re
from dataclasses import replace

import pytest

from detkds_core.catalogue import Recipe
from detkds_core.catalogue.recipe import size_warning
from detkds_core.catalogue.schedules import FCOS, ONE_X
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
    assert warning == "the learning rate was scaled from 0.02 to 0.01: 8 images a step instead of the 16 that the rate is for"
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
    ("recipe", "forwards"),
    [
        (Recipe(batch=16, image_size=1333, short_side=800), (4, 4)),  # 16 x 640 x 640 are 6.1 of these
        (Recipe(batch=12, image_size=1333, short_side=800), (6, 2)),
        (Recipe(batch=16, image_size=1333, short_side=800, devices=2), (8, 2)),
        (Recipe(batch=16, image_size=1333, short_side=800, devices=4), (16, 1)),
        (Recipe(batch=16, accumulate=2, image_size=1333, short_side=800), (4, 8)),
        (Recipe(batch=16, image_size=1333, short_side=400, train_short_sides=(400, 800)), (4, 4)),
        (Recipe(batch=16, image_size=1333), (2, 8)),  # 3.7 of 1333 x 1333
        (Recipe(batch=256, image_size=640), (16, 16)),
        (Recipe(batch=64, image_size=416), (32, 2)),  # 37.9
        (Recipe(batch=8, image_size=4096), (2, 4)),  # 0.4, but MMDetection has two
        (Recipe(batch=7, image_size=1333, short_side=800), (1, 7)),
        (Recipe(batch=64), (64, 1)),
    ],
)
def test_a_step_is_as_few_forwards_as_usual_gpus_have_room_for(recipe: Recipe, forwards: tuple[int, int]) -> None:
    found = recipe.in_forwards()
    assert (found.batch, found.accumulate) == forwards
    assert found == replace(recipe, batch=found.batch, accumulate=found.accumulate)
    assert found.images_per_step == recipe.images_per_step
    assert found.in_forwards() == found


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
        ({"base_batch": 65_537}, "recipe.base_batch: 65537 is not an integer from 1 to 65536"),
        ({"epochs": 2, "iterations": None}, "recipe.iterations: None is not an integer from 1 to 10000000"),
        ({"iteration": 3}, "recipe.iteration: not a field; did you mean iterations"),
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


IDLE = [
    (Recipe(), {"epochs": 2, "iterations": 100}, "recipe.iterations: 100 beside 2 epochs has no effect; give the length in one of the two"),
    (
        Recipe(),
        {"warm_up": 50},
        "recipe.warm_up: 50 has no effect under the schedule one_cycle; leave it out, or give schedule steps",
    ),
    (
        ONE_X,
        {"schedule": "anneal", "milestones": [8]},
        "recipe.milestones: [8] has no effect under the schedule anneal; leave it out, or give schedule steps",
    ),
    (Recipe(), {"momentum": 0.95}, "recipe.momentum: 0.95 has no effect under adamw; leave it out, or give optimizer sgd"),
    (Recipe(), {"bias_decay_factor": 0.0}, "recipe.bias_decay_factor: 0.0 has no effect under adamw; leave it out, or give optimizer sgd"),
    (Recipe(), {"base_batch": 32}, "recipe.base_batch: 32 has no effect without auto_scale_lr; leave it out, or give auto_scale_lr true"),
    (
        ONE_X,
        {"iterations": 100, "warm_up": 100},
        "recipe.warm_up: 100 iterations do not end within the 100 of the run, whose rate would never be reached; fewer than 100 are right, "
        "or null (500, or a twentieth of a short run)",
    ),
    (
        ONE_X,
        {"warm_up": 600},  # 12 epochs of 800 images, 16 a step
        "recipe.warm_up: 600 iterations do not end within the 600 of the run, whose rate would never be reached; fewer than 600 are right, "
        "or null (500, or a twentieth of a short run)",
    ),
    (ONE_X, {"eval_every": 13}, "recipe.eval_every: 13 epochs are longer than the run of 12; fewer, or null (at the end)"),
    (
        Recipe(),
        {"iterations": 20, "eval_every": 50},
        "recipe.eval_every: 50 iterations are longer than the run of 20; fewer, or null (at the end)",
    ),
]


@pytest.mark.parametrize(("base", "asked", "said"), IDLE, ids=[said.split(":")[0] for _, _, said in IDLE])
def test_what_is_asked_for_without_an_effect_is_refused(base: Recipe, asked: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Recipe.from_json(asked, base, images=800)
    assert str(caught.value) == said


def test_what_has_an_effect_is_taken() -> None:
    for base, asked in (
        (ONE_X, {"warm_up": 599, "eval_every": 12, "momentum": 0.95, "base_batch": 32}),
        (Recipe(), {"schedule": "steps", "warm_up": 299, "milestones": [200]}),
        (Recipe(), {"epochs": 2}),
        (ONE_X, {"epochs": None, "iterations": 100}),
        (ONE_X, {"clip": None, "eval_every": None, "short_side": None}),
        (ONE_X, {"lr": 0.1, "base_batch": 8}),
    ):
        recipe = Recipe.from_json(asked, base, images=800)
        assert {name: recipe.to_json()[name] for name in asked} == asked
    assert Recipe.from_json({"warm_up": 100_000}, ONE_X).warm_up == 100_000  # nobody knows how many images there are


def test_a_field_of_the_base_that_loses_its_meaning_is_dropped() -> None:
    def changed(asked: dict[str, object], base: Recipe = ONE_X) -> dict[str, object]:
        recipe = Recipe.from_json(asked, base, images=800)
        return {name: value for name, value in recipe.to_json().items() if value != base.to_json()[name]}

    assert changed({"schedule": "one_cycle"}) == {"schedule": "one_cycle", "warm_up": None, "milestones": None}
    assert changed({"iterations": 400}) == {"iterations": 400, "epochs": None, "milestones": None, "eval_every": None, "warm_up": None}
    assert changed({"epochs": 0.5}) == {"epochs": 0.5, "milestones": None, "eval_every": None, "warm_up": None}
    assert changed({"epochs": 24}) == {"epochs": 24, "milestones": None}
    assert changed({"image_size": 640}) == {"image_size": 640, "short_side": None}
    assert changed({"image_size": 1333}) == {}
    assert changed({"image_size": 640, "short_side": 400}) == {"image_size": 640, "short_side": 400}
    assert changed({"lr": 0.001}) == {"lr": 0.001, "auto_scale_lr": False}
    assert changed({"lr": 0.001, "auto_scale_lr": True}) == {"lr": 0.001}
    assert changed({"optimizer": "adamw", "lr": 1e-4}) == {"optimizer": "adamw", "lr": 1e-4, "auto_scale_lr": False}
    multi_scale = replace(ONE_X, train_short_sides=(480, 800))
    assert changed({"image_size": 640}, multi_scale) == {"image_size": 640, "short_side": None, "train_short_sides": None}
    assert changed({"short_side": 400}, multi_scale) == {"short_side": 400, "train_short_sides": None}
    assert changed({"short_side": None}, multi_scale) == {"short_side": None, "train_short_sides": None}
    assert changed({"short_side": 800}, multi_scale) == {}
    assert changed({"short_side": 400, "train_short_sides": [320, 400]}, multi_scale)["train_short_sides"] == [320, 400]


def test_what_has_no_effect_any_more_has_its_default() -> None:
    """Of what is inherited: nobody reads a momentum of adamw in a recipe, or images a step that no rate is scaled by."""
    base = replace(FCOS, momentum=0.8, base_batch=32)
    found = Recipe.from_json({"optimizer": "adamw"}, base, images=800)
    assert (found.momentum, found.bias_decay_factor, found.bias_lr_factor, found.base_batch) == (0.9, 1.0, 2.0, 32)
    found = Recipe.from_json({"optimizer": "sgd", "batch": 4}, base, images=800)
    assert (found.momentum, found.bias_decay_factor) == (0.8, 0.0)
    for asked in ({"lr": 0.1}, {"auto_scale_lr": False}):
        found = Recipe.from_json(asked, base, images=800)
        assert (found.auto_scale_lr, found.base_batch) == (False, 16)
    assert Recipe.from_json({"schedule": "anneal"}, base, images=800) == replace(base, schedule="anneal", warm_up=None, milestones=None)


def test_a_batch_of_ones_own_scales_the_rate_that_a_base_was_published_with() -> None:
    recipe, warnings = Recipe.from_json({"batch": 4}, ONE_X).resolved(800)
    assert (recipe.lr, recipe.iterations) == (0.005, 2400)
    assert warnings == ["the learning rate was scaled from 0.02 to 0.005: 4 images a step instead of the 16 that the rate is for"]
    recipe, warnings = Recipe.from_json({"batch": 4, "lr": 0.02}, ONE_X).resolved(800)
    assert (recipe.lr, warnings) == (0.02, [])


def test_a_recipe_that_was_kept_is_read_as_it_is() -> None:
    """From a specification, of an earlier version too; and a whole one may be asked for again."""
    kept = Recipe(warm_up=500, momentum=0.5, eval_every=1000, epochs=2, iterations=100).to_json()
    assert Recipe.from_json(kept).to_json() == kept
    assert Recipe.from_json(kept, ONE_X, images=800).to_json() == kept
    assert Recipe.from_json({"iterations": 10, "warm_up": 500}).warm_up == 500


@pytest.mark.parametrize(
    ("recipe", "sides", "said"),
    [
        (Recipe(image_size=128), (4000, 3000), "4000 x 3000 px .* shown as 128 x 96 px .recipe.image_size 128.: 31.2 times smaller"),
        (Recipe(image_size=128), (257, 200), "2.0 times smaller"),
        (Recipe(image_size=128), (256, 200), None),
        (Recipe(image_size=128), (64, 64), None),
        (Recipe(image_size=128), (63, 63), "63 x 63 px .* shown as 128 x 128 px .*: 2.0 times larger"),
        (ONE_X, (640, 480), None),  # to 1067 x 800: 1.7 times
        (ONE_X, (640, 640), None),  # the shorter side stops it at 800
        (ONE_X, (128, 128), "128 x 128 px .* shown as 800 x 800 px .recipe.image_size 1333.: 6.2 times larger"),
        (ONE_X, None, None),
    ],
)
def test_images_that_are_shown_far_smaller_or_larger_are_told(recipe: Recipe, sides: tuple[int, int] | None, said: str | None) -> None:
    found = size_warning(recipe, sides)
    assert found is None if said is None else re.search(said, found or "")
