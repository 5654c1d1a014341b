"""
From a label that was accepted to the first answer that knows it: real processes, over HTTP.

Whoever posted a labelled picture asks at once with `wait_for`; that answer's time is taken from the
202 on. Three ways to teach: a label now and then, one whenever the learner has nothing to do, and a
steady stream, whose labels meet the learner in the middle of its steps. What is asked of all three is
a multiple of one bare image pass, which is measured between the labels, and the mean publication.
"""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.learn.clock import timed
from bench.learn.feed import CLASSES
from bench.learn.rows import Findings
from bench.load import HOST, Stream, http_request, run_load
from bench.measure import spread_of
from bench.pictures import photographs
from bench.running import Process, cpu_s, log_server, scratch, service, worker
from bench.versions import Versions, served
from everlens.client import Client
from everlens.model.backbone import STARTER, Backbone
from service.passes import Passes

PASSES = 3  # image passes that an effect may take, beside one publication
EVERY_S = 1.5
STREAM_EVERY_S = 0.5
BESIDE = 1.5
_IDLE_S = 0.3
_IDLE_S_MAX = 20.0
_WARM_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Running:
    """A service and its worker, and somebody to ask them."""

    service: Process
    worker: Process
    client: Client
    photographs: list[bytes]

    def teach(self, number: int) -> float:
        """Post one labelled picture; return the seconds from its receipt to an answer that knows it."""
        picture = self.photographs[number % len(self.photographs)]
        receipt = self.client.learn(picture, f"class {number % CLASSES}")
        accepted = time.perf_counter()
        answer = self.client.classify(picture, wait_for=receipt.seq)
        assert answer.learned_through >= receipt.seq
        return time.perf_counter() - accepted

    def until_idle(self) -> None:
        """Return when the worker's processor time stands still."""
        deadline = time.monotonic() + _IDLE_S_MAX
        before = -1.0
        while time.monotonic() < deadline:
            now = cpu_s(self.worker.process.pid)
            if now - before < 0.1 * _IDLE_S:
                return
            before = now
            time.sleep(_IDLE_S)

    def publication_s(self) -> tuple[float, float]:
        """Return how many versions the service swapped in, and the seconds that took in all."""
        with urllib.request.urlopen(f"http://{HOST}:{self.service.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        sums = dict(line.split() for line in lines if line.startswith("everlens_swap_seconds_"))
        return float(sums["everlens_swap_seconds_count"]), float(sums["everlens_swap_seconds_sum"])


@contextmanager
def running(model: str, device: str) -> Iterator[Running]:
    """Give a service and a worker over a model of random weights, warm: each class has labels."""
    settings: dict[str, Any] = {"model": model, "device": device}
    if model != STARTER:
        settings["pretrained"] = "random"
    with (
        scratch() as folder,
        log_server(folder) as server,
        worker(server.url, folder, wait=False, **settings) as learner,
        service(server.url, folder, wait=False, **settings) as answering,
        Client(f"http://{HOST}:{answering.port}", api_key="") as client,
    ):
        both = Running(answering, learner, client, photographs())
        learner.until_ready()  # each loads the model beside the other
        answering.until_ready()
        with ThreadPoolExecutor(_WARM_SAMPLES) as pool:
            list(pool.map(both.teach, range(_WARM_SAMPLES)))
        both.until_idle()
        yield both


def measure(model: str, backbone: Backbone, labels: int, bound_s: float | None = None) -> Findings:
    """
    Return the rows of one model.

    Args:
        model, backbone: its name for the processes, and itself for the bare pass.
        labels: how many are taught each way.
        bound_s: what the effect may take; None takes three bare passes and a publication.
    """
    found = Findings()
    with running(model, backbone.device.type) as both:
        count, seconds = both.publication_s()
        ways = {"every 1.5 s": regularly(both, labels, EVERY_S)}
        ways["learner idle"], passes = one_by_one(both, labels, BarePass(backbone))
        both.until_idle()
        ways["2 a second"] = regularly(both, 2 * labels, STREAM_EVERY_S)
        later_count, later_seconds = both.publication_s()
    publication_s = (later_seconds - seconds) / max(1, later_count - count)
    bare = spread_of(passes)
    bound = bound_s or PASSES * bare.median + publication_s
    keys = {"every 1.5 s": "", "learner idle": "_idle", "2 a second": "_stream"}
    for way, taken in ways.items():
        figure = f"label to effect, s, {way}"
        found.at_most(f"label_to_effect_p50_s{keys[way]}", figure, spread_of(taken), bound)
    found.note("image_pass_s", "one image pass, s (two experts' tops)", bare)
    found.note("publication_s", "one publication, s (mean)", spread_of([publication_s]))
    found.raw = {"seconds": ways, "passes_s": passes, "publications": later_count - count}
    return found


def beside(model: str, backbone: Backbone, seconds: float) -> Findings:
    """Return p99 of classify with and without learning on the same device."""
    found = Findings()
    with running(model, backbone.device.type) as both:
        requests = [
            http_request("POST", "/classify", picture, {"Content-Type": "image/jpeg"})
            for picture in both.photographs
        ]
        stream = Stream(requests)
        p99: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(4):
            learning = turn in {1, 2}  # A B B A
            with ThreadPoolExecutor(1) as pool:
                if learning:
                    taught = pool.submit(_teach_for, both, seconds + 1)
                p99[learning].append(run_load(both.service.port, stream, seconds).succeeded().p99_s)
                if learning:
                    taught.result()
            both.until_idle()
    ratios = [a / b for a, b in zip(p99[True], p99[False], strict=True)]
    label = "classify p99 while learning over without (1 client)"
    found.at_most("classify_p99_beside_learning", label, spread_of(ratios), BESIDE)
    found.raw = {"p99_s": {str(learning): values for learning, values in p99.items()}}
    return found


def _teach_for(both: Running, seconds: float) -> None:
    """Keep the learner busy: full batches, one after the other."""
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for _ in range(16):
            picture = both.photographs[number % len(both.photographs)]
            receipt = both.client.learn(picture, f"class {number % CLASSES}")
            number += 1
        both.client.classify(picture, wait_for=receipt.seq)


def regularly(both: Running, labels: int, every_s: float) -> list[float]:
    """Return the effect of labels that come at fixed times, whatever became of the ones before."""
    begun = time.monotonic()

    def teach(number: int) -> float:
        time.sleep(max(0.0, begun + number * every_s - time.monotonic()))
        return both.teach(number)

    with ThreadPoolExecutor(labels) as pool:
        return list(pool.map(teach, range(labels)))


def one_by_one(
    both: Running, labels: int, bare_pass: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Return the effect of labels that each find the learner idle, and a bare pass before each."""
    taken, passes = [], []
    for number in range(labels):
        both.until_idle()
        passes.append(bare_pass())
        taken.append(both.teach(number))
    return taken, passes


class BarePass:
    """One picture through a version as a service has it, on all cores."""

    def __init__(self, backbone: Backbone) -> None:
        version = Versions(backbone, CLASSES, top_blocks=backbone.top_blocks).first()
        self.snapshot = served(backbone, version)
        self.passes = Passes(len(os.sched_getaffinity(0)))
        size = backbone.pixels.size
        self.picture = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8).numpy()
        self()

    def __call__(self) -> float:
        """Return its seconds, the better of two: the first finds cold caches."""
        threads = torch.get_num_threads()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        try:
            device = self.snapshot.backbone.device
            passes = [
                timed(lambda: self.passes.see(self.snapshot, [self.picture]), device)
                for _ in range(2)
            ]
        finally:
            torch.set_num_threads(threads)
        return min(timing.wall_s for _, timing in passes)
