"""
Composition root of the learner: `python -m worker`, and of three commands for operators:
`python -m worker create` begins a log, `python -m worker reconcile [--yes]` goes on without what
was lost, `python -m worker backup TARGET LOG_DIR SERVING_DIR` copies everything.

Exit codes: 0 stopped as told, 1 to be started again, 2 the settings or the base model are wrong, 3 learning must not go
on (the state and the log do not belong together; the reason was printed and told to the service).
"""

from __future__ import annotations

import os

# Threads of OpenMP that wait by spinning would eat the cores that the service answers on; read
# by the runtime when torch is imported, so it must stand before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import contextlib
import logging
import math
import signal
import sys
import time
from pathlib import Path
from threading import Event

from everlens import __version__, logs, tracing
from everlens.bus.connect import connect
from everlens.bus.exhibits import Answering
from everlens.bus.keys import Keys
from everlens.bus.stream import LEASE_MS, Stream
from everlens.errors import (
    BusError,
    DamagedState,
    Diverged,
    EverlensError,
    Fenced,
    ModelError,
    OtherLog,
    PartError,
    ServerError,
    SettingsError,
    StateError,
)
from everlens.model.adapter import AdapterSpec
from everlens.model.backbone import Backbone, load_backbone
from everlens.model.runtime import (
    choose_device,
    fingerprint_of_numerics,
    make_deterministic,
    set_threads,
)
from everlens.niceness import stand_back_together
from everlens.settings import Settings, load_settings
from worker.backup import Places, back_up
from worker.exhibits import Exhibits, Gallery
from worker.generations import Generations
from worker.learn.class_weights import ClassWeightConfig
from worker.learn.learner import LearnerConfig
from worker.learn.tuning import TuningConfig
from worker.loop import Loop, Pace
from worker.reconcile import reconcile
from worker.rounds import NICENESS

log = logging.getLogger("everlens.worker")

EXIT_AGAIN = 1
EXIT_SETTINGS = 2
EXIT_STATE = 3


def learner_config(settings: Settings, backbone: Backbone) -> LearnerConfig:
    """
    Return the learner's share of the settings.

    Raises:
        SettingsError: the base model cannot be tuned as they ask.
    """
    blocks = len(backbone.image_tower.blocks)
    top_blocks = settings.top_blocks or backbone.top_blocks
    if top_blocks > blocks and settings.tune in {"image", "both"}:
        raise SettingsError(
            f"EVERLENS_TOP_BLOCKS={top_blocks}, but the image tower has {blocks} blocks that an "
            "adapter can bend; lower it, or set EVERLENS_TUNE=none"
        )
    if settings.tune in {"text", "both"} and not len(backbone.text_tower.blocks):
        raise SettingsError(
            f"the text tower of {backbone.name} cannot be tuned; set EVERLENS_TUNE=image"
        )
    return LearnerConfig(
        adapter=AdapterSpec(
            tune=settings.tune,
            top_blocks=min(top_blocks, blocks),
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
        ),
        tuning=TuningConfig(
            seed=settings.seed,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            steps=settings.sit_steps,
            first_steps=settings.sit_first_steps or backbone.first_steps,
            replay_samples=settings.replay_samples,
            new_per_class=settings.sit_new_per_class,
            contrast=settings.contrast,
            augment=settings.augment,
            class_weights=class_weights(settings),
        ),
        replay_bytes=settings.replay_bytes,
        fusion=backbone.fusion(settings.kappa),
    )


def class_weights(settings: Settings) -> ClassWeightConfig | None:
    """Return how classes are weighed in tuning; None when every picture weighs the same."""
    if settings.class_weights == "none":
        return None
    balanced = settings.class_weights == "balanced"
    return ClassWeightConfig(math.inf if balanced else settings.class_weights_temperature)


def pace(settings: Settings) -> Pace:
    """Return the loop's share of the settings."""
    return Pace(
        batch_size=settings.batch_size,
        linger_s=settings.linger_ms / 1000,
        adapter_every_rounds=settings.adapter_every_rounds,
        adapter_idle_s=settings.adapter_idle_s,
        id_window=settings.id_window,
        copy_every_entries=settings.copy_every_entries,
        creates=settings.create,
    )


def make_loop(settings: Settings) -> Loop:
    """Load the base model, open the state, connect to the log."""
    device = choose_device(settings.device)
    set_threads(settings.worker_threads)
    make_deterministic()
    backbone = load_backbone(
        settings.model, settings.pretrained, device=device, templates=settings.templates
    )
    generations = Generations(settings.data_dir / "state" / "learner.db")
    return Loop(
        backbone,
        learner_config(settings, backbone),
        pace(settings),
        stream=log_of(settings),
        state=generations.open(),
        generations=generations,
        numerics=fingerprint_of_numerics(settings.worker_threads),
        threads=settings.worker_threads,
    )


def log_of(settings: Settings) -> Stream:
    """Return the learner's side of the log."""
    return Stream(connect(settings.redis_url), Keys(settings.namespace))


def refuse_samples(stream: Stream, reason: str, holder: str, stopping: Event) -> None:
    """
    Let the service take no more samples, since nobody learns them; it gives the reason.

    The lease of a predecessor outlives it by half a minute and is waited for. A learner that is at
    work renews its own, and is left alone.
    """
    until = time.monotonic() + 1.1 * LEASE_MS / 1000
    while time.monotonic() < until:
        with contextlib.suppress(BusError):
            if stream.pause(reason, holder):
                return
        if stopping.wait(0.5):
            return


def main() -> int:
    """Run until SIGTERM or SIGINT, or one command; return the exit code."""
    logs.begin()
    words = sys.argv[1:]
    try:
        settings = load_settings()
        logs.begin(settings.log_format, settings.log_level)
        if not settings.redis_url:
            raise SettingsError(
                "EVERLENS_REDIS_URL is empty; start everything with `everlens up`, "
                "or give the address of a Redis or Valkey server"
            )
        if words:
            return _command(words, settings)
        end_tracing = tracing.begin(settings.otlp_endpoint, "everlens-worker", __version__)
    except EverlensError as error:
        log.critical("%s", error)
        return EXIT_SETTINGS
    try:
        return _learn(settings)
    finally:
        end_tracing()


def _command(words: list[str], settings: Settings) -> int:
    stream = Stream(connect(settings.redis_url), Keys(settings.namespace))
    match words:
        case ["create"]:
            if stream.state() is not None:
                raise StateError("there is a log already; `everlens up` goes on with it")
            stream.create()
            print("a log is begun")
        case ["reconcile"] | ["reconcile", "--yes"]:
            act = words[-1] == "--yes"
            witnesses = sorted((settings.data_dir / "service").glob("*.acknowledged"))
            generations = Generations(settings.data_dir / "state" / "learner.db")
            try:
                plan = reconcile(generations, stream, witnesses, act=act)
            finally:
                generations.close()
            print(plan if act else f"{plan}; do so with --yes")
        case ["backup", target, log_dir, serving_dir]:
            binary = settings.redis_server
            places = Places(
                settings.data_dir, Path(serving_dir), Path(log_dir), settings.namespace, binary
            )
            made = back_up(places, Path(target))
            print(
                f"{made.directory} has all samples through entry {made.admitted} and version "
                f"{made.version}; {made.admitted - made.learned_through} entries are to be learnt "
                "again or still"
            )
        case _:
            raise SettingsError(f"{' '.join(words)} is no command of the worker")
    return 0


def _learn(settings: Settings) -> int:
    stopping = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    stand_back_together(NICENESS)
    try:
        loop = make_loop(settings)
    except (SettingsError, ModelError) as error:
        log.critical("%s", error)
        return EXIT_SETTINGS
    except StateError as error:  # another learner's, or another everlens's
        log.critical("%s", error)
        return EXIT_STATE
    log.info("learning with %s", loop.backbone.name)
    # Over a connection of its own: the loop's may be in the middle of a command.
    answering = Answering(connect(settings.redis_url), Keys(settings.namespace))
    exhibits = Exhibits(Gallery(loop.state.path), answering, lambda: loop.begun)
    exhibits.start()
    try:
        try:
            loop.run(stopping.is_set)
        finally:
            exhibits.close()
            loop.rounds.close()  # Python does not end well around a thread that computes
    except DamagedState as error:  # the next start falls back to a copy
        log.critical("%s", error)
        return EXIT_AGAIN
    except (StateError, OtherLog, Fenced, Diverged, ServerError, PartError) as error:
        log.critical("learning stops: %s", error)
        if not isinstance(error, Fenced):
            refuse_samples(loop.stream, str(error), loop.holder, stopping)
        return EXIT_STATE
    loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
