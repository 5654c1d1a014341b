"""Texts and pictures → unit vectors of the frozen joint space, which no learning moves. ⑨"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from everlens.errors import ImageError
from everlens.model.backbone import Backbone
from everlens.model.snapshot import Snapshot
from everlens.pixels import Pixels
from service.context import Model, Service
from service.passes import Passes
from service.problems import field_error, field_problem, image_problem

Vector = np.ndarray[Any, np.dtype[np.float32]]


async def embed(
    service: Service, model: Model, items: Sequence[str | bytes]
) -> tuple[list[Vector], int]:
    """
    Return the vector of each item, and how many tokens of text were read for them.

    Texts and pictures share one space: their cosine says how well they fit. A text is read as it
    stands, where a name among `labels` stands in the model's templates.

    Args:
        service: for its decoders.
        model: for its frozen half.
        items: texts, and pictures as the client sent them (JPEG, PNG, WebP).

    Raises:
        Problem: an item is not fit, with its index; or too many queries wait.
    """
    batcher, base = model.batcher, model.serving.base
    vectors: dict[int, Vector] = {}
    tokens = 0
    with batcher.places(len(items)):
        pictures = await _decoded(service, model, items)
        # One short call after the other, so that others are answered in between.
        places = list(pictures)
        for start in range(0, len(places), batcher.sizes.small):
            some = places[start : start + batcher.sizes.small]
            pixels = [pictures[index] for index in some]
            seen = await batcher.call(partial(_picture_vectors, batcher.passes, base, pixels))
            vectors |= zip(some, seen, strict=True)
        for index, item in enumerate(items):
            if isinstance(item, str):
                read = await batcher.call(partial(_text_vector, base.backbone, item))
                if read is None:
                    raise field_problem(
                        "input", "is longer than what the text tower reads; cut it", index=index
                    )
                vectors[index], more = read
                tokens += more
    return [vectors[index] for index in range(len(items))], tokens


async def _decoded(
    service: Service, model: Model, items: Sequence[str | bytes]
) -> dict[int, Pixels]:
    """Return the pixels of those items that are pictures, by their index."""
    pixels = {}
    with model.batcher.decoding():
        for index, item in enumerate(items):
            if isinstance(item, str):
                continue
            try:
                pixels[index] = await service.decoding.read(item, model.backbone.pixels)
            except ImageError as error:
                raise image_problem(error, [field_error("input", str(error), index)]) from error
    return pixels


def _picture_vectors(passes: Passes, base: Snapshot, pixels: Sequence[Pixels]) -> list[Vector]:
    embedding_BE = passes.see(base, pixels).embedding_BE
    return list(embedding_BE.float().cpu().numpy())


def _text_vector(backbone: Backbone, text: str) -> tuple[Vector, int] | None:
    """Return the vector and the number of tokens, None for a text that would be cut."""
    if not backbone.text_fits(text):
        return None
    vector: Vector = backbone.text_embedding(text).cpu().numpy()
    return vector, backbone.tokenize([text]).shape[1]
