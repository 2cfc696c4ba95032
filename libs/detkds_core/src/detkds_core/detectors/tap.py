"""Catch what a detector says while it computes its own loss: hooks on the neck and the dense head, nothing computed twice."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detkds_core.losses.signals import Signals


class Tap:
    """Keeps the last output of a detector's neck and dense head. `clear()` lets go of them and their graph."""

    def __init__(self, model: nn.Module) -> None:
        self.head = dense_head(model)
        self.features: tuple[Tensor, ...] = ()
        self.outputs: tuple[Any, ...] = ()
        pyramid = model.neck if getattr(model, "with_neck", False) else model.backbone
        pyramid.register_forward_hook(self._keep_features)
        if self.head is not None:
            self.head.register_forward_hook(self._keep_outputs)

    def _keep_features(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.features = tuple(output) if isinstance(output, list | tuple) else (output,)

    def _keep_outputs(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.outputs = tuple(output)

    def clear(self) -> None:
        self.features, self.outputs = (), ()

    def signals(self, needs: frozenset[str], levels: Sequence[int]) -> Signals:
        """What was caught on the given pyramid levels, as far as `needs` asks for it."""
        logits: tuple[Tensor, ...] = ()
        boxes: tuple[Tensor, ...] = ()
        edges: tuple[Tensor, ...] = ()
        if needs - {"features"}:
            scores = self.outputs[0]
            logits = tuple(scores[i] for i in levels)  # also weighs the localization term by the teacher's score
            if "boxes" in needs:
                decoded = decode_boxes(self.head, self.outputs, [tuple(score.shape[-2:]) for score in scores])
                boxes = tuple(decoded[i] for i in levels)
            if "edges" in needs:
                edges = tuple(self.outputs[1][i] for i in levels)
        return Signals(features=tuple(self.features[i] for i in levels), logits=logits, boxes=boxes, edges=edges)


def dense_head(model: nn.Module) -> nn.Module | None:
    """The head that predicts at every cell: a one-stage detector's box head, a two-stage detector's region proposal network."""
    return getattr(model, "bbox_head", None) or getattr(model, "rpn_head", None)


def decode_boxes(head: nn.Module, outputs: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Boxes of every prediction, one (B, H*W*A, 4) tensor a level, xyxy in pixels, with gradient.

    Heads differ in what their second output means, some between training and evaluation; what each means is read from MMDetection's source.
    """
    kind = type(head).__name__
    device = outputs[0][0].device
    predictions = outputs[2] if kind.startswith("RepPoints") and head.training else outputs[1]
    priors = head.prior_generator.grid_priors(sizes, device=device)
    boxes = []
    for level, (prediction, prior) in enumerate(zip(predictions, priors, strict=True)):
        stride = head.prior_generator.strides[level]
        stride = stride[0] if isinstance(stride, list | tuple) else stride
        B = prediction.shape[0]
        if kind.startswith("RepPoints"):
            offsets = head.points2bbox(prediction) if head.training else prediction  # (B, 4, H, W) in strides
            flat = offsets.permute(0, 2, 3, 1).reshape(B, -1, 4) * stride
            boxes.append(flat + prior[:, :2].repeat(1, 2))
            continue
        if hasattr(head, "reg_max") and hasattr(head, "integral"):
            flat = prediction.permute(0, 2, 3, 1).reshape(B, -1, 4 * (head.reg_max + 1))
            distances = torch.stack([head.integral(image) for image in flat]) * stride
            centers = (prior[:, :2] + prior[:, 2:]) / 2
            boxes.append(_around(centers, distances))
            continue
        flat = prediction.permute(0, 2, 3, 1).reshape(B, -1, 4)
        if prior.shape[-1] == 2:
            if getattr(head, "norm_on_bbox", False) and head.training:
                flat = flat * stride  # FCOS multiplies by the stride itself only when it predicts
            boxes.append(_around(prior, flat))
        else:
            decoded = head.bbox_coder.decode(prior.repeat(B, 1), flat.reshape(-1, 4))
            boxes.append(decoded.reshape(B, -1, 4))
    return boxes


def _around(centers: Tensor, distances: Tensor) -> Tensor:
    """centers (M, 2), distances left, top, right, bottom (B, M, 4) -> boxes (B, M, 4)."""
    return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=-1)
