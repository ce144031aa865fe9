"""The view of an image in evaluation: resize, then centre crop."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Views of at least this side are cropped, 224 of 256; smaller ones (CIFAR) show the whole image, as in the paper.
CROPPED_FROM = 96


def resized_side(size: int) -> int:
    """The shorter side of the resized image whose centre is a view of `size`: 256/224 of it, or itself below 96."""
    return round(size * 256 / 224) if size >= CROPPED_FROM else size


def center_view(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """The centre `size` x `size` pixels after an antialiased bilinear resize of the shorter side.

    Equals torchvision's Resize and CenterCrop within rounding; an image that has the size already is not changed.
    """
    height, width = image.shape[:2]
    shorter = resized_side(size)
    if height == width == shorter == size:
        return image
    to_height, to_width = (side * shorter // min(height, width) for side in (height, width))
    top, left = round((to_height - size) / 2), round((to_width - size) / 2)
    # Pillow's filter looks beyond the box, so this is the crop of the resized image without its margin.
    y, x = height / to_height, width / to_width
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))
