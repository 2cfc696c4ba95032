"""Pixels in, MMDetection samples out: one way to load an image for training and for evaluation, the same as MMDetection's own pipeline."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

cv2.setNumThreads(0)  # its threads would compete with torch's


def resized_shape(height: int, width: int, image_size: int, short_side: int | None = None) -> tuple[int, int]:
    """Height and width after the longer side became `image_size`, rounded as MMDetection's Resize does.

    With `short_side` the scale is the largest at which neither the longer side exceeds `image_size` nor the shorter one `short_side`,
    as MMDetection's keep-ratio scale (1333, 800).
    """
    scale = image_size / max(height, width)
    if short_side is not None:
        scale = min(scale, short_side / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def load_image(folder: Path, file_name: str, image_size: int, short_side: int | None = None) -> NDArray[np.uint8]:
    """An image below `folder` as (H, W, 3) BGR bytes scaled to `resized_shape`.

    Raises FileNotFoundError, also where the name leads out of the folder: annotations and links can change after a dataset was checked.
    """
    path = (folder / file_name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise FileNotFoundError(f"{file_name!r} leads out of the image folder")
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise FileNotFoundError(f"{path}: no image that can be read")
    height, width = resized_shape(*pixels.shape[:2], image_size, short_side)
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return pixels


def image_sample(pixels: NDArray[np.uint8], record: dict[str, Any], device: Any) -> Any:
    """MMDetection's sample of an image without ground truth; it knows how to scale boxes back."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    height, width = pixels.shape[:2]
    scale = (width / record["width"], height / record["height"])
    sample = DetDataSample(
        metainfo={
            "img_id": record["id"],
            "ori_shape": (record["height"], record["width"]),
            "img_shape": (height, width),
            "scale_factor": scale,
        }
    )
    sample.gt_instances = InstanceData()
    return sample
