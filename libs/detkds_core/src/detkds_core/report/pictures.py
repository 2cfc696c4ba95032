"""Detections on a photograph: what is there, and what a detector says is there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from detkds_core.report.data import Box, ImagePanel

WIDTH = 420  # pixels of a drawn picture; small scenes are enlarged so that a label can be read
TRUTH, RIGHT, WRONG = "#ffffff", "#4fc3ff", "#ff8a3d"  # told apart by every kind of colour vision, and on photographs
INK = "#10151c"
OVERLAP = 0.5  # intersection over union from which a box counts as found


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture with its boxes: PNG bytes, the objects found, objects there, and detections that match none."""

    png: bytes
    found: int
    objects: int
    wrong: int


def draw_truth(panel: ImagePanel) -> Drawn:
    """The image with its ground truth."""
    picture = draw_boxes(open_image(panel), [(box, TRUTH) for box in panel.truth])
    return Drawn(picture, len(panel.truth), len(panel.truth), 0)


def draw_detections(panel: ImagePanel, detections: Sequence[Box], threshold: float) -> Drawn:
    """The image with the detections of at least this score: blue where class and place are right, orange where not."""
    shown = sorted((box for box in detections if (box.score or 0.0) >= threshold), key=lambda box: -(box.score or 0.0))
    right = matches(shown, panel.truth)
    picture = draw_boxes(open_image(panel), [(box, RIGHT if hit else WRONG) for box, hit in zip(shown, right, strict=True)])
    return Drawn(picture, sum(right), len(panel.truth), len(right) - sum(right))


def matches(detections: Sequence[Box], truth: Sequence[Box]) -> list[bool]:
    """Which detections, best score first, find an object: same class, IoU of at least 0.5, each object found once."""
    free = list(truth)
    hits = []
    for box in detections:
        best = max((other for other in free if other.label == box.label), key=lambda other: iou(box, other), default=None)
        hit = best is not None and iou(box, best) >= OVERLAP
        if best is not None and hit:
            free.remove(best)
        hits.append(hit)
    return hits


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 for boxes without area."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.xyxy, b.xyxy
    shared = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    return shared / union if union > 0 else 0.0


def open_image(panel: ImagePanel) -> Image.Image:
    """The panel's picture in RGB, a copy of its own."""
    if isinstance(panel.image, Image.Image):
        return panel.image.convert("RGB").copy()
    with Image.open(panel.image) as picture:
        return picture.convert("RGB")


def draw_boxes(picture: Image.Image, boxes: Sequence[tuple[Box, str]]) -> bytes:
    """PNG of the picture, scaled to a width of 420 pixels, with a frame and a label for each box in its colour.

    The best scores are drawn last, so that they lie on top.
    """
    scale = WIDTH / picture.width
    picture = picture.resize((WIDTH, max(1, round(picture.height * scale))), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=17)
    for box, colour in reversed(boxes):
        x1, y1, x2, y2 = (value * scale for value in box.xyxy)
        left, right = sorted((x1, x2))
        top, bottom = sorted((y1, y2))
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK, width=1)  # a dark rim shows the frame on bright ground
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        text = box.label if box.score is None else f"{box.label} · {box.score:.2f}"
        tag_left, tag_top, tag_right, tag_bottom = draw.textbbox((0, 0), text, font=font)
        width, height = tag_right - tag_left + 8, tag_bottom - tag_top + 6
        x = min(max(0.0, left), picture.width - width)
        y = top - height if top >= height else min(bottom, picture.height - height)  # above the box, below it at the upper edge
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x + 4 - tag_left, y + 3 - tag_top), text, font=font, fill=INK)
    buffer = io.BytesIO()
    # 256 colours: a third of the size of a photograph's full PNG, and a report has many of them.
    picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
