"""Catch what a detector says while it computes its own loss: hooks on the neck and the heads, nothing computed twice."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detkds_core.detectors.decode import class_scores, decode_boxes, decode_points
from detkds_core.detectors.rois import RoiTap
from detkds_core.detectors.valuable import overlaps
from detkds_core.losses.signals import OF_ROIS, Signals

OF_DENSE_HEAD = frozenset({"logits", "boxes", "edges", "points", "assigned", "valuable"})
TOWERS = "towers_"  # and the layer

# Where `get_targets` of a head returns the class assigned to each cell; the heads that are not here return it first.
LABELS_SECOND = ("GFLHead", "ATSSHead", "RTMDetHead", "RTMDetSepBNHead")


class Tap:
    """Keeps the last outputs of a detector's neck, dense head and RoI head. `clear()` lets go of them and their graph.

    wanted: what the next forward has to keep of what is not free to keep. then: called once, as soon as neck and dense head have spoken and
    before the detector's own loss.
    """

    def __init__(self, model: nn.Module) -> None:
        self.head = dense_head(model)
        self.rois = RoiTap(model.roi_head) if getattr(model, "roi_head", None) is not None else None
        self.wanted: frozenset[str] = frozenset()
        self.then: Callable[[], None] | None = None
        self.clear()
        pyramid = model.neck if getattr(model, "with_neck", False) else model.backbone
        pyramid.register_forward_hook(self._keep_features)
        if self.head is not None:
            self.head.register_forward_pre_hook(self._begin_head)
            self.head.register_forward_hook(self._keep_outputs)
            self._keep_targets(self.head)
            self._keep_points(self.head)
            for place, name in enumerate(("cls_convs", "reg_convs")):
                self._keep_towers(getattr(self.head, name, None), place)

    def clear(self) -> None:
        self.features: tuple[Tensor, ...] = ()
        self.outputs: tuple[Any, ...] = ()
        self.targets: Any = None
        self.overlaps: list[Tensor] = []  # of each image
        self.point_sets: list[Tensor] = []
        self.towers: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        if self.rois is not None:
            self.rois.clear()

    def _keep_features(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.features = tuple(output) if isinstance(output, list | tuple) else (output,)
        if self.head is None:
            self._go_on()

    def _begin_head(self, _module: nn.Module, _inputs: Any) -> None:
        self.point_sets, self.towers = [], {layer: ([], []) for layer in tower_layers(self.wanted)}

    def _keep_outputs(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.outputs = tuple(output)
        self._go_on()

    def _go_on(self) -> None:
        then, self.then = self.then, None
        if then is not None:
            then()

    def _keep_targets(self, head: nn.Module) -> None:
        """The head's own assignment, which its loss asks `get_targets` for; RepPoints asks twice, and the last counts.

        YOLOX has none for a batch, so its images' are gathered.
        """
        yolox = type(head).__name__ == "YOLOXHead"
        name = "_get_targets_single" if yolox else "get_targets"
        assign = getattr(head, name, None)
        if assign is None:
            return

        def caught(*args: Any, **kwargs: Any) -> Any:
            if "valuable" in self.wanted:
                self.overlaps = overlaps(head.assigner, *args[:3])  # before the head joins its levels, in the lists that it is given
            targets = assign(*args, **kwargs)
            self.targets = [*(self.targets or ()), targets[0]] if yolox else targets
            return targets

        setattr(head, name, caught)

    def _keep_points(self, head: nn.Module) -> None:
        """In evaluation RepPoints' head gives boxes alone; its point sets pass through `points2bbox` on the way."""
        to_boxes = getattr(head, "points2bbox", None)
        if to_boxes is None:
            return

        def points2bbox(points: Tensor, *args: Any, **kwargs: Any) -> Any:
            if "points" in self.wanted and not head.training:
                self.point_sets.append(points)
            return to_boxes(points, *args, **kwargs)

        head.points2bbox = points2bbox

    def _keep_towers(self, convs: nn.ModuleList | None, place: int) -> None:
        """The outputs of the convolutions of a branch before their activation, which may act in place: hence the copies."""
        if convs is None or not len(convs) or isinstance(convs[0], nn.ModuleList):
            return
        for number, conv in enumerate(convs[: tower_place(convs, len(convs)) + 1]):

            def keep(_module: nn.Module, _inputs: Any, output: Tensor, number: int = number) -> None:
                for layer, towers in self.towers.items():
                    if tower_place(convs, layer) == number:
                        towers[place].append(output.clone())

            (conv.norm if conv.with_norm else conv.conv).register_forward_hook(keep)

    def signals(self, needs: frozenset[str], levels: Sequence[int]) -> Signals:
        """What was caught on the given pyramid levels, as far as `needs` asks for it."""
        logits: tuple[Tensor, ...] = ()
        boxes: tuple[Tensor, ...] = ()
        edges: tuple[Tensor, ...] = ()
        points: tuple[Tensor, ...] = ()
        assigned: tuple[Tensor, ...] = ()
        valuable: tuple[Tensor, ...] = ()
        towers: dict[int, tuple[tuple[Tensor, Tensor], ...]] = {}
        if asks_dense_head(needs) and self.head is not None:
            scores = self.outputs[0]
            sizes = [tuple(score.shape[-2:]) for score in scores]
            if needs & {"logits", "boxes", "edges", "points"}:
                read = class_scores(self.head, self.outputs)
                logits = tuple(read[i] for i in levels)  # also weighs the localization term by the teacher's score
            if "boxes" in needs:
                decoded = decode_boxes(self.head, self.outputs, sizes)
                boxes = tuple(decoded[i] for i in levels)
            if "edges" in needs:
                edges = tuple(self.outputs[1][i] for i in levels)
            if "points" in needs:
                sets = decode_points(self.head, self.outputs[2] if self.head.training else self.point_sets, sizes)
                points = tuple(sets[i] for i in levels)
            if needs & {"assigned", "valuable"} and self.targets is not None:
                found = self.objects(scores)
                assigned = tuple(found[i] for i in levels)
                if "valuable" in needs:
                    nearly = torch.stack(self.overlaps).split([level.shape[1] for level in found], dim=1)
                    valuable = tuple(nearly[i] * ~found[i] for i in levels)
            for layer in tower_layers(needs):
                of_classes, of_boxes = self.towers[layer]
                towers[layer] = tuple((of_classes[i], of_boxes[i]) for i in levels)
        return Signals(
            features=tuple(self.features[i] for i in levels),
            logits=logits,
            boxes=boxes,
            edges=edges,
            points=points,
            assigned=assigned,
            valuable=valuable,
            towers=towers,
            rois=self.rois.caught(needs) if self.rois is not None and needs & OF_ROIS else None,
            classes=getattr(self.head, "cls_out_channels", None),
        )

    def objects(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Which predictions the head's own loss took for objects, (B, H*W*A) bool a level. scores: the head's of each level."""
        if type(self.head).__name__ == "YOLOXHead":  # (cells of all levels,) bool an image
            return list(torch.stack(self.targets).split([level[0, 0].numel() for level in scores], dim=1))
        labels = self.targets[1 if type(self.head).__name__ in LABELS_SECOND else 0]
        return [((label >= 0) & (label < self.head.num_classes)).reshape(len(scores[0]), -1) for label in labels]


def dense_head(model: nn.Module) -> nn.Module | None:
    """The head that predicts at every cell: a one-stage detector's box head, a two-stage detector's region proposal network.

    None for a DETR, whose head predicts from queries.
    """
    head = getattr(model, "bbox_head", None) or getattr(model, "rpn_head", None)
    return head if hasattr(head, "prior_generator") else None


def asks_dense_head(needs: frozenset[str]) -> bool:
    """Whether the dense head has to run for these signals."""
    return bool(needs & OF_DENSE_HEAD or tower_layers(needs))


def tower_layers(needs: frozenset[str]) -> list[int]:
    """The layers whose features are among the needs, 2 of `towers_2`."""
    return sorted(int(name.removeprefix(TOWERS)) for name in needs if name.startswith(TOWERS))


def tower_place(convs: nn.ModuleList, layer: int) -> int:
    """The place of the convolution that a layer, counted from 1, is in a branch: the last but one at most, for the last is the other's."""
    return max(0, min(layer, len(convs) - 1) - 1)
