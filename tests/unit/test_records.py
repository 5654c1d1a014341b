"""Names as they come from clients, and as they are kept."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlens.records import LABEL_CHARACTERS_MAX, clean_name


@given(text=st.text(max_size=210))
def test_a_clean_name_is_clean(text: str) -> None:
    """Whatever is taken is NFC, stripped, short, printable, and stays as it is."""
    try:
        name = clean_name(text, field="label")
    except ValueError:
        return
    assert name == unicodedata.normalize("NFC", text).strip()
    assert 0 < len(name) <= LABEL_CHARACTERS_MAX
    assert clean_name(name, field="label") == name
    name.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  cat\n", "cat"),
        ("cafe\u0301", "café"),
        ("père  noël", "père  noël"),
        ("猫", "猫"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("x" * LABEL_CHARACTERS_MAX, "x" * LABEL_CHARACTERS_MAX),
        ("e\u0301" * LABEL_CHARACTERS_MAX, "é" * LABEL_CHARACTERS_MAX),
    ],
)
def test_names_of_all_scripts_are_taken(text: str, expected: str) -> None:
    """Accents are composed, outer white space goes, joiners of scripts and emoji stay."""
    assert clean_name(text, field="label") == expected


@pytest.mark.parametrize("text", ["", "  ", "\u2003\n"])
def test_an_empty_name_is_refused(text: str) -> None:
    """A name needs one visible character."""
    with pytest.raises(ValueError, match="text is empty"):
        clean_name(text, field="text")


def test_a_long_name_is_refused() -> None:
    """The limit counts characters after composition and stripping, and is the field's own."""
    with pytest.raises(ValueError, match="label has 201 characters; at most 200"):
        clean_name("x" * 201, field="label")
    assert clean_name("x" * 201, field="text", characters_max=201) == "x" * 201


@pytest.mark.parametrize(
    "character",
    ["\x00", "\x1b", "\x7f", "\x85", "\u202e", "\u2066", "\u200b", "\ufeff", "\ud800", "\u2028"],
)
def test_a_character_that_hides_is_refused(character: str) -> None:
    """Control, bidirectional, invisible and unpaired characters are named in the error."""
    with pytest.raises(ValueError, match=f"U\\+{ord(character):04X}"):
        clean_name(f"ca{character}t", field="label")


@pytest.mark.parametrize("blank", ["\u200d", "\u200c\u200c", "\u3164", "\u2800", "\u0301"])
def test_name_that_shows_nothing_is_refused(blank: str) -> None:
    """Joiners, fillers and a lone accent are no name: nobody could tell them apart."""
    with pytest.raises(ValueError, match="visible character"):
        clean_name(blank, field="label")
