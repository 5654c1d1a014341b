"""Seconds on the wall and of this process's processor, taken together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long some work took; `cpu_s` is less disturbed by neighbours, and waits for nobody."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: Timing) -> Timing:
        return Timing(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def times(self, count: int) -> Timing:
        """Return the time of so many equal pieces of work."""
        return Timing(self.wall_s * count, self.cpu_s * count)


def timed(work: Callable[[], Made], device: torch.device) -> tuple[Made, Timing]:
    """Return what some work made, and how long it took until the device was done with it."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return made, Timing(time.perf_counter() - wall, time.process_time() - cpu)


class Contender:
    """Something that is timed once a round: `interleaved` takes its wall time, the rest is kept."""

    def __init__(self, work: Callable[[], Timing]) -> None:
        self.work = work
        self.timings: list[Timing] = []

    def __call__(self) -> float:
        """Run once; return the seconds on the wall."""
        self.timings.append(self.work())
        return self.timings[-1].wall_s

    @property
    def cpu_s(self) -> list[float]:
        """Processor seconds of each round."""
        return [timing.cpu_s for timing in self.timings]
