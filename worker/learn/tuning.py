"""
SIT steps: the adapter is bent by new samples and replayed ones, from the trunk's outputs on. ⑤
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from everlens.model.adapter import AdapterSpec, insert, merged, tensors_of
from everlens.model.backbone import Backbone
from everlens.model.tower import Encoding, Hidden, Top
from worker.learn.augment import varied
from worker.learn.class_weights import (
    ClassLosses,
    ClassWeightConfig,
    presence,
    weighted_loss,
)
from worker.learn.contrast import contrastive_loss
from worker.learn.randomness import generator_for
from worker.learn.replay import Exemplar, ReplayBuffer
from worker.learn.sit import candidates, sit_losses

GRADIENT_NORM_MAX = 1.0

# A new learner has few labels: its first batches take more steps, until so many are taken. With one
# label a class that is worth a point and a half, later nothing.
WARM_UP_STEPS = 64


@dataclass(frozen=True, slots=True)
class Draw:
    """The pictures of one SIT step."""

    step: int  # of its round; with the batch, what its randomness is a function of
    new: list[Exemplar]
    replayed: list[Exemplar]


@dataclass(frozen=True, slots=True)
class Round:
    """SIT steps that were drawn, and all that they depend on besides the adapter before them."""

    batch: int
    classes: int  # known when it was drawn
    draws: list[Draw]

    @property
    def steps(self) -> list[Round]:
        """The same in rounds of one step, to be taken one after the other."""
        return [replace(self, draws=[draw]) for draw in self.draws]

    @property
    def pictures(self) -> int:
        """How many its steps see."""
        return sum(len(draw.new) + len(draw.replayed) for draw in self.draws)


@dataclass(frozen=True, slots=True)
class TuningConfig:
    """How the adapter is tuned; see `everlens.settings` for units."""

    seed: int
    learning_rate: float
    weight_decay: float
    steps: int
    first_steps: int  # of the first batches, see `WARM_UP_STEPS`
    replay_samples: int
    new_per_class: int
    contrast: float  # weight of the contrastive loss beside SIT's
    augment: bool
    class_weights: ClassWeightConfig | None = None  # None: every picture of a step weighs the same


class Tuner:
    """The trainable adapter of each tuned tower and its optimiser."""

    def __init__(self, backbone: Backbone, spec: AdapterSpec, config: TuningConfig) -> None:
        self.backbone = backbone
        self.spec = spec
        self.config = config
        self.half_precision = backbone.precision == torch.bfloat16
        _, self.frozen_image_top = backbone.image_tower.cut(spec.top_blocks)
        _, self.answering_top = backbone.answering_tower.cut(spec.top_blocks)
        self.image_top = self._bend(self.frozen_image_top, "image", self.answering_top)
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
        weighting = config.class_weights
        self.losses = ClassLosses(weighting) if weighting is not None else None
        self.steps_drawn = 0
        self.accepted = self.state()

    def _bend(self, top: Top, tower: str, answering: Top | None = None) -> Top:
        if not self.spec.tunes(tower):
            return top
        generator = generator_for(self.config.seed, "adapter", tower)
        return insert(top, self.spec, generator, answering)

    @property
    def active(self) -> bool:
        """Whether there is anything to tune."""
        return bool(self.parameters) and self.config.steps > 0

    def draw(
        self, new: Sequence[Exemplar], replay: ReplayBuffer, batch: int, classes: int
    ) -> Round:
        """
        Return the next SIT steps, with what each of them sees.

        New samples of one class are completed from replay; where replay has no second class either
        the step is left out: it would move nothing, and should leave no momentum or decay.

        Args:
            new: samples that no step has seen.
            replay: where company is drawn from.
            batch: number of the batch observed last; randomness is a function of the seed and this.
            classes: how many there are.
        """
        draws = []
        for step in range(self._steps_now()):
            generator = generator_for(self.config.seed, "replay", batch, step)
            some = self._some_of_each(new, generator)
            # Replay fills the places of those left out: each step sees as many pictures.
            places = self.config.replay_samples + len(new) - len(some)
            draw = Draw(step, some, replay.draw(places, generator))
            if len({e.class_index for e in (*draw.new, *draw.replayed)}) >= 2:
                draws.append(draw)
        self.steps_drawn += len(draws)
        return Round(batch, classes, draws)

    def take(
        self,
        drawn: Round,
        text_vector: Callable[[Exemplar], Tensor],
        prompt: Callable[[Exemplar], str],
    ) -> list[float]:
        """
        Take the steps of a round; return the loss of each.

        Args:
            drawn: the round; each is taken once, in the order in which they were drawn.
            text_vector: the frozen unit vector of an exemplar's text.
            prompt: its text in words, for a tuned text tower.
        """
        losses = []
        for draw in drawn.draws:
            if self.losses is not None:
                self.losses.make_room(drawn.classes)
            loss = self._step(draw, drawn, text_vector, prompt)
            losses += [] if loss is None else [loss]
        return losses

    def _steps_now(self) -> int:
        """Return how many steps a round has: more at first, with little to learn from."""
        warm = self.steps_drawn >= WARM_UP_STEPS
        return self.config.steps if warm else max(self.config.steps, self.config.first_steps)

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
        draw: Draw,
        drawn: Round,
        text_vector: Callable[[Exemplar], Tensor],
        prompt: Callable[[Exemplar], str],
    ) -> float | None:
        """Return the loss, or None when its gradient is not finite: then nothing moves."""
        company = [*draw.new, *draw.replayed]
        text_KE, target_B, rival_BK = self.candidates(company, text_vector, prompt)
        states = torch.stack([e.trunk for e in company]).to(self.device).float()
        if self.config.augment:
            states = varied(
                states, generator_for(self.config.seed, "augment", drawn.batch, draw.step)
            )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
            encoding: Encoding = self.image_top(Hidden(states))
        image_BE = functional.normalize(encoding.embedding_BE.float(), dim=-1)
        loss_B = sit_losses(
            image_BE,
            text_KE,
            target_B.to(self.device),
            self.backbone.logit_scale,
            rival_BK.to(self.device),
        )
        class_B = [e.class_index for e in company]
        loss = loss_B.mean()
        if self.losses is not None:
            self.losses.update(loss_B, class_B)
            presence_C = _presence(draw, drawn.classes)
            loss = weighted_loss(loss_B.cpu(), class_B, self.losses.weights(), presence_C)
            loss = loss.to(self.device)
        if self.config.contrast > 0:
            feature_BD = functional.normalize(encoding.feature_BD.float(), dim=-1)
            loss = loss + self.config.contrast * contrastive_loss(feature_BD, class_B)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters.values(), GRADIENT_NORM_MAX, foreach=False
        )
        if not bool(norm.isfinite()):
            return None
        self.optimiser.step()
        return float(loss.detach())

    def candidates(
        self,
        company: Sequence[Exemplar],
        text_vector: Callable[[Exemplar], Tensor],
        prompt: Callable[[Exemplar], str],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return text_KE of the texts that compete in a step, target_B and rival_BK."""
        first_K, target_B, rival_BK = candidates(
            [e.class_index for e in company], [e.text for e in company]
        )
        named = [company[place] for place in first_K]
        if not self.spec.tunes("text"):
            return torch.stack([text_vector(e) for e in named]).to(self.device), target_B, rival_BK
        tokens_KL = self.backbone.tokenize([prompt(e) for e in named]).to(self.device)
        with torch.no_grad():
            hidden = self.text_trunk(tokens_KL)
        text_KE = functional.normalize(self.text_top(hidden).embedding_BE, dim=-1)
        return text_KE, target_B, rival_BK

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
            return self.answering_top
        tensors = {name: tensor.detach() for name, tensor in tensors_of(self.image_top).items()}
        return merged(self.frozen_image_top, self.answering_top, tensors, self.spec)

    @torch.no_grad()
    def text_vector(self, prompt: str) -> Tensor:
        """Return the unit vector of a text through the text tower as it is tuned now."""
        tokens_1L = self.backbone.tokenize([prompt]).to(self.device)
        embedding_1E = self.text_top(self.text_trunk(tokens_1L)).embedding_BE.float()
        return functional.normalize(embedding_1E[0], dim=-1).cpu()

    def class_weights(self, classes: int) -> Tensor:
        """Return the weight of each class's loss as of the adapter accepted last, 1 being the mean."""
        if self.losses is None:
            return torch.ones(classes, dtype=torch.float64)
        losses = ClassLosses.of({"loss_C": self.accepted["class.loss_C"]}, self.losses.config)
        losses.make_room(classes)
        return classes * losses.weights()

    def accept(self) -> None:
        """Remember this state: what is published now is what a bad stretch goes back to."""
        self.accepted = self.state()

    def roll_back(self) -> None:
        """Go back to the state that was accepted last."""
        self.load_state(self.accepted)

    def go_back(self, adapter: Mapping[str, Tensor]) -> None:
        """
        Take these tensors for the adapter, without moments; none stand for the frozen model.

        Raises:
            ValueError: they are not of this adapter's maps and shapes.
        """
        if adapter:
            shapes = {name: tensor.shape for name, tensor in adapter.items()}
            if shapes != {name: tensor.shape for name, tensor in self.parameters.items()}:
                raise ValueError("the adapter bends other maps than this learner tunes")
        self.optimiser.state.clear()
        for name, parameter in self.parameters.items():
            if adapter:
                parameter.data.copy_(adapter[name])
            elif name.endswith(".B"):
                parameter.data.zero_()
        self.accept()

    def forget(self, class_index: int) -> None:
        """Let a class begin anew, as far as its loss goes; the adapter stays as it is bent."""
        if self.losses is None:
            return
        for loss_C in (self.losses.loss_C, self.accepted["class.loss_C"]):
            loss_C[class_index : class_index + 1] = math.nan

    def state(self) -> dict[str, Tensor]:
        """Return all that the next step depends on: tensors, moments and losses."""
        state = {f"adapter.{name}": tensor for name, tensor in self.adapter().items()}
        for name, parameter in self.parameters.items():
            for moment, value in self.optimiser.state.get(parameter, {}).items():
                state[f"{moment}.{name}"] = value.detach().cpu().clone()
        if self.losses is not None:
            state |= {
                f"class.{name}": tensor.clone() for name, tensor in self.losses.tensors().items()
            }
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
        if self.losses is not None and "class.loss_C" in state:
            losses = {"loss_C": state["class.loss_C"]}
            self.losses = ClassLosses.of(losses, self.losses.config)


def _presence(draw: Draw, classes: int) -> Tensor:
    """Return presence_C, the probability that each class is in a step."""
    presence_C = torch.full((classes,), presence(len(draw.replayed), classes), dtype=torch.float64)
    # A class with a new sample is there for certain, the others when their turn comes.
    presence_C[[e.class_index for e in draw.new]] = 1.0
    return presence_C
