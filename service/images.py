"""
A client's bytes → pixels at the model's size, within limits. ①

The format is told by the first bytes, the size by the header, and both are judged before anything
is decoded. Resizing is torch's antialiased one on uint8, which stays within one level of Pillow's
at a third of its time; `tests/unit/service/test_images.py` holds it to that.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional

from everlens.errors import ImageError
from everlens.pixels import Pixels, PixelSpec

SIDE_MAX = 20_000
_ASPECT_MAX = 100  # a stripe longer than this would be huge once its short side fits the model

# A JPEG is decoded at a half, a quarter or an eighth when this many times the model's size is
# left: what the resize then averages is still several pixels for one.
_SCALED_DECODE_FACTOR = 4

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """How large a picture's file and its decoded form may be."""

    bytes_max: int
    pixels_max: int


def read_picture(content: bytes, spec: PixelSpec, limits: PictureLimits) -> Pixels:
    """
    Return the picture as size×size×3 uint8 RGB, brought to size as open_clip does it.

    The orientation of the camera is applied and transparency laid on white.

    Raises:
        ImageError: 415 for what is not JPEG, PNG or WebP; 422 for what is too large, damaged,
            or moves.
    """
    form = _format_of(content)
    if len(content) > limits.bytes_max:
        raise ImageError(
            f"the picture has {len(content)} bytes; send at most {limits.bytes_max}", status=422
        )
    try:
        header = Image.open(io.BytesIO(content), formats=[form])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(limits.pixels_max) from None
    except Exception as error:  # Pillow's readers raise whatever they meet
        raise _damaged(error) from error
    with header:
        _judge(header, form, limits)
        try:
            decoded = _decode(content, header, form, spec.size)
        except Exception as error:  # likewise
            raise _damaged(error) from error
    return _to_size(decoded, spec)


def _format_of(content: bytes) -> str:
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    raise ImageError("these bytes are not a picture; send JPEG, PNG or WebP", status=415)


def _judge(header: Image.Image, form: str, limits: PictureLimits) -> None:
    width, height = header.size
    if width * height > limits.pixels_max:
        raise _too_many_pixels(limits.pixels_max)
    if max(width, height) > SIDE_MAX or max(width, height) > _ASPECT_MAX * min(width, height):
        raise ImageError(
            f"the picture is {width} x {height}; a side has at most {SIDE_MAX} pixels and is at "
            f"most {_ASPECT_MAX} times the other",
            status=422,
        )
    # A JPEG with several frames is one photograph with its preview or depth, not a film.
    if form != "JPEG" and getattr(header, "is_animated", False):
        raise ImageError("the picture moves; send one frame of it", status=422)


def _too_many_pixels(pixels_max: int) -> ImageError:
    return ImageError(f"the picture has over {pixels_max} pixels; send a smaller one", status=422)


def _damaged(error: Exception) -> ImageError:
    # Without the address of our own buffer, which Pillow names.
    reason = " ".join(re.sub(r"<_io[^>]*>", "", str(error)).split())[:120] or type(error).__name__
    return ImageError(f"the picture is damaged or cut off ({reason}); send it again", status=422)


def _decode(content: bytes, header: Image.Image, form: str, size: int) -> Pixels:
    """Return H×W×3 uint8 RGB, upright and opaque."""
    if form == "JPEG":
        side_min = _SCALED_DECODE_FACTOR * size
        if header.mode in {"RGB", "L"} and _orientation(header) == 1:
            # Pillow, below, lets harmless faults pass and has the better words for the others.
            with contextlib.suppress(ValueError):
                pixels: Pixels = simplejpeg.decode_jpeg(
                    content,
                    colorspace="RGB",
                    min_height=side_min,
                    min_width=side_min,
                    min_factor=2,
                )
                return pixels
        header.draft(None, (side_min, side_min))
    header.load()
    return np.asarray(_opaque(_upright(header)))


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a camera's broken notes are no reason to refuse its picture
        return 1


def _upright(picture: Image.Image) -> Image.Image:
    turn = _ORIENTATIONS.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _opaque(picture: Image.Image) -> Image.Image:
    """Return the picture as RGB; Pillow itself would cut 16 bits off and drop the transparency."""
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64) >> 8
        picture = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _to_size(pixels: Pixels, spec: PixelSpec) -> Pixels:
    """Return the picture at size×size, with the roundings of torchvision and open_clip."""
    height, width, size = *pixels.shape[:2], spec.size
    match spec.resize:
        case "squash":
            return _resized(pixels, size, size, spec.interpolation)
        case "shortest":
            short = min(height, width)
            rows, columns = int(size * height / short), int(size * width / short)
            resized = _resized(pixels, rows, columns, spec.interpolation)
            top, left = round((rows - size) / 2), round((columns - size) / 2)
            return resized[top : top + size, left : left + size]
        case "longest":
            ratio = max(height, width) / size
            rows, columns = max(1, round(height / ratio)), max(1, round(width / ratio))
            framed = np.zeros((size, size, 3), dtype=np.uint8)
            top, left = (size - rows) // 2, (size - columns) // 2
            framed[top : top + rows, left : left + columns] = _resized(
                pixels, rows, columns, spec.interpolation
            )
            return framed


def _resized(pixels: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # torch takes only what it may write to
    image_1HW3 = torch.from_numpy(pixels)[None]
    resized = functional.interpolate(
        image_1HW3.permute(0, 3, 1, 2), size=(height, width), mode=interpolation, antialias=True
    )
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result
