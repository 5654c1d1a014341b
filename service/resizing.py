"""
Decoded pixels → the model's size, upright, as open_clip does it. ①

The resize is torch's antialiased one on uint8, which stays within one level of Pillow's at a fifth
of its time; `tests/unit/service/test_images.py` holds it to that.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from everlens.pixels import Pixels, PixelSpec

# A JPEG is decoded at a half, a quarter or an eighth when this many times the model's size is
# left: what the resize then averages is still several pixels for one.
SCALED_DECODE_FACTOR = 4


def to_size(pixels: Pixels, orientation: int, spec: PixelSpec) -> Pixels:
    """
    Return the picture as new size×size×3 pixels, with the roundings of torchvision and open_clip.

    Args:
        pixels: height×width×3, writeable (torch takes no other); not changed.
        orientation: EXIF's, 1 to 8. The picture is turned once it is small.
        spec: what the model takes.
    """
    height, width, size = *pixels.shape[:2], spec.size
    if _lies(orientation):
        height, width = width, height

    def resized(rows: int, columns: int) -> Pixels:
        if not _lies(orientation):
            return _upright(_resized(pixels, rows, columns, spec.interpolation), orientation)
        # Across before down, rounded in between: for what lies that is down before across.
        squeezed = _resized(pixels, columns, pixels.shape[1], spec.interpolation)
        return _upright(_resized(squeezed, columns, rows, spec.interpolation), orientation)

    match spec.resize:
        case "squash":
            return np.array(resized(size, size), order="C")
        case "shortest":
            short = min(height, width)
            rows, columns = int(size * height / short), int(size * width / short)
            top, left = round((rows - size) / 2), round((columns - size) / 2)
            return np.array(resized(rows, columns)[top : top + size, left : left + size], order="C")
        case "longest":
            ratio = max(height, width) / size
            rows, columns = max(1, round(height / ratio)), max(1, round(width / ratio))
            framed = np.zeros((size, size, 3), dtype=np.uint8)
            top, left = (size - rows) // 2, (size - columns) // 2
            framed[top : top + rows, left : left + columns] = resized(rows, columns)
            return framed


def _lies(orientation: int) -> bool:
    """Return whether rows and columns change places."""
    return orientation >= 5


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return pixels[::-1].swapaxes(0, 1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return pixels[:, ::-1].swapaxes(0, 1)
    return pixels


def _resized(pixels: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    image_1HW3 = torch.from_numpy(pixels)[None]
    resized = functional.interpolate(
        image_1HW3.permute(0, 3, 1, 2), size=(height, width), mode=interpolation, antialias=True
    )
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result
