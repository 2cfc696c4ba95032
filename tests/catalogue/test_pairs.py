"""The names of the catalogue, and its pairs."""

from typing import Any

import pytest

from detkds_core.catalogue import DETECTORS, PAIRS, DetectorEntry, detector, exchange
from detkds_core.catalogue.pairs import PAPER_PAIRS
from detkds_core.detectors.build import model_config
from detkds_core.policy import named_policies
from detkds_core.policy.vocabulary import KNOWLEDGE

CLASSES = 7


@pytest.mark.parametrize("entry", [entry for entry in DETECTORS.values() if entry.stages == 2], ids=lambda entry: entry.name)
def test_every_head_of_a_two_stage_detector_has_the_datasets_classes(entry: DetectorEntry) -> None:
    roi_head = model_config(entry, CLASSES)["roi_head"]
    for part in ("bbox_head", "mask_head"):
        heads = roi_head.get(part) or []
        assert [head["num_classes"] for head in (heads if isinstance(heads, list) else [heads])] == [CLASSES] * (
            len(heads) if isinstance(heads, list) else 1
        )


def test_an_unknown_detector_is_told_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"'swan' is not a known detector; one of gfl_r18w8_fpn32, .*detr_r50"):
        detector("swan")


def test_names_and_places_are_unique() -> None:
    assert all(name == entry.name for name, entry in DETECTORS.items())
    assert len({entry.title for entry in DETECTORS.values()}) == len(DETECTORS)
    assert all(name == pair.name for name, pair in PAIRS.items())


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
