"""What stands where the description asks for a picture: real ones, spoilt ones, and no pictures."""

from __future__ import annotations

import base64
import io
import json

import schemathesis
from hypothesis import strategies as st

from tests.pictures import photograph


def _file(name: str, form: str) -> bytes:
    buffer = io.BytesIO()
    photograph(name).resize((64, 48)).save(buffer, form)
    return buffer.getvalue()


WHOLE = [_file("cat", "JPEG"), _file("coffee", "PNG"), _file("astronaut", "WEBP")]


@st.composite
def _spoilt(draw: st.DrawFn) -> bytes:
    picture = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 8))):
        picture[draw(st.integers(0, len(picture) - 1))] = draw(st.integers(0, 255))
    return bytes(picture[: draw(st.integers(0, len(picture)))])


# Whole ones more often than not, so that a request with several gets behind the first check.
_PICTURES = st.one_of(*[st.sampled_from(WHOLE)] * 6, _spoilt(), st.binary(max_size=64))
_TEXTS = _PICTURES.map(lambda picture: base64.b64encode(picture).decode())
_NAMES = st.sampled_from(["a", "b", "é", "0"]) | st.text(max_size=8)
_LINES = st.lists(
    st.fixed_dictionaries({"image": _TEXTS, "label": _NAMES}, optional={"id": _NAMES}).map(
        json.dumps
    )
    | st.text(max_size=16),
    max_size=4,
).map("\n".join)

schemathesis.openapi.format("byte", _TEXTS)
schemathesis.openapi.format("binary", _PICTURES)
schemathesis.openapi.format("ndjson", _LINES)
for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, _PICTURES)


@schemathesis.serializer("application/x-ndjson")
def as_it_is(_: schemathesis.SerializationContext, value: object) -> bytes:
    """Return the bytes of lines, or of whatever stands in their place."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
