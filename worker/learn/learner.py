"""
The learner: what is known after the entries seen so far, and how a batch changes it. ⑤

Two clocks: `observe` takes a batch into the sums and the buffer in closed form, `tune` bends the
adapter by SIT. Nothing here knows Redis, HTTP, files or the time.

Shape suffixes: B samples, D features, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from everlens.model.adapter import AdapterSpec
from everlens.model.backbone import Backbone
from everlens.model.snapshot import Snapshot, Views
from everlens.model.tower import Hidden
from everlens.pixels import Pixels
from worker.learn.evidence import EvidenceSums, Head, head_of
from worker.learn.prequential import Prequential
from worker.learn.randomness import generator_for
from worker.learn.replay import BufferChange, Exemplar, ReplayBuffer
from worker.learn.tuning import Tuner, TuningConfig

# The shared factor is made anew when this share of samples came since: at first after every
# batch, later rarely, so that its cost (a Cholesky of D×D, and its bytes) stays a small part.
REFRESH_GROWTH = 0.10

# How many exemplars the adapter's own closed form is fitted on at most, a forward pass each.
HEAD_EXEMPLARS_MAX = 2048
_FORWARD_BATCH = 32


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """The settings that learning is a function of."""

    adapter: AdapterSpec
    tuning: TuningConfig
    replay_bytes: int

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
    refreshed: bool  # the shared factor is a new one


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
        self.pending: list[Exemplar] = []
        self.tuner = Tuner(backbone, config.adapter, config.tuning)
        self.prequential = Prequential()
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
            return Observation([], [], BufferChange([], []), refreshed=False)
        hidden = snapshot.trunk(self.backbone.images([sample.pixels for sample in batch]))
        views = snapshot.look(hidden)
        self._score(batch, snapshot, views)
        new_classes = [self._add_class(sample.label) for sample in batch]
        class_B = [self.class_index[sample.label] for sample in batch]
        feature_BD = views.feature_BD.cpu()
        if self.sums is None:
            self.sums = EvidenceSums(feature_BD.shape[1])
        self.sums.add(feature_BD, class_B)
        exemplars = [
            # A row of its own, since a view would keep the whole batch in memory; and in the memory
            # order in which it is saved, since another order gives other bits.
            Exemplar(sample.seq, c, sample.text, sample.image, _own(trunk))
            for sample, c, trunk in zip(
                batch, class_B, hidden.states.to("cpu", torch.float16), strict=True
            )
        ]
        change = self.replay.add(exemplars, generator_for(self.config.seed, "buffer", self.batch))
        self.pending = exemplars if self.tuner.active else []
        return Observation(
            rows=[
                LearntRow(sample.seq, sample.id, c, feature_D)
                for sample, c, feature_D in zip(batch, class_B, feature_BD, strict=True)
            ],
            new_classes=[name for name in new_classes if name is not None],
            buffer=change,
            refreshed=self._refresh(),
        )

    def tune(self) -> list[float]:
        """Take the SIT steps of the batch observed last; return their losses."""
        batch, self.pending = self.pending, []
        if not batch or not self.tuner.active:
            return []
        return self.tuner.tune(batch, self.replay, self._text_vector, self._prompt, self.batch)

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
            states = torch.stack([e.trunk for e in part]).to(self.backbone.device).float()
            feature_BD = tuned_top(Hidden(states)).feature_BD.float().cpu()
            sums = sums or EvidenceSums(feature_BD.shape[1])
            sums.add(feature_BD, [e.class_index for e in part])
        assert sums is not None
        sums.make_room(len(self.class_names))
        return head_of(sums)

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

    def _score(self, batch: Sequence[LabelledPixels], snapshot: Snapshot, views: Views) -> None:
        known = snapshot.classes
        if not known.names:
            return
        probability_BC = snapshot.probabilities(views, None, known.text_CE)
        best_B = probability_BC.argmax(dim=1).tolist()
        for sample, best in zip(batch, best_B, strict=True):
            if sample.label in known.index:
                self.prequential.record(right=known.names[best] == sample.label)

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


def _own(row: Tensor) -> Tensor:
    return row.clone(memory_format=torch.contiguous_format)
