"""
A small synchronous client of the service: what a user's program needs, and no torch.

    with Client("http://127.0.0.1:8000") as client:
        receipt = client.learn("heron.jpg", "heron")
        print(client.classify("bird.jpg", wait_for=receipt.id).best.label)

Every sample is sent under an id, so that sending it again after a lost answer, a full queue or a
restart is harmless: it is accepted once.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, runtime_checkable
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

from everlens.errors import EverlensError, SettingsError
from everlens.pixels import encode_pixels

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

URL = "http://127.0.0.1:8000"
_API_KEY = "EVERLENS_API_KEY"
_REPLY_S = 60.0
_BACK_OFF_S = 0.5  # where the service names no time
_POLL_S = 0.05
_CHUNK_SAMPLES = 64
_CHUNK_BYTES = 8 * 2**20  # of base64; a request may hold twice as much


class ApiError(EverlensError):
    """The service's answer is a problem document (RFC 9457), or it cannot be reached (status 0)."""

    def __init__(self, status: int, title: str, detail: str, *, type_: str = "") -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status = status
        self.title = title
        self.detail = detail
        self.type = type_


@runtime_checkable
class _PillowImage(Protocol):
    def convert(self, mode: str) -> Any: ...


Image = str | Path | bytes | NDArray[np.uint8] | _PillowImage
"""A path, the bytes of a file, height × width (× 3) pixels, or a Pillow image."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of an answer; `samples` is how many labels of that class were learnt."""

    label: str
    score: float
    samples: int


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The most probable names, the best first, and the version that they rest on.

    `known` is the probability that the picture is of any learnt class among the candidates; None
    before the first is learnt.
    """

    predictions: tuple[Prediction, ...]
    known: float | None
    version: int
    learned_through: int
    model: str
    prediction_id: str

    @property
    def best(self) -> Prediction:
        """The most probable name."""
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Receipt:
    """An accepted sample: it is on disk, and will be learnt."""

    id: str
    seq: int
    status: str


@dataclass(frozen=True, slots=True)
class SampleState:
    """What became of a sample: accepted, learnt (by which version) or dead (for which reason)."""

    id: str
    seq: int
    status: str
    version: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class KnownClass:
    """A class that was learnt, and from how many labels."""

    label: str
    samples: int


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version; `published_at` in seconds since 1970."""

    version: int
    published_at: int
    learned_through: int
    samples: int
    classes: int


@dataclass(frozen=True, slots=True)
class Learning:
    """How far learning is. `learner` holds the worker's own figures, for people."""

    version: int
    learned_through: int
    accepted_through: int
    paused: str | None
    learner: dict[str, Any]


Record = TypeVar("Record", bound="DataclassInstance")


class Client:
    """Talks to one service; may be used by several threads at once."""

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        patience_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Make a client; nothing is sent yet.

        Args:
            url: where the service listens.
            api_key: shown with every request; by default `EVERLENS_API_KEY` of the environment.
            patience_s: how long a request is sent again while the service says "later".
            transport: instead of the network, for tests.

        Raises:
            SettingsError: the key has characters that no key has.
        """
        self.url = url.rstrip("/")
        self.patience_s = patience_s
        self._http = httpx.Client(
            base_url=self.url,
            timeout=_REPLY_S,
            transport=transport,
            headers=_authorization(os.environ.get(_API_KEY, "") if api_key is None else api_key),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def classify(
        self,
        image: Image,
        labels: Sequence[str] | None = None,
        *,
        top: int = 5,
        version: int | None = None,
        wait_for: str | int | None = None,
    ) -> Answer:
        """
        Return what the picture shows.

        Args:
            image: the picture.
            labels: the candidates; None asks for all learnt classes.
            top: how many lines to answer.
            version: 0 for the frozen base model, None for the newest.
            wait_for: id or seq of a sample that the answer has to know.

        Raises:
            ApiError: with the service's own words.
        """
        body: dict[str, Any] = {"image": _base64(image), "top": top}
        optional = {"labels": labels, "version": version, "wait_for": wait_for}
        body |= {name: value for name, value in optional.items() if value is not None}
        if labels is not None:
            body["labels"] = list(labels)
        fields = self._send("POST", "/classify", json=body)
        lines = tuple(_take(Prediction, line) for line in fields["predictions"])
        return _take(Answer, fields | {"predictions": lines})

    def learn(
        self, image: Image, label: str, *, id: str | None = None, text: str | None = None
    ) -> Receipt:
        """
        Hand over a labelled picture; return when it is on disk.

        Args:
            image: the picture.
            label: name of its class, as people write it.
            id: makes repeats harmless also across programs; by default a new one.
            text: a caption to learn from instead of the label.

        Raises:
            ApiError: with the service's own words. Status 409: the id was used with another body.
        """
        fields = self._send("POST", "/samples", json=_sample(image, label, id, text))
        return _take(Receipt, fields)

    def learn_many(self, samples: Iterable[tuple[Image, str]]) -> Iterator[Receipt]:
        """
        Hand over many labelled pictures; yield a receipt for each, in order.

        Raises:
            ApiError: of the first request that is refused; earlier receipts hold.
        """
        for chunk in _chunks(_sample(image, label, None, None) for image, label in samples):
            for fields in self._send("POST", "/samples", json=chunk):
                yield _take(Receipt, fields)

    def sample(self, sample_id: str) -> SampleState:
        """
        Return what became of a sample.

        Raises:
            ApiError: 404 when it is not known (any more).
        """
        return _take(SampleState, self._send("GET", f"/samples/{quote(sample_id, safe='')}"))

    def wait(self, sample_id: str, *, within_s: float = 60.0) -> SampleState:
        """
        Return when a sample was learnt, or is dead.

        Raises:
            ApiError: 404 when it is not known, 504 when it took longer than `within_s`.
        """
        deadline = time.monotonic() + within_s
        while True:
            state = self.sample(sample_id)
            if state.status != "accepted":
                return state
            if time.monotonic() > deadline:
                raise ApiError(504, "Not learnt in time", f"{sample_id} waits since {within_s:g} s")
            time.sleep(_POLL_S)

    def classes(self) -> list[KnownClass]:
        """Return the learnt classes, in the order of their first sample."""
        return [_take(KnownClass, fields) for fields in self._send("GET", "/classes")["classes"]]

    def versions(self) -> list[VersionRecord]:
        """Return the newest hundred published versions, the newest first."""
        records = self._send("GET", "/versions")["versions"]
        return [_take(VersionRecord, fields) for fields in records]

    def learning(self) -> Learning:
        """Return how far learning is, and how well it does."""
        return _take(Learning, self._send("GET", "/learning"))

    def ready(self) -> bool:
        """Return whether the service answers queries; False also where it cannot be reached."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _send(self, method: str, path: str, json: Any = None) -> Any:
        """Send until it is answered with something else than "later", or patience ends."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                response = self._http.request(method, path, json=json)
            except httpx.TransportError as error:
                raise ApiError(
                    0, f"no answer from {self.url}", str(error) or type(error).__name__
                ) from error
            if response.is_success:
                return response.json()
            wait_s = _retry_after_s(response)
            if wait_s is None or time.monotonic() + wait_s > deadline:
                raise _problem(response)
            time.sleep(wait_s)


def _authorization(api_key: str) -> dict[str, str]:
    """Return the header that shows a key; none without one."""
    api_key = api_key.strip()  # of the newline that a file of it ends with
    if not (api_key.isascii() and api_key.isprintable()):
        raise SettingsError(
            f"an API key is a line of printable ASCII; look at {_API_KEY}, or at what was handed over"
        )
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _take(kind: type[Record], fields: Mapping[str, Any]) -> Record:
    """Return a record of the fields that it has; a newer service may say more."""
    return kind(**{f.name: fields[f.name] for f in dataclasses.fields(kind) if f.name in fields})


def _retry_after_s(response: httpx.Response) -> float | None:
    if response.status_code not in {429, 503}:
        return None
    said = response.headers.get("retry-after", "")
    return float(said) if said.isdecimal() else _BACK_OFF_S


def _problem(response: httpx.Response) -> ApiError:
    try:
        fields = response.json()
        return ApiError(
            response.status_code,
            str(fields["title"]),
            str(fields.get("detail", "")),
            type_=str(fields.get("type", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return ApiError(response.status_code, response.reason_phrase, response.text[:200])


def _sample(image: Image, label: str, id: str | None, text: str | None) -> dict[str, str]:
    body = {"image": _base64(image), "label": label, "id": id or uuid.uuid4().hex}
    return body if text is None else body | {"text": text}


def _chunks(samples: Iterable[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Yield the samples in requests that the service takes."""
    chunk: list[dict[str, str]] = []
    size = 0
    for sample in samples:
        if chunk and (len(chunk) == _CHUNK_SAMPLES or size + len(sample["image"]) > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(sample)
        size += len(sample["image"])
    if chunk:
        yield chunk


def _base64(image: Image) -> str:
    return base64.b64encode(_file_bytes(image)).decode("ascii")


def _file_bytes(image: Image) -> bytes:
    """Return a picture file: as it is where there is one, else JPEG as the service itself keeps."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    pixels = np.asarray(image.convert("RGB") if isinstance(image, _PillowImage) else image)
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3}:
        raise TypeError(
            f"pixels are uint8, height x width (x 3), not {pixels.dtype} {pixels.shape}"
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return encode_pixels(pixels)
