"""What passes between two detectors and what does not: a matrix of families, paradigms and strides, each refusal with its reason."""

import pytest

from detkds_core.catalogue import DETECTORS, exchange, pair_facts
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
    assert not {"assigned", "assigned_score"} & set(offer.lacking)
    assert offer.regions["global"] == ("all", "teacher_score")
    nearly = ("valuable",) if entry.anchors > 1 or family in ("gfl", "atss") else ()
    assigned = ("foreground", "assigned", "assigned_score", *nearly)
    on_cells = ("all", "teacher_score", *assigned)
    if family in ONE_STAGE:
        assert offer.regions["instance"] == ("all",)
        assert offer.regions["logits"] == on_cells
        assert offer.regions["localization"] == ("all", *assigned)
        assert "no proposals" in offer.lacking["instance.proposals"]
        assert offer.lacking["logits.proposals"] == "neither has a RoI head"
    else:
        assert offer.regions["instance"] == ("all", "proposals")
        assert offer.regions["logits"] == (*on_cells, "proposals", *(["masks"] if "mask" in family else []))
        assert offer.regions["localization"] == ("all", *assigned, "proposals")


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
    assert offer.lacking["assigned"] == offer.lacking["assigned_score"]
    assert "queries" in offer.lacking["assigned"]
    assert offer.regions["global"] == ("all", "teacher_score")
    taught = exchange(detr, teacher)
    assert taught.excluded["logits"] == "the teacher predicts from queries, which belong to no cell"
    assert taught.regions["global"] == ("all",)
    assert exchange(DETECTORS["detr_r50"], detr).knowledge == FEATURES


def test_resize_changes_nothing_where_strides_agree():
    pair = small("gfl", 16), small("gfl")
    assert exchange(*pair, resize=True) == exchange(*pair)


def test_the_rules_are_told_how_many_scores_there_are():
    gfl = pair_facts(exchange(small("gfl"), small("gfl")), small("gfl"), classes=10, images_per_batch=4)
    assert (gfl.images_per_batch, gfl.has_edges, gfl.score_channels, gfl.roi_channels) == (4, True, 10, 11)
    retinanet = DETECTORS["retinanet_r50_fpn"]
    assert pair_facts(exchange(retinanet, retinanet), retinanet, 80, 2).score_channels == 80  # of one prediction at a time
    rcnn = small("faster_rcnn")
    facts = pair_facts(exchange(rcnn, rcnn), rcnn, 80, 2)
    assert (facts.score_channels, facts.roi_channels) == (3, 81)
    assert facts.regions_of("logits") == ("all", "teacher_score", "foreground", "assigned", "assigned_score", "valuable", "proposals")
