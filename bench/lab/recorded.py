"""
The base model with its trunk outputs recorded on disk: a stream is then learnt in seconds.

Only the trunk is replaced, by a table of what it gave for each picture, in float16 as the replay
buffer keeps it. All that is frozen above it, and all that learns, is the product's own.

Shape suffixes: B pictures of a batch, N pictures of a split.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.lab.sources import Split
from bench.packs import to_square
from everlens.model.backbone import Backbone
from everlens.model.tower import Hidden, Tower
from everlens.pixels import Pixels

_FORWARD_BATCH = 16


class Record(nn.Module):
    """Stands for stem and lower blocks: places in a table → the hidden states recorded there."""

    def __init__(self, states_N: NDArray[np.float16]) -> None:
        super().__init__()
        self.states_N = states_N

    def forward(self, place_B: Tensor) -> Hidden:
        """Return the hidden states of the pictures at these places, float32."""
        rows = np.ascontiguousarray(self.states_N[place_B.cpu().numpy()])
        return Hidden(torch.from_numpy(rows).to(place_B.device).float())


@dataclass(frozen=True, slots=True)
class RecordedBackbone(Backbone):
    """A base model whose pictures are places in a record; names are embedded once."""

    vectors: dict[str, Tensor] = field(default_factory=dict)

    def images(self, pixels: Sequence[Pixels]) -> Tensor:
        """Return the places that stand for the pictures."""
        return torch.tensor([int(picture) for picture in pixels], device=self.device)

    def name_embedding(self, name: str) -> Tensor:
        """Return the unit vector of a class name, as the base model gives it."""
        if name not in self.vectors:
            self.vectors[name] = Backbone.name_embedding(self, name)
        return self.vectors[name]


def place(index: int) -> Pixels:
    """Return a place in the record as `RecordedBackbone.images` takes it."""
    return np.array(index)


def with_record(
    backbone: Backbone, states_N: NDArray[np.float16], top_blocks: int
) -> RecordedBackbone:
    """Return the base model over a record made by `record_of`, for at most `top_blocks` blocks."""
    record = Record(states_N)

    def over_record(tower: Tower) -> Tower:
        return Tower(record, tower.blocks[len(tower.blocks) - top_blocks :], tower.head)

    given = {f.name: getattr(backbone, f.name) for f in fields(Backbone)}
    towers = {name: over_record(given[name]) for name in ("image_tower", "answering_tower")}
    return RecordedBackbone(**(given | towers))


@torch.inference_mode()
def record_of(
    backbone: Backbone, split: Split, top_blocks: int, cache: Path, name: str
) -> NDArray[np.float16]:
    """
    Return the trunk's output for every picture of a split, from the cache where it is.

    Args:
        backbone: the base model; another one has records of its own.
        split: the pictures.
        top_blocks: how many blocks are left above the record.
        cache: a folder; may not exist yet.
        name: of the split, for people and for the file.
    """
    about = f"{backbone.fingerprint} {backbone.precision} {top_blocks} {split.digest}"
    key = hashlib.sha256(about.encode()).hexdigest()
    path = cache / f"{name.replace('/', '-')}-{key[:16]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Under a name of its own until it is whole: two processes may be at it.
        unfinished = path.with_suffix(f".{os.getpid()}.tmp.npy")
        np.save(unfinished, _passed_through(backbone, split, top_blocks, name))
        unfinished.replace(path)
    states_N: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return states_N


def _passed_through(
    backbone: Backbone, split: Split, top_blocks: int, name: str
) -> NDArray[np.float16]:
    trunk, _ = backbone.answering_tower.cut(top_blocks)
    resize: Literal["squash", "shortest"] = (
        "squash" if backbone.pixels.resize == "squash" else "shortest"
    )
    rows: list[NDArray[np.float16]] = []
    batch: list[Pixels] = []

    def flush() -> None:
        hidden = trunk(backbone.images(batch))
        assert hidden.context is None  # an image tower's blocks need nothing besides
        rows.append(hidden.states.to("cpu", torch.float16).contiguous().numpy())
        batch.clear()
        if len(rows) % 10 == 0:
            done = sum(len(part) for part in rows)
            print(f"  {name}: {done} of {len(split.labels)}", file=sys.stderr, flush=True)

    for picture in split.pictures():
        batch.append(to_square(picture, backbone.pixels.size, resize).numpy())
        if len(batch) == _FORWARD_BATCH:
            flush()
    if batch:
        flush()
    return np.concatenate(rows)
