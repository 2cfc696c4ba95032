"""What a student is trained by where no pair says it."""

from dataclasses import replace

import pytest

from detkds_core.catalogue import BUILT_IN, DETECTORS, PAIRS, Recipe, base_recipe
from detkds_core.catalogue.schedules import PROXY_STEPS

COCO = 117_266


def test_a_detector_of_mmdetections_zoo_has_its_configurations_recipe() -> None:
    recipe, source = base_recipe(DETECTORS["retinanet_r50_fpn"], COCO, "full")
    assert source == "MMDetection's retinanet/retinanet_r50_fpn_1x_coco.py"
    assert recipe == Recipe(
        epochs=12,
        batch=16,
        base_batch=16,
        lr=0.01,
        auto_scale_lr=True,
        optimizer="sgd",
        momentum=0.9,
        weight_decay=1e-4,
        schedule="steps",
        warm_up=500,
        milestones=(8, 11),
        clip=35.0,
        eval_every=1,
        image_size=1333,
        short_side=800,
        augment="flip",
    )


def test_every_detector_at_its_full_size_has_one_and_no_small_one() -> None:
    for entry in BUILT_IN.values():
        full = entry.source is not None and entry.width is None
        assert (entry.training is not None) == full, entry.name
        if entry.training is not None:
            assert entry.training.errors() == []
            assert entry.training.image_size >= 416
        else:
            assert base_recipe(entry, COCO, "full") == (Recipe(), "the defaults for small detectors")


@pytest.mark.parametrize(
    ("name", "images", "iterations"),
    [
        ("retinanet_r50_fpn", COCO, PROXY_STEPS),  # of 87,950
        ("retinanet_r50_fpn", 800, 600),  # 12 epochs of 50 steps: all of it
        ("retinanet_r50_fpn", 1956, PROXY_STEPS),  # 12 * 1956 / 16 = 1467
        ("rtmdet_s", 8000, PROXY_STEPS),  # of 9,375
        ("gfl_r18w8_fpn32", COCO, 300),
    ],
)
def test_a_candidate_is_trained_for_an_affordable_part(name: str, images: int, iterations: int) -> None:
    recipe, _ = base_recipe(DETECTORS[name], images, "proxy")
    full, _ = base_recipe(DETECTORS[name], images, "full")
    assert recipe.resolved(images)[0].iterations == iterations
    if iterations != full.resolved(images)[0].iterations:
        assert recipe == replace(full, iterations=iterations, epochs=None, milestones=None, eval_every=None)
        assert recipe.errors() == []
    else:
        assert recipe == full


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_no_forward_has_more_pixels_than_usual_gpus_have_room_for(devices: int) -> None:
    """A step of theirs has 16 to 256 images: 17 to 105 million pixels. A search cuts no batch."""
    for entry in BUILT_IN.values():
        if entry.training is None:
            continue
        for schedule in ("full", "proxy"):
            step, _ = base_recipe(entry, COCO, schedule)
            recipe = replace(step, devices=devices).in_forwards()
            assert recipe.errors() == []
            images = recipe.batch // devices
            assert images >= 2
            assert images * recipe.image_size * (recipe.short_side or recipe.image_size) <= 16 * 640 * 640, entry.name
            assert (recipe.images_per_step, recipe.base_batch) == (step.batch, step.base_batch)
            assert recipe.resolved(COCO) == (
                replace(step.resolved(COCO)[0], batch=recipe.batch, accumulate=recipe.accumulate, devices=devices),
                [],
            )


def test_a_candidate_is_as_long_as_the_papers() -> None:
    assert PAIRS["faster_rcnn_r101_r50"].proxy.resolved(COCO)[0].iterations == PROXY_STEPS
