"""Read checkpoints that strangers wrote, and fill detectors with them."""

import contextlib
import copy
import json
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from detkds_core.detectors.runtime import prepare_mmdet

WEIGHTS = ("state_dict", "model")  # under which of its keys a file has them, beside optimizer, settings and the like
BACKBONE = "backbone"  # of a checkpoint, in its keys and in its header
CLASSIFIERS = ("fc", "head", "classifier", "neck")  # of a file of a classifier, what is not its backbone
WRAPPED = "module."  # before every key of a model that was trained on several devices
ARCHIVE, PICKLE = b"PK", b"\x80"  # with what PyTorch's files begin, since its version 1.6 and before

MISSING, SURPLUS, MISSHAPEN = "missing", "surplus", "of another shape"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and what would be right."""


class Unread:
    """Stands where a file has an object of another library. Whatever the file says of it is dropped: it has no state and no behaviour."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> "Unread":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# What a training leaves in its checkpoints beside weights, by name, and what is put in its place: nothing of that name is imported or
# called. Any other name is refused, though it would do no harm here: a file that wants `os.system` is not what it says it is.
STAND_INS: Mapping[str, type] = {
    "mmengine.config.config.ConfigDict": dict,
    **dict.fromkeys(
        (
            "mmengine.logging.history_buffer.HistoryBuffer",  # MMEngine's record of losses ...
            "builtins.getattr",  # ... and how it names its own methods
            "builtins.slice",
            "numpy.dtype",
            "numpy.ndarray",
            *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
            "argparse.Namespace",  # the settings of a training by a script, as the authors of backbones write them
        ),
        Unread,
    ),
}


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata (`classes`: a JSON list, if named) of a `.safetensors` or a PyTorch file.

    The latter may be a bare state_dict, one under `state_dict` or `model`, or a whole state of a training as MMEngine's Runner leaves it.
    Of it nothing but tensors and class names is read, and no code runs. Raises CheckpointError naming what is no tensor among the weights.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    content = read_pickle(path, STAND_INS)
    whole = _entries(content)
    if whole is None:
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state_dict")
    weights = next((found for key in WEIGHTS if (found := _entries(whole.get(key))) is not None), whole)
    for key, value in weights.items():
        if fault := _fault(key, value):
            raise CheckpointError(f"{path}: {fault}; save the model's state_dict alone")
    classes = class_names(whole.get("meta")) if weights is not whole else None
    wrapped = all(key.startswith(WRAPPED) for key in weights)
    tensors = {key.removeprefix(WRAPPED) if wrapped else key: Tensor.detach(value) for key, value in weights.items()}
    return tensors, {"classes": json.dumps(classes)} if classes else {}


def read_pickle(path: Path, stand_ins: Mapping[str, type] | None = None) -> Any:
    """The project's only reader of PyTorch's pickles: tensors and plain containers, never code.

    stand_ins: names of other things that the file may hold, and what is put in their place. PyTorch's own restricted reader looks names up
    among those that it allows, and these; it imports none, and what the program had allowed before does not count. Threads wait for each
    other. Raises CheckpointError, with the name that is not allowed.
    """
    try:
        with _allowed_alone(stand_ins or {}):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        named = re.search(r"GLOBAL ([\w.]{1,200})", str(error))
        if not named and (damage := _damage(path, error)):
            raise CheckpointError(f"{path}: {damage}") from error
        why = f"it names {named[1]}" if named else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as tensors only ({why}); save its state_dict alone") from error


def _damage(path: Path, error: Exception) -> str | None:
    """What is wrong with a file that is no whole checkpoint, by its first bytes and its end; None where it looks like one."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "is empty"
    if not head.startswith((ARCHIVE, PICKLE)) and head[257:262] != b"ustar":  # the last is of PyTorch before 0.1.10, and not read
        return "is no PyTorch checkpoint; give the .pth or .pt file that a training saved, or a .safetensors file"
    ended = not zipfile.is_zipfile(path) if head.startswith(ARCHIVE) else isinstance(error, EOFError) or "unexpected EOF" in str(error)
    return "is cut off, and its end is missing; copy or download it again" if ended else None


_READING = threading.Lock()  # PyTorch's list of what is allowed is one for all threads


@contextlib.contextmanager
def _allowed_alone(stand_ins: Mapping[str, type]) -> Iterator[None]:
    """Let PyTorch's restricted reader know `stand_ins` and nothing that the program allowed itself, which is allowed again afterwards.

    A program that reads MMEngine's files otherwise has allowed the real `getattr`: two would stand for one name, and chance would choose.
    What another of its threads allows just while a file is read would still count: PyTorch has no list for one thread.
    """
    with _READING:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
                yield
        finally:
            torch.serialization.add_safe_globals(before)


def _entries(content: Any) -> dict[Any, Any] | None:
    """What a dictionary of a file holds, without the attributes that a file can give it in place of its methods; None of anything else."""
    return dict(dict.items(content)) if isinstance(content, dict) else None


def _fault(key: Any, value: Any) -> str | None:
    """Why an entry of a state_dict is no weight."""
    if not isinstance(key, str):
        return f"one of its keys is a {type(key).__name__}, not the name of a tensor"
    if isinstance(value, Unread):
        return f"{key!r} holds an object of another library, not a tensor"
    if type(value) not in (Tensor, nn.Parameter):
        return f"{key!r} holds a {type(value).__name__}, not a tensor"
    plain = Tensor.detach(value)  # a file can give a tensor attributes in place of its methods; this has none of them
    if plain.layout != torch.strided or plain.is_nested or plain.is_quantized or plain.device.type != "cpu":
        return f"{key!r} holds a tensor that is not dense (it is sparse, nested, quantized or without content)"
    if plain.numel() * plain.element_size() > (held := plain.untyped_storage().nbytes()):
        return f"{key!r} holds a tensor of {plain.numel()} numbers, of which the file has {held // plain.element_size()}"
    return None


def class_names(meta: Any) -> list[str] | None:
    """The class names in a checkpoint's `meta`, None without.

    MMDetection 3 writes `dataset_meta.classes`, its release candidates `dataset_meta.CLASSES`, MMDetection 2 `CLASSES`.
    """
    meta = _entries(meta) or {}
    for place in (_entries(meta.get("dataset_meta")) or {}, meta):
        for key in ("classes", "CLASSES"):
            found = place.get(key)
            if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
                return list(found)
    return None


def backbone_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone in a state_dict of a detector or of a classifier, by MMDetection's names: `backbone.conv1.weight`.

    Classifiers are those of torchvision and MMPretrain, and the published ones of Swin's and PVT's authors.
    Raises CheckpointError where there is none.
    """
    prefix = f"{BACKBONE}."
    found = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if not found:
        found = {key: value for key, value in weights.items() if key.split(".")[0] not in CLASSIFIERS}
    if not found:
        raise CheckpointError(f"no backbone is among the {len(weights)} tensors")
    return {prefix + key: value for key, value in in_mmdet(found).items()}


def in_mmdet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone as MMDetection's module of it has it, where its authors' own has other names and orders (Swin, PVT, PVTv2)."""
    swin, pvt = "layers.0.blocks.0.attn.qkv.weight" in weights, "block1.0.attn.q.weight" in weights
    if not swin and not pvt:
        return dict(weights)
    prepare_mmdet()
    from mmdet.models.backbones.pvt import pvt_convert
    from mmdet.models.backbones.swin import swin_converter

    try:
        converted = swin_converter(weights) if swin else pvt_convert(weights)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"the backbone looks like a {'Swin' if swin else 'PVT'} Transformer, but is none: {error}") from error
    return {key.removeprefix(f"{BACKBONE}."): value for key, value in converted.items()}


def misfits(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """In what weights differ from what they shall fill: the keys that are missing, surplus or of another shape, after loading has renamed.

    MMDetection's modules know names of its earlier versions and rename them while they load. So a copy, which has shapes but no content, is
    filled and asked: `module` stays as it is.
    """
    copied = copy.deepcopy(module, {id(tensor): _without_content(tensor) for tensor in (*module.parameters(), *module.buffers())})
    misshapen: dict[str, str] = {}

    def compare(part: nn.Module, given: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for name, own in {**part._parameters, **part._buffers}.items():
            key = prefix + name
            if own is not None and key in given and given[key].shape != own.shape:
                misshapen[key] = f"{key}: {tuple(given.pop(key).shape)} instead of {tuple(own.shape)}"

    for part in copied.modules():
        part.register_load_state_dict_pre_hook(compare)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")  # that this does nothing is what is wanted
        missing, surplus = copied.load_state_dict(weights, strict=False)
    return {MISSING: [key for key in missing if key not in misshapen], SURPLUS: surplus, MISSHAPEN: list(misshapen.values())}


def _without_content(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _listed(found: Mapping[str, list[str]]) -> str:
    """`2 missing (a, b); 1 surplus (c)`, with the first keys of each kind."""
    return "; ".join(f"{len(keys)} {kind} ({', '.join(keys[:3])})" for kind, keys in found.items() if keys)


def load_weights(model: nn.Module, path: Path) -> dict[str, str]:
    """Fill `model` from a checkpoint that must fit it exactly, under today's or earlier names, and return the checkpoint's metadata.

    Raises CheckpointError naming the first keys that are missing, surplus or of another shape, and when it was trained on other classes.
    `model` is then as it was.
    """
    weights, metadata = read_checkpoint(path)
    _fill(model, weights, metadata, path.name)
    return metadata


def _fill(model: nn.Module, weights: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> None:
    """Fill the whole of `model` with what was read of the checkpoint `name`. Raises CheckpointError; `model` is then as it was."""
    classes = list(getattr(model, "dataset_meta", {}).get("classes", ()))
    if "classes" in metadata and classes and json.loads(metadata["classes"]) != classes:
        raise CheckpointError(f"{name}: was trained on the classes {json.loads(metadata['classes'])}, the dataset has {classes}")
    if wrong := _listed(misfits(model, weights)):
        raise CheckpointError(f"{name}: does not fit the detector: {wrong}")
    model.load_state_dict(weights, strict=False)


def load_student(model: nn.Module, path: Path) -> tuple[bool, list[str]]:
    """Fill a student of fresh weights from a checkpoint of the whole detector, or of its backbone alone.

    A file of a backbone says so in its header (`detkds convert --backbone`). As in MMDetection it may hold what the backbone has not, such
    as biases of another framework's convolutions, and lack what begins with one value, such as normalisations of outputs; weights that
    would be drawn at random must be there. Returns whether it was the whole, and what has to be said of the rest.
    Raises CheckpointError as `load_weights` does.
    """
    weights, metadata = read_checkpoint(path)
    if metadata.get("part") != BACKBONE:
        _fill(model, weights, metadata, path.name)
        return True, []
    given = {key.removeprefix(f"{BACKBONE}."): value for key, value in weights.items()}
    backbone: Any = model.backbone
    found = misfits(backbone, given)
    drawn = [key for key, value in backbone.named_parameters() if key in found[MISSING] and bool((value != value.flatten()[0]).any())]
    if wrong := _listed({MISSING: drawn, MISSHAPEN: found[MISSHAPEN]}):
        raise CheckpointError(f"{path.name}: does not fit the detector's backbone: {wrong}")
    backbone.load_state_dict(given, strict=False)
    return False, list(_odd_ends(found))


def _odd_ends(found: Mapping[str, list[str]]) -> Iterator[str]:
    """Without the file's name, which may be that of a machine's copy: results have these."""
    told = {
        SURPLUS: "not used, since the student's backbone has nothing of that name",
        MISSING: "not in it, so that the student's backbone keeps its own first values",
    }
    for kind, meaning in told.items():
        if keys := found[kind]:
            yield f"student.checkpoint: {meaning}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
