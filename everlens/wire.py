"""
Samples, rejections, activations and forgettings ⇄ the bytes that lie in the log. ③

One payload is: two bytes format number, four bytes length of the header (big endian), the header
as JSON, and the picture (of an activation the adapter, of a forgetting nothing). No pickle; nothing
here runs what it reads.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from everlens.errors import WireError
from everlens.records import (
    ID_CHARACTERS_MAX,
    LABEL_CHARACTERS_MAX,
    TEXT_CHARACTERS_MAX,
    TRACE_CHARACTERS_MAX,
    Activation,
    Forgetting,
    Rejection,
    Sample,
)

FORMAT = 1
_PREFIX = struct.Struct(">HI")
_HEADER_BYTES_MAX = 64 * 1024


def encode_sample(sample: Sample) -> bytes:
    """Return the payload of a sample; equal samples give equal bytes."""
    header = {"id": sample.id, "label": sample.label, "text": sample.text, **_traced(sample)}
    return _encode(header, sample.image)


def encode_activation(activation: Activation) -> bytes:
    """Return the payload of an activation."""
    header = {"version": activation.version, "learned_through": activation.learned_through}
    return _encode(header, activation.adapter)


def encode_rejection(rejection: Rejection) -> bytes:
    """Return the payload of a rejection; equal ones give equal bytes."""
    header = {"id": rejection.id, "label": rejection.label, **_traced(rejection)}
    return _encode(header, rejection.image)


def encode_forgetting(forgetting: Forgetting) -> bytes:
    """Return the payload of a forgetting; equal ones give equal bytes."""
    return _encode({"seq": forgetting.seq, "label": forgetting.label}, b"")


def _traced(entry: Sample | Rejection) -> dict[str, str]:
    return {"trace": entry.trace} if entry.trace else {}


def _encode(header: Mapping[str, object], rest: bytes) -> bytes:
    text = json.dumps(header, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    assert len(text) <= _HEADER_BYTES_MAX
    return _PREFIX.pack(FORMAT, len(text)) + text + rest


def decode_sample(payload: bytes) -> Sample:
    """
    Return the sample that `encode_sample` wrote.

    Raises:
        WireError: anything else. The caller sends the entry to the dead letters.
    """
    header, image = _decode(payload)
    return Sample(
        id=_string(header, "id", ID_CHARACTERS_MAX),
        label=_string(header, "label", LABEL_CHARACTERS_MAX),
        text=None if header.get("text") is None else _string(header, "text", TEXT_CHARACTERS_MAX),
        image=image,
        trace=_trace(header),
    )


def decode_activation(payload: bytes) -> Activation:
    """
    Return the activation that `encode_activation` wrote.

    Raises:
        WireError: anything else. The caller sends the entry to the dead letters.
    """
    header, adapter = _decode(payload)
    return Activation(_count(header, "version"), _count(header, "learned_through"), adapter)


def decode_rejection(payload: bytes) -> Rejection:
    """
    Return the rejection that `encode_rejection` wrote.

    Raises:
        WireError: anything else. The caller sends the entry to the dead letters.
    """
    header, image = _decode(payload)
    return Rejection(
        id=_string(header, "id", ID_CHARACTERS_MAX),
        label=_string(header, "label", LABEL_CHARACTERS_MAX),
        image=image,
        trace=_trace(header),
    )


def decode_forgetting(payload: bytes) -> Forgetting:
    """
    Return the forgetting that `encode_forgetting` wrote.

    Raises:
        WireError: anything else. The caller sends the entry to the dead letters.
    """
    header, rest = _decode(payload)
    seq = _count(header, "seq")
    label = "" if seq else _string(header, "label", LABEL_CHARACTERS_MAX)
    if rest or header.get("label") != label:
        raise WireError("payload names neither one sample nor one class")
    return Forgetting(seq, label)


def _decode(payload: bytes) -> tuple[dict[str, object], bytes]:
    if len(payload) < _PREFIX.size:
        raise WireError(f"payload of {len(payload)} bytes is shorter than its prefix")
    number, length = _PREFIX.unpack_from(payload)
    if number != FORMAT:
        raise WireError(f"payload has format {number}, this version reads format {FORMAT}")
    if length > _HEADER_BYTES_MAX or _PREFIX.size + length > len(payload):
        raise WireError(f"payload announces a header of {length} bytes")
    body = payload[_PREFIX.size :]
    try:
        header = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise WireError(f"payload header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise WireError("payload header is not an object")
    return header, body[length:]


def _trace(header: dict[str, object]) -> str:
    """Return the traceparent, or nothing: no sample is refused for what is not learnt."""
    value = header.get("trace")
    return value if isinstance(value, str) and len(value) <= TRACE_CHARACTERS_MAX else ""


def _count(header: dict[str, object], field: str) -> int:
    value = header.get(field)
    if type(value) is not int or value < 0:
        raise WireError(f"payload field {field!r} is not a count")
    return value


def _string(header: dict[str, object], field: str, characters_max: int) -> str:
    value = header.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= characters_max:
        raise WireError(f"payload field {field!r} is not a string of 1 to {characters_max}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # an unpaired surrogate, which no file would take
        raise WireError(f"payload field {field!r} is not Unicode text") from error
    return value
