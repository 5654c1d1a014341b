"""
Pictures for the benches and tests: packs of JPEG files outside the repo, read one by one.

A pack is a folder with `train.npz`, `test.npz` (the files end to end, offsets, labels, domains) and
`index.json` (names of classes and domains). The folder of packs is `--data`, else the variable
PACKS_DIR, else `../shared/data` beside the repo.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parent.parent


class Pack(NamedTuple):
    """
    One split of a pack.

    Args:
        blob: the JPEG files end to end; file i is `blob[offsets[i]:offsets[i + 1]]`.
        labels: index into `classes`, one a picture.
        domains: index into `domain_names`, −1 where a pack has none.
    """

    blob: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    classes: tuple[str, ...]
    domain_names: tuple[str, ...]

    def pictures(self) -> Iterator[Image.Image]:
        """Yield the pictures in RGB, in the order of `labels`."""
        for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield Image.open(io.BytesIO(self.blob[begin:end].tobytes())).convert("RGB")

    def thinned(self, step: int) -> Pack:
        """Return every `step`-th picture, from the first on."""
        files = [
            self.blob[self.offsets[i] : self.offsets[i + 1]]
            for i in range(0, len(self.labels), step)
        ]
        return self._replace(
            blob=np.concatenate(files),
            offsets=np.cumsum([0, *map(len, files)]),
            labels=self.labels[::step],
            domains=self.domains[::step],
        )


def data_folder(argument: str | None = None) -> Path:
    """Return the folder of packs; it need not exist."""
    chosen = argument or os.environ.get("PACKS_DIR")
    return Path(chosen) if chosen else REPOSITORY.parent / "shared" / "data"


def read_pack(folder: Path, name: str, split: Literal["train", "test"]) -> Pack:
    """Return one split of the pack `name` under `folder`."""
    index = json.loads((folder / name / "index.json").read_text())
    with np.load(folder / name / f"{split}.npz", allow_pickle=False) as arrays:
        return Pack(
            blob=arrays["blob"],
            offsets=arrays["offsets"].astype(np.int64),
            labels=arrays["labels"].astype(np.int64),
            domains=arrays["domains"].astype(np.int64),
            classes=tuple(index["classes"]),
            domain_names=tuple(index["domains"] or ()),
        )


def to_square(picture: Image.Image, size: int, resize: Literal["shortest", "squash"]) -> Tensor:
    """Return `picture` as size × size × 3 uint8, resized by Pillow's bicubic filter."""
    if resize == "shortest":
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        picture = picture.crop((left, top, left + size, top + size))
    else:
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture))
