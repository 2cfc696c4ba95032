"""The catalogue's facts, which are read without torch, against the heads that MMDetection builds from its configurations."""

from collections.abc import Iterator
from typing import Any

import pytest

from detkds_core.catalogue import DETECTORS, PAIRS, DetectorEntry, detector, exchange
from detkds_core.catalogue.pairs import PAPER_PAIRS
from detkds_core.detectors.build import model_config
from detkds_core.detectors.runtime import prepare_mmdet
from detkds_core.policy import named_policies
from detkds_core.policy.vocabulary import KNOWLEDGE

CLASSES = 7


@pytest.fixture(autouse=True)
def _ready() -> None:
    prepare_mmdet()


def dense_head(config: dict[str, Any]) -> Any:
    """The head that predicts at every cell, built alone: a backbone would take seconds and says nothing here."""
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    two_stage = "rpn_head" in config
    head = dict(config["rpn_head" if two_stage else "bbox_head"])
    train = config.get("train_cfg") or {}
    return MODELS.build(ConfigDict({**head, "train_cfg": train.get("rpn") if two_stage else train or None, "test_cfg": None}))


def pyramid(neck: dict[str, Any]) -> tuple[int, int]:
    """Channels and levels that a neck puts out."""
    return neck["out_channels"], neck.get("num_outs", len(neck["in_channels"]))


@pytest.mark.parametrize("entry", DETECTORS.values(), ids=lambda entry: entry.name)
def test_facts_are_those_of_the_heads(entry: DetectorEntry) -> None:
    config = model_config(entry, CLASSES)
    roi_head = config.get("roi_head") or {}
    assert pyramid(config["neck"]) == (entry.channels, len(entry.strides))
    assert (entry.stages == 2) == bool(roi_head)
    assert entry.masks == ("mask_head" in roi_head)
    assert ("Cascade" in roi_head.get("type", "")) == ("cascade" in entry.family)
    head = dense_head(config)
    if entry.scores == "queries":
        assert not hasattr(head, "prior_generator")
        strides = [2 ** (stage + 2) for stage in config["backbone"]["out_indices"]]
        further = [strides[-1] * 2 ** (level + 1) for level in range(len(entry.strides) - len(strides))]  # the neck halves the coarsest
        assert (entry.anchors, entry.strides) == (0, (*strides, *further))
        assert head.num_classes == CLASSES
        return
    strides = [stride if isinstance(stride, int) else stride[0] for stride in head.prior_generator.strides]
    assert tuple(strides) == entry.strides
    assert set(head.prior_generator.num_base_priors) == {entry.anchors}
    assert getattr(head, "reg_max", None) == entry.reg_max
    assert head.cls_out_channels == (CLASSES if entry.scores == "classes" else 1)
    assert head.use_sigmoid_cls
    generator = head.prior_generator
    if not entry.anchor_scales:
        assert not hasattr(generator, "base_anchors")
        return
    assert (generator.scale_major, tuple(generator.base_sizes), generator.center_offset) == (True, entry.strides, 0)
    assert generator.scales.tolist() == pytest.approx(entry.anchor_scales)
    assert tuple(generator.ratios.tolist()) == entry.anchor_ratios


@pytest.mark.parametrize("entry", [entry for entry in DETECTORS.values() if entry.stages == 2], ids=lambda entry: entry.name)
def test_every_head_of_a_two_stage_detector_has_the_datasets_classes(entry: DetectorEntry) -> None:
    roi_head = model_config(entry, CLASSES)["roi_head"]
    for part in ("bbox_head", "mask_head"):
        heads = roi_head.get(part) or []
        assert [head["num_classes"] for head in (heads if isinstance(heads, list) else [heads])] == [CLASSES] * (
            len(heads) if isinstance(heads, list) else 1
        )


@pytest.mark.parametrize("family", ["atss", "reppoints", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"])
def test_a_shrunk_detector_is_narrow_everywhere(family: str) -> None:
    """No layer of the original's 256 channels is left: the weights of the heads' convolutions are 32 wide."""
    config = model_config(DETECTORS[f"{family}_r18w8_fpn32"], CLASSES)
    assert config["backbone"]["base_channels"] == 8
    assert config["neck"]["in_channels"] == [8, 16, 32, 64]
    head = dense_head(config)
    widest = max(max(parameter.shape[:2]) for parameter in head.parameters() if parameter.ndim == 4)
    assert widest <= 36  # RepPoints and anchors put out fewer


def test_an_unknown_detector_is_told_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"'yolo' is not a known detector; one of gfl_r18w8_fpn32, .*detr_r50"):
        detector("yolo")


def test_names_and_places_are_unique() -> None:
    assert all(name == entry.name for name, entry in DETECTORS.items())
    assert len({entry.title for entry in DETECTORS.values()}) == len(DETECTORS)
    assert all(name == pair.name for name, pair in PAIRS.items())
    assert {entry.family for entry in DETECTORS.values()} == {
        *("gfl", "retinanet", "fcos", "faster_rcnn", "atss", "reppoints", "rtmdet", "yolox", "detr", "deformable_detr"),
        *("mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"),
    }


@pytest.mark.parametrize("pair", PAIRS.values(), ids=lambda pair: pair.name)
def test_pairs_name_what_there_is(pair: Any) -> None:
    offer = exchange(DETECTORS[pair.teacher], DETECTORS[pair.student])
    assert {"global", "fgbg", "instance"} <= set(offer.knowledge)
    if DETECTORS[pair.teacher].family == DETECTORS[pair.student].family:
        assert offer.knowledge == KNOWLEDGE
    assert [recipe.errors() for recipe in (pair.teaching, pair.proxy, pair.full)] == [[], [], []]
    assert set(pair.policies) <= set(named_policies())


def test_the_papers_pairs_are_its_eight_with_a_released_policy_each() -> None:
    assert len(PAPER_PAIRS) == 8
    released = [name for name, one in named_policies().items() if one.pair]
    assert sorted(name for pair in PAPER_PAIRS for name in pair.policies) == sorted(released)


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
