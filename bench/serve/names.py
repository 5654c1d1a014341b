"""Names that come with a query: a new one is encoded, cut to its length; a known one is not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.measure import interleaved, ratio_of, seconds_of, spread_of
from bench.serve import bare
from bench.serve.findings import Findings
from bench.serve.stage import Stage, milliseconds
from everlens.model.backbone import Backbone
from everlens.model.snapshot import base_snapshot
from service.batch_sizes import SMALL
from service.batcher import Batcher, Query
from service.metrics import Metrics
from service.names import NameVectors
from service.serving import Serving

FASTER, ALIKE = 4.0, 1e-5
CONTEXT = 77  # tokens of CLIP's text towers
_WORDS = ("grey heron", "fire engine", "coffee cup", "tabby cat", "suspension bridge")


def measure(stage: Stage) -> Findings:
    """Measure a name by its own tokens beside the same padded; then ask for it twice."""
    found, backbone = Findings(), stage.backbone
    encoded_twice = asyncio.run(_encoded_again(stage))
    found.add(
        "text passes for names seen before",
        encoded_twice,
        "0",
        ok=encoded_twice == 0,
        known_name_text_passes=encoded_twice,
    )
    if backbone.tokenize(["a"]).shape[1] == backbone.tokenize(list(_WORDS)).shape[1]:
        found.add("new names: cut texts", "not measured: this text tower does not cut")
        return found
    padded_NE = padded_embeddings(backbone, _WORDS)
    apart = float((backbone.name_embeddings(_WORDS) - padded_NE).abs().max())
    turn = itertools.cycle(_WORDS)
    seconds = interleaved(
        {
            "together": lambda: seconds_of(lambda: backbone.name_embeddings(_WORDS)) / len(_WORDS),
            "cut": lambda: seconds_of(lambda: backbone.name_embedding(next(turn))),
            "padded together": lambda: (
                seconds_of(lambda: padded_embeddings(backbone, _WORDS)) / len(_WORDS)
            ),
            "padded": lambda: seconds_of(lambda: padded_embeddings(backbone, [next(turn)])),
        },
        4 * stage.options.rounds,
    )
    faster = ratio_of(seconds["padded together"], seconds["together"])
    found.add("a new name", milliseconds(spread_of(seconds["together"])))
    found.add(
        f"padded to {CONTEXT} tokens over cut, {len(_WORDS)} names a query",
        faster,
        f">= {FASTER}",
        ok=faster.median >= FASTER,
        cut_texts_faster=faster.median,
    )
    alone = ratio_of(seconds["padded"], seconds["cut"])
    found.add("likewise, one name", alone, cut_text_alone_faster=alone.median)
    found.add(
        "greatest difference between the two vectors",
        f"{apart:.2g}",
        f"<= {ALIKE}",
        ok=apart <= ALIKE,
    )
    found.figures["cut_texts_apart"] = apart
    found.keep(seconds=seconds)
    return found


@torch.inference_mode()
def padded_embeddings(backbone: Backbone, names: Sequence[str]) -> Tensor:
    """Return what `Backbone.name_embeddings` does, of tokens padded as open_clip hands them out."""
    texts = [template.format(name) for name in names for template in backbone.templates]
    tokens_TL = backbone.tokenize(texts)
    padded_TL = functional.pad(tokens_TL, (0, CONTEXT - tokens_TL.shape[1]))
    embedding_TE = backbone.text_tower(padded_TL.to(backbone.device)).embedding_BE.float()
    shape = len(names), len(backbone.templates), -1
    unit_NTE = functional.normalize(embedding_TE, dim=-1).view(shape)
    return functional.normalize(unit_NTE.mean(dim=1), dim=-1)


async def _encoded_again(stage: Stage) -> int:
    """Return how many text passes the second query with the same new names takes."""
    backbone = stage.backbone
    serving = Serving(base_snapshot(backbone, backbone.top_blocks))
    batcher = Batcher(serving, NameVectors(backbone), Metrics(), batch_max=SMALL, queued_max=SMALL)
    query = Query(bare.decoded(stage.bodies[0], backbone.pixels), _WORDS, 1)
    with _counted(backbone) as passes:
        await batcher.ask([query])
        first = len(passes)
        assert first > 0
        await batcher.ask([query])
        await batcher.stop()
        return len(passes) - first


@contextmanager
def _counted(backbone: Backbone) -> Iterator[list[int]]:
    """Give a list that grows with every pass of the text tower."""
    passes: list[int] = []

    def noted(*_: Any) -> None:
        passes.append(1)

    tower: Any = backbone.text_tower
    hook = tower.register_forward_hook(noted)
    try:
        yield passes
    finally:
        hook.remove()
