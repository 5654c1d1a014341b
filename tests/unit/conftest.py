"""How unit tests run: on one thread; properties on the same examples each time, without a clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "everlens", derandomize=True, deadline=None, database=None, max_examples=60
)
settings.load_profile("everlens")


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """The worker computes on one thread; two busy cores make two threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
