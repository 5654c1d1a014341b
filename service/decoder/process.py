"""
One decoder as the service sees it: a child, a socket, a piece of memory; replaced when it is lost.

A decoder that dies or hangs over a picture is replaced at once: waiting would punish the next
picture. One that does not even start is tried again after a back-off that grows.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from prometheus_client import Counter

import service
from everlens.child import start_child
from everlens.errors import ImageError
from everlens.pixels import Pixels
from service.decoder.protocol import (
    READY,
    REPLY_BYTES,
    Decoded,
    Large,
    PictureLimits,
    Reply,
    Request,
    SharedMemory,
    decode_reply,
    encode_request,
)
from service.problems import Problem

PICTURE_S = 5.0
_START_S = 20.0
_BACK_OFF_S, _BACK_OFF_S_MAX = 0.1, 5.0

# Whatever else the service's environment holds, the log's password above all, is not for a child
# that reads strangers' files.
_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

_COMMAND = (sys.executable, "-P", "-W", "ignore", "-m", "service.decoder")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    port: socket.socket
    ready: bool = False
    waits_s: float = 0.0  # for a message

    def receive(self, length: int, within_s: float) -> bytes:
        """Return exactly so many bytes; an OSError says that they do not come."""
        self._wait_at_most(within_s)
        message = self.port.recv(length, socket.MSG_WAITALL)
        if len(message) < length:
            raise ConnectionResetError
        return message

    def _wait_at_most(self, seconds: float) -> None:
        # The kernel's own timeout, set when it changes. Python's would ask `poll` before each call,
        # and at each the event loop may take the interpreter.
        if seconds != self.waits_s:
            self.waits_s = seconds
            fraction, whole = math.modf(seconds)
            timeout = struct.pack("@ll", int(whole), int(1e6 * fraction))
            self.port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    def end(self) -> str:
        """Kill it and return how it ended."""
        self.process.kill()
        code = self.process.wait()
        self.port.close()
        return signal.Signals(-code).name if code < 0 else f"exit {code}"


class Decoder:
    """
    Decodes one picture at a time, in a child; to be used by one thread at a time.

    Args:
        limits: what is refused.
        restarts: counts lost children by reason.
        picture_s: how long a child has for a picture, from the request to the last byte of the
            reply.
    """

    def __init__(
        self, limits: PictureLimits, restarts: Counter, *, picture_s: float = PICTURE_S
    ) -> None:
        self.limits = limits
        self.picture_s = picture_s
        self.failures = 0  # starts that failed in a row
        self._restarts = restarts
        self._descriptor = SharedMemory.create(limits)
        self._memory = SharedMemory(self._descriptor, limits)
        self._child: _Child | None = None
        self._start_at = 0.0
        self._closing = False

    @property
    def pid(self) -> int | None:
        """The process number of the child, if there is one."""
        return None if self._child is None else self._child.process.pid

    def start(self) -> None:
        """Start a child without waiting until it is ready; a failure shows at the first picture."""
        ours, theirs = socket.socketpair()
        # What a child says before it is bounded goes where we write ourselves.
        with theirs, open(2, "wb", closefd=False) as log_of_ours:
            process = start_child(
                [*_COMMAND, *map(str, (theirs.fileno(), self._descriptor, *astuple(self.limits)))],
                log=log_of_ours,
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ}
                | {"PYTHONPATH": _python_path(), "OPENBLAS_NUM_THREADS": "1"},
                keep_open=(theirs.fileno(), self._descriptor),
                death_signal=signal.SIGKILL,
            )
        self._child = _Child(process, ours)

    def wait_ready(self) -> None:
        """Return when the child is ready, or does not start; call it before any picture comes."""
        with suppress(Problem):
            self._ready_child()

    def decode(self, content: bytes, side_min: int, *, large: bool) -> Reply:
        """
        Return the decoder's reply.

        Raises:
            ImageError: 422, the picture took too long or ended its decoder.
            Problem: 503 while no child can be started.
        """
        try:
            try:
                child = self._ask(content, side_min, large=large)
            except OSError:  # it was lost while it was idle: no picture is to blame
                self._replace("died")
                child = self._ask(content, side_min, large=large)
            reply = decode_reply(child.receive(REPLY_BYTES, self.picture_s), self.limits)
            if large and isinstance(reply, Large):
                raise ValueError("a decoder declines what it was told to do")
            return reply
        except BlockingIOError:
            self._replace("timeout")
            raise ImageError(
                f"decoding the picture took longer than {self.picture_s:g} s; send a smaller or "
                "simpler file of it",
                status=422,
            ) from None
        except (OSError, ValueError):
            ended = self._replace("died")
            raise ImageError(
                f"the picture ended its decoder ({ended}); send another file of it", status=422
            ) from None

    def pixels(self, reply: Decoded) -> Pixels:
        """Return the decoded pixels; they change with the next picture."""
        return self._memory.pixels(reply.height, reply.width)

    def forget_pixels(self) -> None:
        """Give the memory of a large picture back."""
        self._memory.forget_pixels()

    def interrupt(self) -> None:
        """End the child for good, from another thread; whoever waits for a picture hears of it."""
        self._closing = True
        if self._child is not None:
            self._child.process.kill()

    def close(self) -> None:
        """End the child and give the memory back; the decoder cannot be used again."""
        self._closing = True
        self._end_child()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _ask(self, content: bytes, side_min: int, *, large: bool) -> _Child:
        """Return the child that has the request."""
        child = self._ready_child()
        # Neither can block: memory takes what is written, the socket's buffer the one request that
        # is under way.
        self._memory.put_file(content)
        child.port.sendall(encode_request(Request(len(content), side_min, large)))
        return child

    def _ready_child(self) -> _Child:
        if self._closing or (self._child is None and time.monotonic() < self._start_at):
            raise _no_decoder()
        try:
            if self._child is None:
                self.start()
            assert self._child is not None
            if not self._child.ready:
                said = self._child.receive(len(READY), _START_S)
                self._child.ready = said == READY
        except OSError as error:
            self._start_failed(error)
            raise _no_decoder() from error
        self.failures = 0
        return self._child

    def _replace(self, reason: str) -> str:
        """End the child, start another; return how the old one ended."""
        ended = self._end_child()
        if self._closing:
            return ended
        self._restarts.labels(reason).inc()
        log.warning("a decoder is replaced: %s (%s)", reason, ended)
        try:
            self.start()
        except OSError as error:
            self._start_failed(error)
        return ended

    def _start_failed(self, error: OSError) -> None:
        ended = self._end_child()
        if self._closing:
            return
        self._restarts.labels("start").inc()
        wait_s = min(_BACK_OFF_S_MAX, _BACK_OFF_S * 2**self.failures)
        self.failures += 1
        self._start_at = time.monotonic() + wait_s
        log.error("a decoder does not start (%s, %r); next try in %g s", ended, error, wait_s)

    def _end_child(self) -> str:
        child, self._child = self._child, None
        return "none" if child is None else child.end()


def _python_path() -> str:
    """The child finds this very package also where it was not installed."""
    root = str(Path(service.__file__).parent.parent)
    return os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)


def _no_decoder() -> Problem:
    return Problem("busy", "no picture can be decoded now; send this again", retry_after_s=5)
