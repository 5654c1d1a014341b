"""
Real photographs as clients send them: JPEG files of 500 x 375 pixels, 25 to 60 KB.

Parts of the photographs that come with scikit-image, always the same ones: the packs are smaller
than what people upload, and a bench must run without them.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

WIDTH, HEIGHT = 500, 375
QUALITY = 90
_NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def photographs(count: int = 32) -> list[bytes]:
    """Return so many different JPEG files."""
    whole = [_photograph(name) for name in _NAMES]
    random = np.random.default_rng(0)
    return [_jpeg(_part(whole[k % len(whole)], random)) for k in range(count)]


def _photograph(name: str) -> Image.Image:
    load: Any = getattr(data, name)
    return Image.fromarray(load()).convert("RGB")


def _part(whole: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return a part as large as fits, or a little smaller, brought to the size of all."""
    fits = min(whole.width / WIDTH, whole.height / HEIGHT) * random.uniform(0.8, 1.0)
    width, height = int(fits * WIDTH), int(fits * HEIGHT)
    left = int(random.integers(0, whole.width - width + 1))
    top = int(random.integers(0, whole.height - height + 1))
    part = whole.crop((left, top, left + width, top + height))
    return part.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
