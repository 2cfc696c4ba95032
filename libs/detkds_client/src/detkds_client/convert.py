"""A PyTorch checkpoint as a safetensors file that names its classes. Needs torch; runs where the user is, never in the service."""

from __future__ import annotations

import json
import re
from pathlib import Path


class ConvertError(Exception):
    """Why a checkpoint cannot be converted, and what would be right."""


def convert(
    source: Path, target: Path, classes: tuple[str, ...] | None = None, *, backbone: bool = False, force: bool = False
) -> tuple[str, ...]:
    """Write the tensors of `source` to `target` with the class names in its header, and return those.

    Only tensors are read; a pickle with code in it is refused. classes: needed when the checkpoint does not name its own. backbone: write
    that alone, for a student to begin with; `source` may be a classifier's, as torchvision and the authors of Swin and PVT have them, and
    no class counts. force: in place of a file that is there already.
    """
    if target.suffix != ".safetensors":
        raise ConvertError(f"{target} does not end in .safetensors")
    if not target.parent.is_dir():
        raise ConvertError(f"{target} cannot be written: there is no folder {target.parent}; make it first")
    if target.exists() and not force:
        raise ConvertError(f"{target} is there already; choose another name, or write over it with --force")
    # Imported here: torch takes seconds, and no other command needs it.
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from detkds_core.detectors.checkpoints import BACKBONE, CheckpointError, backbone_weights, read_checkpoint

    try:
        weights, metadata = read_checkpoint(source)
        if backbone:
            weights, metadata = backbone_weights(weights), {"part": BACKBONE}
    except CheckpointError as error:
        raise ConvertError(str(error)) from error
    if classes is not None and not backbone:
        metadata = {**metadata, "classes": json.dumps(list(classes))}
    if "classes" not in metadata and not backbone:
        raise ConvertError(f"{source} does not name its classes; give them in the order of training: --classes 'car,person,...'")
    # Tensors that share memory are refused by safetensors, and a view would drag its whole storage along.
    try:
        save_file({name: value.contiguous().clone() for name, value in weights.items()}, target, metadata=metadata)
    except (OSError, SafetensorError) as error:
        why = re.sub(r' at path ".*"', "", str(error))  # of a file beside the target, which nobody has named
        raise ConvertError(f"{target} cannot be written: {why}") from error
    return tuple(json.loads(metadata.get("classes", "[]")))
