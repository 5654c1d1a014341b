"""
A batch through a version, on all cores. ③

The threads of one product wait for each other some hundred times a pass, and for whoever else has
the core. So a batch is cut into as many equal parts as there are cores and each passes on its own;
of a picture alone the two tops do. What cannot be cut evenly is one product after the other. On a
CUDA device a batch is whole, and plays a recorded graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from everlens.model.runtime import fewer_threads_here, use_threads_here
from everlens.model.snapshot import Snapshot, Views, joined
from everlens.pixels import Pixels
from service.graphs import Graphs, recorded


class Passes:
    """Passes one batch at a time, from its first to `close`; used by one thread."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._beside = ThreadPoolExecutor(max(1, threads - 1), "pass")
        self._graphs: list[Graphs] = []  # of each cut that was recorded

    def record(self, base: Snapshot, batch_max: int, picture: Pixels) -> None:
        """Record the passes through the towers of this cut, on a device that plays them."""
        graphs = recorded(base, batch_max, picture)
        if graphs is not None:
            self._graphs.append(graphs)

    def close(self) -> None:
        """End the threads that pass beside the caller's."""
        self._beside.shutdown(wait=False)

    def see(self, snapshot: Snapshot, pixels: Sequence[Pixels]) -> Views:
        """Return the views of a batch; torch must have all threads where this is called."""
        device = snapshot.backbone.device
        graphs = next((g for g in self._graphs if g.fits(snapshot, len(pixels))), None)
        if graphs is not None:
            return _finished(graphs.see(snapshot, pixels), device)
        if self.threads == 1 or device.type != "cpu":
            return _finished(snapshot.see(pixels), device)
        if len(pixels) == 1:
            return snapshot.see(pixels, beside=self._beside)
        parts = math.gcd(len(pixels), self.threads)
        if parts == 1:
            return snapshot.see(pixels)
        size = len(pixels) // parts
        first, *others = (pixels[k : k + size] for k in range(0, len(pixels), size))
        with fewer_threads_here(parts) as each:
            beside = [self._beside.submit(_see, each, snapshot, part) for part in others]
            seen = snapshot.see(first)
            return joined([seen, *(part.result() for part in beside)])


def _finished(views: Views, device: torch.device) -> Views:
    """Return the views once they are computed, so that whoever times a pass times all of it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return views


def _see(threads: int, snapshot: Snapshot, pixels: Sequence[Pixels]) -> Views:
    use_threads_here(threads)
    return snapshot.see(pixels)
