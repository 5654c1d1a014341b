"""
`python -m service.decoder`: a child that turns clients' files into pixels, one after the other.

It bounds itself before the first file comes: memory, files and processes. It ends with its parent,
or when the parent closes the socket. Time is bounded from outside, since a decoder that hangs
cannot look at the clock.
"""

from __future__ import annotations

import io
import os
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path

from PIL import Image

from everlens.errors import ImageError
from service.decoder.protocol import (
    READY,
    REQUEST_BYTES,
    Declined,
    Decoded,
    Large,
    PictureLimits,
    Reply,
    Request,
    SharedMemory,
    decode_request,
    encode_reply,
)
from service.images import FORMATS, Picture

# What decoding takes: WebP, the hungriest, holds 16.6 bytes a pixel (measured at 16 Mpixel).
_BYTES_A_PIXEL = 18
_BYTES_BESIDES = 64 * 2**20
_FILES_MAX = 16


def main() -> None:
    """Serve the parent until it closes the socket."""
    port_at, memory_at, *numbers = (int(word) for word in sys.argv[1:])
    limits = PictureLimits(*numbers)
    memory = SharedMemory(memory_at, limits)
    os.close(memory_at)
    _rehearse(memory, limits)
    _bound(_BYTES_BESIDES + _BYTES_A_PIXEL * limits.decoded_max)
    with socket.socket(fileno=port_at) as port, suppress(BrokenPipeError, ConnectionResetError):
        port.sendall(READY)
        while message := port.recv(REQUEST_BYTES, socket.MSG_WAITALL):
            port.sendall(encode_reply(_reply(decode_request(message), memory, limits)))


def _rehearse(memory: SharedMemory, limits: PictureLimits) -> None:
    """Decode a small picture of each kind: what is loaded late is loaded now."""
    exif = Image.Exif()
    exif[0x0112] = 1
    for form in FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, form, exif=exif)
        memory.put_file(file.getvalue())
        reply = _reply(Request(len(file.getvalue()), 8, large=True), memory, limits)
        assert reply == Decoded(8, 8, 1), reply


def _bound(memory_bytes: int) -> None:
    """Take away what decoding does not need; `memory_bytes` come on top of what is mapped now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES_MAX, _FILES_MAX))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # macOS has no /proc and does not hold anyone to RLIMIT_AS: there memory is bounded by the
    # limits on pixels alone.
    statm = Path("/proc/self/statm")
    if statm.exists():
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))


def _reply(request: Request, memory: SharedMemory, limits: PictureLimits) -> Reply:
    try:
        picture = Picture(memory.file(request.length), request.side_min, limits)
        if picture.large and not request.large:
            return Large()
        return picture.decode(memory.room)
    except ImageError as error:
        return Declined(str(error), error.status)
    except MemoryError:
        return Declined("the picture takes more memory than one may; send a smaller one", 422)


if __name__ == "__main__":
    main()
