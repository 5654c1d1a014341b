"""What the lab tries: each trial by name, with its source, its stream and what is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.lab import streams
from bench.lab.sources import Split
from bench.lab.streams import Stream
from bench.lab.trial import Recording, Voices, new_run, restricted, served, unlabelled
from bench.lab.tuned import AnytimeRule, make_asymmetric, train_jointly
from everlens.settings import Settings

MakeStream = Callable[[Split, int], Stream]

JOINT_EPOCHS = 10


@dataclass(frozen=True)
class Trial:
    """
    One stream of one source, and how it is run.

    Args:
        name: for tables and files.
        source: a pack, a folder, or a torchvision data set.
        stream: train split and seed → stream.
        run: source, stream and settings → figures.
        changes: settings that differ from the defaults.
        streamed: whether it is one of the streams that baselines are compared on.
    """

    name: str
    source: str
    stream: MakeStream
    run: Callable[[Recording, Stream, Settings], dict[str, Any]]
    changes: dict[str, Any] = field(default_factory=dict)
    streamed: bool = True

    def figures(self, source: Recording, seed: int, settings: Settings) -> dict[str, Any]:
        """Run the trial once."""
        changed = settings.model_copy(update={"seed": seed, **self.changes})
        return self.run(source, self.stream(source.train, seed), changed)


def class_incremental(shots: int) -> MakeStream:
    return lambda train, seed: streams.class_incremental(train.labels, shots, seed)


def domain_incremental(shots: int) -> MakeStream:
    return lambda train, seed: streams.domain_incremental(train.labels, train.domains, shots, seed)


def shuffled(shots: int) -> MakeStream:
    return lambda train, seed: streams.shuffled(train.labels, shots, seed)


def correlated(shots: int) -> MakeStream:
    return lambda train, seed: streams.correlated(train.labels, shots, seed)


def long_tailed(most: int) -> MakeStream:
    return lambda train, seed: streams.long_tailed(train.labels, most, 1, seed)


def si_blurry(train: Split, seed: int) -> Stream:
    return streams.si_blurry(train.labels, seed)


def noisy(shots: int, share: float) -> MakeStream:
    def make(train: Split, seed: int) -> Stream:
        clean = streams.shuffled(train.labels, shots, seed)
        return streams.noisy(clean, len(train.classes), share, seed)

    return make


def poisoned(burst: int, share: float) -> MakeStream:
    """Return a shuffled stream of 640 pictures whose end is poisoned; read at its end alone."""

    def make(train: Split, seed: int) -> Stream:
        clean = streams.shuffled(train.labels, 640 // len(train.classes) + 1, seed)
        first = replace(clean, order=clean.order[:640], labels=clean.labels[:640], exam=(640,))
        return streams.poisoned(first, len(train.classes), share, burst, seed)

    return make


def half(shots: int) -> MakeStream:
    def make(train: Split, seed: int) -> Stream:
        chosen = np.random.default_rng(seed).permutation(len(train.classes))
        whole = streams.class_incremental(train.labels, shots, seed)
        return restricted(whole, chosen[: len(chosen) // 2])

    return make


def run_served(source: Recording, stream: Stream, settings: Settings) -> dict[str, Any]:
    return served(source, stream, new_run(source, settings), rivals=True)


def run_unlabelled(source: Recording, stream: Stream, settings: Settings) -> dict[str, Any]:
    return unlabelled(source, stream, new_run(source, settings))


def run_buffer(
    a_class: int, source: Recording, stream: Stream, settings: Settings
) -> dict[str, Any]:
    """Run with a replay buffer of about so many exemplars a class."""
    budget = len(source.train.classes) * a_class * source.exemplar_bytes
    changed = settings.model_copy(update={"replay_bytes": budget})
    return served(source, stream, new_run(source, changed), rivals=False)


def run_sit(source: Recording, stream: Stream, settings: Settings) -> dict[str, Any]:
    """Run, reading AnytimeCL's rule as well; what is looked at is the tuned text classifier."""
    run, rule = new_run(source, settings), AnytimeRule()
    run.before_batch, run.extra_voice = rule.before_batch, rule.voice
    return served(source, stream, run, rivals=False)


def run_asymmetric(source: Recording, stream: Stream, settings: Settings) -> dict[str, Any]:
    """Run with all known classes as candidates."""
    run = new_run(source, settings)
    make_asymmetric(run.replica.learner)
    return served(source, stream, run, rivals=False)


def run_joint(source: Recording, stream: Stream, settings: Settings) -> dict[str, Any]:
    """Read the stream without tuning, then train on all of it at once."""
    run = new_run(source, settings.model_copy(update={"sit_steps": 0}))
    run.learn(stream)
    learner = run.replica.learner
    learner.config = new_run(source, settings).replica.learner.config
    train_jointly(learner, JOINT_EPOCHS, settings.seed)
    run.replica.moved = True
    run.replica.publish_adapter(judge=False)
    exam, voices = run.exam(stream, len(stream.order)), Voices(source, stream)
    for voice, score_PK in exam.answers.items():
        voices.read(voice, score_PK, exam.names, exam.asked)
    return {"last": {voice: 100 * found[-1] for voice, found in voices.accuracy.items()}}


def run_poisoned(source: Recording, stream: Stream, settings: Settings) -> dict[str, Any]:
    """Return what the gate said of each adapter; the last was tuned on the burst."""
    run = new_run(source, settings)
    run.learn(stream)
    return {"verdicts": run.replica.verdicts}


STREAMS = (
    Trial("caltech class-incremental", "caltech", class_incremental(15), run_served),
    Trial("caltech si-blurry", "caltech", si_blurry, run_served),
    Trial("caltech shuffled", "caltech", shuffled(15), run_served),
    Trial("caltech correlated", "caltech", correlated(15), run_served),
    Trial("caltech long-tailed", "caltech", long_tailed(15), run_served),
    Trial("caltech noisy 10 %", "caltech", noisy(15, 0.1), run_served),
    Trial("caltech noisy 30 %", "caltech", noisy(15, 0.3), run_served),
    Trial("caltech 1 label", "caltech", class_incremental(1), run_served),
    Trial("caltech 2 labels", "caltech", class_incremental(2), run_served),
    Trial("caltech 5 labels", "caltech", class_incremental(5), run_served),
    Trial("pacs domains 20", "pacs", domain_incremental(20), run_served),
    Trial("pacs domains 3", "pacs", domain_incremental(3), run_served),
    Trial("cifar10 class-incremental 20", "cifar10", class_incremental(20), run_served),
    Trial("tiny-imagenet class-incremental 10", "tiny-imagenet", class_incremental(10), run_served),
)
UNLABELLED = (
    Trial("caltech half 15", "caltech", half(15), run_unlabelled, streamed=False),
    Trial("caltech half 5", "caltech", half(5), run_unlabelled, streamed=False),
    Trial("caltech half 1", "caltech", half(1), run_unlabelled, streamed=False),
)
# The last ten batches are the burst, and what was tuned on them alone is what is judged.
_BY_BATCHES = {"adapter_every_rounds": 10}
_SIT_ALONE = {"contrast": 0.0, "augment": False}
_NO_REPLAY = {**_SIT_ALONE, "replay_samples": 0, "sit_new_per_class": 1024}
POISONED = (
    Trial(
        "pacs poisoned burst", "pacs", poisoned(160, 0.3), run_poisoned, _BY_BATCHES, streamed=False
    ),
    Trial(
        "pacs clean burst", "pacs", poisoned(160, 0.0), run_poisoned, _BY_BATCHES, streamed=False
    ),
)
TUNED = (
    *(
        Trial(
            f"caltech {order}, {name}",
            "caltech",
            stream,
            run,
            changes,
            streamed=False,
        )
        for order, stream in (
            ("class-incremental", class_incremental(15)),
            ("si-blurry", si_blurry),
        )
        for name, run, changes in (
            ("SIT", run_sit, _NO_REPLAY),
            ("asymmetric", run_asymmetric, _NO_REPLAY),
            ("SIT with replay", run_sit, _SIT_ALONE),
            ("asymmetric with replay", run_asymmetric, _SIT_ALONE),
        )
    ),
    Trial("caltech joint LoRA", "caltech", class_incremental(15), run_joint, streamed=False),
)
WEIGHTS = tuple(
    Trial(
        f"caltech {balance}, buffer of {a_class}, weights {name}",
        "caltech",
        stream,
        partial(run_buffer, a_class),
        {"class_weights": weights, "class_weights_temperature": temperature},
        streamed=False,
    )
    for balance, stream in (("balanced", shuffled(15)), ("long-tailed", long_tailed(15)))
    for a_class in (1, 2, 5, 20)
    for name, weights, temperature in (
        ("none", "none", 1.0),
        ("balanced", "balanced", 1.0),
        ("robust 1", "robust", 1.0),
        ("robust 2", "robust", 2.0),
    )
)
QUICK = (
    tuple(
        trial
        for trial in STREAMS
        if trial.name
        in {"caltech 1 label", "caltech 5 labels", "pacs domains 3", "caltech long-tailed"}
    )
    + UNLABELLED[1:2]
)


def all_trials(*, quick: bool = False, source: str | None = None) -> Iterator[Trial]:
    """Yield the trials, the most telling first; of a source of one's own, its streams."""
    if source is not None:
        yield from of_source(source)
    else:
        yield from QUICK if quick else (*STREAMS, *UNLABELLED, *POISONED, *TUNED, *WEIGHTS)


def every_trial(source: str) -> Iterator[Trial]:
    """Yield all trials that there are of a source, for a process that knows them by name."""
    yield from all_trials()
    yield from of_source(source)


def of_source(source: str) -> Iterator[Trial]:
    """Yield the streams over a folder or a torchvision data set."""
    for name, stream in (
        ("si-blurry", si_blurry),
        ("class-incremental 20", class_incremental(20)),
        ("correlated 20", correlated(20)),
        ("1 label", class_incremental(1)),
        ("5 labels", class_incremental(5)),
        ("noisy 30 %", noisy(20, 0.3)),
    ):
        yield Trial(f"{Path(source).name} {name}", source, stream, run_served)
    yield Trial(f"{Path(source).name} half 20", source, half(20), run_unlabelled, streamed=False)


def line_of(figures: dict[str, Any]) -> str:
    """Return the most telling figure of a trial, to show progress."""
    if "voices" in figures:
        found = figures["voices"]["served"]
        return f"served {found['last']:.1f} at the end, {found['auc']:.1f} any time"
    if "served" in figures:
        return f"harmonic mean {figures['served']['harmonic']:.1f}"
    if "verdicts" in figures:
        return (
            f"last adapter {'published' if figures['verdicts'][-1]['published'] else 'held back'}"
        )
    return ", ".join(f"{voice} {value:.1f}" for voice, value in figures["last"].items())


def one_thread() -> None:
    """Compute like the learner: on one thread, so that two trials can run side by side."""
    torch.set_num_threads(1)
