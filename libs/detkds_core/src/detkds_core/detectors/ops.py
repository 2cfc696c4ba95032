"""The compiled operations that detectors need, from torchvision's kernels, under the names by which mmcv calls them.

mmcv's Python wrappers (`mmcv/ops/*.py`) call a compiled module, `mmcv._ext`. Building it takes half an hour and a compiler that
matches torch, while torchvision ships most of the same kernels for CPU and CUDA. `install` puts a module in that place whose functions
keep mmcv's convention: results are written into the tensors that the wrapper passes. Where torchvision has no kernel, or one
of another meaning (RoIPool rounds differently), plain PyTorch does the work.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny  # FLT_MIN: mmcv's floor under a logarithm, for every precision


def _computable(tensor: Tensor) -> Tensor:
    """The tensor in a precision that torchvision's kernels take: they know half only on CUDA, and bfloat16 nowhere."""
    if tensor.dtype == torch.bfloat16 or (tensor.dtype == torch.float16 and tensor.device.type == "cpu"):
        return tensor.float()
    return tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that survive greedy suppression, by falling score (ties: lower index first).

    boxes: (n, 4) xyxy; scores: (n,). `offset` is added to every width and height (1: MMDetection v1 pixel boxes). A box goes
    when its IoU with a kept one is above the threshold. No boxes: an empty int64 tensor.
    """
    boxes = _computable(boxes)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # mmcv compares in the boxes' own precision; without this an IoU of exactly 0.6f would be above 0.6
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), threshold)


BRIDGED: dict[str, Callable[..., Any]] = {
    "nms": nms,
}


def _unbridged(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"mmcv op '{name}' is not bridged to torchvision; one of {', '.join(sorted(BRIDGED))}. "
            "A detector that needs it needs mmcv with its compiled ops."
        )

    refuse.__name__ = name
    return refuse


class BridgeModule(ModuleType):
    """Stands for `mmcv._ext`: mmcv asks at import whether it has each of some hundred ops, so it has all; the unknown refuse when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unbridged(name)


def install() -> bool:
    """Put the bridge in the place of `mmcv._ext` and return True; leave a compiled one alone and return False. May be called again.

    Must come before `mmcv.ops` is first imported. Without mmcv: ModuleNotFoundError.
    """
    present = sys.modules.get("mmcv._ext")
    if present is not None:
        return isinstance(present, BridgeModule)
    if importlib.util.find_spec("mmcv._ext") is not None:
        return False
    bridge = BridgeModule("mmcv._ext", __doc__)
    bridge.__spec__ = ModuleSpec("mmcv._ext", None)  # importlib.util.find_spec refuses a loaded module without one
    for name, op in BRIDGED.items():
        setattr(bridge, name, op)
    sys.modules["mmcv._ext"] = bridge
    sys.modules["mmcv"]._ext = bridge  # type: ignore[attr-defined]
    return True
