"""
The learner: what is known after the entries seen so far, and how a batch changes it. ⑤

Two clocks: `observe` takes a batch into the sums and the buffer in closed form, `draw` and `take`
bend the adapter by SIT. What a round of tuning sees is drawn from what is known at that moment; when
it is computed makes no difference, so it may be computed beside the next batches. Nothing here knows
Redis, HTTP, files or the time.

Shape suffixes: B samples, D features, E joint space.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from everlens.model.adapter import AdapterSpec
from everlens.model.backbone import Backbone
from everlens.model.fusion import Fusion
from everlens.model.snapshot import Snapshot, Views
from everlens.model.tower import Hidden
from everlens.pixels import Pixels
from everlens.records import DeadLetter
from worker.learn.evidence import EvidenceSums
from worker.learn.randomness import generator_for
from worker.learn.replay import BufferChange, Exemplar, ReplayBuffer
from worker.learn.scoring import Scoring
from worker.learn.tuning import Round, Tuner, TuningConfig

# The shared factor is made anew when this share of samples came since: at first after every
# batch, later rarely, so that its cost (a Cholesky of D×D, and its bytes) stays a small part.
REFRESH_GROWTH = 0.10

# One sample in so many, drawn by chance, is held out: learnt by evidence, which can leave it out
# again, and never trained on. Not the first two of a class: few labels are worth more than a test.
HOLD_OUT_EVERY = 10
HOLD_OUT_AFTER = 2

_FORWARD_BATCH = 32  # of exemplars that are looked at again

# Yields what is given, one by one, and does something else between.
Through = Callable[[Iterable[Any]], Iterable[Any]]

_HALF_MAX = torch.finfo(torch.float16).max

# Rows that are taken out of the sums at once.
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """The settings that learning is a function of."""

    adapter: AdapterSpec
    tuning: TuningConfig
    replay_bytes: int
    fusion: Fusion  # to begin with

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.tuning.seed


@dataclass(frozen=True, slots=True)
class LabelledPixels:
    """A decoded sample, ready to be learnt; one that is `refused` is not of its label."""

    seq: int
    id: str
    label: str
    text: str | None
    image: bytes
    pixels: Pixels
    refused: bool = False


@dataclass(frozen=True, slots=True)
class LearntRow:
    """What the sums took from one sample: enough to subtract it again."""

    seq: int
    id: str
    class_index: int
    feature_D: Tensor  # float32
    refused: bool
    batch: int  # in which they took it


@dataclass(frozen=True, slots=True)
class Observation:
    """What a batch changed, for the commit."""

    rows: list[LearntRow]
    new_classes: list[str]
    buffer: BufferChange
    waiting: list[Exemplar]  # for a round of tuning
    scored: list[int]  # the classes whose records changed
    refreshed: bool  # the shared factor is a new one
    unfit: list[DeadLetter]

    @property
    def touched(self) -> list[int]:
        """The classes of which something is said anew."""
        return [row.class_index for row in self.rows]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What unlearning changed, for the commit."""

    rows: list[tuple[int, str, int]]  # seq, id and class of what left the sums
    exemplars: list[int]  # the seqs of those that left the buffer
    whole: list[int]  # classes that begin anew
    refreshed: bool  # the shared factor is a new one

    # A name is for ever, even of a class that begins anew.
    new_classes: tuple[str, ...] = ()

    @property
    def touched(self) -> list[int]:
        """The classes of which something is said anew."""
        return sorted({*self.whole, *(class_index for _, _, class_index in self.rows)})


class Learner:
    """The state of learning over one base model."""

    def __init__(self, backbone: Backbone, config: LearnerConfig) -> None:
        self.backbone = backbone
        self.config = config
        self.class_names: list[str] = []
        self.class_index: dict[str, int] = {}
        self.text_vectors: list[Tensor] = []
        self.sums: EvidenceSums | None = None  # made with the first sample, which tells D
        self.factor: Tensor | None = None
        self.factor_samples = 0
        self.replay = ReplayBuffer(config.replay_bytes)
        self.waiting: list[Exemplar] = []  # observed, and in no round of tuning yet
        self.tuner = Tuner(backbone, config.adapter, config.tuning)
        self.scoring = Scoring(config.fusion)
        self.batch = 0

    @property
    def samples(self) -> int:
        """How many samples the sums hold."""
        return self.sums.samples if self.sums is not None else 0

    @torch.no_grad()
    def observe(self, batch: Sequence[LabelledPixels], snapshot: Snapshot) -> Observation:
        """
        Score a batch with the version that served, then take it into sums and buffer.

        Args:
            batch: the samples, in the order of the log; may be empty (all were bad).
            snapshot: the present version.
        """
        self.batch += 1
        nothing = Observation([], [], BufferChange([], []), [], [], refreshed=False, unfit=[])
        if not batch:
            return nothing
        hidden = snapshot.see_trunk([sample.pixels for sample in batch])
        views = _looked(snapshot, hidden, alone=len(batch) == 1)
        finite_B = views.feature_BD.isfinite().all(dim=1) & views.embedding_BE.isfinite().all(dim=1)
        unfit: list[DeadLetter] = []
        if not bool(finite_B.all()):
            fit = finite_B.nonzero()[:, 0].tolist()
            unfit = [
                DeadLetter(sample.seq, sample.id, "the base model answers it with no numbers")
                for sample, finite in zip(batch, finite_B.tolist(), strict=True)
                if not finite
            ]
            if not fit:
                return replace(nothing, unfit=unfit)
            batch = [batch[row] for row in fit]
            hidden, views = Hidden(hidden.states[fit]), views.rows(fit)
        learnt, refused = _apart(batch)
        if refused:
            names = [batch[row].label for row in refused]
            self.scoring.score_refused(names, snapshot, views.rows(refused))
        refusals = [(batch[row], views.feature_BD[row].cpu()) for row in refused]
        if not learnt:
            return replace(nothing, rows=self._refuse(refusals), unfit=unfit)
        if refused:
            batch = [batch[row] for row in learnt]
            hidden, views = Hidden(hidden.states[learnt]), views.rows(learnt)
        labels = [sample.label for sample in batch]
        scored = self.scoring.score(labels, snapshot, views, self.class_index)
        new_classes = [self._add_class(label) for label in labels]
        class_B = [self.class_index[label] for label in labels]
        feature_BD = views.feature_BD.cpu()
        if self.sums is None:
            self.sums = EvidenceSums(feature_BD.shape[1])
        held_B = self._held_out(batch, class_B)
        self.sums.add(feature_BD, class_B)
        self.scoring.records.make_room(len(self.class_names))
        exemplars = [
            # A row of its own, since a view would keep the whole batch in memory; and in the memory
            # order in which it is saved, since another order gives other bits.
            Exemplar(sample.seq, c, sample.text, sample.image, _own(trunk), held)
            for sample, c, trunk, held in zip(
                batch, class_B, _kept(hidden.states), held_B, strict=True
            )
        ]
        change = self.replay.add(exemplars, generator_for(self.config.seed, "buffer", self.batch))
        waiting = [e for e in exemplars if not e.held_out] if self.tuner.active else []
        self.waiting += waiting
        return Observation(
            rows=[
                LearntRow(sample.seq, sample.id, c, feature_D, refused=False, batch=self.batch)
                for sample, c, feature_D in zip(batch, class_B, feature_BD, strict=True)
            ]
            + self._refuse(refusals),
            new_classes=[name for name in new_classes if name is not None],
            buffer=change,
            waiting=waiting,
            scored=scored,
            refreshed=self._refresh(),
            unfit=unfit,
        )

    def draw(self) -> Round | None:
        """Return a round of SIT steps on the samples that wait for one; None if nothing is to do."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return None
        drawn = self.tuner.draw(waiting, self.replay, self.batch, len(self.class_names))
        return drawn if drawn.draws else None

    def take(self, drawn: Round) -> list[float]:
        """Take the steps of a round, in the order in which rounds were drawn; return the losses."""
        return self.tuner.take(drawn, self._text_vector, self._prompt)

    def tune(self) -> list[float]:
        """Draw a round and take it at once; return the losses."""
        drawn = self.draw()
        return [] if drawn is None else self.take(drawn)

    def go_back(self, adapter: Mapping[str, Tensor]) -> None:
        """
        Go on with the adapter of an earlier version; what came after it is to be forgotten.

        What was learnt of the experts stays: it is about the stream, not about those samples.

        Args:
            adapter: the version's tensors by `<tower>.<map>.<A or B>`; empty for none.

        Raises:
            ValueError: the adapter is not of this learner's maps; nothing was changed.
        """
        self.tuner.go_back(adapter)
        self.waiting = []

    def forget(self, rows: Iterable[LearntRow], whole: Sequence[int] = ()) -> Forgotten:
        """
        Unlearn samples: sums, factor, buffer and the next round of tuning are without them.

        No round that was drawn before may be owed. The adapter stays as it is bent.

        Args:
            rows: what the sums took from them, however many; a part of them is in memory at a time.
            whole: classes that begin anew: their records and losses go, too.
        """
        self.batch += 1
        gone: list[tuple[int, str, int]] = []
        exemplars: list[int] = []
        left = iter(rows)
        while part := list(itertools.islice(left, _ROWS_AT_ONCE)):
            self._take_out(part)
            gone += [(row.seq, row.id, row.class_index) for row in part]
            labelled = [(row.seq, row.class_index) for row in part if not row.refused]
            exemplars += self.replay.forget(labelled)
        seqs = {seq for seq, _, _ in gone}
        self.waiting = [exemplar for exemplar in self.waiting if exemplar.seq not in seqs]
        for class_index in whole:
            self.scoring.records.forget(class_index)
            self.tuner.forget(class_index)
        if gone:
            assert self.sums is not None
            self.factor = self.sums.factor()
            self.factor_samples = self.samples
        return Forgotten(gone, exemplars, list(whole), refreshed=bool(gone))

    def class_weights(self) -> Tensor:
        """Return weight_C of each class's loss, as of the adapter accepted last; 1 is the mean."""
        return self.tuner.class_weights(len(self.class_names))

    def in_parts(
        self, exemplars: Sequence[Exemplar]
    ) -> Iterator[tuple[Sequence[Exemplar], Hidden]]:
        """Yield exemplars with their trunk outputs, as many at a time as a forward pass takes."""
        for start in range(0, len(exemplars), _FORWARD_BATCH):
            part = exemplars[start : start + _FORWARD_BATCH]
            states = torch.stack([e.trunk for e in part]).to(self.backbone.device)
            yield part, Hidden(states.to(self.backbone.precision))

    def _refuse(self, refusals: Sequence[tuple[LabelledPixels, Tensor]]) -> list[LearntRow]:
        """Take refused pictures in; those of a name without a sample say nothing yet."""
        rows = []
        for sample, feature_D in refusals:
            index = self.class_index.get(sample.label)
            if self.sums is not None and index is not None and self.sums.count_C[index] > 0:
                self.sums.refuse(feature_D[None], [index])
                rows.append(
                    LearntRow(
                        sample.seq, sample.id, index, feature_D, refused=True, batch=self.batch
                    )
                )
        return rows

    def _take_out(self, rows: Sequence[LearntRow]) -> None:
        """Take out of the sums what they took from these samples and refusals."""
        assert self.sums is not None
        for refused, out in ((False, self.sums.subtract), (True, self.sums.readmit)):
            some = [row for row in rows if row.refused == refused]
            if some:
                out(torch.stack([row.feature_D for row in some]), [r.class_index for r in some])

    def _held_out(self, batch: Sequence[LabelledPixels], class_B: Sequence[int]) -> list[bool]:
        """Return which samples of a batch are held out; to be asked before the sums know them."""
        assert self.sums is not None
        counts = self.sums.count_C
        seen = {c: int(counts[c]) if c < len(counts) else 0 for c in class_B}
        held = []
        for sample, c in zip(batch, class_B, strict=True):
            generator = generator_for(self.config.seed, "held out", sample.seq)
            drawn = int(torch.randint(HOLD_OUT_EVERY, (1,), generator=generator)) == 0
            held.append(drawn and seen[c] >= HOLD_OUT_AFTER)
            seen[c] += 1
        return held

    def _add_class(self, name: str) -> str | None:
        if name in self.class_index:
            return None
        self.class_index[name] = len(self.class_names)
        self.class_names.append(name)
        self.text_vectors.append(self.backbone.name_embedding(name).cpu())
        return name

    def _refresh(self) -> bool:
        """Make the shared factor anew when enough samples came since; return whether it was."""
        assert self.sums is not None
        if self.samples < (1 + REFRESH_GROWTH) * self.factor_samples:
            return False
        self.factor = self.sums.factor()
        self.factor_samples = self.samples
        return True

    def _text_vector(self, exemplar: Exemplar) -> Tensor:
        if exemplar.text is None:
            return self.text_vectors[exemplar.class_index]
        tokens = self.backbone.tokenize([exemplar.text]).to(self.backbone.device)
        with torch.inference_mode():
            vector = self.backbone.text_tower(tokens).embedding_BE[0].float().cpu()
        return functional.normalize(vector.clone(), dim=-1)

    def _prompt(self, exemplar: Exemplar) -> str:
        name = self.class_names[exemplar.class_index]
        return exemplar.text or self.backbone.templates[0].format(name)


def _looked(snapshot: Snapshot, hidden: Hidden, *, alone: bool) -> Views:
    # Somebody may wait for one that comes alone; many at once are to leave a core to answers.
    if not alone:
        return snapshot.look(hidden)
    # A thread for this once: one that stayed would be missing in a forked child.
    with ThreadPoolExecutor(1) as beside:
        return snapshot.look(hidden, beside=beside)


def _apart(batch: Sequence[LabelledPixels]) -> tuple[list[int], list[int]]:
    """Return the places of the labelled and of the refused ones."""
    labelled = [place for place, sample in enumerate(batch) if not sample.refused]
    return labelled, [place for place, sample in enumerate(batch) if sample.refused]


def _kept(states: Tensor) -> Tensor:
    """Return hidden states as the buffer keeps them, in half the room; what does not fit is cut."""
    # One infinity would void every step that sees it, and each adapter's closed form.
    return states.to("cpu", torch.float16).clamp(-_HALF_MAX, _HALF_MAX)


def _own(row: Tensor) -> Tensor:
    return row.clone(memory_format=torch.contiguous_format)
