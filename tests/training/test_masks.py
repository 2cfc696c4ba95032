"""Detectors that draw masks: what they learn from, and what their masks are worth by MMDetection's own metric."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detkds_core.catalogue import DETECTORS, Recipe
from detkds_core.datasets import Dataset, DatasetError, report_ids
from detkds_core.detectors.build import build_detector, save_weights
from detkds_core.evaluation.masks import run_lengths
from detkds_core.policy import parse_formula, to_json
from detkds_core.training.batches import Batches
from detkds_core.training.distillation import distill
from detkds_core.training.group import model_inputs

NAME = "mask_rcnn_for_test"
SIZE = 64


@pytest.fixture(autouse=True)
def _mask_rcnn(monkeypatch):
    """A small Faster R-CNN with a mask head."""
    entry = DETECTORS["faster_rcnn_r18w16_fpn32"]
    roi = entry.config["roi_head"]
    extractor = {**roi["bbox_roi_extractor"], "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0}}
    head = {
        "type": "FCNMaskHead",
        "num_convs": 2,
        "in_channels": 32,
        "conv_out_channels": 32,
        "num_classes": 2,
        "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
    }
    train = {**entry.config["train_cfg"], "rcnn": {**entry.config["train_cfg"]["rcnn"], "mask_size": 14}}
    test = {**entry.config["test_cfg"], "rcnn": {**entry.config["test_cfg"]["rcnn"], "mask_thr_binary": 0.5}}
    parts = {"roi_head": {**roi, "mask_roi_extractor": extractor, "mask_head": head}, "train_cfg": train, "test_cfg": test}
    config = {**entry.config, "type": "MaskRCNN", **parts}
    monkeypatch.setitem(DETECTORS, NAME, replace(entry, name=NAME, family="mask_rcnn", masks=True, config=config))


def shapes(folder: Path, name: str, count: int, seed: int) -> dict[str, Any]:
    """Bright ellipses and triangles on noise; outlines as polygons and, every third, as run lengths."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        pixels = rng.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
        for kind in (1, 2):
            x, y = (10, 34)[(index + kind) % 2] + rng.integers(-4, 5), rng.integers(8, 30)
            w, h = rng.integers(16, 24, 2)
            if kind == 1:
                points = cv2.ellipse2Poly((int(x + w / 2), int(y + h / 2)), (int(w / 2), int(h / 2)), 0, 0, 360, 15)
            else:
                points = np.array([[x, y + h], [x + w / 2, y], [x + w, y + h]]).astype(int)
            colour = [0, 0, 0]
            colour[kind] = 230
            cv2.fillPoly(pixels, [points.astype(np.int32)], colour)
            mask = cv2.fillPoly(np.zeros((SIZE, SIZE), np.uint8), [points.astype(np.int32)], 1)
            bx, by, bw, bh = cv2.boundingRect(mask)
            outline = run_lengths(mask > 0) if index % 3 == 0 else [points.reshape(-1).tolist()]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": kind,
                    "bbox": [bx, by, bw, bh],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": outline,
                }
            )
        cv2.imwrite(str(folder / name / f"{index}.png"), pixels)
        images.append({"id": index + 1, "file_name": f"{index}.png", "width": SIZE, "height": SIZE})
    path = folder / f"{name}.json"
    categories = [{"id": 1, "name": "ellipse"}, {"id": 2, "name": "triangle"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return {"annotations": str(path), "images": str(folder / name)}


@pytest.fixture(scope="module")
def outlined(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("shapes")
    splits = {"train": shapes(folder, "train", 24, 0), "val": shapes(folder, "val", 12, 1)}
    return Dataset.from_json({"name": "shapes", "classes": ["ellipse", "triangle"], "digest": "none", **splits})


def job(outlined: Dataset, folder: Path, policy: str, **recipe: Any) -> dict[str, Any]:
    torch.manual_seed(5)
    save_weights(build_detector(NAME, outlined.classes), folder / "teacher.safetensors", {})
    return {
        "kind": "distill",
        "dataset": outlined.to_json(),
        "teacher": {"detector": NAME, "checkpoint": str(folder / "teacher.safetensors")},
        "student": {"detector": NAME, "checkpoint": None},
        "inherit": False,
        "recipe": {"batch": 4, "image_size": SIZE, "lr": 2e-3, **recipe},
        "policy": to_json(parse_formula(policy)),
        "seed": 1,
    }


@pytest.mark.parametrize("augment", ["none", "flip", "dihedral", "aerial"])
def test_masks_move_with_their_objects(outlined, augment):
    """The bright pixels of an object are those of its mask, in whatever way the image was turned or scaled."""
    batches = Batches(outlined.to_json()["train"], Recipe(batch=4, image_size=SIZE, augment=augment), 3, masks=True)
    for batch in (batches[index] for index in range(3)):
        for image, labels, boxes, masks in zip(batch.images, batch.labels, batch.boxes, batch.masks, strict=True):
            assert masks.shape == (len(labels), *image.shape[1:])
            for label, (x1, y1, x2, y2), mask in zip(labels, boxes.tolist(), masks, strict=True):
                others = 1 + (int(label) + 1) % 2  # channels: kind 1 is green, kind 2 is red
                difference = image[1 + int(label)].numpy().astype(int) - image[others].numpy()
                bright = difference > difference.max() / 2  # whatever the light
                assert (bright & (mask > 0)).sum() / (bright | (mask > 0)).sum() > 0.75
                rows, columns = np.nonzero(mask)
                bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.abs(np.array(bounds) - [x1, y1, x2, y2]).max() <= 3


def test_mmdetection_gets_the_masks_of_its_samples(outlined):
    batch = Batches(outlined.to_json()["train"], Recipe(batch=2, image_size=SIZE, augment="none"), 3, masks=True)[0]
    model = build_detector(NAME, outlined.classes)
    _, samples = model_inputs(model.data_preprocessor, batch, torch.device("cpu"))
    for sample, masks in zip(samples, batch.masks, strict=True):
        np.testing.assert_array_equal(sample.gt_instances.masks.masks, masks)


def test_a_dataset_without_outlines_is_refused(small_digits):
    with pytest.raises(DatasetError, match="no annotation has a segmentation"):
        Batches(small_digits.to_json()["train"], Recipe(batch=2, image_size=SIZE), 3, masks=True)


def test_mask_rcnn_learns_and_its_masks_are_worth_what_mmdetection_says(outlined, tmp_path):
    from mmengine.config import Config
    from mmengine.runner import Runner

    folder = tmp_path / "job" / "1"
    folder.mkdir(parents=True)
    result = distill(job(outlined, tmp_path, "none", iterations=120), folder, lambda *_: None)
    content = outlined.val.load()
    ids = set(report_ids(outlined))
    for part, key in (("images", "id"), ("annotations", "image_id")):
        content[part] = [one for one in content[part] if one[key] in ids]
    annotations = tmp_path / "report.json"
    annotations.write_text(json.dumps(content))
    config = Config.fromfile(folder / "student_config.py")
    config.test_dataloader.dataset.ann_file = config.test_evaluator.ann_file = str(annotations)
    config.work_dir, config.load_from = str(tmp_path / "work"), str(folder / "student.pth")
    config.log_level, config.default_hooks = "ERROR", {"logger": None}
    metrics = Runner.from_cfg(config).test()
    ours = result["student"]
    assert 100 * metrics["coco/bbox_mAP"] == pytest.approx(ours["ap"], abs=0.11)  # MMDetection rounds to 0.1
    assert 100 * metrics["coco/segm_mAP"] == pytest.approx(ours["segm"]["ap"], abs=0.11)
    assert 100 * metrics["coco/segm_mAP_50"] == pytest.approx(ours["segm"]["ap50"], abs=0.11)
    assert ours["segm"]["ap50"] > 20


def test_masks_and_scores_of_shared_proposals_are_distilled(outlined, tmp_path):
    (tmp_path / "1").mkdir()
    formula = "1·l2[region=masks](logits) + 1·l2[region=proposals](logits) + 1·l1[region=proposals](localization)"
    result = distill(job(outlined, tmp_path, formula, iterations=2), tmp_path / "1", lambda *_: None)
    point = result["curve"][-1]
    assert all(point[name] > 0 for name in ("distill/0_logits", "distill/1_logits", "distill/2_localization"))
