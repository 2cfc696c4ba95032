"""Seeded signals of a few cells, on which a formula shows what it computes."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from detkds_core.losses.signals import Rois, Scene, Signals

CELL = 8  # pixels of a cell of the finest level
# One box leaves the image, and no side of a box is 4 cells of a level long, where the samples of a region fall on cells up to rounding, and
# whether a masked cell has a direction is up to rounding too.
BOXES = ((5.0, 4.0, 22.0, 36.0), (30.0, 18.0, 62.0, 38.0), (3.0, 10.0, 29.0, 27.0))
PROPOSALS = ((2.0, 3.0, 21.0, 30.0), (10.0, 12.0, 50.0, 44.0))  # of each image
CLASSES, BINS, POINTS, MASK = 3, 3, 5, 4


def toy_scene(images: int, shape: tuple[int, int] = (6, 7), empty: bool = False) -> Scene:
    """One box an image (empty: none), on an image of which the finest level has `shape` cells."""
    boxes = [torch.tensor([BOXES[i % len(BOXES)]]) for i in range(images)]
    return Scene(tuple(box[:0] if empty else box for box in boxes), (shape[0] * CELL, shape[1] * CELL))


def toy_signals(seed: int, images: int, shapes: tuple[tuple[int, int], ...] = ((6, 7),), dtype: torch.dtype = torch.float32) -> Signals:
    """A detector's signals of everything: 4 channels, 3 classes, 3 edge bins, 5 points a cell, boxes, 2 proposals an image.

    Random of unit variance from the seed, but for where proposals are, which teacher and student share.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64).to(dtype)

    found: dict[str, list[Tensor]] = {name: [] for name in ("features", "logits", "boxes", "edges", "points", "assigned", "valuable")}
    for level, (H, W) in enumerate(shapes):
        stride = CELL * 2**level
        found["features"].append(normal(images, 4, H, W))
        found["logits"].append(3 * normal(images, CLASSES, H, W))  # scores near 0 and 1, as detectors have them
        found["edges"].append(normal(images, 4 * BINS, H, W))
        ys, xs = torch.meshgrid(torch.arange(H, dtype=dtype) * stride, torch.arange(W, dtype=dtype) * stride, indexing="ij")
        centres = torch.stack([xs, ys], dim=-1).view(-1, 2)
        sides = stride * (0.5 + 1.5 * uniform(images, H * W, 4))
        found["boxes"].append(torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=-1))
        found["points"].append(centres[:, None] + stride * normal(images, H * W, POINTS, 2))
        found["assigned"].append(uniform(images, H * W) < 0.4)
        overlap = (torch.arange(images * H * W).view(images, H * W) % 5) / 10
        found["valuable"].append(overlap * ~found["assigned"][-1])
    where = torch.tensor([(image, *box) for image in range(images) for box in PROPOSALS])
    R = len(where)
    boxes = where[:, None, 1:].to(dtype) + 3 * normal(R, CLASSES, 4)
    rois = Rois(where, 2 * normal(R, CLASSES + 1), boxes, normal(images, 1, MASK, MASK))
    return Signals(rois=rois, **{name: tuple(levels) for name, levels in found.items()})


def each_tensor(given: Signals, change: Callable[[Tensor], Tensor]) -> Signals:
    """The signals with every number changed; where the student assigns objects, and where proposals are, stays."""

    def changed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    levels = {one.name: changed(getattr(given, one.name)) for one in fields(Signals) if one.name not in ("rois", "valuable", "classes")}
    assert given.rois is not None
    rois = replace(given.rois, **{name: changed(getattr(given.rois, name)) for name in ("scores", "boxes", "masks")})
    return Signals(rois=rois, valuable=given.valuable, classes=given.classes, **levels)


def tensors_of(given: Signals) -> list[Tensor]:
    """All numbers of the signals, in a fixed order."""
    assert given.rois is not None
    dense = [x for name in ("features", "logits", "boxes", "edges", "points") for x in getattr(given, name)]
    return [*dense, given.rois.scores, given.rois.boxes, given.rois.masks]


def image_of(given: Signals, image: int) -> Signals:
    """The signals of one image alone."""
    assert given.rois is not None
    dense = {
        one.name: tuple(x[image : image + 1] for x in getattr(given, one.name))
        for one in fields(Signals)
        if one.name not in ("rois", "towers", "classes")
    }
    here = slice(image * len(PROPOSALS), (image + 1) * len(PROPOSALS))
    of = given.rois
    where = of.regions[here] - torch.tensor([float(image), 0, 0, 0, 0])
    return Signals(rois=Rois(where, of.scores[here], of.boxes[here], of.masks[image : image + 1]), classes=given.classes, **dense)
