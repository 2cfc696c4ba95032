"""What is found out of a detector by building it, against what the catalogue states of the same; and what is refused, with the reason."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detkds_core.catalogue import BUILT_IN, exchange
from detkds_core.catalogue.entry import FAMILIES
from detkds_core.catalogue.own import entry_from_json, entry_to_json
from detkds_core.detectors.build import model_config
from detkds_core.detectors.survey import HEADS, SurveyError, model_of, read_file, survey, training_of

NARROW = [name for name in BUILT_IN if "_r18w8_" in name]
ZOO = (
    *("retinanet_r50_fpn", "retinanet_pvtv2_b0_fpn", "fcos_tricks_r50_fpn", "gfl_r50_fpn", "rtmdet_tiny", "yolox_tiny"),
    *("detr_r18", "deformable_detr_r50", "mask_rcnn_swin_t_fpn"),
)


def test_every_family_is_looked_at() -> None:
    assert {BUILT_IN[name].family for name in (*NARROW, *ZOO)} == set(FAMILIES)


@pytest.mark.parametrize("name", [*NARROW, *ZOO])
def test_the_survey_finds_what_the_catalogue_states(name: str) -> None:
    stated = BUILT_IN[name]
    found = survey(json.loads(json.dumps(model_config(stated, 7))), name, stated.title)
    of_the_catalogue = {"source": stated.source, "width": stated.width, "own": False, "config": stated.config, "training": stated.training}
    assert replace(found, **of_the_catalogue) == stated
    assert entry_from_json(json.loads(json.dumps(entry_to_json(found)))) == found
    built, again = model_config(found, 5), model_config(stated, 5)
    assert built["backbone"] == json.loads(json.dumps(again["backbone"]))
    if stated.stages == 2:
        heads = built["roi_head"]["bbox_head"]
        assert {head["num_classes"] for head in (heads if isinstance(heads, list) else [heads])} == {5}


Change = Callable[[dict[str, Any]], Any]
RETINANET, RCNN = "retinanet_r18w8_fpn32", "faster_rcnn_r18w8_fpn32"
REFUSED: list[tuple[str, Change, str]] = [
    (RETINANET, lambda c: c.update(type="SSD"), r"model\.type: 'SSD' is of no family that can be distilled; one of RetinaNet, FCOS, GFL"),
    (RETINANET, lambda c: c["bbox_head"].update(type="FreeAnchorRetinaHead"), "FreeAnchorRetinaHead; RetinaHead can be distilled"),
    (RETINANET, lambda c: c["backbone"].update(type="NoNet"), r"model: MMDetection cannot build it: \w+: .*NoNet"),
    (RETINANET, lambda c: c.update(neck=None), r"the levels have \[16, 32, 64\] channels; all must have the same number"),
    (RETINANET, lambda c: c["neck"].update(in_channels=[1, 2, 3]), "backbone and neck cannot look at an image: RuntimeError"),
    (
        RETINANET,
        lambda c: c["bbox_head"]["anchor_generator"].update(strides=[4, 8, 16]),
        r"counts with the strides \[\(4, 4\), .*\[8, 16, 32\]",
    ),
    (RETINANET, lambda c: c["bbox_head"]["anchor_generator"].update(center_offset=0.5), "are not counted as the catalogue counts them"),
    (RETINANET, lambda c: c["bbox_head"].update(loss_cls={"type": "CrossEntropyLoss"}), "scores by softmax"),
    (RETINANET, lambda c: c["bbox_head"].update(loss_bbox={"type": "L1Loss", "loss_weight": "heavy"}), "it cannot be trained here"),
    (RETINANET, lambda c: c["data_preprocessor"].update(type="TrackDataPreprocessor"), "'DetDataPreprocessor' is right"),
    (
        RCNN,
        lambda c: c["roi_head"].update(type="DoubleHeadRoIHead", reg_roi_scale_factor=1.3),
        "DoubleHeadRoIHead cannot be distilled; one of StandardRoIHead, CascadeRoIHead",
    ),
    (
        "mask_rcnn_r18w8_fpn32",
        lambda c: c["roi_head"]["mask_head"].update(type="HTCMaskHead", with_conv_res=False),
        r"model\.roi_head\.mask_head: HTCMaskHead cannot be distilled; one of FCNMaskHead",
    ),
    (RCNN, lambda c: c.pop("roi_head"), "MMDetection cannot build it: TypeError: .*'roi_head'"),
    (RCNN, lambda c: c.update(train_cfg=None), "it cannot be trained here: AttributeError"),
]


@pytest.mark.parametrize(("name", "change", "reason"), REFUSED, ids=[reason[:40] for _, _, reason in REFUSED])
def test_what_cannot_be_distilled_is_refused_with_the_reason(name: str, change: Change, reason: str) -> None:
    config = copy.deepcopy(model_config(BUILT_IN[name], 3))
    change(config)
    with pytest.raises(SurveyError, match=reason):
        survey(config, "mine", "mine")


def test_an_assigner_that_compares_no_overlaps_takes_the_valuable_region_from_a_student() -> None:
    config = copy.deepcopy(model_config(BUILT_IN[RETINANET], 3))
    config["train_cfg"]["assigner"] = {"type": "CenterRegionAssigner", "pos_scale": 0.2, "neg_scale": 0.2, "min_pos_iof": 0.01}
    student = survey(json.loads(json.dumps(config)), "mine", "mine")
    assert (student.overlaps, student.anchors) == (False, 3)
    offer = exchange(BUILT_IN[RETINANET], student)
    assert offer.lacking["valuable"] == "the student does not assign objects to anchors by how much these overlap them"
    assert "valuable" not in offer.regions["logits"]
    assert "valuable" in exchange(student, BUILT_IN[RETINANET]).regions["logits"]  # the student's assignment counts


def test_modules_that_no_worker_has_are_refused() -> None:
    from mmdet.models.backbones import ResNet
    from mmdet.registry import MODELS

    @MODELS.register_module()
    class OfMyOwn(ResNet):
        pass

    try:
        config = model_config(BUILT_IN[RETINANET], 3)
        config["backbone"]["type"] = "OfMyOwn"
        with pytest.raises(SurveyError, match=r"OfMyOwn is not MMDetection's; a worker builds from MMDetection's own modules alone"):
            survey(config, "mine", "mine")
    finally:
        del MODELS._module_dict["OfMyOwn"]


IN_PYTHON = """
from mmdet.models import ResNet

model = dict(
    type='RetinaNet',
    pretrained='torchvision://resnet18',
    data_preprocessor=dict(type='mmdet.DetDataPreprocessor', batch_augments=[dict(type='BatchSyncRandomResize')]),
    backbone=dict(type=ResNet, out_indices=(1, 2), norm_cfg=dict(type='SyncBN'), init_cfg=dict(type='Pretrained', checkpoint='https://a/b')),
)
custom_imports = dict(imports=['of_another_package'])
"""


def test_a_configuration_in_python_becomes_plain_data_without_weights(tmp_path: Path) -> None:
    """`custom_imports` is left alone: the package that it names is not even there."""
    (tmp_path / "config.py").write_text(IN_PYTHON)
    assert model_of(read_file(tmp_path / "config.py")) == {
        "type": "RetinaNet",
        "data_preprocessor": {"type": "DetDataPreprocessor", "batch_augments": None},
        "backbone": {"type": "ResNet", "out_indices": [1, 2], "norm_cfg": {"type": "BN"}, "init_cfg": None},
    }


UNREADABLE = {
    "gone": (None, "cannot be read as MMDetection's configuration: FileNotFoundError"),
    "raises": ("1 / 0", "cannot be read as MMDetection's configuration: ZeroDivisionError: division by zero"),
    "without": ("data = dict()", "has no model; give the configuration of a detector"),
    "strange": ("model = dict(type='SSD')", "'SSD' is of no family that can be distilled"),
    "others": (
        "model = dict(type='FCOS', data_preprocessor=dict(), backbone=dict(type='mmpretrain.ConvNeXt'))",
        r"model\.backbone\.type: 'mmpretrain\.ConvNeXt' is not a name in MMDetection's registry",
    ),
    "neck": (
        "model = dict(type='FCOS', data_preprocessor=dict(), backbone=dict(), neck=dict(rfp=dict(pretrained='resnet50')))",
        r"model\.neck\.rfp\.pretrained: weights come by request",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_configuration_of_a_detector_is_refused(tmp_path: Path, name: str) -> None:
    content, reason = UNREADABLE[name]
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
    with pytest.raises(SurveyError, match=reason):
        model_of(read_file(tmp_path / f"{name}.py"))


ODD = """
class Odd:
    def __eq__(self, other):
        raise ValueError('no comparing')
    __hash__ = None
"""


def test_a_part_beside_the_model_that_cannot_be_read_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(f"{IN_PYTHON}{ODD}visualizer = dict(_scope_=Odd())\ntrain_cfg = dict(max_epochs=24)\n")
    content = read_file(tmp_path / "odd.py")
    assert model_of(content)["type"] == "RetinaNet"
    recipe, notes = training_of(content)
    assert recipe is not None
    assert recipe.epochs == 24
    assert notes[0] == "visualizer: cannot be read: ValueError: no comparing"
    (tmp_path / "odd.py").write_text(f"{ODD}model = dict(_scope_=Odd())\n")
    with pytest.raises(SurveyError, match=r"odd\.py: model: cannot be read: ValueError: no comparing"):
        model_of(read_file(tmp_path / "odd.py"))


def test_the_pyramids_that_join_levels_are_filled_up_and_yolox_sees_gray(tmp_path: Path) -> None:
    """Their own configurations leave both to the data pipeline."""
    import mmdet

    configs = Path(mmdet.__file__).parent / ".mim" / "configs"
    found = [
        survey(model_of(read_file(configs / f)), "mine", "mine").inputs
        for f in ("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", "yolox/yolox_tiny_8xb8-300e_coco.py")
    ]
    assert found == [BUILT_IN["rtmdet_tiny"].inputs, BUILT_IN["yolox_tiny"].inputs]
    assert set(HEADS) >= {"RTMDet", "YOLOX"}
