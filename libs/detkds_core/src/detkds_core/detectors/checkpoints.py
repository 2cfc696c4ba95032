"""Read checkpoints that strangers wrote, and fill detectors with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

BACKBONE = "backbone"  # of a checkpoint, in its keys and in its header
CLASSIFIERS = ("fc", "head", "classifier", "neck")  # of a file of a classifier, what is not its backbone


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and what would be right."""


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata of a `.safetensors` or a PyTorch file. Only tensors are read; a pickle that holds code is refused."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state_dict")
    weights = content.get("state_dict", content)
    classes = ((content.get("meta") or {}).get("dataset_meta") or {}).get("classes") if "state_dict" in content else None
    return dict(weights), {"classes": json.dumps(list(classes))} if classes else {}


def read_pickle(path: Path) -> Any:
    """The project's only reader of PyTorch's pickles: tensors and plain containers, never code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as tensors only ({type(error).__name__}); save its state_dict alone") from error


def misfits(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """In what a checkpoint differs from what it shall fill: `2 missing (a, b)`, with the first keys of each kind."""
    missing = [key for key in own if key not in weights]
    surplus = [key for key in weights if key not in own]
    shapes = [
        f"{key}: {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    kinds = (("missing", missing), ("surplus", surplus), ("of another shape", shapes))
    return [f"{len(found)} {word} ({', '.join(found[:3])})" for word, found in kinds if found]


def load_weights(model: nn.Module, path: Path) -> dict[str, str]:
    """Fill `model` from a checkpoint that must fit it exactly, and return the checkpoint's metadata.

    Raises CheckpointError naming the first keys that are missing, surplus or of another shape, and when it was trained on other classes.
    """
    weights, metadata = read_checkpoint(path)
    own = model.state_dict()
    classes = list(getattr(model, "dataset_meta", {}).get("classes", ()))
    if "classes" in metadata and classes and json.loads(metadata["classes"]) != classes:
        raise CheckpointError(f"{path.name}: was trained on the classes {json.loads(metadata['classes'])}, the dataset has {classes}")
    if problems := misfits(own, weights):
        raise CheckpointError(f"{path.name}: does not fit the detector: " + "; ".join(problems))
    model.load_state_dict({key: weights[key].to(own[key].dtype) for key in own})
    return metadata


def load_student(model: nn.Module, path: Path) -> bool:
    """Fill a student from a checkpoint of the whole detector, or of its backbone alone; whether it was the whole.

    A file of a backbone says so in its header (`detkds convert --backbone`). Raises CheckpointError as `load_weights` does.
    """
    weights, metadata = read_checkpoint(path)
    if metadata.get("part") != BACKBONE:
        load_weights(model, path)
        return True
    own = {f"{BACKBONE}.{key}": value for key, value in model.backbone.state_dict().items()}
    problems = misfits(own, weights)
    if problems:
        raise CheckpointError(f"{path.name}: does not fit the detector's backbone: " + "; ".join(problems))
    model.load_state_dict({key: weights[key].to(own[key].dtype) for key in own}, strict=False)
    return False


def backbone_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone in a state_dict of a detector, or of a classifier, as torchvision and MMPretrain write them: `backbone.conv1.weight`.

    Raises CheckpointError where there is none.
    """
    prefix = f"{BACKBONE}."
    found = {key: value for key, value in weights.items() if key.startswith(prefix)}
    if not found:
        found = {prefix + key: value for key, value in weights.items() if key.split(".")[0] not in CLASSIFIERS}
    if not found:
        raise CheckpointError(f"no backbone is among the {len(weights)} tensors")
    return found
