"""One forward each, a teacher that nothing can touch, and clear words where a pair cannot be distilled."""

import copy
from dataclasses import replace

import pytest
import torch

from detkds_core.catalogue import DETECTORS, PAIRS, exchange
from detkds_core.detectors.build import build_detector, inherit, inheritable, model_config
from detkds_core.detectors.pair import PairError, Student, Teacher, check_policy, make_adapters, match_levels
from detkds_core.losses.signals import Rois
from detkds_core.policy import Policy, Term, named_policies, parse_formula
from detkds_core.training.batches import Batch
from detkds_core.training.group import Start, model_inputs, teacher_signals

CLASSES = ("a", "b", "c")


def counted(module, calls, name):
    module.register_forward_hook(lambda *_: calls.append(name))


@pytest.mark.parametrize(("needs", "heads"), [({"features"}, 0), ({"features", "logits", "boxes"}, 1)])
def test_one_forward_each_and_no_head_that_nobody_asked_for(needs, heads, ground_truth):
    teacher = Teacher(build_detector("gfl_r18w16_fpn32", CLASSES), (0, 1, 2))
    student = Student(build_detector("gfl_r18w8_fpn32", CLASSES).train(), (0, 1, 2))
    calls = []
    counted(teacher.model.backbone, calls, "teacher body")
    counted(teacher.model.bbox_head, calls, "teacher head")
    counted(student.model.backbone, calls, "student body")
    counted(student.model.bbox_head, calls, "student head")
    inputs = torch.randn(2, 3, 64, 64)
    said = teacher.signals(inputs, frozenset(needs))
    losses, signals = student.losses(inputs, ground_truth(2, (64, 64)), frozenset(needs))
    assert calls == ["teacher body"] + ["teacher head"] * heads + ["student body", "student head"]
    assert len(said.features) == len(signals.features) == 3
    assert "loss_cls" in losses
    assert signals.features[0].requires_grad
    assert not said.features[0].requires_grad


def test_nothing_asked_of_the_teacher_is_nothing_computed():
    teacher = Teacher(build_detector("gfl_r18w8_fpn32", CLASSES), (0, 1, 2))
    calls = []
    counted(teacher.model.backbone, calls, "body")
    assert teacher.signals(torch.randn(1, 3, 64, 64), frozenset()).features == ()
    assert calls == []


def test_the_teacher_stays_frozen_and_in_evaluation_mode():
    teacher = Teacher(build_detector("gfl_r18w8_fpn32", CLASSES).train(), (0,))
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    teacher.signals(torch.randn(2, 3, 64, 64), frozenset({"features", "logits"}))
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())  # no batch statistics drift


def test_adapters_bring_the_student_to_the_teachers_channels(ground_truth):
    teacher, narrow = DETECTORS["gfl_r18w16_fpn32"], DETECTORS["gfl_r18w8_fpn16"]
    assert make_adapters(teacher, DETECTORS["gfl_r18w8_fpn32"], 3) is None
    adapters = make_adapters(teacher, narrow, 3)
    student = Student(build_detector(narrow.name, CLASSES).train(), (0, 1, 2), adapters)
    _, signals = student.losses(torch.randn(1, 3, 64, 64), ground_truth(1, (64, 64)), frozenset({"features"}))
    assert [level.shape[1] for level in signals.features] == [32, 32, 32]
    own = sum(p.numel() for p in student.model.parameters())
    assert sum(p.numel() for p in student.parameters()) == own + 3 * (16 * 32 + 32)


def test_levels_are_matched_by_stride():
    fine = replace(DETECTORS["gfl_r18w16_fpn32"], strides=(4, 8, 16, 32))
    levels = match_levels(fine, DETECTORS["gfl_r18w8_fpn32"])
    assert (levels.teacher, levels.student) == ((1, 2, 3), (0, 1, 2))


def test_a_pair_without_a_common_level_is_refused_with_both_strides():
    odd = replace(DETECTORS["gfl_r18w16_fpn32"], strides=(6, 12))
    with pytest.raises(PairError, match=r"strides \[6, 12\].*strides \[8, 16, 32\].*no pyramid level"):
        match_levels(odd, DETECTORS["gfl_r18w8_fpn32"])


def test_knowledge_that_cannot_pass_is_refused_with_its_place():
    gfl, retinanet, two_stage = (DETECTORS[name] for name in ("gfl_r18w16_fpn32", "retinanet_r18w8_fpn32", "faster_rcnn_r18w8_fpn32"))
    logits = Policy((Term("global", ("none", "none", "none"), "l2", 1.0), Term("logits", ("none",), "l2", 1.0)))
    with pytest.raises(PairError, match=r"policy.terms\[1\].knowledge: 'logits'.*1 prediction a cell, the student 3"):
        check_policy(logits, gfl, retinanet)
    with pytest.raises(PairError, match=r"scores classes, the student's objectness"):
        check_policy(logits, replace(retinanet, anchor_scales=two_stage.anchor_scales), two_stage)
    check_policy(named_policies()["pkd"].policy, gfl, two_stage)
    assert exchange(gfl, retinanet).knowledge == ("global", "fgbg", "instance")


def test_a_teacher_of_other_strides_takes_the_students_sizes(ground_truth):
    """Its map of stride 8 stands for the student's of stride 4, halved in pixels a cell by interpolation."""
    teacher_entry = DETECTORS["gfl_r18w16_fpn32"]
    student_entry = replace(DETECTORS["gfl_r18w8_fpn32"], strides=(4, 16, 32))
    with pytest.raises(PairError, match="no pyramid level"):
        match_levels(replace(teacher_entry, strides=(8,)), replace(student_entry, strides=(4,)))
    assert match_levels(teacher_entry, student_entry).teacher == (1, 2)
    levels = match_levels(teacher_entry, student_entry, resize=True)
    assert (levels.teacher, levels.student, levels.strides) == ((0, 1, 2), (0, 1, 2), (4, 16, 32))
    model = build_detector("gfl_r18w16_fpn32", CLASSES)
    inputs = torch.randn(2, 3, 64, 96)
    plain = Teacher(model, levels.teacher).signals(inputs, frozenset({"features"}))
    resized = Teacher(model, levels.teacher, levels.strides).signals(inputs, frozenset({"features"}))
    assert [tuple(level.shape[2:]) for level in plain.features] == [(8, 12), (4, 6), (2, 3)]
    assert [tuple(level.shape[2:]) for level in resized.features] == [(16, 24), (4, 6), (2, 3)]
    assert torch.equal(resized.features[1], plain.features[1])
    # bilinear between cell centres: the second row and column of the fine map lie a quarter of a cell from the first's centre
    first = plain.features[0][:, :, :2, :2]
    weights = torch.tensor([[0.75 * 0.75, 0.75 * 0.25], [0.25 * 0.75, 0.25 * 0.25]])
    torch.testing.assert_close(resized.features[0][:, :, 1, 1], (first * weights).sum((2, 3)))
    assert match_levels(teacher_entry, teacher_entry, resize=True).strides == ()  # nothing to resize


def test_a_teacher_regards_proposals_on_the_images_of_its_last_forward():
    teacher = Teacher(build_detector("faster_rcnn_r18w8_fpn32", CLASSES), (0, 1, 2))
    proposals = Rois(torch.tensor([[0, 4.0, 6, 40, 44]]))
    needs = frozenset({"rois", "roi_scores"})
    answers = []
    for seed in (1, 2, 1):
        inputs = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        teacher.signals(inputs, needs)
        answers.append(teacher.regard(proposals, needs).scores)
    assert not torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    assert not answers[0].requires_grad
    assert teacher.regard(proposals, needs).boxes is None  # nobody asked


@pytest.mark.parametrize(
    ("teacher", "student", "policy", "refusal"),
    [
        ("gfl", "gfl", "l2[region=proposals](instance)", r"terms\[0\].region: 'proposals': the student is a one-stage detector"),
        ("gfl", "faster_rcnn", "l1(localization)", r"terms\[0\].knowledge: 'localization'.*1 prediction a cell, the student 3"),
        (
            "retinanet",
            "faster_rcnn",
            "l1(localization)",
            r"'localization'.*the teacher's anchors are of scales 3.*, the student's of scales 4",
        ),
        ("retinanet", "retinanet", "l1[region=proposals](localization)", r"'proposals': neither has a RoI head; one of all, foreground"),
        ("mask_rcnn", "cascade_rcnn", "l2[region=masks](logits)", r"region: 'masks': the student predicts no masks"),
        (
            "fcos",
            "fcos",
            "kl_edges(localization)",
            r"'kl_edges' needs edge distributions .*: neither predicts edge distributions",
        ),
        ("reppoints", "atss", "points(localization)", r"distance: 'points' needs point sets .*: the student predicts no point sets"),
        ("reppoints", "reppoints", "points(localization) + 5·l2(standardize(global))", None),
        ("gfl", "retinanet", "crosskd", r"distillers\[0\]: 'crosskd' compares towers: the teacher has 1 prediction a cell"),
        ("faster_rcnn", "faster_rcnn", "crosskd", r"'crosskd' is defined for retinanet, gfl, fcos, atss; the teacher is of family"),
        ("gfl", "retinanet", "gid", r"'gid' compares boxes: the teacher has 1 prediction a cell"),
    ],
)
def test_what_a_pair_cannot_do_is_refused_with_its_place_and_reason(teacher, student, policy, refusal):
    entries = [DETECTORS[f"{family}_r18w8_fpn32"] for family in (teacher, student)]
    if refusal is None:
        check_policy(parse_formula(policy), *entries)
        return
    with pytest.raises(PairError, match=refusal):
        check_policy(parse_formula(policy), *entries)


def test_a_teacher_sees_the_same_images_normalised_its_own_way():
    """As the released FCOS pair: the teacher of another mean, standard deviation and channel order."""
    from mmdet.models.data_preprocessors import DetDataPreprocessor

    entry = DETECTORS["gfl_r18w8_fpn32"]
    model, student = build_detector(entry.name, CLASSES), build_detector(entry.name, CLASSES)
    model.data_preprocessor = DetDataPreprocessor(mean=[1.0, 2, 3], std=[1.0, 1, 1], bgr_to_rgb=False, pad_size_divisor=32)
    teacher = Teacher(model, (0, 1, 2))
    start = Start(teacher, entry, entry, {}, CLASSES, match_levels(entry, entry), torch.device("cpu"))
    image = torch.randint(0, 256, (3, 40, 70), dtype=torch.uint8)
    batch = Batch(images=[image], boxes=[torch.tensor([[4.0, 4, 30, 30]])], labels=[torch.tensor([0])])
    inputs, _ = model_inputs(student.data_preprocessor, batch, torch.device("cpu"))
    seen = []
    model.backbone.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    teacher_signals(start, student.data_preprocessor, batch, inputs, frozenset({"features"}))
    assert seen[0].shape == inputs.shape == (1, 3, 64, 96)
    torch.testing.assert_close(seen[0][0, :, :40, :70], image.float() - torch.tensor([1.0, 2, 3])[:, None, None])
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = (image.float().flip(0) - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(inputs[0, :, :40, :70], expected)


def test_the_released_fcos_pair_normalises_differently():
    teacher, student = (model_config(DETECTORS[name], 3)["data_preprocessor"] for name in ("fcos_r101_fpn", "fcos_tricks_r50_fpn"))
    assert teacher["mean"] == [102.9801, 115.9465, 122.7717]
    assert student["mean"] == [103.53, 116.28, 123.675]
    assert teacher["bgr_to_rgb"] is student["bgr_to_rgb"] is False


def test_inheriting_copies_neck_and_head_only():
    teacher, student = build_detector("gfl_r18w16_fpn32", CLASSES), build_detector("gfl_r18w8_fpn32", CLASSES)
    copied = inherit(student, teacher)
    assert {key.split(".")[0] for key in copied} == {"neck", "bbox_head"}
    assert torch.equal(student.bbox_head.gfl_reg.weight, teacher.bbox_head.gfl_reg.weight)
    left = {key for key in student.state_dict() if key.split(".")[0] in {"neck", "bbox_head"}} - set(copied)
    assert left == {f"neck.lateral_convs.{level}.conv.weight" for level in range(3)}  # their inputs differ in width
    assert inheritable(student) == len(copied) + len(left)


def inherited_modules(student, teacher):
    """What of it the student inherits, by module; all of it is the teacher's, and nothing else is."""
    before, given = copy.deepcopy(student.state_dict()), teacher.state_dict()
    copied = inherit(student, teacher)
    for key, value in student.state_dict().items():
        assert torch.equal(value, given[key] if key in copied else before[key]), key
    modules = {}
    for key in copied:
        module, _, name = key.rpartition(".")
        modules.setdefault(module, set()).add(name)
    return modules


def test_detectors_of_other_types_inherit_whole_modules():
    teacher, student = build_detector("gfl_r18w16_fpn32", CLASSES), build_detector("fcos_r18w8_fpn32", CLASSES)
    found = inherited_modules(student, teacher)
    both = {"weight", "bias"}
    towers = [f"bbox_head.{branch}.{layer}" for branch in ("cls_convs", "reg_convs") for layer in range(2)]
    # FCOS has biases before its normalisation, which GFL has not; scales multiply what each head means by its own outputs
    expected = {f"neck.fpn_convs.{level}.conv": both for level in range(3)}
    expected |= {f"{tower}.conv": {"weight"} for tower in towers} | {f"{tower}.gn": both for tower in towers}
    assert found == expected


def test_a_convolution_without_normalisation_is_none_for_one_with():
    teacher = build_detector("retinanet_r18w8_fpn32", CLASSES)
    found = inherited_modules(build_detector("gfl_r18w8_fpn32", CLASSES), teacher)
    assert set(found) == {f"neck.{part}.{level}.conv" for part in ("lateral_convs", "fpn_convs") for level in range(3)}
    narrow = inherited_modules(build_detector("gfl_r18w16_fpn32", CLASSES), teacher)
    assert set(narrow) == {f"neck.fpn_convs.{level}.conv" for level in range(3)}


@pytest.mark.parametrize("name", ["digits_gfl", "trees_gfl", "digits_faster_rcnn"])
def test_a_pair_of_one_type_inherits_all_that_has_its_shape(name):
    pair = PAIRS[name]
    teacher, student = build_detector(pair.teacher, CLASSES), build_detector(pair.student, CLASSES)
    given = teacher.state_dict()
    same = {key for key, value in student.state_dict().items() if key in given and value.shape == given[key].shape}
    assert set(inherit(student, teacher)) == {key for key in same if not key.startswith("backbone.")}
