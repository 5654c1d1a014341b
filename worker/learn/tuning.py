"""
SIT steps: the adapter is bent by new samples and replayed ones, from the trunk's outputs on. ⑤
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from everlens.model.adapter import AdapterSpec, insert, merged, tensors_of
from everlens.model.backbone import Backbone
from everlens.model.tower import Hidden, Top
from worker.learn.randomness import generator_for
from worker.learn.replay import Exemplar, ReplayBuffer
from worker.learn.sit import candidates, sit_loss

GRADIENT_NORM_MAX = 1.0


@dataclass(frozen=True, slots=True)
class TuningConfig:
    """How the adapter is tuned; see `everlens.settings` for units."""

    seed: int
    learning_rate: float
    weight_decay: float
    steps: int
    replay_samples: int
    new_per_class: int


class Tuner:
    """The trainable adapter of each tuned tower and its optimiser."""

    def __init__(self, backbone: Backbone, spec: AdapterSpec, config: TuningConfig) -> None:
        self.backbone = backbone
        self.spec = spec
        self.config = config
        _, self.frozen_image_top = backbone.image_tower.cut(spec.top_blocks)
        self.image_top = self._bend(self.frozen_image_top, "image")
        text_blocks = min(spec.top_blocks, len(backbone.text_tower.blocks))
        self.text_trunk, text_top = backbone.text_tower.cut(text_blocks)
        self.text_top = self._bend(text_top, "text")
        self.parameters = {
            f"{tower}.{name}": tensor
            for tower, top in (("image", self.image_top), ("text", self.text_top))
            for name, tensor in tensors_of(top).items()
        }
        # foreach=False: one tensor after the other, the same order of additions everywhere.
        self.optimiser = torch.optim.AdamW(
            list(self.parameters.values()) or [torch.zeros(1, requires_grad=True)],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            foreach=False,
        )

    def _bend(self, top: Top, tower: str) -> Top:
        if not self.spec.tunes(tower):
            return top
        return insert(top, self.spec, generator_for(self.config.seed, "adapter", tower))

    @property
    def active(self) -> bool:
        """Whether there is anything to tune."""
        return bool(self.parameters) and self.config.steps > 0

    def tune(
        self,
        batch: Sequence[Exemplar],
        replay: ReplayBuffer,
        text_vector: Callable[[Exemplar], Tensor],
        prompt: Callable[[Exemplar], str],
        batch_number: int,
    ) -> list[float]:
        """
        Take the SIT steps of one batch; return the loss of each.

        A batch of one class is completed from replay; where replay has no second class either the
        step is skipped, and nothing moves: no momentum, no decay.

        Args:
            batch: the new samples.
            replay: where company is drawn from.
            text_vector: the frozen unit vector of an exemplar's text.
            prompt: its text in words, for a tuned text tower.
            batch_number: randomness is a function of the seed and this.
        """
        losses = []
        for step in range(self.config.steps):
            generator = generator_for(self.config.seed, "replay", batch_number, step)
            new = self._some_of_each(batch, generator)
            # Replay fills the places of those left out: each step sees as many pictures.
            places = self.config.replay_samples + len(batch) - len(new)
            company = [*new, *replay.draw(places, generator)]
            if len({exemplar.class_index for exemplar in company}) < 2:
                continue
            loss = self._step(company, text_vector, prompt)
            losses += [] if loss is None else [loss]
        return losses

    def _some_of_each(self, batch: Sequence[Exemplar], generator: Generator) -> list[Exemplar]:
        """Return at most `new_per_class` samples of each class, drawn anew for each step."""
        taken: dict[int, int] = {}
        chosen = []
        for place in torch.randperm(len(batch), generator=generator).tolist():
            class_index = batch[place].class_index
            taken[class_index] = taken.get(class_index, 0) + 1
            if taken[class_index] <= self.config.new_per_class:
                chosen.append(place)
        return [batch[place] for place in sorted(chosen)]

    def _step(
        self,
        company: Sequence[Exemplar],
        text_vector: Callable[[Exemplar], Tensor],
        prompt: Callable[[Exemplar], str],
    ) -> float | None:
        """Return the loss, or None when its gradient is not finite: then nothing moves."""
        first_K, target_B, rival_BK = candidates(
            [e.class_index for e in company], [e.text for e in company]
        )
        named = [company[place] for place in first_K]
        if self.spec.tunes("text"):
            tokens_KL = self.backbone.tokenize([prompt(e) for e in named]).to(self.device)
            with torch.no_grad():
                hidden = self.text_trunk(tokens_KL)
            text_KE = functional.normalize(self.text_top(hidden).embedding_BE, dim=-1)
        else:
            text_KE = torch.stack([text_vector(e) for e in named]).to(self.device)
        hidden = Hidden(torch.stack([e.trunk for e in company]).to(self.device).float())
        image_BE = functional.normalize(self.image_top(hidden).embedding_BE, dim=-1)
        loss = sit_loss(
            image_BE,
            text_KE,
            target_B.to(self.device),
            self.backbone.logit_scale,
            rival_BK.to(self.device),
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters.values(), GRADIENT_NORM_MAX, foreach=False
        )
        if not bool(norm.isfinite()):
            return None
        self.optimiser.step()
        return float(loss.detach())

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.backbone.device

    def adapter(self) -> dict[str, Tensor]:
        """Return a copy of the trained tensors, by `<tower>.<map>.<A or B>`."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.parameters.items()}

    def merged_image_top(self) -> Top:
        """Return the image top as it would be served: merged, from the untouched base."""
        if not self.spec.tunes("image"):
            return self.frozen_image_top
        tensors = tensors_of(self.image_top)
        return merged(self.frozen_image_top, {k: t.detach() for k, t in tensors.items()}, self.spec)

    @torch.no_grad()
    def text_vector(self, prompt: str) -> Tensor:
        """Return the unit vector of a text through the text tower as it is tuned now."""
        tokens_1L = self.backbone.tokenize([prompt]).to(self.device)
        embedding_1E = self.text_top(self.text_trunk(tokens_1L)).embedding_BE.float()
        return functional.normalize(embedding_1E[0], dim=-1).cpu()

    def state(self) -> dict[str, Tensor]:
        """Return all that the next step depends on: tensors and moments."""
        state = {f"adapter.{name}": tensor for name, tensor in self.adapter().items()}
        for name, parameter in self.parameters.items():
            for moment, value in self.optimiser.state.get(parameter, {}).items():
                state[f"{moment}.{name}"] = value.detach().cpu().clone()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; moments that it lacks are gone."""
        self.optimiser.state.clear()
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[f"adapter.{name}"])
            moments = {
                moment: state[f"{moment}.{name}"].to(
                    parameter.device if moment != "step" else "cpu", copy=True
                )
                for moment in ("step", "exp_avg", "exp_avg_sq")
                if f"{moment}.{name}" in state
            }
            if moments:
                self.optimiser.state[parameter] = moments
