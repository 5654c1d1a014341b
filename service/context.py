"""
The parts of a running service, wired together, and when each exists. ①②⑧⑨

The log's half exists from the first moment; the model's half once it is loaded. A route asks for
the half it needs, and is told in the client's words when that is not there yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from fastapi import Request

from everlens import __version__
from everlens.bus.admission import Admission, AdmissionLimits
from everlens.bus.connect import connect_async
from everlens.bus.exhibits import Asking
from everlens.bus.keys import Keys
from everlens.bus.versions import Follower
from everlens.bus.witness import Witness
from everlens.errors import EverlensError, ModelError
from everlens.model.backbone import Backbone
from everlens.model.runtime import use_threads_here
from everlens.model.snapshot import Snapshot, base_snapshot
from everlens.niceness import stand_back
from everlens.settings import Settings
from service.admission import GroupAdmission
from service.ahead import Ahead
from service.batcher import Batcher
from service.cache import VersionCache
from service.decoder.protocol import PictureLimits
from service.decoding import DecodingPool
from service.events import Events
from service.hotswap import HotSwap
from service.metrics import Metrics
from service.names import NameVectors
from service.predictions import Predictions
from service.present import learning
from service.probe import warm_up
from service.problems import Problem
from service.serving import Serving
from service.task_pictures import Studio, TaskPictures

_POLL_S = 1.0
_ASIDE_NICENESS = 10

# New names that are looked at before others are answered again: up to 0.15 ms each.
_NAMES_A_CALL = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Model:
    """What exists once the base model is loaded."""

    backbone: Backbone
    serving: Serving
    batcher: Batcher
    names: NameVectors
    ahead: Ahead
    swaps: HotSwap
    events: Events

    async def first_unfit(self, names: list[str]) -> int | None:
        """Return the index of the first name that is too long for the text tower, or None."""
        if self.names.all_fit(names):  # else who only teaches would wait for those who ask
            return None
        for start in range(0, len(names), _NAMES_A_CALL):
            some = names[start : start + _NAMES_A_CALL]
            unfit = await self.batcher.call(partial(self.names.first_unfit, some))
            if unfit is not None:
                return start + unfit
        return None


class Service:
    """All parts of one service process, from `start` to `stop`."""

    def __init__(self, settings: Settings, load: Callable[[], Backbone]) -> None:
        client, keys = connect_async(settings.redis_url), Keys(settings.namespace)
        self.settings = settings
        # Asked before any thread asks for fewer: torch tells later threads what was said last.
        self.threads = torch.get_num_threads()
        self.load = load
        self.client = client
        self.metrics = Metrics()
        self.metrics.backlog_limit_samples.set(settings.max_backlog_samples)
        self.metrics.backlog_limit_bytes.set(settings.max_backlog_bytes)
        self.witness = Witness(settings.data_dir / "service" / f"{settings.namespace}.acknowledged")
        self.log = Admission(
            client,
            keys,
            AdmissionLimits(
                samples_max=settings.max_backlog_samples,
                bytes_max=settings.max_backlog_bytes,
                classes_max=settings.max_classes,
            ),
            self.witness,
        )
        self.admission = GroupAdmission(self.log)
        self.follower = Follower(client, keys, self.witness.read().epoch)
        self.asking = Asking(client, keys)
        self.decoding = DecodingPool(
            PictureLimits(
                settings.max_image_bytes, settings.max_image_pixels, settings.max_decoded_pixels
            ),
            self.metrics,
            decoders=settings.decoders or None,
        )
        self.task_pictures = TaskPictures(_studio(settings))
        self.predictions = Predictions(settings.keep_predictions_bytes)
        self.model: Model | None = None
        self.failure: EverlensError | None = None
        self.settled = asyncio.Event()  # ready, or never to be
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="build", initializer=_stand_back)
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="ahead", initializer=_stand_back)
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load the model; health checks are answered meanwhile."""
        self.decoding.start()
        self._running = asyncio.create_task(self._run())

    def end_waits(self) -> None:
        """End the answers that would go on for ever or wait for long; nothing waits for them then."""
        if self.model is not None:
            self.model.events.end()
            self.model.serving.stop()

    async def stop(self) -> None:
        """End every task and thread of ours."""
        self.end_waits()
        if self._running is not None:
            await _end(self._running)
        if self.model is not None:
            await self.model.batcher.stop()
        self.decoding.close()
        for thread in (self._builder, self._looker):
            thread.shutdown(wait=False, cancel_futures=True)
        await self.task_pictures.close()
        await self.client.aclose()
        self.witness.close()

    async def _run(self) -> None:
        try:
            self.model = await self._load_model()
        except EverlensError as error:
            self.failure = error
        except Exception as error:  # whatever torch meets on the way ends the start, not hangs it
            log.exception("the model cannot be loaded")
            self.failure = ModelError(f"the model cannot be loaded: {error}")
        if self.model is None:
            self.settled.set()
            return
        await self._follow(self.model.swaps)

    async def _load_model(self) -> Model:
        loop = asyncio.get_running_loop()
        base = await loop.run_in_executor(self._builder, self._load_base)
        serving, names = Serving(base), NameVectors(base.backbone)
        batcher = Batcher(
            serving,
            names,
            self.metrics,
            batch_max=self.settings.max_batch,
            queued_max=self.settings.max_queued_queries,
            threads=self.threads,
        )
        await batcher.call(partial(warm_up, batcher.passes, base, self.settings.max_batch))
        await self.decoding.wait_ready()
        swaps = HotSwap(
            self.follower,
            serving,
            self.metrics,
            self._builder,
            self.settled,
            VersionCache(self.settings.data_dir / "service" / self.settings.namespace),
        )
        self.metrics.info.info({"version": __version__, "model": base.backbone.name})
        events = Events(serving, self.follower, swaps, partial(learning, self))
        ahead = Ahead(serving, lambda: batcher.idle, self._looker)
        return Model(base.backbone, serving, batcher, names, ahead, swaps, events)

    def _load_base(self) -> Snapshot:
        backbone = self.load()
        top_blocks = self.settings.top_blocks or backbone.top_blocks
        if top_blocks > len(backbone.image_tower.blocks):
            raise ModelError(
                f"EVERLENS_TOP_BLOCKS={top_blocks}, but the image tower of {backbone.name} has "
                f"{len(backbone.image_tower.blocks)} blocks; set it to at most that"
            )
        return base_snapshot(backbone, top_blocks)

    async def _follow(self, swaps: HotSwap) -> None:
        while True:
            try:
                await swaps.follow(_POLL_S)
            except Exception:  # a reply that nobody foresaw must not end the following for ever
                log.exception("following the head failed; trying again")
                await asyncio.sleep(_POLL_S)

    def loaded(self) -> Model:
        """
        Return the model's half.

        Raises:
            Problem: 503 while the model loads.
        """
        if self.failure is not None:
            raise Problem("not-ready", f"the model cannot be loaded: {self.failure}")
        if self.model is None:
            raise Problem("not-ready", "the model is being loaded; try again", retry_after_s=2)
        return self.model

    def ready(self) -> Model:
        """
        Return the model's half once the newest version was looked for.

        Raises:
            Problem: 503 before.
        """
        model = self.loaded()
        if not self.settled.is_set():
            raise Problem(
                "not-ready", "the newest version is being fetched; try again", retry_after_s=2
            )
        return model


def _studio(settings: Settings) -> Studio | None:
    url, token = settings.label_studio_url, settings.label_studio_token
    return Studio(url, token, settings.max_image_bytes) if url else None


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended."""
    while not task.done():
        # Once is not enough: in Python 3.11 `asyncio.wait_for`, which the Redis client calls, loses
        # a cancellation that meets its result.
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


def service_of(request: Request) -> Service:
    """Return the service that a request came to."""
    service: Service = request.app.state.service
    return service


def _stand_back() -> None:
    """Let what the calling thread computes aside hold up no answer: one core, and that last."""
    use_threads_here(1)
    stand_back(_ASIDE_NICENESS)
