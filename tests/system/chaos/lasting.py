"""What must last: a fork that is no other thing, a thousand swaps, a hundred deaths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import load, save

from everlens.artifact import decode_manifest, digest_of
from everlens.bus.stream import Stream
from everlens.bus.versions import Publisher
from tests.system.chaos.campaign import case
from tests.system.chaos.ground import Ground, must, samples, until
from tests.system.chaos.ledger import encoded
from tests.system.processes import ROOT

ASKERS = 16
LEARNED = 10  # entries a version, of those made by hand
_MEMORY_BYTES = 16 << 20  # of what a hundred deaths may leave: noise of an allocator


@case()
def forked_worker_is_a_fresh_one(ground: Ground) -> None:
    """A worker forked from the zygote computes the bits of `python -m worker`."""
    ground.server.start()
    ground.create_log()
    ground.admit(samples(18))
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    with (ground.directory / "fresh.log").open("wb") as log:
        fresh = subprocess.Popen(
            [sys.executable, "-m", "worker"],
            cwd=ROOT,
            env=os.environ | ground.environment() | threads,
            stdout=log,
            stderr=log,
        )
    try:
        ground.settle()
    finally:
        fresh.terminate()
        fresh.wait(30)
    found = ground.findings()
    must(not found, str(found))


# Swaps


@case(when="fast", needs=["swaps"])
def swaps_under_queries(ground: Ground) -> None:
    """Versions exchanged under 16 who ask: every answer is of one version only."""
    swap_often(ground, 60)


@case(when="full", needs=["swaps"])
def thousand_swaps_under_queries(ground: Ground) -> None:
    """A thousand versions exchanged under 16 who ask: every answer is of one version only."""
    swap_often(ground, 1000)


def swap_often(ground: Ground, swaps: int) -> None:
    """Publish versions whose every part says which it is, while many ask."""
    ground.start_all()
    ground.teach(6)
    ground.stop_worker()
    until(ground.serves_head, "the service to serve the head", 20)
    versions = MarkedVersions(ground)
    asking = Asking(ground.url)
    try:
        asking.marked_from = versions.manifest.version + 1
        for _ in range(swaps):
            version = versions.publish()
            until(partial(asking.saw, version), f"version {version} to answer", 20)
            ground.tally.add("swaps")
    finally:
        asking.end()
    must(asking.answers >= swaps, f"only {asking.answers} answers")
    must(not asking.wrong, f"{len(asking.wrong)} answers mix versions: {asking.wrong[:2]}")
    ground.tally.add("answers_during_swaps", asking.answers)


class MarkedVersions:
    """Versions made by hand from a learnt one: names, counts and numbers all tell the version."""

    def __init__(self, ground: Ground) -> None:
        self.stream = Stream(ground.client, ground.keys)
        ground.client.delete(ground.keys.lease)  # its holder has ended
        state = self.stream.state()
        assert state is not None
        must(self.stream.hold(state.epoch, "marked"), "the lease is held")
        self.publisher = Publisher(self.stream)
        version, digest = self.publisher.head()
        content: Any = ground.client.get(ground.keys.manifest(version))
        self.manifest = decode_manifest(content, digest)
        self.tensors = {
            name: load(self._part(ground, name)) for name in ("classes/0", "evidence/0")
        }

    def _part(self, ground: Ground, name: str) -> bytes:
        content: Any = ground.client.get(ground.keys.part(self.manifest.parts[name]))
        assert isinstance(content, bytes)
        return content

    def publish(self) -> int:
        """Publish the next version and return its number."""
        version = self.manifest.version + 1
        classes, evidence = self.tensors["classes/0"], self.tensors["evidence/0"]
        count = len(evidence["count_C"])
        names = json.dumps([f"v{version} class {k}" for k in range(count)]).encode()
        parts = {
            "classes/0": save(classes | {"names": np.frombuffer(names, np.uint8)}),
            "evidence/0": save(evidence | {"count_C": np.full(count, version, np.int64)}),
        }
        kept = {name: self.manifest.parts[name] for name in ("evidence/factor", "fusion")}
        self.manifest = replace(
            self.manifest,
            version=version,
            parent=self.manifest.digest,
            learned_through=LEARNED * version,
            samples=count * version,
            classes=count,
            parts=kept | {name: digest_of(part) for name, part in parts.items()},
            gate=None,
        )
        self.publisher.store({digest_of(part): part for part in parts.values()})
        self.publisher.publish(self.manifest, [])
        self.publisher.collect(version)
        return version


class Asking:
    """Many who ask at once and look whether each answer is of one version."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.newest = 0
        self.answers = 0
        self.wrong: list[str] = []
        self.marked_from = 1 << 62  # the first version made by hand
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(ASKERS)]
        for thread in self._threads:
            thread.start()

    def saw(self, version: int) -> bool:
        """Return whether this version or a newer one has answered."""
        return self.newest >= version or bool(self.wrong)

    def end(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        question = {"image": encoded(1, 0)}
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self._stopping.is_set():
                answer = client.post("/classify", json=question)
                if answer.status_code != 200:
                    self.wrong.append(answer.text)
                    return
                self._look(answer.json())

    def _look(self, answer: dict[str, Any]) -> None:
        version = answer["version"]
        self.newest = max(self.newest, version)
        self.answers += 1
        if version < self.marked_from:
            return
        lines = answer["predictions"]
        told = {line["label"].split()[0] for line in lines} | {
            f"v{line['samples']}" for line in lines
        }
        if told != {f"v{version}"} or answer["learned_through"] != LEARNED * version:
            self.wrong.append(json.dumps(answer))


# Deaths


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process and the data directory take."""

    descriptors: int
    threads: int
    resident_bytes: int
    files: int


def footprint(pid: int, directory: Path) -> Footprint:
    """Return what a living process takes, and how many files there are."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    return Footprint(
        descriptors=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
        resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        files=sum(path.is_file() for path in directory.rglob("*")),
    )


def accepted(ground: Ground, number: int) -> bool:
    """Send a sample; return whether it was accepted."""
    return ground.post(f"s{number}", number).status_code < 300


@case(when="full", needs=["worker_kills", "server_kills"])
def hundred_deaths_leave_nothing(ground: Ground) -> None:
    """A hundred deaths of the worker, a few of the server: nothing grows with their number."""
    ground.start_all()
    service, warm = ground.service, 30
    assert service is not None
    before = of_worker = None
    for cycle in range(1, 101):
        until(partial(accepted, ground, cycle), "a sample to be accepted", 20)
        ground.wait(ground.rng.uniform(0, 0.15))
        if cycle in {warm, 100}:
            ground.settle()
            assert ground.worker is not None
            now = footprint(service.pid, ground.directory)
            now_of_worker = footprint(ground.worker.pid, ground.directory)
            if before is None or of_worker is None:
                before, of_worker = now, now_of_worker
        assert ground.worker is not None
        ground.worker.kill()
        ground.tend()
        if cycle % 10 == 0:
            ground.kill_server()
    ground.verify()
    assert before is not None
    assert of_worker is not None
    does_not_grow(ground, "service", before, now)
    does_not_grow(ground, "worker", of_worker, now_of_worker)


def does_not_grow(ground: Ground, who: str, was: Footprint, now: Footprint) -> None:
    """Fail when a footprint is larger than before, but for an allocator's noise."""
    ground.notes.append(f"{who} {was} -> {now}")
    must(now.descriptors <= was.descriptors + 2, f"the {who}'s descriptors grow: {was} {now}")
    must(now.threads <= was.threads + 1, f"the {who}'s threads grow: {was} {now}")
    must(now.files <= was.files + 1, f"the files grow: {was} {now}")
    grown = now.resident_bytes - was.resident_bytes
    must(grown < _MEMORY_BYTES, f"the {who} grew by {grown >> 20} MiB: {was} {now}")
