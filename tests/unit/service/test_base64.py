"""The fast reader of base64 takes what the standard library takes, and nothing else."""

from __future__ import annotations

import base64
import binascii

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from service.schemas import image_bytes

NEAR = st.text(alphabet="ABz09+/=-_ \n\té", max_size=24)


def by_the_standard_library(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None


def read(text: str) -> bytes | None:
    try:
        return image_bytes(text)
    except ValueError:
        return None


@given(NEAR)
@example("AAAA=")
@example("AAA=AAAA")
@example("AA==AA==")
@example("AAB=")
def test_any_text_is_read_as_the_standard_library_reads_it(text):
    """Whatever is nearly base64 gives the same bytes, or is refused by both."""
    assert read(text) == by_the_standard_library(text)


def test_long_texts_with_one_wrong_letter_are_read_as_the_standard_library_reads_them():
    """Also far behind the start, where letters are read by the dozen."""
    random = np.random.default_rng(0)
    for length in range(200, 260):
        letters = list(base64.b64encode(random.bytes(length)).decode())
        assert read("".join(letters)) is not None
        letters[random.integers(len(letters))] = random.choice([*"=-_\n?"])
        text = "".join(letters)
        assert read(text) == by_the_standard_library(text)
