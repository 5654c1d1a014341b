"""Samples as bytes and back; anything else is one kind of error."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlens.errors import WireError
from everlens.pixels import encode_pixels
from everlens.records import Forgetting, Rejection, Sample
from everlens.wire import (
    decode_forgetting,
    decode_rejection,
    decode_sample,
    encode_forgetting,
    encode_rejection,
    encode_sample,
)
from tests.pictures import squashed

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)
samples = st.builds(
    Sample,
    id=names,
    label=names,
    image=st.binary(max_size=300),
    text=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=500),
)


def payload(header: object, image: bytes = b"jpeg", number: int = 1) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">HI", number, len(text)) + text + image


GOOD = {"id": "a", "label": "cat", "text": None}


@given(sample=samples)
def test_a_sample_comes_back(sample: Sample) -> None:
    """Decoding what was encoded gives the sample, and equal samples give equal bytes."""
    encoded = encode_sample(sample)
    assert decode_sample(encoded) == sample
    assert encode_sample(decode_sample(encoded)) == encoded


def test_a_photograph_comes_through_whole() -> None:
    """Nothing is cut off or added behind the header."""
    image = encode_pixels(squashed("astronaut", 224))
    assert len(image) > 20_000
    assert decode_sample(encode_sample(Sample("a", "astronaut", image))).image == image


@given(content=st.binary(max_size=200))
def test_no_bytes_raise_anything_else(content: bytes) -> None:
    """Any bytes are a sample or a WireError."""
    try:
        decode_sample(content)
    except WireError:
        return


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
headers = st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, json_values | names)) | json_values


@given(header=headers, image=st.binary(max_size=9))
def test_no_header_raises_anything_else(header: object, image: bytes) -> None:
    """Headers that are JSON of any shape are a sample of the right kinds or a WireError."""
    try:
        sample = decode_sample(payload(header, image))
    except WireError:
        return
    assert isinstance(header, dict)
    assert (sample.id, sample.label, sample.image) == (header["id"], header["label"], image)


@given(sample=samples, place=st.integers(0), change=st.integers(1, 255))
def test_a_flipped_byte_raises_nothing_else(sample: Sample, place: int, change: int) -> None:
    """One damaged byte of a payload gives another sample or a WireError."""
    encoded = bytearray(encode_sample(sample))
    encoded[place % len(encoded)] ^= change
    try:
        decode_sample(bytes(encoded))
    except WireError:
        return


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"\x00\x01\x00\x00\x00", "5 bytes"),
        (payload(GOOD, number=2), "format 2"),
        (payload(GOOD)[:20], "announces a header"),
        (struct.pack(">HI", 1, 70_000) + b" " * 70_000, "announces a header of 70000"),
        (payload(b"{"), "not JSON"),
        (payload(b"\xff\xfe\xfd"), "not JSON"),
        (payload(b"[" * 60_000), "not JSON"),
        (payload(["id"]), "not an object"),
        (payload({"label": "cat"}), "'id'"),
        (payload({**GOOD, "id": ""}), "'id'"),
        (payload({**GOOD, "id": "x" * 201}), "'id'"),
        (payload({**GOOD, "label": 7}), "'label'"),
        (payload({**GOOD, "text": ""}), "'text'"),
        (payload({**GOOD, "text": "x" * 501}), "'text'"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, reason: str) -> None:
    """The reason is what the dead letter will say."""
    with pytest.raises(WireError, match=reason):
        decode_sample(content)


@pytest.mark.parametrize("field", ["id", "label", "text"])
def test_whatever_decodes_can_be_written_again(field: str) -> None:
    """A string that no encoding can hold is refused here, before it reaches state or tokenizer."""
    with pytest.raises(WireError, match=field):
        decode_sample(payload({**GOOD, field: "\ud800"}))


@given(rejection=st.builds(Rejection, id=names, label=names, image=st.binary(max_size=300)))
def test_a_rejection_comes_back(rejection: Rejection) -> None:
    """Decoding what was encoded gives the rejection."""
    assert decode_rejection(encode_rejection(rejection)) == rejection


@given(seq=st.integers(1, 2**53), label=names)
def test_a_forgetting_comes_back(seq: int, label: str) -> None:
    """It names one sample or one class, and comes back as it was."""
    for forgetting in (Forgetting(seq=seq), Forgetting(label=label)):
        assert decode_forgetting(encode_forgetting(forgetting)) == forgetting


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (payload({"seq": 3, "label": "cat"}, b""), "neither"),
        (payload({"seq": 3, "label": ""}), "neither"),
        (payload({"seq": 3}, b""), "neither"),
        (payload({"seq": 0, "label": ""}, b""), "'label'"),
        (payload({"seq": -1, "label": ""}, b""), "'seq'"),
        (payload({"seq": True, "label": ""}, b""), "'seq'"),
        (payload({"label": "cat"}, b""), "'seq'"),
        (b"", "0 bytes"),
    ],
)
def test_forgetting_that_names_nothing_or_too_much_is_refused(content: bytes, reason: str) -> None:
    """Which sample, or which class, must be beyond doubt."""
    with pytest.raises(WireError, match=reason):
        decode_forgetting(content)


@given(content=st.binary(max_size=200), header=json_values)
def test_no_bytes_of_the_others_raise_anything_else(content: bytes, header: object) -> None:
    """Any bytes are a rejection or a forgetting, or a WireError."""
    for decode in (decode_rejection, decode_forgetting):
        for whole in (content, payload(header)):
            try:
                decode(whole)
            except WireError:
                continue
