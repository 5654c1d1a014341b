"""Niceness belongs to a thread here, and those that it starts have it as well."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from everlens.niceness import stand_back, stand_back_together

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a niceness of each thread")


def _own() -> int:
    return os.nice(0)


def test_a_thread_stands_back_alone_and_those_that_it_starts() -> None:
    """Whoever started it goes on as before; it is nicer by so much, whatever it was before."""

    def started_by_it() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(_own).result()

    before = _own()
    with ThreadPoolExecutor(1, initializer=partial(stand_back, 5)) as pool:
        nicer, below = pool.submit(_own).result(), pool.submit(started_by_it).result()
        pool.submit(stand_back, 5).result()
        nicest = pool.submit(_own).result()

    assert (nicer, below) == (min(19, before + 5), min(19, before + 5))
    assert nicest == min(19, before + 10)
    assert _own() == before


def test_a_process_stands_back_together_only_where_threads_cannot_alone() -> None:
    """Here nothing happens to the process."""
    before = _own()
    stand_back_together(5)
    assert _own() == before
