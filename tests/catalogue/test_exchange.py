"""What passes between two detectors and what does not: a matrix of families, paradigms and strides, each refusal with its reason."""

from dataclasses import replace

import pytest

from detkds_core.catalogue import DETECTORS, exchange, pair_facts
from detkds_core.catalogue.exchange import match_strides
from detkds_core.policy.distillers import TOWERS
from detkds_core.policy.vocabulary import KNOWLEDGE, REGIONS

FEATURES = ("global", "fgbg", "instance")
ONE_STAGE = ("gfl", "retinanet", "fcos", "atss", "reppoints")
TWO_STAGE = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")


def small(family, width=8):
    return DETECTORS[f"{family}_r18w{width}_fpn32"]


@pytest.mark.parametrize("family", [*ONE_STAGE, *TWO_STAGE])
def test_one_of_the_same_family_gives_all(family):
    offer = exchange(small(family, 16), small(family))
    entry = small(family)
    assert offer.knowledge == KNOWLEDGE
    assert offer.excluded == {}
    assert offer.levels == tuple((level, level) for level in range(len(entry.strides)))
    assert offer.strides == entry.strides
    assert not offer.resized
    assert offer.has_edges == (family == "gfl")
    assert offer.has_points == (family == "reppoints")
    assert ("towers" not in offer.lacking) == (family in TOWERS)
    assert "assigned" not in offer.lacking
    assert offer.regions["global"] == ("all", "teacher_score")
    on_cells = ("all", "teacher_score", "foreground", "assigned")
    if family in ONE_STAGE:
        assert offer.regions["instance"] == ("all",)
        assert offer.regions["logits"] == on_cells
        assert offer.regions["localization"] == ("all", "foreground", "assigned")
        assert "no proposals" in offer.lacking["instance.proposals"]
        assert offer.lacking["logits.proposals"] == "neither has a RoI head"
    else:
        assert offer.regions["instance"] == ("all", "proposals")
        assert offer.regions["logits"] == (*on_cells, "proposals", *(["masks"] if "mask" in family else []))
        assert offer.regions["localization"] == ("all", "foreground", "assigned", "proposals")


def test_what_a_pair_can_look_at_is_of_the_language():
    for teacher in DETECTORS.values():
        for student in DETECTORS.values():
            offer = exchange(teacher, student, resize=True)
            assert set(offer.knowledge) | set(offer.excluded) == set(KNOWLEDGE)
            assert not set(offer.knowledge) & set(offer.excluded)
            assert set(offer.regions) == set(offer.knowledge)
            for kind, regions in offer.regions.items():
                assert set(regions) <= set(REGIONS[kind])
                for region in set(REGIONS[kind]) - set(regions):  # whatever is refused has a reason
                    assert offer.lacking.get(f"{kind}.{region}") or offer.lacking.get(region), (teacher.name, student.name, kind, region)
            assert all(len(why) > 10 for why in (*offer.excluded.values(), *offer.lacking.values()))


def test_one_prediction_a_cell_and_three_do_not_compare():
    offer = exchange(small("gfl"), small("retinanet"))
    assert offer.knowledge == FEATURES
    assert offer.excluded["logits"] == offer.excluded["localization"] == "the teacher has 1 prediction a cell, the student 3"
    assert offer.lacking["towers"] == offer.excluded["logits"]
    assert offer.regions["global"] == ("all", "teacher_score")  # whose weights are the teacher's alone


def test_as_many_predictions_that_start_from_other_boxes_do_not_compare():
    offer = exchange(small("retinanet"), small("faster_rcnn"))
    assert offer.knowledge == FEATURES
    assert offer.excluded["localization"] == (
        "the teacher's anchors are of scales 3 and ratios 0.5, 1, 2, the student's of scales 4 and ratios 0.5, 1, 2"
    )
    turned = replace(small("retinanet"), anchor_ratios=(2.0, 1.0, 0.5))
    assert "ratios 2, 1, 0.5" in exchange(turned, small("retinanet")).excluded["logits"]
    assert exchange(small("gfl"), small("atss")).knowledge == KNOWLEDGE  # a single anchor may be of any shape


def test_other_families_with_as_many_predictions_compare_scores_and_boxes():
    offer = exchange(small("gfl"), small("fcos"))
    assert offer.knowledge == KNOWLEDGE
    assert not offer.has_edges
    assert "towers" not in offer.lacking
    assert "point sets" in offer.lacking["points"]
    assert exchange(small("gfl"), DETECTORS["rtmdet_tiny"]).lacking["towers"] == "the student has no branches that another head can finish"


def test_edges_need_as_many_bins():
    assert not exchange(small("gfl"), DETECTORS["gfl_r50_fpn"]).has_edges  # 9 bins and 17
    assert exchange(small("gfl"), DETECTORS["gfl_r50_fpn"]).strides == (8, 16, 32)
    assert exchange(DETECTORS["gfl_r101_fpn"], DETECTORS["gfl_r50_fpn"]).has_edges


def test_from_one_stage_to_two_and_back():
    rcnn = replace(small("faster_rcnn"), anchor_scales=small("retinanet").anchor_scales)
    there = exchange(small("retinanet"), rcnn)
    assert there.knowledge == (*FEATURES, "localization")
    assert there.excluded == {"logits": "the teacher's dense head scores classes, the student's objectness"}
    assert there.regions["instance"] == ("all", "proposals")  # the student's, at which the teacher's features can be read
    assert there.regions["localization"] == ("all", "foreground", "assigned")
    assert there.lacking["localization.proposals"] == "the teacher has no RoI head"
    back = exchange(rcnn, small("retinanet"))
    assert back.excluded == {"logits": "the teacher's dense head scores objectness, the student's classes"}
    assert back.regions["instance"] == ("all",)
    assert back.lacking["localization.proposals"] == "the student has no RoI head"
    other = exchange(small("gfl"), small("faster_rcnn"))
    assert other.knowledge == FEATURES
    assert set(other.excluded) == {"logits", "localization"}


def test_a_cascade_with_masks_teaches_one_without():
    teacher, student = DETECTORS["cascade_mask_rcnn_x101_dcn_fpn"], DETECTORS["faster_rcnn_r50_fpn"]
    offer = exchange(teacher, student)
    assert offer.knowledge == KNOWLEDGE
    assert "proposals" in offer.regions["logits"]
    assert "masks" not in offer.regions["logits"]
    assert offer.lacking["logits.masks"] == "the student predicts no masks"
    assert "masks" in exchange(teacher, DETECTORS["mask_rcnn_r50_fpn"]).regions["logits"]
    assert exchange(student, teacher).lacking["logits.masks"] == "the teacher predicts no masks"


def test_a_detr_student_takes_features_alone():
    teacher, detr = DETECTORS["retinanet_r50_fpn"], DETECTORS["detr_r18"]
    offer = exchange(teacher, detr)
    assert offer.levels == ((2, 0),)
    assert offer.strides == (32,)
    assert offer.knowledge == FEATURES
    assert offer.excluded["logits"] == offer.excluded["localization"] == "the student predicts from queries, which belong to no cell"
    assert "queries" in offer.lacking["assigned"]
    assert offer.regions["global"] == ("all", "teacher_score")
    taught = exchange(detr, teacher)
    assert taught.excluded["logits"] == "the teacher predicts from queries, which belong to no cell"
    assert taught.regions["global"] == ("all",)
    assert exchange(DETECTORS["detr_r50"], detr).knowledge == FEATURES


def test_no_stride_in_common_is_nothing_unless_maps_are_resized():
    teacher, student = replace(small("gfl"), strides=(4, 12)), replace(small("gfl"), strides=(8, 16))
    offer = exchange(teacher, student)
    assert (offer.levels, offer.knowledge) == ((), ())
    assert set(offer.excluded) == set(KNOWLEDGE)
    assert offer.excluded["global"] == (
        "no pyramid level in common: teacher has strides [4, 12], student [8, 16]; "
        "with resize, levels at most twice as fine or as coarse are matched"
    )
    resized = exchange(teacher, student, resize=True)
    assert resized.resized
    assert resized.knowledge == FEATURES
    assert resized.strides == (8, 16)
    assert resized.excluded["logits"] == "levels of different strides have different cells"
    assert resized.regions["global"] == ("all",)


def test_resize_changes_nothing_where_strides_agree():
    pair = small("gfl", 16), small("gfl")
    assert exchange(*pair, resize=True) == exchange(*pair)


@pytest.mark.parametrize(
    ("teacher", "student", "resize", "expected"),
    [
        ((8, 16, 32), (8, 16, 32), False, ((0, 0), (1, 1), (2, 2))),
        ((4, 8, 16, 32, 64), (8, 16, 32), False, ((1, 0), (2, 1), (3, 2))),
        ((8, 16, 32), (4, 8, 16, 32, 64), False, ((0, 1), (1, 2), (2, 3))),
        ((8, 16, 32, 64, 128), (4, 8, 16, 32, 64), False, ((0, 1), (1, 2), (2, 3), (3, 4))),
        ((6, 12), (8, 16), False, ()),
        # by ratio: 8/6 = 16/12 = 1.33 before 12/8 = 1.5
        ((6, 12), (8, 16), True, ((0, 0), (1, 1))),
        # 16/12 = 1.33 before 12/8 = 1.5, so that 8 takes 4
        ((4, 12), (8, 16), True, ((0, 0), (1, 1))),
        # equal strides first; 128, which is left, is five octaves from 4
        ((8, 16, 32, 64, 128), (4, 8, 16, 32, 64), True, ((0, 1), (1, 2), (2, 3), (3, 4))),
        # a student's level beyond the teacher's has no partner
        ((32,), (8, 16, 32), True, ((0, 2),)),
        ((16,), (8, 32), True, ((0, 0),)),
        ((32,), (12, 15), True, ()),
    ],
)
def test_levels_are_matched_by_stride(teacher, student, resize, expected):
    assert match_strides(teacher, student, resize) == expected


def test_the_rules_are_told_how_many_scores_there_are():
    gfl = pair_facts(exchange(small("gfl"), small("gfl")), small("gfl"), classes=10, images_per_batch=4)
    assert (gfl.images_per_batch, gfl.has_edges, gfl.score_channels, gfl.roi_channels) == (4, True, 10, 11)
    retinanet = DETECTORS["retinanet_r50_fpn"]
    assert pair_facts(exchange(retinanet, retinanet), retinanet, 80, 2).score_channels == 9 * 80
    rcnn = small("faster_rcnn")
    facts = pair_facts(exchange(rcnn, rcnn), rcnn, 80, 2)
    assert (facts.score_channels, facts.roi_channels) == (3, 81)
    assert facts.regions_of("logits") == ("all", "teacher_score", "foreground", "assigned", "proposals")
