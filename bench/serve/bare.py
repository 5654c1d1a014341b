"""
The bare batched model in one process: the limit that a server is measured against.

JPEG in, embeddings and features out, a full batch after the other and nothing in between. The next
batch is decoded in a thread while the present one is computed, as any good loop does it; the same
decoder, the same resize, the same snapshot as the service's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import simplejpeg

from everlens.model.snapshot import Views
from everlens.pixels import Pixels, PixelSpec
from service.resizing import to_size

See = Callable[[Sequence[Pixels]], Views]


def decoded(body: bytes, spec: PixelSpec) -> Pixels:
    """Return a JPEG as the pixels that the model takes."""
    return to_size(simplejpeg.decode_jpeg(body, colorspace="RGB"), 1, spec)


def rate(see: See, bodies: Sequence[bytes], spec: PixelSpec, batch: int, seconds: float) -> float:
    """Return images a second, decoding included, over so many seconds of full batches."""
    endless = itertools.cycle(bodies)
    done = 0
    with ThreadPoolExecutor(1) as beside:

        def decode() -> list[Pixels]:
            return [decoded(next(endless), spec) for _ in range(batch)]

        upcoming = beside.submit(decode)
        _computed(see(upcoming.result()))
        upcoming = beside.submit(decode)
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            pixels, upcoming = upcoming.result(), beside.submit(decode)
            _computed(see(pixels))
            done += batch
        return done / (time.perf_counter() - begun)


def passes_s(
    see: See, bodies: Sequence[bytes], spec: PixelSpec, seconds: float
) -> Iterator[tuple[float, float]]:
    """Yield the seconds of one picture after the other: with decoding, and of the model alone."""
    begun = time.perf_counter()
    for body in itertools.cycle(bodies):
        started = time.perf_counter()
        if started - begun > seconds:
            return
        pixels = [decoded(body, spec)]
        seen = time.perf_counter()
        _computed(see(pixels))
        ended = time.perf_counter()
        yield ended - started, ended - seen


def _computed(views: Views) -> None:
    """Return once a device has computed what it was asked for."""
    views.embedding_BE.cpu()
    if views.tuned_embedding_BE is not None:
        views.tuned_embedding_BE.cpu()
