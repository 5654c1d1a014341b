"""What the rows share: the base model, the pictures, the log's server, and a service under load."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

import torch

from bench.load import Outcome, Stream, http_request, run_load
from bench.measure import Spread
from bench.pictures import photographs
from bench.running import Process, log_server, scratch, service, until
from bench.versions import Head, Version, Versions, served
from everlens.artifact import Manifest
from everlens.model.backbone import Backbone, load_backbone
from everlens.model.runtime import choose_device, set_threads
from everlens.model.snapshot import Snapshot
from everlens.settings import Settings
from service.batch_sizes import SMALL, doubling
from service.passes import Passes
from service.probe import probe_picture

CLASSES = 10
JPEG = {"Content-Type": "image/jpeg"}
# What `version=0` and the peers are asked to choose from.
LABELS = ("cat", "dog", "rocket", "cup", "face", "tree", "house", "car", "bird", "ship")
ZERO_SHOT = "?" + urlencode([("version", 0), *(("labels", name) for name in LABELS)])
# Of the bare model: those that the service takes where many wait.
BATCHES = doubling(SMALL, int(Settings.model_fields["max_batch"].default))


@dataclass(frozen=True, slots=True)
class Options:
    """
    What was asked for on the command line.

    Args:
        model, pretrained, device: as the settings of these names.
        rounds: how often each side is measured.
        seconds: of one measurement.
        peers: whether other servers are installed and measured.
        out: where figures, and the peers' environments, go.
    """

    model: str
    pretrained: str
    device: str
    rounds: int
    seconds: float
    peers: bool
    out: Path

    @property
    def settings(self) -> dict[str, object]:
        """The settings that name the base model."""
        return {"model": self.model, "pretrained": self.pretrained, "device": self.device}


@dataclass(frozen=True, slots=True)
class Service:
    """A running service with a version that has a tuned adapter, and the head that it follows."""

    process: Process
    head: Head
    versions: Versions
    bodies: list[bytes]

    def stream(self, connections: int, query: str = "") -> Stream:
        """Return connections that each send one JPEG after the other."""
        requests = [http_request("POST", f"/classify{query}", body, JPEG) for body in self.bodies]
        return Stream(requests, connections)

    def under_load(self, connections: int, seconds: float, query: str = "") -> Outcome:
        """
        Return what became of the load.

        Raises:
            LoadError: not everything was answered.
        """
        return run_load(self.process.port, self.stream(connections, query), seconds).succeeded()

    def until_answering(self, version: Version) -> None:
        """Return when a published version, the newest, answers."""
        number = version.manifest.version
        until(self.process, lambda: self.process.get("/readyz")["version"] == number)


@dataclass(frozen=True, slots=True)
class Known:
    """Made-up classes, and the first version that knows them."""

    versions: Versions
    manifest: Manifest
    snapshot: Snapshot


class Stage:
    """Holds what the rows share; all of it is made when it is first asked for, and ends with it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._stack = contextlib.ExitStack()
        self._service: Service | None = None
        self._known: dict[tuple[int, int], Known] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @cached_property
    def backbone(self) -> Backbone:
        """The base model in this process, on as many threads as the service takes."""
        options = self.options
        with contextlib.suppress(RuntimeError):  # another model was here before: it is set
            set_threads(len(os.sched_getaffinity(0)))
        return load_backbone(
            options.model, options.pretrained, device=choose_device(options.device)
        )

    @cached_property
    def passes(self) -> Passes:
        """How a batch passes in this process: as in the service, that the limit is as fast."""
        self._stack.callback((passes := Passes(torch.get_num_threads())).close)
        return passes

    @cached_property
    def bodies(self) -> list[bytes]:
        """JPEG files."""
        return photographs()

    @cached_property
    def folder(self) -> Path:
        """Where processes write."""
        return self._stack.enter_context(scratch())

    @cached_property
    def url(self) -> str:
        """The address of the log's server."""
        return self._stack.enter_context(log_server(self.folder)).url

    def known(self, top_blocks: int | None = None, classes: int = CLASSES) -> Known:
        """Return a version with a tuned adapter; of as many classes at the same cut the same."""
        k = min(top_blocks or self.backbone.top_blocks, len(self.backbone.image_tower.blocks))
        if (k, classes) not in self._known:
            versions = Versions(self.backbone, classes, top_blocks=k)
            first = versions.first()
            snapshot = served(self.backbone, first)
            if k not in {cut for cut, _ in self._known}:  # one of this cut fits them all
                self.passes.record(snapshot, BATCHES[-1], probe_picture(self.backbone))
            self._known[k, classes] = Known(versions, first.manifest, snapshot)
        return self._known[k, classes]

    def snapshot(self, top_blocks: int | None = None, classes: int = CLASSES) -> Snapshot:
        """Return the version of `known` as the service serves it."""
        return self.known(top_blocks, classes).snapshot

    @property
    def service(self) -> Service:
        """The service, started when it is first asked for."""
        if self._service is None:
            self._service = self._stack.enter_context(self._started())
        return self._service

    @contextlib.contextmanager
    def _started(self) -> Iterator[Service]:
        with (
            contextlib.closing(Head(self.url, "everlens")) as head,
            service(self.url, self.folder, wait=False, **self.options.settings) as process,
        ):
            # This process loads the model as well meanwhile.
            versions = Versions(self.backbone, CLASSES, top_blocks=self.backbone.top_blocks)
            running = Service(process, head, versions, self.bodies)
            first = versions.first()
            head.publish(first)
            process.until_ready()
            running.until_answering(first)
            running.under_load(1, 0.2, ZERO_SHOT)  # the names' vectors are computed once
            yield running


def milliseconds(spread: Spread) -> str:
    """Return a spread of seconds for people."""
    return f"{Spread(*(1e3 * value for value in (spread.median, spread.low, spread.high)))} ms"
