"""Pairs name what there is, and the paper's train as published."""

import math
from typing import Any

import pytest

from detkds_core.catalogue import DETECTORS, PAIRS, builtin_checkpoint, exchange, pair_facts
from detkds_core.policy import named_policies
from detkds_core.policy.named import cannot_run
from detkds_core.policy.vocabulary import FEATURES, KNOWLEDGE

PAPER = [pair for pair in PAIRS.values() if pair.dataset == "coco"]
SMALL = [pair for pair in PAIRS.values() if pair.dataset != "coco"]


@pytest.mark.parametrize("pair", PAIRS.values(), ids=lambda pair: pair.name)
def test_a_pair_names_what_there_is(pair: Any) -> None:
    offer = exchange(DETECTORS[pair.teacher], DETECTORS[pair.student])
    assert set(FEATURES) <= set(offer.knowledge)
    assert [recipe.errors() for recipe in (pair.teaching, pair.proxy, pair.full)] == [[], [], []]
    facts = pair_facts(offer, DETECTORS[pair.student], classes=80, images_per_batch=2)
    families = (DETECTORS[pair.teacher].family, DETECTORS[pair.student].family)
    for name in pair.policies:
        assert cannot_run(named_policies()[name].policy, offer, facts, families) == []


@pytest.mark.parametrize("pair", SMALL, ids=lambda pair: pair.name)
def test_the_teacher_of_a_small_pair_ships(pair: Any) -> None:
    assert builtin_checkpoint(pair.teacher_checkpoint) is not None


def test_what_the_small_pairs_exchange() -> None:
    def knowledge(name: str) -> tuple[str, ...]:
        return exchange(DETECTORS[PAIRS[name].teacher], DETECTORS[PAIRS[name].student]).knowledge

    assert knowledge("digits_gfl") == knowledge("digits_gfl_fcos") == knowledge("digits_faster_rcnn") == KNOWLEDGE
    assert knowledge("digits_gfl_faster_rcnn") == knowledge("trees_gfl_faster_rcnn") == FEATURES


def test_there_are_the_eight_pairs_of_the_paper_without_a_checkpoint_that_ships() -> None:
    assert len(PAPER) == 8
    assert {name for pair in PAPER for name in pair.policies} == {name for name in named_policies() if name.startswith("detkds_")}
    assert all(builtin_checkpoint(pair.teacher_checkpoint) is None for pair in PAPER)
    assert {pair.name for pair in PAPER if not pair.inherit} == {"cascade_mask_x101_faster_rcnn_r50", "cascade_mask_x101_mask_rcnn_r50"}


@pytest.mark.parametrize("pair", PAPER, ids=lambda pair: pair.name)
def test_the_paper_trains_24_epochs_with_mmdetections_schedule(pair: Any) -> None:
    full = pair.full
    assert (full.epochs, full.milestones, full.warm_up, full.clip) == (24, (16, 22), 500, 35)
    assert (full.optimizer, full.momentum, full.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (full.image_size, full.short_side) == (1333, 800)
    resolved, _ = full.resolved(117_266)  # images of COCO's train2017 that have a box
    assert resolved.milestones[0] / resolved.iterations == pytest.approx(16 / 24, abs=1e-3)
    assert resolved.iterations == math.ceil(24 * 117_266 / full.images_per_step)


def test_rates_and_batches_are_those_that_detkds_released_on_eight_devices() -> None:
    published = {  # images a device, learning rate
        "retinanet_r101_r50": (4, 0.01),
        "retinanet_x101_r50": (2, 0.02),
        "faster_rcnn_r101_r50": (2, 0.02),
        "fcos_r101_r50": (2, 0.01),
        "gfl_r101_r50": (2, 0.01),
        "reppoints_x101_r50": (2, 0.01),
        "cascade_mask_x101_faster_rcnn_r50": (2, 0.02),
        "cascade_mask_x101_mask_rcnn_r50": (4, 0.02),
    }
    resolved = {pair.name: pair.full.resolved(117_266) for pair in PAPER}
    assert {name: (recipe.images_per_step / 8, recipe.lr) for name, (recipe, _) in resolved.items()} == published
    assert all(warnings == [] for _, warnings in resolved.values())  # nothing was scaled
