"""Which teacher suits which student, on what data, trained how."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from detkds_core.catalogue.recipe import Recipe
from detkds_core.catalogue.schedules import DENSE_2X, FCOS, ONE_X, TWO_X, between

CHECKPOINTS = Path(__file__).parent / "checkpoints"


@dataclass(frozen=True, slots=True)
class Pair:
    """A teacher, a student and the schedules that suit them on a dataset.

    teacher_checkpoint: a checkpoint that ships with the project, or the file of MMDetection's zoo that the operator fetches and converts.
    teaching: how the teacher was trained; proxy: how a candidate of a search is measured; full: how the final student is trained.
    inherit: the student starts from the teacher's neck and head. policies: named policies that were published for it.
    """

    name: str
    title: str
    dataset: str
    teacher: str
    teacher_checkpoint: str
    student: str
    teaching: Recipe
    proxy: Recipe
    full: Recipe
    inherit: bool = True
    policies: tuple[str, ...] = ()


GFL = "gfl_r18w32_fpn32"


def _digits(name: str, title: str, teacher: str, student: str) -> Pair:
    """A pair that finds handwritten digits on photographs; its teacher ships with the project."""
    full = Recipe(iterations=300, augment="none")
    proxy, teaching = replace(full, iterations=120, eval_images=200), replace(full, iterations=4000)
    return Pair(name, title, "digits", teacher, f"digits_{teacher}", student, teaching, proxy, full)


def _trees(name: str, title: str, student: str) -> Pair:
    """A pair that finds tree crowns from the air; its teacher ships with the project."""
    full = Recipe(iterations=300, batch=4, image_size=256, augment="aerial")
    proxy, teaching = replace(full, iterations=120), replace(full, iterations=2500)
    return Pair(name, title, "trees", GFL, f"trees_{GFL}", student, teaching, proxy, full)


SMALL_PAIRS = (
    _digits("digits_gfl", "GFL ResNet-18 of width 32 teaches width 16 to find handwritten digits on photographs", GFL, "gfl_r18w16_fpn32"),
    _trees("trees_gfl", "GFL ResNet-18 of width 32 teaches width 16 to find tree crowns from the air", "gfl_r18w16_fpn32"),
    _digits("digits_gfl_fcos", "GFL ResNet-18 of width 32 teaches an FCOS of width 16, on digits", GFL, "fcos_r18w16_fpn32"),
    _trees("trees_gfl_fcos", "GFL ResNet-18 of width 32 teaches an FCOS of width 16, on tree crowns", "fcos_r18w16_fpn32"),
    _digits(
        "digits_gfl_faster_rcnn",
        "GFL of width 32, one stage, teaches a Faster R-CNN of width 16, on digits",
        GFL,
        "faster_rcnn_r18w16_fpn32",
    ),
    _trees(
        "trees_gfl_faster_rcnn",
        "GFL of width 32, one stage, teaches a Faster R-CNN of width 16, on tree crowns",
        "faster_rcnn_r18w16_fpn32",
    ),
    _digits(
        "digits_faster_rcnn",
        "Faster R-CNN ResNet-18 of width 32 teaches width 16, on digits",
        "faster_rcnn_r18w32_fpn32",
        "faster_rcnn_r18w16_fpn32",
    ),
)

# DetKDS measured candidates on a fifth of the training images; a candidate is one epoch of it.
PROXY_IMAGES = 23_457


def _coco(
    name: str,
    title: str,
    teacher: tuple[str, str],
    student: str,
    full: Recipe,
    policies: tuple[str, ...],
    inherit: bool = True,
    teaching: Recipe = TWO_X,
) -> Pair:
    """A pair of the paper on COCO. teacher: detector, and the name of its checkpoint in MMDetection's zoo."""
    proxy = replace(full, epochs=1, milestones=None, train_images=PROXY_IMAGES, eval_every=None)
    return Pair(name, title, "coco", teacher[0], teacher[1], student, teaching, proxy, full, inherit, policies)


_CASCADE = ("cascade_mask_rcnn_x101_dcn_fpn", "cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8")

PAPER_PAIRS = (
    _coco(
        "retinanet_r101_r50",
        "RetinaNet R101 teaches RetinaNet R50",
        ("retinanet_r101_fpn", "retinanet_r101_fpn_2x_coco_20200131-5560aee8"),
        "retinanet_r50_fpn",
        replace(DENSE_2X, batch=32, base_batch=32),
        ("detkds_retinanet",),
    ),
    _coco(
        "retinanet_x101_r50",
        "RetinaNet X101-64x4d teaches RetinaNet R50",
        ("retinanet_x101_64x4d_fpn", "retinanet_x101_64x4d_fpn_mstrain_3x_coco_20210719_051838-022c2187"),
        "retinanet_r50_fpn",
        TWO_X,
        ("detkds_retinanet_x101",),
    ),
    _coco(
        "faster_rcnn_r101_r50",
        "Faster R-CNN R101 teaches Faster R-CNN R50",
        ("faster_rcnn_r101_fpn", "faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c"),
        "faster_rcnn_r50_fpn",
        TWO_X,
        ("detkds_faster_rcnn",),
    ),
    _coco(
        "fcos_r101_r50",
        "FCOS R101 teaches FCOS R50 with centre sampling and normalised boxes",
        ("fcos_r101_fpn", "fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6"),
        "fcos_tricks_r50_fpn",
        replace(FCOS, epochs=24, milestones=(16, 22), train_short_sides=(640, 800)),
        ("detkds_fcos",),
    ),
    _coco(
        "gfl_r101_r50",
        "GFL R101 teaches GFL R50",
        ("gfl_r101_fpn", "gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847"),
        "gfl_r50_fpn",
        replace(DENSE_2X, train_short_sides=between(480, 800)),
        ("detkds_gfl",),
    ),
    _coco(
        "reppoints_x101_r50",
        "RepPoints X101-DCN teaches RepPoints R50",
        ("reppoints_gn_x101_dcn_fpn", "reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck+head_2x_coco_20200329-f87da1ea"),
        "reppoints_gn_r50_fpn",
        DENSE_2X,
        ("detkds_reppoints",),
    ),
    _coco(
        "cascade_mask_x101_faster_rcnn_r50",
        "Cascade Mask R-CNN X101-DCN teaches Faster R-CNN R50",
        _CASCADE,
        "faster_rcnn_r50_fpn",
        TWO_X,
        ("detkds_cascade_faster_rcnn",),
        inherit=False,
        teaching=ONE_X,
    ),
    _coco(
        "cascade_mask_x101_mask_rcnn_r50",
        "Cascade Mask R-CNN X101-DCN teaches Mask R-CNN R50",
        _CASCADE,
        "mask_rcnn_r50_fpn",
        replace(TWO_X, batch=32, base_batch=32),
        ("detkds_cascade_mask_rcnn",),
        inherit=False,
        teaching=ONE_X,
    ),
)

PAIRS: Mapping[str, Pair] = {pair.name: pair for pair in (*SMALL_PAIRS, *PAPER_PAIRS)}


def builtin_checkpoint(name: str) -> Path | None:
    """The file of a checkpoint that ships with the project, or None."""
    path = CHECKPOINTS / f"{name}.safetensors"
    # os.path: Path.is_file raises for a name that is too long for any file.
    return path if name.replace("_", "").isalnum() and os.path.isfile(path) else None
