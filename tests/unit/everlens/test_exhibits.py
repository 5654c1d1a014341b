"""Questions about the replay buffer and their answers come back as sent, and nothing else does."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlens.errors import WireError
from everlens.exhibits import (
    EXHIBITS_MAX,
    Exhibit,
    Question,
    decode_exhibits,
    decode_question,
    encode_exhibits,
    encode_question,
)

JPEG = b"\xff\xd8\xff\xe0 a picture \xff\xd9"
TOKEN = "0123456789abcdef" * 2

names = st.text("abcé/ Ж鷺", min_size=1, max_size=20).map(lambda text: f"x{text}x")
exhibits = st.builds(Exhibit, names, names, st.floats(-1, 1), st.just(JPEG))


@given(feature=st.binary(max_size=64).map(lambda b: b[: len(b) // 4 * 4]), seq=st.integers(0, 99))
def test_a_question_comes_back_as_it_was_asked(feature: bytes, seq: int) -> None:
    """Token, feature and number survive the way."""
    question = Question(TOKEN, feature, seq)
    assert decode_question(encode_question(question)) == question


@given(shown=st.lists(exhibits, max_size=EXHIBITS_MAX))
def test_exhibits_come_back_as_they_were_shown(shown: list[Exhibit]) -> None:
    """Names, similarity and picture survive the way, in their order."""
    assert decode_exhibits(encode_exhibits(shown)) == shown


@given(
    content=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["id", "label", "token", "seq", "x"]), inner, max_size=4
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_else_arrives_is_a_wire_error(content: bytes) -> None:
    """Any bytes decode or raise `WireError`, and nothing of another kind."""
    for decode in (decode_question, decode_exhibits):
        with contextlib.suppress(WireError):
            decode(content)


def row(**changes: Any) -> bytes:
    """Return one good exhibit with some fields changed."""
    good = json.loads(encode_exhibits([Exhibit("a", "heron", 0.5, JPEG)]))[0]
    return json.dumps([good | changes]).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (row(id="a\u202eb"), "not printable"),
        (row(id=" a"), "another form"),
        (row(label="x" * 201), "no label"),
        (row(label="\ud800"), "not printable"),
        (row(similarity=1.5), "no cosine"),
        (row(similarity=float("nan")), "no cosine"),
        (row(similarity=True), "no cosine"),
        (row(image="PHNjcmlwdD4="), "no JPEG"),
        (row(image="no base64!"), "base64"),
        (row(image="A" * (6 << 20)), "base64 of at most"),
        (json.dumps([{}] * (EXHIBITS_MAX + 1)).encode(), "at most 6"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_no_learner_shows_is_refused(content: bytes, said: str) -> None:
    """A name that shows another, a number that is no cosine, a picture that is none: each is said."""
    with pytest.raises(WireError, match=said):
        decode_exhibits(content)


@pytest.mark.parametrize(
    "about",
    [
        {"token": "../head", "seq": 0, "feature": ""},
        {"token": TOKEN, "seq": -1, "feature": ""},
        {"token": TOKEN, "seq": True, "feature": ""},
        {"token": TOKEN, "seq": 0, "feature": "AAA="},
        {"token": TOKEN, "seq": 0, "feature": None},
    ],
)
def test_what_no_service_asks_is_refused(about: dict[str, Any]) -> None:
    """A token that names another channel, no number, no float32."""
    with pytest.raises(WireError):
        decode_question(json.dumps(about).encode())
