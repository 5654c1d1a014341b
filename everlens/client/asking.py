"""What is asked: names for pictures, what was answered before, and vectors."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from everlens.client.batches import COUNT_MAX, in_batches
from everlens.client.pictures import Image, Picture, as_text, file_bytes, opened
from everlens.client.refusals import ask, ask_bytes
from everlens.client.results import Answer, KeptPrediction, Receipt, SampleState, read
from everlens.client.steps import Plan, Request, aside

Vectors = NDArray[np.float32]

_EXPLAINED_MAX = 8  # in one request: each brings pictures of its own


def classify(
    image: Image,
    labels: Iterable[str] | None = None,
    *,
    top: int = 5,
    version: int | None = None,
    wait_for: str | int | Receipt | None = None,
    explain: bool = False,
) -> Plan[Answer]:
    """
    Return what the picture shows.

    Args:
        image: a path, the bytes of a file, height × width (× 3) pixels, or a Pillow image.
        labels: the candidates; None asks for all learnt classes.
        top: how many lines to answer.
        version: 0 for the frozen base model, None for the newest.
        wait_for: a receipt, or the id or seq of a sample, that the answer has to know.
        explain: say too where the answer comes from.

    Raises:
        ApiError: with the service's own words.
    """
    text, picture = yield from aside(partial(opened, image))
    fields = _fields(labels, top, version, wait_for, explain=explain)
    return _answer((yield from ask("POST", "/classify", {"image": text} | fields)), picture)


def classify_many(
    images: Iterable[Image],
    labels: Iterable[str] | None = None,
    *,
    top: int = 5,
    version: int | None = None,
    wait_for: str | int | Receipt | None = None,
    explain: bool = False,
) -> Plan[list[Answer]]:
    """
    Return what each picture shows, in order; arguments and errors as of `classify`.

    They go in batches, which the service answers faster than one after the other.
    """
    fields = _fields(labels, top, version, wait_for, explain=explain)
    answers: list[Answer] = []

    def send(batch: list[_Question]) -> Plan[None]:
        body = [{"image": each.text} | fields for each in batch]
        said = yield from ask("POST", "/classify", body)
        answers.extend(_answer(one, q.picture) for one, q in zip(said, batch, strict=True))

    count_max = _EXPLAINED_MAX if explain else COUNT_MAX
    questions = (partial(_question, image) for image in images)
    yield from in_batches(questions, send, count_max=count_max)
    return answers


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    picture: Picture

    @property
    def size(self) -> int:
        return len(self.text)


def _question(image: Image) -> _Question:
    return _Question(*opened(image))


def _fields(
    labels: Iterable[str] | None,
    top: int,
    version: int | None,
    wait_for: str | int | Receipt | None,
    *,
    explain: bool,
) -> dict[str, Any]:
    """Return what is asked beside the picture; what was not given is left to the service."""
    if isinstance(labels, str):
        raise TypeError(f"labels is a list of names; write [{labels!r}]")
    optional = {
        "labels": None if labels is None else list(labels),
        "version": version,
        "wait_for": wait_for.seq if isinstance(wait_for, Receipt) else wait_for,
        "explain": explain or None,
    }
    return {"top": top} | {name: value for name, value in optional.items() if value is not None}


def _answer(said: Any, picture: Picture) -> Answer:
    # The picture is ours alone to say: it names a file that `correct` may send.
    return replace(read(Answer, said | {"picture": None}), picture=picture)


def uncertain(limit: int = 20) -> Plan[list[KeptPrediction]]:
    """
    Return the answers that the service was least sure of, and still has; the least sure first.

    Without those that were corrected; the same picture once.

    Raises:
        ApiError: with the service's own words.
    """
    return (yield from predictions("uncertain", limit))


def predictions(
    order: Literal["uncertain", "newest"] = "newest", limit: int = 20
) -> Plan[list[KeptPrediction]]:
    """Return answers that the service still has; errors as of `uncertain`."""
    said = yield from ask("GET", f"/predictions?order={order}&limit={limit}")
    return read(list[KeptPrediction], said["predictions"])


def picture_of(
    asked: Answer | KeptPrediction | Receipt | SampleState,
) -> Plan[bytes]:
    """
    Return a picture file: that of an answer, or of a sample while it is in the replay buffer.

    Raises:
        ApiError: 404 when the service no longer has it.
    """
    if isinstance(asked, Receipt | SampleState):
        path = f"/samples/{quote(asked.id, safe='')}/image"
    else:
        path = f"/predictions/{quote(asked.prediction_id, safe='')}/image"
    return (yield from ask_bytes(Request("GET", path))).content


def embed(images: Iterable[Image]) -> Plan[Vectors]:
    """
    Return the vectors of pictures in the frozen joint space: pictures × dimensions, of length 1.

    Raises:
        ApiError: with the service's own words.
    """
    return (yield from _embedded(partial(_data_uri, image) for image in images))


def embed_texts(texts: Sequence[str]) -> Plan[Vectors]:
    """Return the vectors of texts, in the same space; arguments and errors as of `embed`."""
    if isinstance(texts, str):
        raise TypeError(f"texts is a list; write [{texts!r}]")
    return (yield from _embedded(partial(_Input, text) for text in texts))


@dataclass(frozen=True, slots=True)
class _Input:
    text: str

    @property
    def size(self) -> int:
        return len(self.text)


def _data_uri(image: Image) -> _Input:
    # The service looks at the picture itself, whatever is said here of its format.
    return _Input(f"data:image/jpeg;base64,{as_text(file_bytes(image))}")


def _embedded(inputs: Iterator[partial[_Input]]) -> Plan[Vectors]:
    rows: list[Vectors] = []

    def send(batch: list[_Input]) -> Plan[None]:
        body = {"input": [each.text for each in batch], "encoding_format": "base64"}
        said = yield from ask("POST", "/embeddings", body)
        rows.extend(_vector(one["embedding"]) for one in said["data"])

    yield from in_batches(inputs, send)
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _vector(text: str) -> Vectors:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
