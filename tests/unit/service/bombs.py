"""Pictures made to hurt: each small as a file, each dear in its own way to whoever opens it."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

from tests.unit.service.api import encoded

_PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def flat_png(
    width: int, height: int, *, bits: int = 8, colour: int = 2, extra: bytes = b""
) -> bytes:
    """Return a black PNG of the size: a thousandth of its pixels as a file. `colour` is PNG's."""
    row = 1 + width * {0: 1, 2: 3, 4: 2, 6: 4}[colour] * bits // 8
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return _PNG + header + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def text_bomb(megabytes: int) -> bytes:
    """Return a PNG whose one compressed comment unfolds to so much."""
    comment = b"k\0\0" + zlib.compress(bytes(megabytes * 2**20), 9)
    return flat_png(8, 8, extra=chunk(b"zTXt", comment))


def text_swarm(count: int) -> bytes:
    """Return a PNG with so many comments that unfold to just under a megabyte each."""
    comment = b"k\0\0" + zlib.compress(bytes(2**20 - 1), 9)
    return flat_png(8, 8, extra=chunk(b"zTXt", comment) * count)


def flat_webp(side: int) -> bytes:
    """Return a lossless WebP of one colour: a few bytes."""
    return encoded(Image.new("RGBA", (side, side), (1, 2, 3, 4)), "WEBP", lossless=True, method=0)


def lying_webp() -> bytes:
    """Return a WebP whose header announces 16384 x 16384 pixels, the most that fit the format."""
    small = bytearray(flat_webp(64))
    bits = int.from_bytes(small[21:25], "little")
    small[21:25] = ((bits >> 28 << 28) | (16383 << 14) | 16383).to_bytes(4, "little")
    return bytes(small)


def flat_jpeg(width: int, height: int, **options: bool | int) -> bytes:
    """Return a grey JPEG of the size, in colour."""
    pixels = np.broadcast_to(np.uint8(128), (height, width, 3))
    return encoded(Image.fromarray(np.ascontiguousarray(pixels)), "JPEG", **options)


def many_scans(side: int, count: int) -> bytes:
    """Return a progressive JPEG that paints its last scan over the picture again and again."""
    whole = flat_jpeg(side, side, progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * count + whole[-2:]
