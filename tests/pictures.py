"""Real photographs and digits at the size of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_digits

from everlens.pixels import Pixels

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def photograph(name: str) -> Image.Image:
    """Return a photograph that comes with scikit-image."""
    load: Any = getattr(data, "chelsea" if name == "cat" else name)
    return Image.fromarray(load()).convert("RGB")


def squashed(name: str, size: int) -> Pixels:
    """Return the whole photograph, both sides brought to `size`."""
    return np.asarray(photograph(name).resize((size, size), Image.Resampling.BICUBIC))


def crops(name: str, count: int, size: int) -> list[Pixels]:
    """Return so many different parts of a photograph, always the same ones."""
    picture = photograph(name)
    rng = np.random.default_rng(PHOTOGRAPHS.index(name))
    side = min(picture.size) // 2
    parts = []
    for _ in range(count):
        left = int(rng.integers(picture.width - side + 1))
        upper = int(rng.integers(picture.height - side + 1))
        part = picture.crop((left, upper, left + side, upper + side))
        parts.append(np.asarray(part.resize((size, size), Image.Resampling.BICUBIC)))
    return parts


def digits() -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[int]]:
    """Return the 64 grey levels of each of 1,797 written digits, and what they are."""
    bunch = load_digits()
    return bunch.data.astype(np.float64), [int(target) for target in bunch.target]
