"""Randomness as a function of seed and batch number, so that a replay repeats it."""

from __future__ import annotations

import hashlib

from torch import Generator


def generator_for(seed: int, *path: int | str) -> Generator:
    """Return a fresh generator for this seed and place, for instance `(batch, "replay", step)`."""
    name = "/".join(str(part) for part in (seed, *path)).encode()
    number = int.from_bytes(hashlib.sha256(name).digest()[:7], "big")
    return Generator().manual_seed(number)
