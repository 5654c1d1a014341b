"""
The pool that has clients' pictures decoded, so that none of them stalls or ends the service. ①

A picture goes to a decoder, a child of ours; a thread waits for it and brings the pixels to the
model's size, which only reads an array. Large pictures are never in all decoders at once: however
many of them come, one decoder is left for the others.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

from everlens.errors import ImageError
from everlens.pixels import Pixels, PixelSpec
from service.decoder.process import PICTURE_S, Decoder
from service.decoder.protocol import Declined, Large, PictureLimits
from service.metrics import Metrics
from service.problems import Problem
from service.resizing import SCALED_DECODE_FACTOR, to_size

WAIT_S = 10.0


class DecodingPool:
    """
    Decodes pictures in a few children, first come first served.

    Args:
        limits: what is refused.
        metrics: times pictures and counts replaced decoders.
        decoders: how many children; None takes one a core, but two to eight.
        wait_s: how long a picture waits for a decoder.
        picture_s: how long it may take.
    """

    def __init__(
        self,
        limits: PictureLimits,
        metrics: Metrics,
        *,
        decoders: int | None = None,
        wait_s: float = WAIT_S,
        picture_s: float = PICTURE_S,
    ) -> None:
        count = decoders or min(8, max(2, len(os.sched_getaffinity(0))))
        self.limits = limits
        self.wait_s = wait_s
        self.decoders = [
            Decoder(limits, metrics.decoder_restarts, picture_s=picture_s) for _ in range(count)
        ]
        self._seconds = metrics.decode_seconds
        self._free = list(self.decoders)
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._places = asyncio.Semaphore(count)
        self._large_places = asyncio.Semaphore(max(1, count - 1))

    def start(self) -> None:
        """Start the children without waiting for them; call it in the main thread."""
        for decoder in self.decoders:
            decoder.start()

    async def wait_ready(self) -> None:
        """Return when every child is ready, or does not start; call it before any picture comes."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(loop.run_in_executor(self._executor, free.wait_ready) for free in self._free)
        )

    async def read(self, content: bytes, spec: PixelSpec) -> Pixels:
        """
        Return the picture as size×size×3 uint8 RGB, brought to size as open_clip does it.

        The orientation of the camera is applied and transparency laid on white.

        Raises:
            ImageError: 415 for what is not JPEG, PNG or WebP; 422 for what is too large, damaged,
                moves, takes too long or ends its decoder.
            Problem: 503 when no decoder was free for `wait_s`, or none can be started.
        """
        self.limits.check_file(content)
        with self._seconds.time():
            return await self._read(content, spec)

    async def _read(self, content: bytes, spec: PixelSpec) -> Pixels:
        pixels = await self._turn(content, spec, self._places)
        if pixels is None:
            pixels = await self._turn(content, spec, self._large_places, self._places)
            assert pixels is not None
        return pixels

    def close(self) -> None:
        """End the children; pictures that are under way are refused."""
        for decoder in self.decoders:
            decoder.interrupt()
        self._executor.shutdown(cancel_futures=True)
        for decoder in self.decoders:
            decoder.close()

    async def _turn(
        self, content: bytes, spec: PixelSpec, *places: asyncio.Semaphore
    ) -> Pixels | None:
        """Return the pixels, or None for a large picture that holds no place for large ones."""
        await self._take(places)
        decoder = min(self._free, key=lambda free: free.failures)
        self._free.remove(decoder)

        def give_back(done: asyncio.Future[Pixels | None]) -> None:
            if not done.cancelled():
                done.exception()  # looked at: the client may have left, nobody else will
            self._free.append(decoder)
            for place in places:
                place.release()

        large = self._large_places in places
        # Shielded, since the decoder goes on when the client has left: its place stays taken.
        running = asyncio.get_running_loop().run_in_executor(
            self._executor,
            partial(copy_context().run, _read, decoder, content, spec, large=large),
        )
        running.add_done_callback(give_back)
        return await asyncio.shield(running)

    async def _take(self, places: tuple[asyncio.Semaphore, ...]) -> None:
        taken = []
        try:
            async with asyncio.timeout(self.wait_s):
                for place in places:
                    await place.acquire()
                    taken.append(place)
        except BaseException as error:
            for place in taken:
                place.release()
            if isinstance(error, TimeoutError):
                raise Problem(
                    "busy", "too many pictures wait to be decoded; send this again", retry_after_s=2
                ) from None
            raise


def _read(decoder: Decoder, content: bytes, spec: PixelSpec, *, large: bool) -> Pixels | None:
    try:
        reply = decoder.decode(content, SCALED_DECODE_FACTOR * spec.size, large=large)
        match reply:
            case Large():
                return None
            case Declined():
                raise ImageError(reply.message, status=reply.status)
        return to_size(decoder.pixels(reply), reply.orientation, spec)
    finally:
        if large:
            decoder.forget_pixels()
