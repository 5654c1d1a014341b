"""Pixels through our JPEG and back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlens.errors import WireError
from everlens.pixels import decode_pixels, encode_pixels
from tests.pictures import PHOTOGRAPHS, photograph, squashed


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_comes_back_within_a_few_levels(name: str) -> None:
    """At the model's size the mean change is below two of 256 levels, one pixel in 100 above 10."""
    pixels = squashed(name, 224)
    decoded = decode_pixels(encode_pixels(pixels), 224)
    assert decoded.shape == pixels.shape
    assert decoded.dtype == np.uint8
    change = np.abs(decoded.astype(int) - pixels.astype(int))
    assert change.mean() < 2
    assert np.quantile(change, 0.99) <= 10


def test_colours_keep_their_order_and_their_place() -> None:
    """Red stays red and up stays up: nothing is swapped, flipped or halved in colour."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:8, :, 0] = 200
    pixels[8:, ::2, 2] = 200  # stripes one pixel wide survive only without subsampling
    decoded = decode_pixels(encode_pixels(pixels), 32).astype(int)
    assert np.abs(decoded - pixels).max() < 25


def test_the_same_pixels_are_the_same_bytes() -> None:
    """A replay sees the very pixels that were learnt, from any layout in memory."""
    pixels = squashed("coffee", 64)
    assert encode_pixels(pixels) == encode_pixels(np.asfortranarray(pixels))
    image = encode_pixels(pixels)
    assert np.array_equal(decode_pixels(image, 64), decode_pixels(image, 64))


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (31, 31), (33, 33)])
def test_another_size_is_refused(size: tuple[int, int]) -> None:
    """A picture of another size than the model's says both sizes."""
    pixels = np.asarray(photograph("cat").resize(size))
    with pytest.raises(WireError, match=f"{size[0]} x {size[1]}, the model takes 32 x 32"):
        decode_pixels(encode_pixels(pixels), 32)


def test_another_format_is_refused() -> None:
    """A PNG of the right size is not a picture of ours."""
    stream = io.BytesIO()
    photograph("cat").resize((32, 32)).save(stream, "PNG")
    with pytest.raises(WireError, match="not a JPEG of ours"):
        decode_pixels(stream.getvalue(), 32)


@given(content=st.binary(max_size=100))
def test_no_bytes_raise_anything_else(content: bytes) -> None:
    """Bytes that are no JPEG are a WireError."""
    with pytest.raises(WireError):
        decode_pixels(content, 32)
    with pytest.raises(WireError):
        decode_pixels(b"\xff\xd8\xff" + content, 32)


@given(length=st.integers(0), place=st.integers(0), change=st.integers(1, 255))
def test_a_damaged_picture_raises_nothing_else(length: int, place: int, change: int) -> None:
    """Cut off or with one wrong byte, a JPEG is pixels of the right shape or a WireError."""
    whole = encode_pixels(squashed("rocket", 32))
    flipped = bytearray(whole)
    flipped[place % len(whole)] ^= change
    for content in (whole[: length % len(whole)], bytes(flipped)):
        try:
            decoded = decode_pixels(content, 32)
        except WireError:
            continue
        assert decoded.shape == (32, 32, 3)
