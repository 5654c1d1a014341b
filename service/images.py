"""
A client's bytes → upright-to-be RGB pixels, within limits. Runs in a decoder, never in the service.

The format is told by the first bytes, the size by the header, and both are judged before anything
is decoded. Bringing the pixels to the model's size is `service.resizing`'s.
"""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import simplejpeg
from PIL import Image, PngImagePlugin

from everlens.errors import ImageError
from everlens.pixels import Pixels
from service.decoder.protocol import ORIENTATIONS, Decoded, PictureLimits

FORMATS = ("JPEG", "PNG", "WEBP")
LARGE_PIXELS = 4_000_000  # above this a picture takes about a tenth of a second, or more
SIDE_MAX = 20_000
_ASPECT_MAX = 100  # a stripe longer than this would be huge once its short side fits the model

# A scan of a progressive file may be a few bytes, and much work.
_SCANS_USUAL, _SCANS_MAX = 10, 100
_SCAN_MARKER = b"\xff\xda"

# Comments are unfolded before Pillow can be told that nobody reads them: 64 MB by its own limit.
PngImagePlugin.MAX_TEXT_MEMORY = 8 * 2**20

# Segments of a JPEG that say nothing but how to decode it: tables, restarts, JFIF, comments.
_PLAIN_SEGMENTS = frozenset(b"\xc4\xdb\xdd\xe0\xfe")
_FRAME, _SCAN = 0xC0, 0xDA
_SEGMENT = struct.Struct(">BBH")
_FRAME_HEADER = struct.Struct(">BHHB")

_ORIENTATION_TAG = 0x0112
_STRIP_PIXELS = 2**17


class Picture:
    """
    A client's picture, its header read and judged; nothing is decoded yet.

    Args:
        content: the file.
        side_min: a JPEG is decoded at a half, a quarter or an eighth if that leaves both sides at
            least this long.
        limits: what is refused.

    Attributes:
        pixels: how many are decoded, at most.
        large: whether decoding takes long.

    Raises:
        ImageError: 415 for what is not JPEG, PNG or WebP; 422 for what is too large, damaged, or
            moves.
    """

    def __init__(self, content: bytes, side_min: int, limits: PictureLimits) -> None:
        limits.check_file(content)
        form = _format_of(content)
        self._content, self._side_min = content, side_min
        self._header: Image.Image | None = None
        size = _plain_size(content) if form == "JPEG" else None
        if size is not None and size[0] * size[1] <= LARGE_PIXELS:
            _judge_size(*size, limits)
            self.pixels, self.large = size[0] * size[1], False
        else:
            header = self._header = _opened(content, form, limits)
            scans = _scans(header, content)
            _judge_size(*header.size, limits)
            _judge(header, scans)
            whole = header.width * header.height
            if form == "JPEG" and whole > LARGE_PIXELS:
                header.draft(None, (side_min, side_min))
            self.pixels = header.width * header.height
            # Each scan of a progressive picture goes over all of it, whatever becomes of the pixels.
            self.large = max(self.pixels, whole * scans / _SCANS_USUAL) > LARGE_PIXELS
        if self.pixels > limits.decoded_max:
            raise _too_large_decoded(form, limits.decoded_max)
        self._limits = limits

    def decode(self, room: memoryview) -> Decoded:
        """
        Write the pixels into `room`, opaque but not turned; return what they are.

        Raises:
            ImageError: 422 when the file is damaged.
        """
        try:
            return self._decode(room)
        except ImageError:
            raise
        except Exception as error:  # Pillow's readers raise whatever they meet
            raise _damaged(error) from error

    def _decode(self, room: memoryview) -> Decoded:
        header = self._header
        if header is None or (header.format == "JPEG" and header.mode in {"RGB", "L"}):
            try:
                height, width, _ = simplejpeg.decode_jpeg(
                    self._content,
                    colorspace="RGB",
                    min_height=self._side_min,
                    min_width=self._side_min,
                    min_factor=2,
                    buffer=room,
                ).shape
                return Decoded(height, width, 1 if header is None else _orientation(header))
            except ValueError as error:
                if "memory" in str(error):
                    raise MemoryError from error
                # Pillow, below, lets harmless faults pass and has better words for the others.
        with header or _opened(self._content, "JPEG", self._limits) as picture:
            picture.load()
            _write(picture, room)
            # Asked last: of a PNG it is found behind the pixels.
            return Decoded(picture.height, picture.width, _orientation(picture))


def _format_of(content: bytes) -> str:
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    raise ImageError("these bytes are not a picture; send JPEG, PNG or WebP", status=415)


def _plain_size(content: bytes) -> tuple[int, int] | None:
    """
    Return width and height of a plain JPEG, None of any other.

    Plain: grey or colour of eight bits, not progressive, with nothing to be told about it, the
    camera's orientation above all. Most are, and Pillow takes a sixth of the decoding to say so.
    """
    at, size = 2, None
    while at + _SEGMENT.size <= len(content):
        start, marker, length = _SEGMENT.unpack_from(content, at)
        if start != 0xFF:
            return None
        if marker == _SCAN:
            return size
        if marker == _FRAME and at + 10 <= len(content):
            bits, height, width, colours = _FRAME_HEADER.unpack_from(content, at + 4)
            if size is not None or bits != 8 or not height * width or colours not in {1, 3}:
                return None
            size = width, height
        elif marker not in _PLAIN_SEGMENTS:
            return None
        at += 2 + length
    return None


def _opened(content: bytes, form: str, limits: PictureLimits) -> Image.Image:
    """Return the picture with its header read."""
    try:
        return Image.open(io.BytesIO(content), formats=[form])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(limits.pixels_max) from None
    except Exception as error:  # Pillow's readers raise whatever they meet
        raise _damaged(error) from error


def _scans(header: Image.Image, content: bytes) -> int:
    """Return how many scans a progressive picture has, 0 for others."""
    return content.count(_SCAN_MARKER) if header.info.get("progressive") else 0


def _judge_size(width: int, height: int, limits: PictureLimits) -> None:
    if width * height > limits.pixels_max:
        raise _too_many_pixels(limits.pixels_max)
    if max(width, height) > SIDE_MAX or max(width, height) > _ASPECT_MAX * min(width, height):
        raise ImageError(
            f"the picture is {width} x {height}; a side has at most {SIDE_MAX} pixels and is at "
            f"most {_ASPECT_MAX} times the other",
            status=422,
        )


def _judge(header: Image.Image, scans: int) -> None:
    if scans > _SCANS_MAX:
        raise ImageError(f"the picture comes in {scans} scans; save it again", status=422)
    # A JPEG with several frames is one photograph with its preview or depth, not a film.
    if header.format != "JPEG" and getattr(header, "is_animated", False):
        raise ImageError("the picture moves; send one frame of it", status=422)


def _too_many_pixels(pixels_max: int) -> ImageError:
    return ImageError(f"the picture has over {pixels_max} pixels; send a smaller one", status=422)


def _too_large_decoded(form: str, decoded_max: int) -> ImageError:
    return ImageError(
        f"the picture has over {decoded_max} pixels to decode; send a smaller one"
        + ("" if form == "JPEG" else ", or a JPEG, which is decoded at a fraction"),
        status=422,
    )


def _damaged(error: Exception) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageError(
            "the picture takes more memory than one may; send a smaller one", status=422
        )
    # Without the address of our own buffer, which Pillow names.
    reason = " ".join(re.sub(r"<_io[^>]*>", "", str(error)).split())[:120] or type(error).__name__
    return ImageError(f"the picture is damaged or cut off ({reason}); send it again", status=422)


def _orientation(header: Image.Image) -> int:
    try:
        orientation = int(header.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a camera's broken notes are no reason to refuse its picture
        return 1
    return orientation if orientation in ORIENTATIONS else 1


def _write(picture: Image.Image, room: memoryview) -> None:
    """Write the picture in strips: each conversion is a copy, and one of the whole would be dear."""
    width, height = picture.size
    pixels: Pixels = np.frombuffer(room, np.uint8, height * width * 3).reshape(height, width, 3)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(_opaque(picture.crop((0, top, width, bottom))))


def _opaque(picture: Image.Image) -> Image.Image:
    """Return the picture as RGB; Pillow itself would cut 16 bits off and drop the transparency."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
