"""
Pixels ⇄ the JPEG that lies in the log and in the replay buffer. Numpy only.

The service writes it once at the model's size, the worker reads it: nobody but the service ever
opens a client's bytes. One encoder and one decoder for both, since a replay must see the very
same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from everlens.errors import WireError

Pixels = NDArray[np.uint8]  # height × width × 3, RGB


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """
    How a model wants its pictures, before they become a tensor.

    Args:
        size: height and width in pixels.
        resize: `shortest` side to `size` then centre crop, `squash` both sides, or `longest`
            side to `size` then black bars.
        interpolation: as Pillow names it; always antialiased.
        mean, std: per channel, of values in [0, 1].
    """

    size: int
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


# Chosen so that what is learnt is what was seen: 4:4:4 at 95 moves a pixel by about one level.
QUALITY = 95


def encode_pixels(pixels: Pixels) -> bytes:
    """Return `pixels` (H×W×3 uint8 RGB) as JPEG."""
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGB", colorsubsampling="444"
    )
    return encoded


def decode_pixels(image: bytes, size: int) -> Pixels:
    """
    Return the `size`×`size`×3 uint8 pixels of a JPEG that `encode_pixels` wrote.

    Raises:
        WireError: not a JPEG, or of another size than the model's.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(image)
        if (height, width) != (size, size):
            raise WireError(f"picture is {width} x {height}, the model takes {size} x {size}")
        decoded: Any = simplejpeg.decode_jpeg(image, colorspace="RGB")
    except ValueError as error:
        raise WireError(f"picture is not a JPEG of ours: {error}") from error
    pixels: Pixels = decoded
    return pixels
