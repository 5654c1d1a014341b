"""LoRA by `torch.nn.utils.parametrize` on open_clip's own model: what one writes without a library."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from bench.learn.clock import Timing, timed
from everlens.model.runtime import import_torchvision
from everlens.settings import Settings


class LowRankSum(nn.Module):
    """W → W + scale · B·A."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(torch.randn(rank, weight.shape[1], device=weight.device) / rank)
        self.B = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the bent weight."""
        return weight + self.scale * self.B @ self.A


class ParametrizedLoop:
    """A plain loop over open_clip's model, all blocks of its image tower bent."""

    def __init__(self, model: str, settings: Settings, device: torch.device) -> None:
        import_torchvision()
        import open_clip

        self.device = device
        logging.disable(logging.WARNING)  # it says that the weights are random
        self.model: Any = open_clip.create_model(model, load_weights=False)
        logging.disable(logging.NOTSET)
        self.model.to(device).train()
        self.model.requires_grad_(requires_grad=False)
        rank, scale = settings.lora_rank, settings.lora_alpha / settings.lora_rank
        for block in self.model.visual.transformer.resblocks:
            for module, name in (
                (block.attn, "in_proj_weight"),
                (block.attn.out_proj, "weight"),
                (block.mlp.c_fc, "weight"),
                (block.mlp.c_proj, "weight"),
            ):
                bent = LowRankSum(getattr(module, name), rank, scale)
                parametrize.register_parametrization(module, name, bent)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def step(self, pictures: int, classes: int, *, half: bool) -> Timing:
        """Take one step on so many pictures; return how long it took."""
        size = self.model.visual.image_size[0]
        images = torch.randn(pictures, 3, size, size, device=self.device)
        tokens_KL = torch.zeros(classes, self.model.context_length, dtype=torch.int64)
        tokens_KL[:, :6] = torch.randint(1000, 40000, (classes, 6))
        tokens_KL[:, 6] = 49407  # read out here; the rest is padding
        target_B = (torch.arange(pictures) % classes).to(self.device)
        return timed(
            lambda: self._step(images, tokens_KL.to(self.device), target_B, half=half), self.device
        )[1]

    def _step(self, images: Tensor, tokens_KL: Tensor, target_B: Tensor, *, half: bool) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        # Cached, since attention asks for its weight several times a pass.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half), parametrize.cached():
            image_BE = self.model.encode_image(images, normalize=True)
            text_KE = self.model.encode_text(tokens_KL, normalize=True)
            logit_BK = self.model.logit_scale.exp() * image_BE @ text_KE.T
        loss = functional.cross_entropy(logit_BK.float(), target_B)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
