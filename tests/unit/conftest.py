"""How properties are tried: the same examples in every run, and no clock."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile(
    "everlens", derandomize=True, deadline=None, database=None, max_examples=60
)
settings.load_profile("everlens")
