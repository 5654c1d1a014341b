"""
The learner: what is known after the entries seen so far, and how a batch changes it. ⑤

Two clocks: `observe` takes a batch into the sums and the buffer in closed form, `draw` and `take`
bend the adapter by SIT. What a round of tuning sees is drawn from what is known at that moment; when
it is computed makes no difference, so it may be computed beside the next batches. Nothing here knows
Redis, HTTP, files or the time.

Shape suffixes: B samples, D features, E joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from everlens.model.adapter import AdapterSpec
from everlens.model.backbone import Backbone
from everlens.model.fusion import Fusion, Scores, fuse
from everlens.model.heads import evidence_feature
from everlens.model.snapshot import Snapshot, Views, joined
from everlens.model.tower import Hidden, pooled
from everlens.pixels import Pixels
from everlens.records import DeadLetter
from worker.learn.evidence import EvidenceSums, Head, head_of
from worker.learn.fusing import FusionLearner
from worker.learn.gate import HELD_OUT_MIN, Verdict, compare, right_names, without_itself
from worker.learn.prequential import ClassRecords, Prequential
from worker.learn.randomness import generator_for
from worker.learn.replay import BufferChange, Exemplar, ReplayBuffer
from worker.learn.tuning import Round, Tuner, TuningConfig

# The shared factor is made anew when this share of samples came since: at first after every
# batch, later rarely, so that its cost (a Cholesky of D×D, and its bytes) stays a small part.
REFRESH_GROWTH = 0.10

# One sample in so many, drawn by chance, is held out: learnt by evidence, which can leave it out
# again, and never trained on. Not the first two of a class: few labels are worth more than a test.
HOLD_OUT_EVERY = 10
HOLD_OUT_AFTER = 2

# How many held-out samples the gate asks at most.
JUDGED_MAX = 256

# How many exemplars the adapter's own closed form is fitted on at most, a forward pass each.
HEAD_EXEMPLARS_MAX = 2048
_FORWARD_BATCH = 32


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
    """A decoded sample, ready to be learnt."""

    seq: int
    id: str
    label: str
    text: str | None
    image: bytes
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class LearntRow:
    """What the sums took from one sample: enough to subtract it again."""

    seq: int
    id: str
    class_index: int
    feature_D: Tensor  # float32


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
        self.prequential = Prequential()
        self.records = ClassRecords()
        self.fusing = FusionLearner(config.fusion)
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
        if not batch:
            return Observation([], [], BufferChange([], []), [], [], refreshed=False, unfit=[])
        hidden = snapshot.see_trunk([sample.pixels for sample in batch])
        views = snapshot.look(hidden)
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
                nothing = BufferChange([], [])
                return Observation([], [], nothing, [], [], refreshed=False, unfit=unfit)
            batch = [batch[row] for row in fit]
            hidden, views = Hidden(hidden.states[fit]), views.rows(fit)
        scored = self._score(batch, snapshot, views)
        new_classes = [self._add_class(sample.label) for sample in batch]
        class_B = [self.class_index[sample.label] for sample in batch]
        feature_BD = views.feature_BD.cpu()
        if self.sums is None:
            self.sums = EvidenceSums(feature_BD.shape[1])
        held_B = self._held_out(batch, class_B)
        self.sums.add(feature_BD, class_B)
        self.records.make_room(len(self.class_names))
        exemplars = [
            # A row of its own, since a view would keep the whole batch in memory; and in the memory
            # order in which it is saved, since another order gives other bits.
            Exemplar(sample.seq, c, sample.text, sample.image, _own(trunk), held)
            for sample, c, trunk, held in zip(
                batch, class_B, hidden.states.to("cpu", torch.float16), held_B, strict=True
            )
        ]
        change = self.replay.add(exemplars, generator_for(self.config.seed, "buffer", self.batch))
        waiting = [e for e in exemplars if not e.held_out] if self.tuner.active else []
        self.waiting += waiting
        return Observation(
            rows=[
                LearntRow(sample.seq, sample.id, c, feature_D)
                for sample, c, feature_D in zip(batch, class_B, feature_BD, strict=True)
            ],
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

    def take(self, drawn: Round, stopping: Callable[[], bool] = lambda: False) -> list[float]:
        """Take the steps of a round, in the order in which rounds were drawn; return the losses."""
        return self.tuner.take(drawn, self._text_vector, self._prompt, stopping)

    def tune(self) -> list[float]:
        """Draw a round and take it at once; return the losses."""
        drawn = self.draw()
        return [] if drawn is None else self.take(drawn)

    def go_back(self, adapter: Mapping[str, Tensor], rows: Sequence[LearntRow]) -> list[int]:
        """
        Go on from an earlier version: its adapter, and the sums without what came after it.

        What was learnt of the experts stays: it is about the stream, not about these samples.

        Args:
            adapter: the version's tensors by `<tower>.<map>.<A or B>`; empty for none.
            rows: what the sums took from the samples to be set aside.

        Returns:
            The seqs of the exemplars that left the buffer.

        Raises:
            ValueError: the adapter is not of this learner's maps; nothing was changed.
        """
        self.tuner.go_back(adapter)
        self.batch += 1
        self.waiting = []
        if rows:
            assert self.sums is not None
            features_ND = torch.stack([row.feature_D for row in rows])
            self.sums.subtract(features_ND, [row.class_index for row in rows])
            self.factor = self.sums.factor()
            self.factor_samples = self.samples
        return self.replay.forget([(row.seq, row.class_index) for row in rows])

    @property
    def head_exemplars(self) -> int:
        """How many exemplars `fit_adapter_head` would see."""
        return min(len(self.replay), HEAD_EXEMPLARS_MAX)

    @torch.no_grad()
    def fit_adapter_head(self) -> Head | None:
        """Return the closed form on the features as they are tuned now, from the buffer alone."""
        exemplars = self._balanced(HEAD_EXEMPLARS_MAX)
        if not exemplars:
            return None
        tuned_top = self.tuner.merged_image_top()
        sums: EvidenceSums | None = None
        for start in range(0, len(exemplars), _FORWARD_BATCH):
            part = exemplars[start : start + _FORWARD_BATCH]
            hidden = self._hidden(part)
            feature_BD = evidence_feature(
                tuned_top(hidden).feature_BD.float(), pooled(hidden), self.backbone.recipe
            ).cpu()
            if not bool(feature_BD.isfinite().all()):
                self.tuner.roll_back()  # an adapter that answers with no numbers is none
                return None
            sums = sums or EvidenceSums(feature_BD.shape[1])
            sums.add(feature_BD, [e.class_index for e in part])
        assert sums is not None
        sums.make_room(len(self.class_names))
        return head_of(sums)

    def class_record(self, span: slice, weight_C: Tensor) -> Tensor:
        """
        Return what is said of a range of classes: the columns of `snapshot.RECORD`.

        Args:
            span: the range.
            weight_C: `class_weights`, of all classes.
        """
        records = self.records.part(span)
        columns = [records.recall_C, records.forgetting_C, weight_C[span]]
        return torch.cat([torch.stack(columns, dim=1), records.expert_CX], dim=1)

    def class_weights(self) -> Tensor:
        """Return weight_C of each class's loss, as of the adapter accepted last; 1 is the mean."""
        return self.tuner.class_weights(len(self.class_names))

    @torch.no_grad()
    def judge(self, present: Snapshot, candidate: Snapshot) -> Verdict:
        """
        Ask held-out samples whether a version with a new adapter is worse than the present one.

        Args:
            present: the version that serves.
            candidate: the same with the new adapter.
        """
        held = self.replay.held_out(JUDGED_MAX)
        if len(held) < HELD_OUT_MIN:
            return Verdict(len(held))
        assert self.sums is not None
        class_N = [exemplar.class_index for exemplar in held]
        before_N, after_N = (
            self._right_names(snapshot, held, class_N) for snapshot in (present, candidate)
        )
        return Verdict(len(held), compare(before_N, after_N))

    def _right_names(
        self, snapshot: Snapshot, held: Sequence[Exemplar], class_N: Sequence[int]
    ) -> Tensor:
        """Return the probability that a version gives to the right name of each held-out sample."""
        assert snapshot.evidence is not None
        assert self.sums is not None
        views = self._views(snapshot, held)
        own_N = without_itself(
            snapshot.evidence,
            views.feature_BD,
            self.sums.sum_CD[class_N],
            self.sums.count_C[class_N],
        )
        place_N = [snapshot.classes.place(self.class_names[c]) for c in class_N]
        scores = snapshot.scores(views, None, snapshot.classes.text_CE).cpu()
        return right_names(scores, snapshot.fusion, place_N, own_N)

    def _views(self, snapshot: Snapshot, exemplars: Sequence[Exemplar]) -> Views:
        return joined(
            [
                snapshot.look(self._hidden(exemplars[start : start + _FORWARD_BATCH]))
                for start in range(0, len(exemplars), _FORWARD_BATCH)
            ]
        )

    def _hidden(self, exemplars: Sequence[Exemplar]) -> Hidden:
        states = torch.stack([e.trunk for e in exemplars]).to(self.backbone.device)
        return Hidden(states.to(self.backbone.precision))

    def adapter_text(self, span: slice) -> Tensor | None:
        """Return the tuned text vectors of a range of classes; None if their tower is frozen."""
        if not self.config.adapter.tunes("text"):
            return None
        template = self.backbone.templates[0]
        names = self.class_names[span]
        return torch.stack([self.tuner.text_vector(template.format(name)) for name in names])

    def _balanced(self, count_max: int) -> list[Exemplar]:
        """
        Return the buffer, or an equal share of each class when it is larger than that.

        With more classes than `count_max` they take turns; the others answer by evidence alone.
        """
        classes = self.replay.classes
        if len(classes) > count_max:
            start = self.batch * count_max % len(classes)
            classes = sorted((classes[start:] + classes[:start])[:count_max])
        share = max(1, count_max // max(1, len(classes)))
        return [e for c in classes for e in self.replay.of_class(c)[-share:]]

    def _score(
        self, batch: Sequence[LabelledPixels], snapshot: Snapshot, views: Views
    ) -> list[int]:
        """Score the samples of classes that the snapshot knows; return those classes."""
        if not snapshot.learnt:
            return []
        scores = snapshot.scores(views, None, snapshot.classes.text_CE).cpu()
        place_B = [snapshot.classes.place(sample.label) for sample in batch]
        self.fusing.record(scores, place_B)
        best_B = fuse(scores, snapshot.fusion).probability_BK.argmax(dim=1).tolist()
        expert_BX = _votes(scores)
        known = [row for row, place in enumerate(place_B) if place >= 0]
        for row in known:
            place, right = place_B[row], best_B[row] == place_B[row]
            self.prequential.record(right=right)
            self.records.record(
                self.class_index[batch[row].label],
                right=right,
                experts=[vote == place for vote in expert_BX[row]],
            )
        return sorted({self.class_index[batch[row].label] for row in known})

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


def _votes(scores: Scores) -> list[list[int]]:
    """Return the class that each expert of `EXPERTS` would name, for each picture."""
    evidence_BK = scores.evidence_BK
    assert evidence_BK is not None
    adapter_BK = evidence_BK if scores.adapter_BK is None else scores.adapter_BK
    adapter_BK = torch.where(adapter_BK.isnan(), evidence_BK, adapter_BK)
    votes_BX = [s.argmax(dim=1) for s in (scores.text_BK, evidence_BK, adapter_BK)]
    return torch.stack(votes_BX, dim=1).tolist()


def _own(row: Tensor) -> Tensor:
    return row.clone(memory_format=torch.contiguous_format)
