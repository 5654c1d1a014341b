"""
One trial: a stream, a seed, and everybody who is asked at its exams.

Its result is plain figures by name, so that trials can run in any process and be taken up again.

Shape suffixes: P test pictures, N pictures of a split, K names, R readings, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.lab import metrics
from bench.lab.baselines import Baseline, by_rail, closed_forms, zero_shot_ladder
from bench.lab.recorded import Record, RecordedBackbone, place, record_of, with_record
from bench.lab.run import Exam, Run
from bench.lab.sources import Numbers, Split, read_source
from bench.lab.streams import Stream
from bench.replica import FILE, Replica
from everlens.model.backbone import Backbone
from everlens.settings import Settings
from worker.__main__ import learner_config
from worker.learn.replay import Exemplar

_FORWARD_BATCH = 64


@dataclass(frozen=True, eq=False)
class Recording:
    """A source with the trunk's outputs for it, and what the frozen model says of its pictures."""

    backbone: RecordedBackbone
    train: Split
    test: Split
    feature_ND: Tensor  # train and test end to end, unit norm, before the projection
    embedding_NE: Tensor  # likewise, in the joint space
    text_KE: Tensor

    @property
    def text_logits(self) -> Tensor:
        """Zero-shot logits of all pictures for all names."""
        return self.backbone.logit_scale * self.embedding_NE @ self.text_KE.T

    @property
    def exemplar_bytes(self) -> int:
        """What one picture takes in a replay buffer."""
        stem = self.backbone.image_tower.stem
        assert isinstance(stem, Record)
        return Exemplar(0, 0, None, FILE, torch.from_numpy(stem.states_N[0])).bytes

    def of_test(self, rows: Numbers) -> Numbers:
        """Return the places of test pictures among all."""
        return len(self.train.labels) + rows


def recording(backbone: Backbone, source: str, folder: Path, cache: Path, blocks: int) -> Recording:
    """Return a source ready for trials; the first time its pictures pass through the trunk."""
    train, test = read_source(source, folder)
    states_N = np.concatenate(
        [
            record_of(backbone, split, blocks, cache, f"{Path(source).name}-{name}")
            for name, split in (("train", train), ("test", test))
        ]
    )
    recorded = with_record(backbone, states_N, blocks)
    trunk, top = recorded.image_tower.cut(blocks)
    features, embeddings = [], []
    with torch.inference_mode():
        for start in range(0, len(states_N), _FORWARD_BATCH):
            stop = min(start + _FORWARD_BATCH, len(states_N))
            encoding = top(trunk(recorded.images([place(k) for k in range(start, stop)])))
            features.append(functional.normalize(encoding.feature_BD.float(), dim=-1))
            embeddings.append(functional.normalize(encoding.embedding_BE.float(), dim=-1))
    text_KE = torch.stack([recorded.name_embedding(name) for name in train.classes])
    # Out of inference mode, where a tensor cannot be used for learning.
    tensors = (torch.cat(features).clone(), torch.cat(embeddings).clone(), text_KE.clone())
    return Recording(recorded, train, test, *tensors)


def new_run(source: Recording, settings: Settings) -> Run:
    """Return a fresh learner over a source, with these settings."""
    config = learner_config(settings, source.backbone)
    every = settings.adapter_every_rounds
    replica = Replica(source.backbone, config, adapter_every_batches=every)
    return Run(replica, source.train, source.test, settings.batch_size)


class Voices:
    """The readings of several voices along one stream."""

    def __init__(self, source: Recording, stream: Stream) -> None:
        self.source = source
        self.stream = stream
        self.accuracy: dict[str, list[float]] = {}
        self.recall: dict[str, list[Any]] = {}

    def read(self, voice: str, score_PK: Tensor, names: Numbers, asked: Numbers) -> None:
        """Take down what one voice answered at an exam."""
        labels = self.source.test.labels[asked]
        best_P = names[score_PK.argmax(dim=1).numpy()]
        self.accuracy.setdefault(voice, []).append(metrics.class_mean_accuracy(best_P, labels))
        # By class and domain: else pictures of a new domain would count as an old one forgotten.
        test, domains = self.source.test, max(1, len(self.source.test.domain_names))
        cell_P = labels * domains + np.maximum(test.domains[asked], 0)
        right_P = np.where(best_P == labels, cell_P, -1)
        cells = len(test.classes) * domains
        self.recall.setdefault(voice, []).append(metrics.class_recalls(right_P, cell_P, cells))

    def figures(self, voice: str) -> dict[str, Any]:
        """Return a voice's figures over the stream."""
        exams, ends = self.stream.exam, [end for _, end in self.stream.tasks]
        accuracy, recall_RC = self.accuracy[voice], np.array(self.recall[voice])
        exams = exams[len(exams) - len(accuracy) :]
        at_ends = [k for k, exam in enumerate(exams) if exam in ends]
        return {
            "accuracy": [round(100 * value, 3) for value in accuracy],
            "auc": 100 * metrics.any_time(accuracy),
            "avg": 100 * metrics.average_at(accuracy, exams, [exams[k] for k in at_ends]),
            "last": 100 * accuracy[-1],
            "forgetting": 100 * metrics.forgetting(recall_RC[at_ends]),
            "worst": 100 * float(np.nanmin(recall_RC[-1])),
            "recall": [[_rounded(v) for v in row] for row in recall_RC[at_ends]],
        }


def served(source: Recording, stream: Stream, run: Run, *, rivals: bool) -> dict[str, Any]:
    """Learn a stream; return the figures of every voice, and of the frozen baselines."""
    voices = Voices(source, stream)
    baselines = Rivals(source, stream) if rivals else None
    weights: list[dict[str, float]] = []
    last: Exam | None = None
    for exam in run.exams(stream):
        for voice, score_PK in exam.answers.items():
            voices.read(voice, score_PK, exam.names, exam.asked)
        if baselines is not None:
            baselines.exam(exam)
        fusion = run.replica.snapshot.fusion
        weights.append({k: round(float(getattr(fusion, k)), 4) for k in fusion.__slots__})
        last = exam
    assert last is not None
    labels = np.searchsorted(np.sort(last.names), source.test.labels[last.asked])
    served_PK = last.answers["served"][:, np.argsort(last.names)].double()
    learner = run.replica.learner
    return {
        "exam": list(stream.exam),
        "voices": {voice: voices.figures(voice) for voice in voices.accuracy},
        "baselines": baselines.figures() if baselines is not None else {},
        "log_loss": metrics.log_loss(served_PK.numpy(), labels),
        "calibration_error": metrics.calibration_error(served_PK.numpy(), labels),
        "fusion": weights,
        "class_weight_max": float(learner.class_weights().max()),
        "samples_per_s": len(stream.order) / run.seconds,
        "replay_bytes": learner.replay.bytes,
        "evidence_bytes": sum(t.nbytes for t in learner.sums.tensors().values())
        if learner.sums
        else 0,
        "prequential": learner.scoring.prequential.accuracy,
    }


class Rivals:
    """Frozen baselines, fed the same stream; each alone and with zero-shot at every fixed weight."""

    def __init__(self, source: Recording, stream: Stream) -> None:
        width = source.feature_ND.shape[1]
        self.source, self.stream, self.done = source, stream, 0
        self.learners: tuple[Baseline, ...] = closed_forms(width, 0)
        self.accuracy: dict[str, list[float]] = {}

    def answers(self, samples: int, asked: Numbers, names: Numbers) -> Iterator[tuple[str, Tensor]]:
        """Learn up to so many samples; yield score_PK of each baseline and setting over `names`."""
        source, stream = self.source, self.stream
        rows = torch.from_numpy(stream.order[self.done : samples])
        labels = stream.labels[self.done : samples].tolist()
        self.done = samples
        place_P = source.of_test(asked)
        text_PK = source.text_logits[place_P][:, names]
        yield "zero-shot", text_PK
        for learner in self.learners:
            if labels:
                learner.add(source.feature_ND[rows], labels)
            for setting, score_PC in learner.ladder(source.feature_ND[place_P]).items():
                score_PK = score_PC.new_full((len(asked), len(source.train.classes)), -torch.inf)
                score_PK[:, : score_PC.shape[1]] = score_PC
                score_PK = score_PK[:, names]
                yield f"{learner.name} {setting}".strip(), score_PK
                for rule, answer_PK in zero_shot_ladder(score_PK, text_PK).items():
                    yield f"{learner.name} {setting} + zero-shot, {rule}", answer_PK

    def exam(self, exam: Exam) -> None:
        """Ask what the served classifier was asked."""
        labels = self.source.test.labels[exam.asked]
        for name, score_PK in self.answers(exam.samples, exam.asked, exam.names):
            best_P = exam.names[score_PK.argmax(dim=1).numpy()]
            accuracy = 100 * metrics.class_mean_accuracy(best_P, labels)
            self.accuracy.setdefault(name, []).append(round(accuracy, 3))

    def figures(self) -> dict[str, dict[str, float]]:
        """Return each baseline's accuracy over the readings and at the end."""
        return {
            name: {"auc": float(np.mean(values)), "last": values[-1]}
            for name, values in self.accuracy.items()
        }


def unlabelled(source: Recording, stream: Stream, run: Run) -> dict[str, Any]:
    """
    Learn a stream of some of the classes; return how names are answered that never had a label.

    All test pictures are asked among all names. Accuracies are class means in per cent.
    """
    run.learn(stream)
    asked = np.arange(len(source.test.labels))
    views, names = run.views(asked), run.learnt()
    fused = run.among_all_names(views)
    text_PK = source.text_logits[source.of_test(asked)]
    learnt_P = np.isin(source.test.labels, names)
    classes = run.replica.snapshot.classes
    known_P = run.replica.snapshot.answer(views, None, classes.text_CE).known_B

    def split(score_PK: Tensor) -> dict[str, float]:
        best_P, labels = score_PK.argmax(dim=1).numpy(), source.test.labels
        one = 100 * metrics.class_mean_accuracy(best_P[learnt_P], labels[learnt_P])
        other = 100 * metrics.class_mean_accuracy(best_P[~learnt_P], labels[~learnt_P])
        return {"learnt": one, "unlabelled": other, "harmonic": metrics.harmonic_mean(one, other)}

    labelled_K = torch.zeros(len(source.train.classes), dtype=torch.bool)
    labelled_K[torch.from_numpy(names)] = True
    found: dict[str, dict[str, float]] = {}
    auroc: dict[str, float] = {}
    baselines = Rivals(source, stream)
    for name, score_PK in baselines.answers(
        len(stream.order), asked, np.arange(len(source.train.classes))
    ):
        if "+ zero-shot" in name:
            found[name] = split(score_PK)
            found[f"RAIL: {name}"] = split(by_rail(score_PK, text_PK, labelled_K))
        else:
            top_P = score_PK[:, labelled_K].double().amax(dim=1)
            auroc[name] = metrics.auroc(top_P.numpy(), learnt_P)
            soft_P = score_PK[:, labelled_K].double().softmax(dim=1).amax(dim=1)
            auroc[f"{name}, softmax"] = metrics.auroc(soft_P.numpy(), learnt_P)
    frozen_P = text_PK.argmax(dim=1).numpy()[~learnt_P]
    served_P = fused.probability_BK.argmax(dim=1).numpy()[~learnt_P]
    return {
        "served": split(fused.probability_BK),
        "zero-shot": split(text_PK),
        "baselines": found,
        "agreement": metrics.agreement(served_P, frozen_P),
        "known_auroc": metrics.auroc(known_P.numpy(), learnt_P),
        "baseline_auroc": auroc,
    }


def restricted(stream: Stream, classes: Numbers) -> Stream:
    """Return what a stream shows of some classes; exams and tasks shrink with it."""
    kept_S = np.isin(stream.labels, classes)
    moved = np.concatenate([[0], np.cumsum(kept_S)])
    exam = tuple(sorted({int(moved[place]) for place in stream.exam} - {0}))
    tasks = tuple((int(moved[start]), int(moved[end])) for start, end in stream.tasks)
    tasks = tuple(task for task in tasks if task[0] < task[1])
    return replace(
        stream, order=stream.order[kept_S], labels=stream.labels[kept_S], exam=exam, tasks=tasks
    )


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)
