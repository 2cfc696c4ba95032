"""Batches are a function of the step; symmetries move boxes with their pixels."""

import json

import numpy as np
import pytest
import torch

from detkds_core.catalogue import Recipe
from detkds_core.training.batches import Batches, augmented, recoloured, zoomed


def test_a_batch_does_not_depend_on_what_was_asked_before(small_digits):
    recipe = Recipe(batch=4, image_size=64, augment="dihedral")
    split = small_digits.to_json()["train"]
    forward, backward = Batches(split, recipe, seed=5), Batches(split, recipe, seed=5)
    there = [forward[step] for step in range(14)]  # 24 images: more than two epochs
    back = [backward[step] for step in reversed(range(14))][::-1]
    for a, b in zip(there, back, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.images + a.boxes + a.labels, b.images + b.boxes + b.labels, strict=True))


def test_an_epoch_shows_every_image_once(small_digits):
    batches = Batches(small_digits.to_json()["train"], Recipe(batch=4, image_size=64, augment="none"), seed=1)
    seen = sorted(image.numpy().tobytes() for step in range(6) for image in batches[step].images)
    again = sorted(image.numpy().tobytes() for step in range(6, 12) for image in batches[step].images)
    assert len(set(seen)) == 24
    assert seen == again
    first = [image.numpy().tobytes() for image in batches[0].images]
    assert first != [image.numpy().tobytes() for image in batches[6].images]


def test_the_subset_is_the_same_for_every_seed(small_digits):
    recipe = Recipe(batch=2, image_size=64, train_images=6)
    split = small_digits.to_json()["train"]
    assert [r["id"] for r in Batches(split, recipe, 1).records] == [r["id"] for r in Batches(split, recipe, 2).records]
    assert len(Batches(split, recipe, 1).records) == 6


@pytest.mark.parametrize("kind", ["flip", "dihedral"])
def test_a_symmetry_moves_the_box_with_its_pixels(kind):
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[1:3, 4:7] = 255  # the box x1=4, y1=1, x2=7, y2=3
    shapes = set()
    for seed in range(40):
        given = np.array([[4.0, 1.0, 7.0, 3.0]]), np.array([2]), (pixels[None, ..., 0] > 0).astype(np.uint8)
        moved, boxes, labels, masks = augmented(pixels, *given, kind, np.random.default_rng(seed))
        x1, y1, x2, y2 = boxes[0].astype(int)
        np.testing.assert_array_equal(masks[0] > 0, moved[..., 0] > 0)
        assert labels.tolist() == [2]
        assert moved[y1:y2, x1:x2].min() == 255
        assert int((moved > 0).sum()) == (y2 - y1) * (x2 - x1) * 3
        shapes.add((moved.shape[:2], x1, y1))
    assert len(shapes) == (2 if kind == "flip" else 8)


def test_boxes_are_scaled_with_the_image(small_digits):
    split = small_digits.to_json()["train"]
    full = Batches(split, Recipe(batch=3, image_size=64, augment="none"), 0)[0]
    half = Batches(split, Recipe(batch=3, image_size=32, augment="none"), 0)[0]
    assert half.images[0].shape == (3, 32, 32)
    for a, b in zip(full.boxes, half.boxes, strict=True):
        torch.testing.assert_close(b, a / 2)


def test_a_box_without_area_is_left_out(small_digits, tmp_path):
    content = small_digits.train.load()
    content["annotations"][0]["bbox"][3] = 0.0
    (tmp_path / "flat.json").write_text(json.dumps(content))
    split = small_digits.train.to_json()
    flat, whole = (
        Batches({**split, "annotations": path}, Recipe(batch=4, image_size=64), 0)
        for path in (str(tmp_path / "flat.json"), split["annotations"])
    )
    image = content["annotations"][0]["image_id"]
    assert len(flat.truth[image][0]) == len(whole.truth[image][0]) - 1
    assert sum(len(boxes) for boxes, _, _ in flat.truth.values()) == sum(len(boxes) for boxes, _, _ in whole.truth.values()) - 1


def test_a_zoomed_image_keeps_its_boxes_on_their_pixels():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:20, 20:40] = 255
    kept = 0
    mask = (pixels[None, ..., 0] > 0).astype(np.uint8)
    for seed in range(60):
        given = np.array([[20.0, 10.0, 40.0, 20.0]]), np.array([4]), mask
        moved, boxes, labels, masks = zoomed(pixels, *given, np.random.default_rng(seed))
        assert moved.shape == pixels.shape
        assert labels.tolist() == [4] * len(boxes)
        assert masks.shape == (len(boxes), 40, 60)
        if len(boxes):
            kept += 1
            inside = np.argwhere(masks[0])  # rows, columns
            bounds = [*inside.min(axis=0)[::-1], *(inside.max(axis=0)[::-1] + 1)]
            assert np.abs(np.array(bounds) - boxes[0]).max() <= 1  # nearest pixels, so within one
            x1, y1, x2, y2 = np.round(boxes[0]).astype(int)
            core = moved[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
            assert core.size == 0 or core.min() > 100
            white = (moved > 200).sum() / 3
            assert abs(white - (x2 - x1) * (y2 - y1)) < 2 * (x2 - x1 + y2 - y1)
    assert kept > 40


def test_another_light_changes_colours_and_no_place():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    changed = recoloured(pixels, np.random.default_rng(3))
    assert changed.shape == pixels.shape
    for channel in range(3):
        assert (np.diff(changed[..., channel].reshape(-1).astype(int)) >= 0).all()  # brighter stays brighter
    assert not np.array_equal(changed, pixels)
