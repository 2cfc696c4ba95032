"""What the catalogue has to say of a detector, found out by building it from MMDetection's configuration and looking at it."""

import json
import math
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkds_core.catalogue import DetectorEntry, Inputs, Recipe
from detkds_core.catalogue.entry import FAMILIES
from detkds_core.catalogue.own import config_faults
from detkds_core.detectors.build import set_classes, without_sync
from detkds_core.detectors.recipe_of import recipe_of
from detkds_core.detectors.runtime import prepare_mmdet
from detkds_core.detectors.tap import dense_head
from detkds_core.detectors.valuable import overlaps

CLASSES = 3  # of the model that is looked at
IMAGE = 256  # pixels a side of what it is shown: twice the largest stride of MMDetection's pyramids
LIBRARIES = ("mmdet", "mmcv", "mmengine", "torch", "torchvision", "detkds_core")  # whose modules every worker has

# A model's type, and the dense heads whose outputs `tap` and `decode` know; other heads of the same model mean other things by theirs.
HEADS: Mapping[str, tuple[str, ...]] = {
    "RetinaNet": ("RetinaHead",),
    "FCOS": ("FCOSHead",),
    "GFL": ("GFLHead",),
    "ATSS": ("ATSSHead",),
    "RepPointsDetector": ("RepPointsHead",),
    "RTMDet": ("RTMDetHead", "RTMDetSepBNHead"),
    "YOLOX": ("YOLOXHead",),
    "DETR": ("DETRHead",),
    "DeformableDETR": ("DeformableDETRHead",),
    "FasterRCNN": ("RPNHead",),
    "MaskRCNN": ("RPNHead",),
    "CascadeRCNN": ("RPNHead",),
}
ONE_STAGE: Mapping[str, str] = {"RepPointsDetector": "reppoints", "DeformableDETR": "deformable_detr"}  # others: the type in small letters
# The same of a RoI head, whose outputs `rois` knows.
ROI_HEADS = ("StandardRoIHead", "CascadeRoIHead")
BOX_HEADS = ("BBoxHead", "ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")
MASK_HEADS = ("FCNMaskHead",)
# Their pyramids join maps of neighbouring levels, which fit only where the sides are multiples of the largest stride.
JOINING = ("rtmdet", "yolox")
YOLOX_GRAY = 114.0  # YOLOX is trained with gray around the image, which its configurations leave to the data pipeline


class SurveyError(ValueError):
    """A configuration that no teacher or student can be built from here, and why."""


class Content(NamedTuple):
    """An MMDetection configuration. parts: what is plain data of it, by name; odd: why others could not be made so, by name."""

    path: Path
    parts: dict[str, Any]
    odd: dict[str, str]


def read_file(path: Path) -> Content:
    """Read an MMDetection configuration (`.py`). It is Python and runs, once, and so do the files that it inherits from.

    Raises SurveyError for one that cannot be read.
    """
    prepare_mmdet()
    from mmengine.config import Config

    try:
        # A worker builds from the data alone, so what a configuration would import besides must not be there now either.
        config = Config.fromfile(path, import_custom_modules=False).to_dict()
    except Exception as error:  # whatever a configuration, which is a program, may raise
        raise SurveyError(f"{path}: cannot be read as MMDetection's configuration: {_first_line(error)}") from error
    content = Content(path, {}, {})
    for name, part in config.items():
        try:
            content.parts[name] = _plain(part)
        except Exception as error:  # values may be of any class
            content.odd[name] = _first_line(error)
    return content


def model_of(content: Content) -> dict[str, Any]:
    """The model of a configuration, as plain data that says all that is needed and fetches nothing.

    What it says of weights to begin with is left out. Raises SurveyError where there is no model, or it is more than data.
    """
    path, plain = content.path, content.parts.get("model")
    if "model" in content.odd:
        raise SurveyError(f"{path}: model: cannot be read: {content.odd['model']}")
    if not isinstance(plain, dict):
        raise SurveyError(f"{path}: has no model; give the configuration of a detector, with `model = dict(type=..., backbone=...)`")
    _check_type(plain)
    plain.pop("pretrained", None)
    if isinstance(plain.get("backbone"), dict):
        plain["backbone"].pop("pretrained", None)
        plain["backbone"]["init_cfg"] = None
    without_sync(plain)
    if faults := list(config_faults(plain, "model")):
        raise SurveyError(f"{path}: " + "; ".join(faults))
    plain["data_preprocessor"]["batch_augments"] = None
    return json.loads(json.dumps(plain))  # what is looked at is what will be in a file: lists for tuples


def training_of(content: Content, gpus: int | None = None) -> tuple[Recipe | None, list[str]]:
    """How a configuration trains its model on so many GPUs (`recipe_of`), and notes of what could not be read or is not done here."""
    odd = [f"{name}: cannot be read: {why}" for name, why in content.odd.items()]
    try:
        recipe, notes = recipe_of(content.parts, gpus)
    except Exception as error:  # a training may be configured in any way, and none keeps a detector from being distilled
        why = f"its training cannot be read: {_first_line(error)}; without a pair, requests have to say how it is trained (recipe)"
        return None, [*odd, why]
    return recipe, [*odd, *notes]


def survey(config: Mapping[str, Any], name: str, title: str) -> DetectorEntry:
    """The entry of a model's configuration, which is plain data: its facts are those of the model that MMDetection builds.

    Its number of classes does not matter; a dataset gives it. Raises SurveyError for a model that is of no known family, whose heads are
    others than the family's, or whose parts do not fit what the catalogue can say.
    """
    prepare_mmdet()
    _check_type(config)
    model = _build(config)
    family = _family(config["type"], model)
    pyramid = _pyramid(model)
    strides = tuple(_stride(level) for level in pyramid)
    if sorted(set(strides)) != list(strides):
        raise SurveyError(f"model.neck: the levels have the strides {list(strides)}; each must be larger than the one before")
    channels = {level.shape[1] for level in pyramid}
    if len(channels) > 1:
        found = [level.shape[1] for level in pyramid]
        raise SurveyError(f"model.neck: the levels have {found} channels; all must have the same number, which adapters are made for")
    predictions = _predictions(model, family, strides, _scores(model, pyramid))
    _try_to_learn(model, FAMILIES[family].masks)
    predictions["overlaps"] = FAMILIES[family].anchored and _by_overlap(dense_head(model), strides)
    return DetectorEntry(
        name=name,
        title=title,
        family=family,
        stages=FAMILIES[family].stages,
        strides=strides,
        channels=channels.pop(),
        **predictions,
        scores=FAMILIES[family].scores,
        masks=FAMILIES[family].masks,
        inputs=_inputs(config["data_preprocessor"], family, strides),
        own=True,
        config=config,
    )


def _check_type(config: Mapping[str, Any]) -> None:
    if config.get("type") not in HEADS:
        raise SurveyError(f"model.type: {config.get('type')!r} is of no family that can be distilled; one of {', '.join(HEADS)}")


def _build(config: Mapping[str, Any]) -> nn.Module:
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    fitted = json.loads(json.dumps(config))
    set_classes(fitted, CLASSES)
    try:
        model = MODELS.build(ConfigDict(fitted)).eval()
        model.init_weights()
    except Exception as error:  # whatever the constructors of MMDetection's modules raise
        raise SurveyError(f"model: MMDetection cannot build it: {_first_line(error)}") from error
    strangers = {type(part) for part in model.modules() if type(part).__module__.partition(".")[0] not in LIBRARIES}
    if strangers:
        found = ", ".join(sorted(f"{one.__module__}.{one.__name__}" for one in strangers))
        raise SurveyError(f"model: {found} is not MMDetection's; a worker builds from MMDetection's own modules alone")
    return model


def _family(kind: str, model: nn.Module) -> str:
    head = getattr(model, "rpn_head", None) or getattr(model, "bbox_head", None)
    if type(head).__name__ not in HEADS[kind]:
        raise SurveyError(f"model: the head of a {kind} is a {type(head).__name__}; {' or '.join(HEADS[kind])} can be distilled")
    if HEADS[kind] != ("RPNHead",):
        return ONE_STAGE.get(kind, kind.lower())
    roi_head = model.roi_head
    if type(roi_head).__name__ not in ROI_HEADS:
        raise SurveyError(f"model.roi_head: {type(roi_head).__name__} cannot be distilled; one of {', '.join(ROI_HEADS)}")
    for name, known in (("bbox_head", BOX_HEADS), ("mask_head", MASK_HEADS)):
        part = getattr(roi_head, name, None)
        for one in part if isinstance(part, nn.ModuleList) else [part] if part is not None else []:
            if type(one).__name__ not in known:
                raise SurveyError(f"model.roi_head.{name}: {type(one).__name__} cannot be distilled; one of {', '.join(known)}")
    masks = "mask_rcnn" if roi_head.with_mask else "rcnn"
    if type(roi_head).__name__ == "CascadeRoIHead":
        return f"cascade_{masks}"
    return masks if roi_head.with_mask else "faster_rcnn"


@torch.no_grad()
def _pyramid(model: nn.Module) -> Sequence[Tensor]:
    """The maps (1, C, H, W) of an image of noise, one a level."""
    image = torch.randn(1, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    try:
        return model.extract_feat(image)
    except Exception as error:  # parts that do not fit one another
        raise SurveyError(f"model: backbone and neck cannot look at an image: {_first_line(error)}") from error


@torch.no_grad()
def _scores(model: nn.Module, pyramid: Sequence[Tensor]) -> Sequence[Tensor]:
    """What the dense head scores, (1, A*K, H, W) a level; nothing of a DETR's."""
    head = dense_head(model)
    try:
        return head(pyramid)[0] if head is not None else ()
    except Exception as error:
        raise SurveyError(f"model: its head cannot look at its pyramid: {_first_line(error)}") from error


def _stride(level: Tensor) -> int:
    height, width = level.shape[-2:]
    if height != width or IMAGE % height:
        raise SurveyError(f"model: a level has {height} x {width} cells for an image of {IMAGE} x {IMAGE}, which is no whole stride")
    return IMAGE // height


def _predictions(model: nn.Module, family: str, strides: tuple[int, ...], scores: Sequence[Tensor]) -> dict[str, Any]:
    """`anchors`, `anchor_scales`, `anchor_ratios` and `reg_max` of an entry, from the dense head."""
    head = dense_head(model)
    if head is None:
        return {"anchors": 0}
    generator = head.prior_generator
    of_head = [tuple(stride) if isinstance(stride, list | tuple) else (stride, stride) for stride in generator.strides]
    if of_head != [(stride, stride) for stride in strides]:
        raise SurveyError(f"model: the head counts with the strides {of_head}, its levels have {list(strides)}")
    if not head.use_sigmoid_cls:
        raise SurveyError("model: the dense head scores by softmax; use_sigmoid=True of its loss_cls can be distilled")
    if getattr(head, "use_grid_points", False):
        raise SurveyError(
            "model.bbox_head: RepPoints that begin with a grid of points (use_grid_points) mean boxes by them; False is right"
        )
    anchors = set(generator.num_base_priors)
    if len(anchors) > 1:
        raise SurveyError(f"model: the levels have {list(generator.num_base_priors)} predictions a cell; all must have the same number")
    facts: dict[str, Any] = {"anchors": anchors.pop(), "reg_max": getattr(head, "reg_max", None) if FAMILIES[family].edges else None}
    expected = facts["anchors"] * (CLASSES if FAMILIES[family].scores == "classes" else 1)
    if {level.shape[1] for level in scores} != {expected}:
        raise SurveyError(f"model: the dense head gives {scores[0].shape[1]} scores a cell for {CLASSES} classes; {expected} are right")
    if not FAMILIES[family].anchored:
        return facts
    if not hasattr(generator, "base_anchors"):
        raise SurveyError(f"model: a {type(generator).__name__} has no anchor boxes; give the head an AnchorGenerator")
    if not generator.scale_major or tuple(generator.base_sizes) != strides or generator.center_offset != 0:
        raise SurveyError(
            "model: the anchor boxes are not counted as the catalogue counts them: scale_major=True, center_offset=0 and no base_sizes "
            "but the strides are right"
        )
    return facts | {"anchor_scales": _scales(generator), "anchor_ratios": _written(generator.ratios)}


def _scales(generator: Any) -> tuple[float, ...]:
    if generator.octave_base_scale is None:
        return _written(generator.scales)
    octave = range(generator.scales_per_octave)
    return tuple(float(generator.octave_base_scale * 2 ** (place / len(octave))) for place in octave)


def _written(values: Tensor) -> tuple[float, ...]:
    """Numbers as they were written before they became float32: 0.3, not 0.30000001192092896."""
    return tuple(float(f"{value:.7g}") for value in values.tolist())


@torch.no_grad()
def _try_to_learn(model: nn.Module, masks: bool) -> None:
    """Let it compute its own loss once, of two images of noise with an object each: what lacks here would end every job.

    Raises SurveyError for an operation of mmcv that is not there, training settings that are not given, and the like.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    size = (IMAGE, IMAGE)
    samples = []
    for label in range(2):
        shape = {"img_shape": size, "ori_shape": size, "batch_input_shape": size, "pad_shape": size, "scale_factor": (1.0, 1.0)}
        sample = DetDataSample(metainfo=shape)
        sample.gt_instances = InstanceData(bboxes=torch.tensor([[40.0, 40.0, 200.0, 168.0]]), labels=torch.tensor([label]))
        if masks:  # RTMDet looks at masks that it has no use for
            mask = torch.zeros(1, *size, dtype=torch.uint8)
            mask[:, 40:168, 40:200] = 1
            sample.gt_instances.masks = BitmapMasks(mask.numpy(), *size)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        model.train().loss(images, samples)
    except Exception as error:  # whatever MMDetection's code raises
        raise SurveyError(f"model: it cannot be trained here: {_first_line(error)}") from error


@torch.no_grad()
def _by_overlap(head: Any, strides: Sequence[int]) -> bool:
    """Whether a student's head would find the anchors that nearly became an object's (`valuable.overlaps`)."""
    from mmengine.structures import InstanceData

    anchors = head.prior_generator.grid_priors([(IMAGE // stride, IMAGE // stride) for stride in strides], device="cpu")
    usable = [torch.ones(len(level), dtype=torch.bool) for level in anchors]
    try:
        overlaps(head.assigner, [anchors], [usable], [InstanceData(bboxes=torch.tensor([[40.0, 40.0, 200.0, 168.0]]))])
    except ValueError:
        return False
    return True


def _inputs(preprocessor: Mapping[str, Any], family: str, strides: tuple[int, ...]) -> Inputs:
    if preprocessor.get("type") != "DetDataPreprocessor":
        raise SurveyError(f"model.data_preprocessor.type: {preprocessor.get('type')!r}; 'DetDataPreprocessor' is right")
    if preprocessor.get("rgb_to_bgr"):
        raise SurveyError("model.data_preprocessor.rgb_to_bgr: images come with blue first; bgr_to_rgb can be true, this cannot")
    mean, std = preprocessor.get("mean") or [0.0] * 3, preprocessor.get("std") or [1.0] * 3
    if len(mean) != 3 or len(std) != 3:
        raise SurveyError(f"model.data_preprocessor: mean {mean} and std {std} are not for three channels")
    pad = preprocessor.get("pad_size_divisor", 1)
    return Inputs(
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        rgb=bool(preprocessor.get("bgr_to_rgb")),
        pad=math.lcm(pad, strides[-1]) if family in JOINING else pad,
        fill=float(preprocessor.get("pad_value", YOLOX_GRAY if family == "yolox" else 0.0)),
    )


def _plain(value: Any) -> Any:
    """Without MMEngine's own types, and with types by their names in MMDetection's registry.

    Configurations in plain Python name a class by its module (`mmdet.models.RetinaNet`), those of other packages by MMDetection's scope
    (`mmdet.RetinaNet`); what inherits from `mmdet::...` names the scope beside every type.
    """
    if isinstance(value, Mapping):
        plain = {key: _plain(item) for key, item in value.items() if (key, item) != ("_scope_", "mmdet")}
        kind = plain.get("type")
        if isinstance(kind, str) and kind.partition(".")[0] in LIBRARIES:
            plain["type"] = kind.rpartition(".")[2]
        return plain
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _first_line(error: Exception) -> str:
    """Of what an exception says, or of an assertion without words the place and what it asserts."""
    lines = str(error).strip().splitlines()
    if not lines:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        lines = [f"{frame.line} ({Path(frame.filename).name}, line {frame.lineno})"]
    return f"{type(error).__name__}: {lines[0]}"
