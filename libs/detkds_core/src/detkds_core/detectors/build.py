"""Build a detector of the catalogue, and hand a trained student back as a plain MMDetection checkpoint."""

import hashlib
import json
import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from detkds_core.catalogue import DetectorEntry, detector
from detkds_core.catalogue.small import small_backbone
from detkds_core.detectors.runtime import prepare_mmdet

CLASS_HEADS = ("bbox_head", "mask_head")
INHERITED = ("neck", "bbox_head", "rpn_head", "roi_head")  # what of a teacher its student can begin with


def model_config(entry: DetectorEntry, classes: int) -> dict[str, Any]:
    """MMDetection's model configuration for `classes` classes. Nothing in it downloads."""
    if entry.source is not None:
        prepare_mmdet()
        import mmdet
        from mmengine.config import Config

        config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / entry.source).model.to_dict()
        if entry.width is not None:
            shrink(config, entry.width, entry.channels)
        config["backbone"]["init_cfg"] = None
        without_sync(config)
    else:
        config = _plain(entry.config)
    inputs = entry.inputs
    if entry.own:  # what its file says of its images is said once
        config["data_preprocessor"] |= {"mean": list(inputs.mean), "std": list(inputs.std), "bgr_to_rgb": inputs.rgb}
    if entry.own or entry.source is not None:
        # images come as the recipe augments them, and nothing resizes them behind the teacher's back
        config["data_preprocessor"] |= {"batch_augments": None, "pad_size_divisor": inputs.pad, "pad_value": inputs.fill}
    set_classes(config, classes)
    return config


def set_classes(config: Mapping[str, Any], classes: int) -> None:
    """Give every head of a model's configuration the number of classes."""
    for part in (config, config.get("roi_head") or {}):
        for name in CLASS_HEADS:
            heads = part.get(name) or []
            for head in heads if isinstance(heads, list) else [heads]:
                head["num_classes"] = classes


def shrink(config: dict[str, Any], width: int, channels: int) -> None:
    """Put a model on a ResNet-18 of `width` channels, its neck and heads on `channels` instead of 256 (fully connected layers: 128)."""
    stages = (0, 1, 2, 3)
    config["backbone"] = small_backbone(width, stages)

    def narrow(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list):
                narrow(value)
            elif isinstance(node, dict) and "channels" in str(key) and value in (256, 1024):
                node[key] = channels if value == 256 else 128

    narrow({key: value for key, value in config.items() if key != "backbone"})
    config["neck"]["in_channels"] = [width * 2**stage for stage in stages]


def without_sync(node: Any) -> None:
    """Plain batch normalisation for the synchronised one, which runs on GPUs alone; several devices normalise each its own images."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list | tuple):
            without_sync(value)
    if isinstance(node, dict) and node.get("type") == "SyncBN":
        node["type"] = "BN"


def build_detector(name: str, classes: Sequence[str]) -> nn.Module:
    """A detector of the catalogue with fresh weights, drawn from torch's global generator.

    Raises ValueError for a name that the catalogue does not know.
    """
    entry = detector(name)
    prepare_mmdet()
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    model = MODELS.build(ConfigDict(model_config(entry, len(classes))))
    model.init_weights()
    model.dataset_meta = {"classes": tuple(classes)}
    return model.to(memory_format=torch.channels_last) if safe_channels_last(model) else model


def safe_channels_last(model: nn.Module) -> bool:
    """Whether the model may use channels_last, which doubles the speed of convolutions on a CPU.

    oneDNN, as torch 2.14.1 brings it, writes beyond its buffers in the backward pass of a 1x1 convolution with stride 2 and at most 8 input
    channels in that format (4 images, 8 -> 16 channels, 64 x 64: the process dies; 16 input channels: equal to the plain format).
    """
    return not any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 16
        for module in model.modules()
    )


def thaw(model: nn.Module) -> bool:
    """Let a backbone of random weights learn, all of it; whether some of it was frozen, as MMDetection has it for pretrained ones."""
    backbone: Any = model.backbone
    frozen = getattr(backbone, "frozen_stages", -1) >= 0 or getattr(backbone, "norm_eval", False)
    frozen = frozen or not all(parameter.requires_grad for parameter in backbone.parameters())
    if frozen:
        backbone.frozen_stages, backbone.norm_eval = -1, False
        backbone.requires_grad_(True)
    return frozen


def inherit(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Copy the teacher's neck and head into the student where they fit (FGD's inheriting strategy). Returns the copied keys.

    Modules are taken whole or not at all, a convolution with its normalisation: what was learned before the one means nothing without the
    other. A bias that the student's convolution has and the teacher's has not stays, at the 0 where it begins. Between detectors of one
    type, the neck's convolutions that read another backbone give all but their weights, which have other channels, as the released code
    does it. Between others no scale is taken: what it multiplies is each head's own.
    """
    own, given = _modules(student), _modules(teacher)
    alike = type(student) is type(teacher)
    taken = {key: value for name, tensors in own.items() for key, value in _fitting(name, tensors, given.get(name, {}), alike).items()}
    student.load_state_dict(taken, strict=False)
    return list(taken)


def inheritable(model: nn.Module) -> int:
    """How many tensors neck and head have."""
    return sum(map(len, _modules(model).values()))


def _modules(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors of neck and head by the module that they belong to, a convolution with its normalisation being one."""
    from mmcv.cnn import ConvModule

    whole = [name for name, module in model.named_modules() if isinstance(module, ConvModule)]
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in model.state_dict().items():
        if key.split(".")[0] in INHERITED:
            name = next((name for name in whole if key.startswith(f"{name}.")), key.rpartition(".")[0])
            found.setdefault(name, {})[key] = value
    return found


def _fitting(name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor], alike: bool) -> dict[str, Tensor]:
    """Which of the teacher's tensors of a module the student takes; alike: both detectors are of one type."""
    fit = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    surplus = [key for key in own if key not in given and not (key.endswith(".bias") and f"{key.removesuffix('bias')}weight" in given)]
    misfits = [key for key in given if key not in fit]
    if alike and name.startswith("neck."):
        misfits = [key for key in misfits if key not in own or _outputs(own[key]) != _outputs(given[key])]
    scale = all(value.ndim == 0 for value in own.values())
    return {} if surplus or misfits or (scale and not alike) else fit


def _outputs(weight: Tensor) -> tuple[int, ...]:
    """The shape without input channels."""
    return (*weight.shape[:1], *weight.shape[2:])


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str], dtype: torch.dtype | None = None) -> str:
    """Write a safetensors checkpoint, floats as `dtype` if given, and return its SHA-256."""
    weights = {
        key: value.detach().to("cpu", dtype if dtype is not None and value.is_floating_point() else value.dtype).contiguous()
        for key, value in model.state_dict().items()
    }
    content = with_sorted_header(save(weights, metadata=dict(metadata)))
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file with its header in key order: the library writes metadata in an order that differs from run to run."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def save_student(model: nn.Module, folder: Path, name: str, classes: Sequence[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Write a detector's weights as `NAME.safetensors` and as `NAME.pth` for plain MMDetection. Returns names and SHA-256."""
    digest = save_weights(model, folder / f"{name}.safetensors", {**metadata, "classes": json.dumps(list(classes))})
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": tuple(classes)}, **metadata}}, folder / f"{name}.pth")
    return {"checkpoint": f"{name}.safetensors", "checkpoint_pth": f"{name}.pth", "sha256": digest}


def export_student(
    model: nn.Module,
    entry: DetectorEntry,
    folder: Path,
    *,
    dataset: Mapping[str, Any],
    image_size: int,
    metadata: Mapping[str, str],
    short_side: int | None = None,
) -> dict[str, str]:
    """Write the student alone: `student.safetensors`, and `student.pth` with `student_config.py` for plain MMDetection.

    dataset: a dataset specification (classes, and val with annotations and images), which the configuration evaluates on.
    image_size, short_side: the largest longer and shorter side in pixels.
    Returns the file names and the SHA-256 of the safetensors file.
    """
    classes = list(dataset["classes"])
    files = save_student(model, folder, "student", classes, metadata)
    masks = bool(getattr(model, "with_mask", False))
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (image_size, short_side or image_size), "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
    loader = {
        "batch_size": 1,
        "num_workers": 0,
        "persistent_workers": False,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {
            "type": "CocoDataset",
            "ann_file": str(dataset["val"]["annotations"]),
            "data_prefix": {"img": str(dataset["val"]["images"])},
            "metainfo": {"classes": tuple(classes)},
            "test_mode": True,
            "pipeline": pipeline,
        },
    }
    config = {
        "default_scope": "mmdet",
        "model": _plain(model_config(entry, len(classes))),
        "test_dataloader": loader,
        "test_evaluator": {
            "type": "CocoMetric",
            "ann_file": str(dataset["val"]["annotations"]),
            "metric": ["bbox", "segm"] if masks else "bbox",
        },
        "test_cfg": {"type": "TestLoop"},
    }
    lines = [f"{key} = {literal(value)}\n" for key, value in config.items()]
    (folder / "student_config.py").write_text("# A plain MMDetection configuration of the distilled student.\n" + "\n".join(lines))
    return {**files, "config": "student_config.py"}


def literal(value: Any) -> str:
    """Python's text of a plain value, for an MMEngine configuration.

    Before such a file is read as Python, MMEngine puts the environment and other texts in place of `{{...}}` in it. In a text of ours, such
    as a class name that somebody chose, that must stay text. Two braces in a row stand in strings alone.
    """
    return pprint.pformat(value, width=120, sort_dicts=False).replace("{{", "{\\x7b")


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _plain(value: Any) -> Any:
    """A deep copy of dictionaries, lists and tuples, without MMEngine's own types."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value
