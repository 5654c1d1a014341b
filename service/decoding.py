"""
The pool that has clients' pictures decoded, so that none of them stalls or ends the service. ①

A picture goes to a decoder, a child of ours; a thread waits for it, brings the pixels to the
model's size, which only reads an array, and makes of them what the caller wants; then it takes whom
else it finds waiting, without the event loop. Pictures of a list share a turn of a decoder, since a
change of threads costs a tenth of what is done for one; no more lists have a turn at once, or wait
for one, than there are decoders. Large pictures are never in all decoders at once: however many of
them come, one decoder is left for the others.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from everlens.errors import ImageError
from everlens.pixels import Pixels, PixelSpec
from service.decoder.process import PICTURE_S, Decoder
from service.decoder.protocol import Declined, Large, PictureLimits
from service.metrics import Metrics
from service.problems import Problem
from service.resizing import SCALED_DECODE_FACTOR, to_size

WAIT_S = 10.0
# Some seven small photographs. Who comes with one picture waits for no more of a list than that.
TURN_S = 0.01

Made = TypeVar("Made")
Done = TypeVar("Done")


class DecodingPool:
    """
    Decodes pictures in a few children, first come first served.

    Args:
        limits: what is refused.
        metrics: times pictures and counts replaced decoders.
        decoders: how many children; None takes one more than cores, up to eight: while the
            event loop is busy, one that is done waits for its next picture.
        wait_s: how long a picture waits for a decoder.
        picture_s: how long it may take.
        turn_s: how long after its beginning a list's turn takes another picture.
    """

    def __init__(
        self,
        limits: PictureLimits,
        metrics: Metrics,
        *,
        decoders: int | None = None,
        wait_s: float = WAIT_S,
        picture_s: float = PICTURE_S,
        turn_s: float = TURN_S,
    ) -> None:
        count = decoders or min(8, len(os.sched_getaffinity(0)) + 1)
        self.limits = limits
        self.wait_s = wait_s
        self.turn_s = turn_s
        self.decoders = [
            Decoder(limits, metrics.decoder_restarts, picture_s=picture_s) for _ in range(count)
        ]
        self._seconds = metrics.decode_seconds
        self._free = list(self.decoders)
        self._waiting: deque[_Turn[Any]] = deque()
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._list_places = asyncio.Semaphore(count)
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
        (outcome,) = await self.make([content], spec, lambda _, pixels: pixels)
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    async def make(
        self, contents: Sequence[bytes], spec: PixelSpec, made: Callable[[int, Pixels], Made]
    ) -> list[Made | ImageError]:
        """
        Return what becomes of the first pictures of a list: one, or as many as a turn has time for.

        Args:
            contents: the files; not empty.
            spec: what the model takes.
            made: makes something of an index in `contents` and the pixels as `read` returns them;
                called in the decoder's thread.

        Raises:
            Problem: as `read`.
        """
        asked = time.monotonic()

        def turn(decoder: Decoder, *, large: bool) -> list[Made | ImageError | Large]:
            outcomes: list[Made | ImageError | Large] = []
            until = time.monotonic() + self.turn_s
            for index, content in enumerate(contents):
                pixels = _read(decoder, content, spec, large=large)
                if isinstance(pixels, Large):
                    return [*outcomes, pixels]
                self._seconds.observe(time.monotonic() - asked)
                outcomes.append(pixels if isinstance(pixels, ImageError) else made(index, pixels))
                if large or time.monotonic() >= until:
                    break
            return outcomes

        lists = self._list_places if len(contents) > 1 else None
        outcomes = await self._turn(partial(turn, large=False), lists)
        if isinstance(outcomes[0], Large):
            outcomes = await self._turn(partial(turn, large=True), self._large_places)
        return [outcome for outcome in outcomes if not isinstance(outcome, Large)]

    def close(self) -> None:
        """End the children; pictures that are under way are refused."""
        self._waiting.clear()
        for decoder in self.decoders:
            decoder.interrupt()
        self._executor.shutdown(cancel_futures=True)
        for decoder in self.decoders:
            decoder.close()

    async def _turn(self, work: Callable[[Decoder], Done], place: asyncio.Semaphore | None) -> Done:
        """Return what comes of some work with a decoder, which has this place until it is done."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self.wait_s
        if place is not None:
            await _take(place, give_up_at)
        turn: _Turn[Done] = _Turn(work, copy_context(), loop.create_future(), place)
        self._waiting.append(turn)
        self._begin_turns()
        timer = loop.call_at(give_up_at, self._refuse, turn)
        try:
            return await turn.answer
        except asyncio.CancelledError:
            self._withdraw(turn)  # one that has begun goes on: decoder and place stay taken
            raise
        finally:
            timer.cancel()

    def _begin_turns(self) -> None:
        """Give decoders that are free to those who wait, the best decoder first."""
        while self._free and (turn := self._next()) is not None:
            decoder = min(self._free, key=lambda free: free.failures)
            self._free.remove(decoder)
            self._executor.submit(self._take_turns, decoder, turn)

    def _next(self) -> _Turn[Any] | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _take_turns(self, decoder: Decoder, turn: _Turn[Any] | None) -> None:
        """
        Work for one turn after the other, in a decoder's thread.

        The next is taken from here as long as one waits: the event loop has more to do, and would
        not come to it at once. A decoder that does not start is no help and steps back.
        """
        while turn is not None:
            tell = turn.done_with(decoder)
            following = None if decoder.failures else self._next()
            free = None if following is not None else decoder
            turn.answer.get_loop().call_soon_threadsafe(self._end, turn, tell, free)
            turn = following

    def _end(self, turn: _Turn[Any], tell: Callable[[], None], free: Decoder | None) -> None:
        turn.release()
        if free is not None:
            self._free.append(free)
            self._begin_turns()
        if not turn.answer.done():  # the client may have left
            tell()

    def _refuse(self, turn: _Turn[Any]) -> None:
        if self._withdraw(turn) and not turn.answer.done():
            turn.answer.set_exception(_busy())

    def _withdraw(self, turn: _Turn[Any]) -> bool:
        """Let a turn wait no more; return whether it had not begun."""
        try:
            self._waiting.remove(turn)
        except ValueError:
            return False
        turn.release()
        return True


@dataclass(frozen=True, slots=True, eq=False)
class _Turn(Generic[Done]):
    """Some work that waits for a decoder, and whoever waits for its answer."""

    work: Callable[[Decoder], Done]
    context: Context
    answer: asyncio.Future[Done]
    place: asyncio.Semaphore | None

    def done_with(self, decoder: Decoder) -> Callable[[], None]:
        """Do the work; return what tells what came of it, to be called in the event loop."""
        try:
            value = self.context.run(self.work, decoder)
        except BaseException as error:
            return partial(self.answer.set_exception, error)
        return partial(self.answer.set_result, value)

    def release(self) -> None:
        """Give the place back."""
        if self.place is not None:
            self.place.release()


async def _take(place: asyncio.Semaphore, give_up_at: float) -> None:
    try:
        async with asyncio.timeout_at(give_up_at):
            await place.acquire()
    except TimeoutError:
        raise _busy() from None


def _busy() -> Problem:
    return Problem("busy", "too many pictures wait to be decoded; send this again", retry_after_s=2)


def _read(
    decoder: Decoder, content: bytes, spec: PixelSpec, *, large: bool
) -> Pixels | Large | ImageError:
    """Return the pixels, or that the picture waits for a place among the large ones, or is none."""
    try:
        decoder.limits.check_file(content)
        reply = decoder.decode(content, SCALED_DECODE_FACTOR * spec.size, large=large)
        match reply:
            case Large():
                return reply
            case Declined():
                return ImageError(reply.message, status=reply.status)
        return to_size(decoder.pixels(reply), reply.orientation, spec)
    except ImageError as error:
        return error
    finally:
        if large:
            decoder.forget_pixels()
