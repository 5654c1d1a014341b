"""What users hold as a picture → the bytes that are sent, and what is kept of them."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from everlens.pixels import encode_pixels


@runtime_checkable
class PillowImage(Protocol):
    """A Pillow image, known by what it can: this package is imported without Pillow."""

    def convert(self, mode: str) -> Any: ...


Image: TypeAlias = str | os.PathLike[str] | bytes | NDArray[np.uint8] | PillowImage
"""A path, the bytes of a file, height × width (× 3) pixels, or a Pillow image."""


@dataclass(frozen=True, slots=True)
class Picture:
    """
    A picture that was sent, kept as cheaply as it can be found again.

    Of a file its path and digest, so that ten thousand answers do not hold ten thousand
    photographs; of anything else the bytes that were sent.
    """

    content: bytes = field(repr=False)
    path: Path | None = None
    digest: bytes = field(default=b"", repr=False)

    def read(self) -> bytes | None:
        """Return the bytes that were sent; None where the file is gone, or is another by now."""
        if self.path is None:
            return self.content
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        return content if _digest(content) == self.digest else None


def opened(image: Image) -> tuple[str, Picture]:
    """
    Return a picture as it stands in JSON, and what is kept of it.

    Raises:
        OSError: the file cannot be read.
        TypeError: not a picture, or an array of another type or shape.
    """
    content = file_bytes(image)
    if isinstance(image, str | os.PathLike):
        return as_text(content), Picture(b"", Path(image), _digest(content))
    return as_text(content), Picture(content)


def as_text(content: bytes) -> str:
    """Return the bytes of a file as they stand in JSON."""
    return base64.b64encode(content).decode("ascii")


def file_bytes(image: Image) -> bytes:
    """
    Return a picture file: as it is where there is one, else JPEG as the service itself keeps.

    Raises:
        OSError, TypeError: as of `opened`.
    """
    match image:
        case bytes():
            return image
        case str() | os.PathLike():
            return Path(image).read_bytes()
        case np.ndarray():
            return _of_pixels(image)
        case PillowImage():
            return _of_pillow(image)
    raise TypeError(
        "a picture is a path, bytes, an array or a Pillow image, "
        f"not {type(image).__name__}; several go to learn_many or classify_many"
    )


def _of_pixels(pixels: NDArray[np.uint8]) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3} or pixels.shape[2:] not in {(), (3,)}:
        raise TypeError(
            f"pixels are uint8, height x width (x 3), not {pixels.dtype} {pixels.shape}"
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return encode_pixels(pixels)


def _of_pillow(image: Any) -> bytes:
    from PIL import ImageOps

    # As the service reads the file that it was opened from: upright, and nothing cut off that the
    # service itself knows what to do with.
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data or image.mode.startswith("I"):
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()
    return encode_pixels(np.asarray(image.convert("RGB")))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
