"""The catalogue's facts, which are read without torch, against the heads that MMDetection builds from its configurations."""

from collections.abc import Iterator
from typing import Any

import pytest

from detkds_core.catalogue import DETECTORS, DetectorEntry
from detkds_core.catalogue.entry import BY_OVERLAP
from detkds_core.detectors.build import model_config
from detkds_core.detectors.runtime import prepare_mmdet

CLASSES = 7


def dense_head(config: dict[str, Any]) -> Any:
    """The head that predicts at every cell, built alone: a backbone would take seconds and says nothing here."""
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    two_stage = "rpn_head" in config
    head = dict(config["rpn_head" if two_stage else "bbox_head"])
    train = config.get("train_cfg") or {}
    return MODELS.build(ConfigDict({**head, "train_cfg": train.get("rpn") if two_stage else train or None, "test_cfg": None}))


@pytest.mark.parametrize("entry", DETECTORS.values(), ids=lambda entry: entry.name)
def test_facts_are_those_of_the_heads(entry: DetectorEntry) -> None:
    prepare_mmdet()
    config = model_config(entry, CLASSES)
    neck = config["neck"]
    assert (neck["out_channels"], neck.get("num_outs", len(neck["in_channels"]))) == (entry.channels, len(entry.strides))
    assert (entry.stages == 2) == ("roi_head" in config)
    assert entry.masks == bool((config.get("roi_head") or {}).get("mask_head"))
    head = dense_head(config)
    if entry.scores == "queries":
        assert not hasattr(head, "prior_generator")
        assert entry.anchors == 0
        return
    generator = head.prior_generator
    strides = [stride if isinstance(stride, int) else stride[0] for stride in generator.strides]
    assert tuple(strides) == entry.strides
    assert set(generator.num_base_priors) == {entry.anchors}
    assert getattr(head, "reg_max", None) == entry.reg_max
    assert head.use_sigmoid_cls
    assert head.cls_out_channels == (CLASSES if entry.scores == "classes" else 1)
    if not entry.anchor_scales:
        assert not hasattr(generator, "base_anchors")
        assert not entry.overlaps
        return
    assert (generator.scale_major, tuple(generator.base_sizes), generator.center_offset) == (True, entry.strides, 0)
    assert generator.scales.tolist() == pytest.approx(entry.anchor_scales)
    assert tuple(generator.ratios.tolist()) == entry.anchor_ratios
    assert entry.overlaps == (type(head.assigner).__name__ in BY_OVERLAP)


@pytest.mark.parametrize("entry", DETECTORS.values(), ids=lambda entry: entry.name)
def test_inputs_are_normalised_as_the_entry_says(entry: DetectorEntry) -> None:
    preprocessor = model_config(entry, CLASSES)["data_preprocessor"]
    inputs = entry.inputs
    assert tuple(preprocessor.get("mean") or (0.0, 0.0, 0.0)) == inputs.mean
    assert tuple(preprocessor.get("std") or (1.0, 1.0, 1.0)) == inputs.std
    assert bool(preprocessor.get("bgr_to_rgb")) == inputs.rgb
    assert (preprocessor["pad_size_divisor"], preprocessor.get("pad_value", 0)) == (inputs.pad, inputs.fill)
    assert not preprocessor.get("batch_augments")


def texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        yield from texts(value)


@pytest.mark.parametrize("entry", DETECTORS.values(), ids=lambda entry: entry.name)
def test_no_configuration_downloads_or_waits_for_other_devices(entry: DetectorEntry) -> None:
    config = model_config(entry, CLASSES)
    assert [text for text in texts(config) if "://" in text or text == "SyncBN"] == []
