"""
One stream through the very learner that the worker runs, read at its exams.

Every expert is read beside the served answer, so that one run tells what each part is worth.

Shape suffixes: P test pictures, K names asked for, B pictures of a batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bench.lab.recorded import place
from bench.lab.sources import Numbers, Split
from bench.lab.streams import Stream
from bench.replica import Replica
from everlens.model.fusion import Fused, Scores
from everlens.model.snapshot import Snapshot, Views, joined

_FORWARD_BATCH = 64


@dataclass(frozen=True, slots=True)
class Exam:
    """
    What was answered after so many samples about pictures of the classes and domains seen.

    Args:
        samples: learnt until then.
        asked: places in the test split.
        names: the candidates, as indices into the source's classes.
        answers: voice → score_PK, whose best is the answer; of `served`, probabilities.
        known_P: the service's `known`.
    """

    samples: int
    asked: Numbers
    names: Numbers
    answers: dict[str, Tensor]
    known_P: Tensor


@dataclass(slots=True)
class Run:
    """
    A replica that learns one stream over a recorded source.

    `before_batch` is called with the version that serves, the views of the batch through it and
    its class indices, before anything learns it: for prequential rules.
    """

    replica: Replica
    train: Split
    test: Split
    batch_size: int
    before_batch: Callable[[Snapshot, Views, list[str]], None] | None = None
    extra_voice: Callable[[Run, Views, Scores], dict[str, Tensor]] | None = None
    seconds: float = field(default=0.0, init=False)

    def exams(self, stream: Stream) -> Iterator[Exam]:
        """Learn the stream; yield an exam wherever it has one."""
        for done in self._learnt(stream):
            yield self.exam(stream, done)

    def learn(self, stream: Stream) -> None:
        """Learn the stream to its end, without exams."""
        deque(self._learnt(stream), maxlen=0)

    def _learnt(self, stream: Stream) -> Iterator[int]:
        """Learn the stream batch by batch; yield how far, wherever it has an exam."""
        done = 0
        for end in borders(stream, self.batch_size):
            pictures = [place(index) for index in stream.order[done:end]]
            labels = [self.train.classes[label] for label in stream.labels[done:end]]
            if self.before_batch is not None:
                snapshot = self.replica.snapshot
                self.before_batch(snapshot, snapshot.see(pictures), labels)
            started = time.perf_counter()
            self.replica.learn(pictures, labels)
            done = end
            if done in stream.exam:
                self.replica.publish_adapter()  # as an idle worker does
            self.seconds += time.perf_counter() - started
            if done in stream.exam:
                yield done

    def exam(self, stream: Stream, samples: int) -> Exam:
        """Ask about all test pictures of classes and domains seen so far, among the learnt names."""
        snapshot = self.replica.snapshot
        names = self.learnt()
        domains = np.unique(self.train.domains[stream.order[:samples]])
        seen = np.isin(self.test.labels, names) & np.isin(self.test.domains, domains)
        asked = np.flatnonzero(seen)
        views = self.views(asked)
        scores = snapshot.scores(views, None, snapshot.classes.text_CE)
        fused = snapshot.answer(views, None, snapshot.classes.text_CE)
        answers = {"served": fused.probability_BK, **voices(snapshot, views, scores)}
        if self.extra_voice is not None:
            answers |= self.extra_voice(self, views, scores)
        return Exam(samples, asked, names, answers, fused.known_B)

    def learnt(self) -> Numbers:
        """Return the learnt classes in the learner's order, as indices of the source."""
        index = {name: k for k, name in enumerate(self.train.classes)}
        return np.array([index[name] for name in self.replica.snapshot.classes.names])

    def views(self, asked: Numbers) -> Views:
        """Return the views of test pictures; in the record they lie behind those to learn."""
        pictures = [place(len(self.train.labels) + index) for index in asked]
        return joined(
            [
                self.replica.snapshot.see(pictures[start : start + _FORWARD_BATCH])
                for start in range(0, len(pictures), _FORWARD_BATCH)
            ]
        )

    def among_all_names(self, views: Views) -> Fused:
        """Return the served answer among all names of the source, learnt or not."""
        classes = self.train.classes
        text_KE = torch.stack([self.replica.backbone.name_embedding(name) for name in classes])
        return self.replica.snapshot.answer(views, list(classes), text_KE)


def borders(stream: Stream, batch_size: int) -> list[int]:
    """Return where batches end: when they are full, and at each exam, as the linger timer would."""
    total = len(stream.order)
    ends, start = [], 0
    for exam in sorted({*stream.exam, total}):
        ends += [*range(start + batch_size, exam, batch_size), exam]
        start = exam
    return ends


def voices(snapshot: Snapshot, views: Views, scores: Scores) -> dict[str, Tensor]:
    """Return what each expert alone would answer."""
    found = {"zero-shot": scores.text_BK}
    if scores.evidence_BK is not None:
        found["evidence"] = scores.evidence_BK
    if scores.adapter_BK is not None:
        found["adapter"] = scores.adapter_BK.nan_to_num(nan=-1.0)
    if views.tuned_embedding_BE is not None:
        found["tuned text"] = snapshot.classes.text_CE.products(views.tuned_embedding_BE)
    return found
