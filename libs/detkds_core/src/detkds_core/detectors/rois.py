"""Proposals that teacher and student share: what a two-stage student looked at in its own loss, and what the teacher says of the same."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkds_core.losses.signals import Rois


class RoiTap:
    """Keeps what a RoI head was asked and said in its own loss; of a cascade, its first stage, whose proposals nobody has refined."""

    def __init__(self, roi_head: nn.Module) -> None:
        self.roi_head = roi_head
        self.clear()
        self._keep("_bbox_forward", self._keep_boxes)
        if getattr(roi_head, "with_mask", False):
            self._keep("_mask_forward", self._keep_masks)
            self._keep("mask_loss", self._keep_samples, before=True)

    def clear(self) -> None:
        self.regions: Tensor | None = None  # (R, 5)
        self.results: dict[str, Tensor] = {}
        self.positive: Tensor | None = None  # (P, 5)
        self.mask_scores: Tensor | None = None  # (P, K, h, w)
        self.samples: Sequence[Any] = ()

    def _keep(self, name: str, keep: Any, before: bool = False) -> None:
        call = getattr(self.roi_head, name)

        def caught(*args: Any, **kwargs: Any) -> Any:
            if before:
                keep([*args, *kwargs.values()], None)
            result = call(*args, **kwargs)
            if not before:
                keep([*args, *kwargs.values()], result)
            return result

        setattr(self.roi_head, name, caught)

    def _keep_boxes(self, args: Sequence[Any], result: dict[str, Tensor]) -> None:
        if self.regions is None:
            self.regions, self.results = args[-1], result

    def _keep_masks(self, args: Sequence[Any], result: dict[str, Tensor]) -> None:
        if self.positive is None:
            self.positive, self.mask_scores = next(a for a in args if isinstance(a, Tensor)), result["mask_preds"]

    def _keep_samples(self, args: Sequence[Any], _result: None) -> None:
        if not self.samples:  # the list of sampling results, one an image
            self.samples = next(a for a in args if isinstance(a, list) and a and hasattr(a[0], "pos_gt_labels"))

    def caught(self, needs: frozenset[str]) -> Rois | None:
        """What was caught, as far as `needs` asks for it; None when the RoI head has not run."""
        if self.regions is None:
            return None
        head = first(self.roi_head.bbox_head)
        labels = torch.cat([sample.pos_gt_labels for sample in self.samples]) if self.samples else None
        with_masks = "roi_masks" in needs and self.mask_scores is not None and labels is not None
        return Rois(
            regions=self.regions,
            scores=self.results["cls_score"] if "roi_scores" in needs else None,
            boxes=of_classes(head, decode_rois(head, self.regions, self.results["bbox_pred"])) if "roi_boxes" in needs else None,
            masks=of_class(self.mask_scores, labels) if with_masks else None,
            positive=self.positive,
            labels=labels,
        )


def regard(
    roi_head: nn.Module | None, pyramid: Sequence[Tensor], shared: Rois, needs: frozenset[str], batch_shape: tuple[int, int]
) -> Rois:
    """What a frozen detector says of a student's proposals: scores, boxes and masks as far as `needs` asks for them.

    A cascade runs as it predicts: each stage refines the boxes for the next, inside the padded batch image (`batch_shape`); scores are the
    mean of the stages', boxes the last one's, masks the raw scores of the mean of the stages' sigmoids, in the student's size where known.
    Without a RoI head the regions alone are given, at which features can be compared.
    """
    if roi_head is None or not needs & {"roi_scores", "roi_boxes", "roi_masks"}:
        return Rois(shared.regions)
    cascade = isinstance(roi_head.bbox_head, nn.ModuleList)
    scores = boxes = masks = None
    if needs & {"roi_scores", "roi_boxes"}:
        heads = list(roi_head.bbox_head) if cascade else [roi_head.bbox_head]
        regions, said = shared.regions, []
        for stage, head in enumerate(heads):
            results = roi_head._bbox_forward(stage, pyramid, regions) if cascade else roi_head._bbox_forward(pyramid, regions)
            said.append(results["cls_score"])
            boxes = decode_rois(head, regions, results["bbox_pred"])  # (R, K or 1, 4)
            if stage + 1 < len(heads):
                refined = inside(likeliest(boxes, results["cls_score"]), batch_shape)
                regions = torch.cat([regions[:, :1], refined], dim=1)
        scores = torch.stack(said).mean(0) if "roi_scores" in needs else None
        boxes = of_classes(heads[-1], boxes) if "roi_boxes" in needs else None
    if "roi_masks" in needs and shared.positive is not None and shared.labels is not None and getattr(roi_head, "with_mask", False):
        if cascade:
            stages = [roi_head._mask_forward(stage, pyramid, shared.positive)["mask_preds"] for stage in range(len(roi_head.mask_head))]
            raw = torch.logit(torch.stack(stages).float().sigmoid().mean(0), eps=1e-6)
        else:
            raw = roi_head._mask_forward(pyramid, shared.positive)["mask_preds"]
        masks = of_class(raw, shared.labels)
        if shared.masks is not None and shared.masks.shape[2:] != masks.shape[2:]:
            masks = F.interpolate(masks, shared.masks.shape[2:], mode="bilinear")
    return Rois(shared.regions, scores, boxes, masks, shared.positive, shared.labels)


def decode_rois(head: nn.Module, regions: Tensor, deltas: Tensor) -> Tensor:
    """Boxes of each proposal in float32: (R, K, 4), or (R, 1, 4) of a head that is agnostic to classes. deltas: (R, 4*K) or (R, 4)."""
    with torch.autocast(deltas.device.type, enabled=False):
        return head.bbox_coder.decode(regions[:, 1:].float(), deltas.float()).view(len(deltas), deltas.shape[1] // 4, 4)


def of_classes(head: nn.Module, boxes: Tensor) -> Tensor:
    """The boxes (R, K, 4) for each class; a head that is agnostic to classes has the same for all, so that it compares with any other."""
    return boxes.expand(-1, head.num_classes, -1)


def inside(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Boxes (R, 4) cut at the borders of an image of this height and width."""
    height, width = shape
    return torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], dim=-1).flatten(1)


def likeliest(boxes: Tensor, scores: Tensor) -> Tensor:
    """The box of each proposal's likeliest foreground class, (R, 4). boxes: (R, K or 1, 4); scores: (R, K+1), background last."""
    if boxes.shape[1] == 1:
        return boxes[:, 0]
    best = scores[:, :-1].argmax(1)
    return boxes.gather(1, best[:, None, None].expand(-1, 1, 4))[:, 0]


def of_class(masks: Tensor, labels: Tensor) -> Tensor:
    """Each mask for its own class: (P, 1, h, w) of (P, K, h, w); K 1 is agnostic to classes."""
    if masks.shape[1] == 1:
        return masks
    return masks.gather(1, labels[:, None, None, None].expand(-1, 1, *masks.shape[2:]))


def first(heads: nn.Module) -> nn.Module:
    """The head, or a cascade's first."""
    return heads[0] if isinstance(heads, nn.ModuleList) else heads
