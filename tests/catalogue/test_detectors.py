"""The catalogue's facts, which are read without torch, against the heads that MMDetection builds from its configurations."""

from typing import Any

import pytest

from detkds_core.catalogue import DETECTORS, PAIRS, DetectorEntry, exchange
from detkds_core.detectors.build import model_config
from detkds_core.detectors.runtime import prepare_mmdet
from detkds_core.policy.vocabulary import KNOWLEDGE

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
    head = dense_head(config)
    strides = [stride if isinstance(stride, int) else stride[0] for stride in head.prior_generator.strides]
    assert tuple(strides) == entry.strides
    assert set(head.prior_generator.num_base_priors) == {entry.anchors}
    assert (config["neck"]["out_channels"], config["neck"]["num_outs"]) == (entry.channels, len(entry.strides))
    assert getattr(head, "reg_max", None) == entry.reg_max
    assert head.cls_out_channels == (CLASSES if entry.scores == "classes" else 1)
    assert (entry.stages == 2) == ("roi_head" in config)


def test_what_a_pair_exchanges_follows_from_its_heads() -> None:
    gfl, retinanet, rpn = (DETECTORS[f"{family}_r18w8_fpn32"] for family in ("gfl", "retinanet", "faster_rcnn"))
    assert exchange(gfl, gfl).knowledge == KNOWLEDGE
    assert exchange(gfl, gfl).has_edges
    assert exchange(gfl, retinanet).knowledge == ("global", "fgbg", "instance")  # 1 prediction a cell and 3
    assert exchange(retinanet, rpn).knowledge == ("global", "fgbg", "instance", "localization")  # classes and objectness
    assert not exchange(gfl, DETECTORS["gfl_r50_fpn"]).has_edges  # 9 bins and 17
    assert exchange(gfl, DETECTORS["gfl_r50_fpn"]).strides == (8, 16, 32)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=lambda pair: pair.name)
def test_pairs_name_what_there_is(pair: Any) -> None:
    assert exchange(DETECTORS[pair.teacher], DETECTORS[pair.student]).knowledge == KNOWLEDGE
    assert [recipe.errors() for recipe in (pair.teaching, pair.proxy, pair.full)] == [[], [], []]
