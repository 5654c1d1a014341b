"""
What the service and a decoder agree on: memory that both see, requests, replies.

Pictures lie in the memory, so no pipe can be full; the messages on the socket have a fixed size. A
decoder is not trusted: whatever it writes, a reply is one of three things or a `ValueError`.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from dataclasses import dataclass

import numpy as np

from everlens.errors import ImageError
from everlens.pixels import Pixels

READY = b"ready"
ORIENTATIONS = range(1, 9)  # as EXIF numbers them
_REQUEST = struct.Struct("<II?")
_REPLY = struct.Struct("<cIII300s")
REQUEST_BYTES, REPLY_BYTES = _REQUEST.size, _REPLY.size


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """
    How large a picture may be.

    Args:
        bytes_max: of its file.
        pixels_max: by its header.
        decoded_max: pixels that are held at once; a JPEG can be decoded at a fraction.
    """

    bytes_max: int
    pixels_max: int
    decoded_max: int

    def check_file(self, content: bytes) -> None:
        """
        Return when the file is not too large.

        Raises:
            ImageError: it is.
        """
        if len(content) > self.bytes_max:
            raise ImageError(
                f"the picture has {len(content)} bytes; send at most {self.bytes_max}", status=422
            )


@dataclass(frozen=True, slots=True)
class Request:
    """
    Decode the file that lies in the memory.

    Args:
        length: of the file in bytes.
        side_min: a JPEG may be decoded at a fraction that leaves both sides this long.
        large: decode it even where that takes long.
    """

    length: int
    side_min: int
    large: bool


@dataclass(frozen=True, slots=True)
class Decoded:
    """The pixels lie in the memory, as the camera wrote them; `orientation` is EXIF's."""

    height: int
    width: int
    orientation: int


@dataclass(frozen=True, slots=True)
class Declined:
    """The picture is not one that we take; the fields of an `ImageError`."""

    message: str
    status: int


@dataclass(frozen=True, slots=True)
class Large:
    """The picture is worth a wait; nothing was decoded."""


Reply = Decoded | Declined | Large


def encode_request(request: Request) -> bytes:
    """Return the `REQUEST_BYTES` of a request."""
    return _REQUEST.pack(request.length, request.side_min, request.large)


def decode_request(message: bytes) -> Request:
    """Return the request of a message; it comes from us."""
    return Request(*_REQUEST.unpack(message))


def encode_reply(reply: Reply) -> bytes:
    """Return the `REPLY_BYTES` of a reply; a long reason is cut."""
    match reply:
        case Decoded():
            return _REPLY.pack(b"P", reply.height, reply.width, reply.orientation, b"")
        case Declined():
            return _REPLY.pack(b"D", reply.status, 0, 0, reply.message.encode()[:300])
        case Large():
            return _REPLY.pack(b"L", 0, 0, 0, b"")


def decode_reply(message: bytes, limits: PictureLimits) -> Reply:
    """
    Return the reply of a message.

    Raises:
        ValueError: it is none, or promises pixels that cannot be there.
    """
    kind, first, second, third, text = _REPLY.unpack(message)
    if kind == b"P" and 0 < first * second <= limits.decoded_max and third in ORIENTATIONS:
        return Decoded(first, second, third)
    if kind == b"D" and first in {415, 422}:
        return Declined(text.rstrip(b"\0").decode(errors="replace"), first)
    if kind == b"L":
        return Large()
    raise ValueError("a decoder's reply makes no sense")


class SharedMemory:
    """One file, and the pixels that it became, where the service and one decoder see both."""

    def __init__(self, descriptor: int, limits: PictureLimits) -> None:
        self._pixels_at = -(-limits.bytes_max // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(descriptor, self._pixels_at + 3 * limits.decoded_max)

    @staticmethod
    def create(limits: PictureLimits) -> int:
        """Return the descriptor of new memory; none of it costs anything until it is written."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("everlens-pictures")
        else:  # macOS: an unlinked file
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        pages = -(-limits.bytes_max // mmap.PAGESIZE)
        os.ftruncate(descriptor, pages * mmap.PAGESIZE + 3 * limits.decoded_max)
        return descriptor

    def put_file(self, content: bytes) -> None:
        """Write a file that is not too large."""
        assert len(content) <= self._pixels_at
        self._memory[: len(content)] = content

    def file(self, length: int) -> bytes:
        """Return a copy of the file."""
        return self._memory[:length]

    @property
    def room(self) -> memoryview:
        """Where pixels are written to."""
        return memoryview(self._memory)[self._pixels_at :]

    def pixels(self, height: int, width: int) -> Pixels:
        """Return the pixels as height × width × 3; they change with the next picture."""
        flat: Pixels = np.frombuffer(self.room, np.uint8, height * width * 3)
        return flat.reshape(height, width, 3)

    def forget_pixels(self) -> None:
        """Give the pages of the pixels back (Linux; elsewhere they stay)."""
        if hasattr(mmap, "MADV_REMOVE"):
            self._memory.madvise(mmap.MADV_REMOVE, self._pixels_at)
