"""
Passes recorded once and played again: a batch on a CUDA device costs one launch. ⑨

A pass is some hundred kernels, and Python takes longer to ask for them than the device to run them.
A CUDA graph asks for all at once, but of fixed places: so a batch is filled up to the next recorded
size, and an adapter that comes is copied over the older of two. One thread does all of it on one
stream, where a copy follows the batch before it and precedes the next: nothing needs a lock.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from everlens.model.snapshot import Snapshot, Views
from everlens.model.tower import Top
from everlens.pixels import Pixels
from service.batch_sizes import doubling

_SLOTS = 2  # the version that answers, and one more that is asked for by its number
_PASSES_BEFORE = 3  # what libraries choose and allocate in the first ones cannot be recorded
_AGREEMENT = 0.999  # least cosine with the pass as it is; in bfloat16 another order gives 0.9999

Replay = Callable[[], None]
Record = Callable[[Callable[[], Views]], tuple[Views, Replay]]

log = logging.getLogger(__name__)


class GraphError(Exception):
    """A recorded pass does not give what the pass gives."""


class Recording(NamedTuple):
    """A pass of a fixed size: where its input goes, how it is made, where its views appear."""

    image_B3HW: Tensor
    replay: Replay
    views: Views


@dataclass(slots=True)
class _Slot:
    """A tuned top at a fixed place, with the passes through it."""

    top: Top
    recordings: dict[int, Recording]
    holds: Top | None = None  # whose weights lie in it


class Graphs:
    """
    Recorded passes through the towers of one cut, with any adapter; used by one thread.

    Args:
        base: whose towers; its tuned top does not matter.
        sizes: of batches, ascending.
        record: runs a pass, and returns where its views lie and what makes it again.
    """

    def __init__(self, base: Snapshot, sizes: Sequence[int], record: Record) -> None:
        self.sizes = sizes
        self._base = base
        self._record = record
        self._frozen = self._recorded(None)
        self._slots = []  # the one that was not used for longest comes first
        for _ in range(_SLOTS):
            top = Top(copy.deepcopy(base.frozen_top.blocks), base.frozen_top.head)
            self._slots.append(_Slot(top, self._recorded(top)))

    def fits(self, snapshot: Snapshot, pictures: int) -> bool:
        """Return whether a batch of a version was recorded: of these towers, and not too large."""
        return (
            snapshot.backbone is self._base.backbone
            and len(snapshot.frozen_top.blocks) == len(self._base.frozen_top.blocks)
            and pictures <= self.sizes[-1]
        )

    def see(self, snapshot: Snapshot, pixels: Sequence[Pixels]) -> Views:
        """Return the views of a batch that fits."""
        count = len(pixels)
        size = next(size for size in self.sizes if size >= count)
        tuned = snapshot.tuned_top
        recording = (self._frozen if tuned is None else self._slot_of(tuned).recordings)[size]
        # The places above hold pictures of before, of which nothing reaches these.
        recording.image_B3HW[:count] = snapshot.backbone.images(pixels)
        recording.replay()
        own = [None if view is None else view[:count].clone() for view in recording.views]
        return Views(*own)  # type: ignore[arg-type]

    def check(self, picture: Pixels) -> None:
        """
        Return when every recorded pass gives what the pass gives.

        Raises:
            GraphError: one does not.
        """
        for tuned in (None, *[copy.copy(self._base.frozen_top) for _ in range(_SLOTS)]):
            snapshot = replace(self._base, tuned_top=tuned)
            for size in self.sizes:
                expected, seen = (
                    snapshot.see([picture] * size),
                    self.see(snapshot, [picture] * size),
                )
                for view, recorded in zip(expected, seen, strict=True):
                    if view is None or recorded is None:
                        continue
                    cosine_B = functional.cosine_similarity(view, recorded, dim=-1)
                    if not bool((cosine_B > _AGREEMENT).all()):
                        raise GraphError(f"a batch of {size} has cosine {cosine_B.min():.4f}")

    def _slot_of(self, tuned: Top) -> _Slot:
        """Return the slot that holds a tuned top, copied into the older one where none does."""
        slot = next((slot for slot in self._slots if slot.holds is tuned), self._slots[0])
        if slot.holds is not tuned:
            slot.holds = None  # until all of it lies there
            slot.top.blocks.load_state_dict(tuned.blocks.state_dict())
            slot.holds = tuned
        self._slots.remove(slot)
        self._slots.append(slot)
        return slot

    def _recorded(self, tuned: Top | None) -> dict[int, Recording]:
        snapshot, spec = replace(self._base, tuned_top=tuned), self._base.backbone.pixels
        recordings = {}
        # The largest first: the smaller ones find room in the memory that it took.
        for size in reversed(self.sizes):
            image_B3HW = torch.zeros(
                size, 3, spec.size, spec.size, device=self._base.backbone.device
            )
            views, replay = self._record(_pass(snapshot, image_B3HW))
            recordings[size] = Recording(image_B3HW, replay, views)
        return recordings


def _pass(snapshot: Snapshot, image_B3HW: Tensor) -> Callable[[], Views]:
    @torch.no_grad()
    def see() -> Views:
        return snapshot.look(snapshot.trunk(image_B3HW))

    return see


class OnDevice:
    """Records what one CUDA device is asked for; the passes share their memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, see: Callable[[], Views]) -> tuple[Views, Replay]:
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_PASSES_BEFORE):
                    see()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile: what they ask for is not a part of the pass. A
            # recording that fails leaves its stream in place; the outer one is put back all the same.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                views = see()
        return views, graph.replay


def recorded(base: Snapshot, batch_max: int, picture: Pixels) -> Graphs | None:
    """Return the recorded passes of a CUDA device; None on a CPU, and where recording fails."""
    if base.backbone.device.type != "cuda":
        return None
    try:
        graphs = Graphs(base, doubling(1, batch_max), OnDevice(base.backbone.device))
        graphs.check(picture)
    except Exception as error:  # of the driver, of memory, of a model that waits for the device
        log.warning("passes are not recorded as CUDA graphs, which is slower: %s", error)
        return None
    return graphs
