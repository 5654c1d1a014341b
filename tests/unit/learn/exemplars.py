"""Real pictures as exemplars of a small model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everlens.model.adapter import AdapterSpec
from everlens.model.backbone import Backbone
from everlens.pixels import encode_pixels
from tests.exact import in_bfloat16, in_float32
from tests.pictures import PHOTOGRAPHS, crops
from worker.learn.class_weights import ClassWeightConfig
from worker.learn.randomness import generator_for
from worker.learn.replay import Exemplar, ReplayBuffer
from worker.learn.tuning import WARM_UP_STEPS, Tuner, TuningConfig

FIRST_STEPS = 8
SPEC = AdapterSpec(tune="image", top_blocks=2, rank=4, alpha=4.0)


def exemplars(backbone: Backbone, classes: Sequence[int], top_blocks: int = 2) -> list[Exemplar]:
    """Return one exemplar a class index: different parts of as many photographs."""
    size = backbone.pixels.size
    parts = {c: crops(PHOTOGRAPHS[c], len(classes), size) for c in set(classes)}
    pictures = [parts[c][k] for k, c in enumerate(classes)]
    trunk, _ = backbone.image_tower.cut(top_blocks)
    with torch.no_grad():
        states = trunk(backbone.images(pictures)).states.half()
    return [
        Exemplar(k, c, None, encode_pixels(picture), state)
        for k, (c, picture, state) in enumerate(zip(classes, pictures, states, strict=True))
    ]


def buffer_of(kept: Sequence[Exemplar]) -> ReplayBuffer:
    """Return a buffer with room to spare."""
    buffer = ReplayBuffer(64 << 20)
    buffer.add(kept, generator_for(0))
    return buffer


class Lesson:
    """A tuner with the class texts of the photographs, in float32 and past its first steps."""

    def __init__(
        self,
        backbone: Backbone,
        spec: AdapterSpec = SPEC,
        *,
        seed: int = 0,
        steps: int = 3,
        replay_samples: int = 0,
        new_per_class: int = 100,
        contrast: float = 0.0,
        augment: bool = False,
        half_precision: bool = False,
        warm_up: bool = False,
        class_weights: ClassWeightConfig | None = None,
    ) -> None:
        config = TuningConfig(
            seed=seed,
            learning_rate=1e-2,
            weight_decay=1e-2,
            steps=steps,
            first_steps=FIRST_STEPS,
            replay_samples=replay_samples,
            new_per_class=new_per_class,
            contrast=contrast,
            augment=augment,
            class_weights=class_weights,
        )
        backbone = (in_bfloat16 if half_precision else in_float32)(backbone)
        self.tuner = Tuner(backbone, spec, config)
        self.tuner.steps_drawn = 0 if warm_up else WARM_UP_STEPS
        self.tuner.accept()
        self.vectors = [backbone.name_embedding(name).clone() for name in PHOTOGRAPHS]

    def teach(
        self, batch: Sequence[Exemplar], replay: ReplayBuffer | None = None, number: int = 1
    ) -> list[float]:
        """Take the steps of one batch."""
        buffer = replay if replay is not None else ReplayBuffer(1)
        return self.tuner.take(
            self.tuner.draw(batch, buffer, number, len(PHOTOGRAPHS)),
            lambda e: self.vectors[e.class_index],
            lambda e: e.text or f"a photo of a {PHOTOGRAPHS[e.class_index]}.",
        )


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether two states have the same tensors to the bit; NaN is the same as NaN."""
    return one.keys() == other.keys() and all(
        torch.equal(one[k].isnan(), other[k].isnan())
        and torch.equal(one[k].nan_to_num(), other[k].nan_to_num())
        for k in one
    )
