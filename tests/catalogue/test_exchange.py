"""What a pair can exchange, and the reason for the rest."""

from dataclasses import replace

import pytest

from detkds_core.catalogue import DETECTORS, exchange, pair_facts
from detkds_core.catalogue.exchange import match_strides
from detkds_core.policy import pair_legality, parse_formula
from detkds_core.policy.vocabulary import FEATURES, KNOWLEDGE, REGIONS

GFL, RETINANET, FCOS, RCNN = (DETECTORS[f"{family}_r18w8_fpn32"] for family in ("gfl", "retinanet", "fcos", "faster_rcnn"))


def test_two_detectors_of_one_family_exchange_everything() -> None:
    offer = exchange(GFL, DETECTORS["gfl_r18w16_fpn32"])
    assert offer.knowledge == KNOWLEDGE
    assert offer.excluded == {}
    assert (offer.has_edges, offer.has_points, offer.resized) == (True, False, False)
    assert offer.regions["logits"] == ("all", "teacher_score", "foreground", "assigned", "assigned_score", "valuable")
    assert offer.regions["instance"] == ("all",)
    assert "one-stage" in offer.lacking["instance.proposals"]


def test_edges_need_as_many_bins() -> None:
    offer = exchange(GFL, DETECTORS["gfl_r50_fpn"])  # 9 bins and 17
    assert not offer.has_edges
    assert offer.lacking["edges"] == "the teacher has 9 bins an edge, the student 17"
    assert offer.strides == (8, 16, 32)
    (why,) = pair_legality(parse_formula("kl_edges(localization)").terms[0], pair_facts(offer, GFL, classes=10, images_per_batch=8))
    assert "the teacher has 9 bins an edge, the student 17" in why.message


def test_points_are_of_two_reppoints() -> None:
    reppoints = DETECTORS["reppoints_r18w8_fpn32"]
    assert exchange(reppoints, reppoints).has_points
    assert not exchange(reppoints, FCOS).has_points
    assert exchange(reppoints, FCOS).lacking["points"] == "the student predicts no point sets (RepPoints)"
    many = replace(reppoints, config={"bbox_head": {"num_points": 25}})
    assert not exchange(reppoints, many).has_points
    assert exchange(reppoints, many).lacking["points"] == "the teacher has 9 points a set, the student 25"
    resized = exchange(replace(reppoints, strides=(6, 12, 24)), reppoints, resize=True)
    assert resized.lacking["points"] == "levels of different strides have different cells"


@pytest.mark.parametrize(
    ("teacher", "student", "why"),
    [
        (GFL, RETINANET, "1 prediction a cell, the student 3"),
        (RETINANET, RCNN, "of scales 3 and ratios 0.5, 1, 2, the student's of scales 4"),
        (DETECTORS["retinanet_r50_fpn"], replace(DETECTORS["retinanet_r50_fpn"], anchor_ratios=(2.0, 1.0, 0.5)), "ratios 2, 1, 0.5"),
        (DETECTORS["detr_r50"], DETECTORS["retinanet_r50_fpn"], "the teacher predicts from queries"),
        (DETECTORS["retinanet_r50_fpn"], DETECTORS["deformable_detr_r50"], "the student predicts from queries"),
    ],
    ids=["anchors", "scales", "order", "from queries", "to queries"],
)
def test_predictions_of_different_cells_stay(teacher, student, why) -> None:
    offer = exchange(teacher, student)
    assert offer.knowledge == FEATURES
    assert why in offer.excluded["logits"]
    assert why in offer.excluded["localization"]


def test_the_shape_of_a_single_anchor_does_not_matter() -> None:
    assert exchange(GFL, DETECTORS["atss_r18w8_fpn32"]).knowledge == KNOWLEDGE  # scales 4 and 8
    assert exchange(GFL, FCOS).knowledge == KNOWLEDGE  # a box and a point


def test_objects_and_classes_are_different_scores() -> None:
    rpn = replace(RCNN, anchor_scales=RETINANET.anchor_scales)
    assert "scores classes, the student's objectness" in exchange(RETINANET, rpn).excluded["logits"]
    assert exchange(RETINANET, rpn).knowledge == (*FEATURES, "localization")


def test_proposals_are_the_students() -> None:
    on_cells = ("all", "teacher_score", "foreground", "assigned", "assigned_score", "valuable")
    assert exchange(RCNN, RCNN).regions["logits"] == (*on_cells, "proposals")
    # a one-stage teacher has features at a two-stage student's proposals, and says nothing of them
    offer = exchange(GFL, RCNN)
    assert offer.regions["instance"] == ("all", "proposals")
    assert offer.lacking["logits.proposals"] == "the teacher has no RoI head"
    assert exchange(RCNN, GFL).regions["instance"] == ("all",)


def test_masks_need_two_detectors_with_masks() -> None:
    mask, cascade, plain = (DETECTORS[name] for name in ("mask_rcnn_r50_fpn", "cascade_mask_rcnn_r50_fpn", "faster_rcnn_r50_fpn"))
    assert "masks" in exchange(cascade, mask).regions["logits"]
    assert exchange(cascade, plain).lacking["logits.masks"] == "the student predicts no masks"
    assert "masks" not in exchange(cascade, plain).regions["logits"]
    assert "proposals" in exchange(cascade, plain).regions["logits"]


def test_every_region_on_offer_is_one_of_the_language() -> None:
    for teacher in DETECTORS.values():
        offer = exchange(teacher, DETECTORS["cascade_mask_rcnn_r50_fpn"])
        assert all(set(regions) <= set(REGIONS[kind]) for kind, regions in offer.regions.items())


def test_levels_of_equal_strides_face_each_other() -> None:
    assert match_strides((8, 16, 32, 64, 128), (4, 8, 16, 32, 64), False) == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert match_strides((6, 12), (8, 16, 32), False) == ()


def test_with_resizing_the_nearest_of_the_others_too() -> None:
    assert match_strides((6, 12), (8, 16, 32), True) == ((0, 0), (1, 1))  # 6 for 8, 12 for 16, nothing is left for 32
    assert match_strides((4, 8, 20), (8, 16, 32), True) == ((1, 0), (2, 1))  # 8 is 8, 20 for 16
    # the coarsest and the finest level are no partners
    assert match_strides((8, 16, 32, 64, 128), (4, 8, 16, 32, 64), True) == ((0, 1), (1, 2), (2, 3), (3, 4))


def test_resized_levels_exchange_features_only() -> None:
    odd = replace(GFL, strides=(6, 12, 24))
    assert exchange(odd, GFL).knowledge == ()
    assert "with resize the nearest" in exchange(odd, GFL).excluded["global"]
    offer = exchange(odd, GFL, resize=True)
    assert (offer.resized, offer.knowledge, offer.strides) == (True, FEATURES, (8, 16, 32))
    assert offer.regions["global"] == ("all",)  # the teacher's scores have no cell of the student's
    assert "different strides" in offer.excluded["logits"]


def test_what_the_rules_need_to_know() -> None:
    facts = pair_facts(exchange(RCNN, RCNN), RCNN, classes=10, images_per_batch=8)
    assert (facts.score_channels, facts.roi_channels, facts.images_per_batch) == (3, 11, 8)  # objectness of 3 anchors; 10 and background
    facts = pair_facts(exchange(GFL, RETINANET), RETINANET, classes=10, images_per_batch=8)
    assert facts.score_channels == 10
