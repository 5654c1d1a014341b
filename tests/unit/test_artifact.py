"""Manifests and parts: named by their digests, and nothing else is taken."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlens.artifact import (
    MANIFEST_BYTES_MAX,
    Manifest,
    check_part,
    decode_manifest,
    digest_of,
)
from everlens.errors import PartError

PART = digest_of(b"a part")
MANIFEST = Manifest(7, "e" * 64, "f" * 64, 41, 40, 3, 2, {"fusion": PART, "classes/0": PART})

numbers = st.integers(0, 2**53)
strings = st.text(st.characters(codec="utf-8"))
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
manifests = st.builds(
    Manifest,
    version=numbers,
    parent=st.just("") | digests,
    fingerprint=digests,
    learned_through=numbers,
    samples=numbers,
    classes=numbers,
    top_blocks=numbers,
    gate=st.none() | st.dictionaries(strings, st.booleans() | numbers | st.floats(allow_nan=False)),
    parts=st.dictionaries(strings, st.just(PART)),
)


def canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def decoded(content: bytes) -> Manifest:
    return decode_manifest(content, digest_of(content))


@given(manifest=manifests)
def test_a_manifest_comes_back(manifest: Manifest) -> None:
    """Decoding what was encoded gives the manifest."""
    assert decode_manifest(manifest.encode(), manifest.digest) == manifest


def test_a_digest_is_the_sha256() -> None:
    """Parts and manifests are named by SHA-256 in hex, so that any tool can check them."""
    assert digest_of(b"a part") == hashlib.sha256(b"a part").hexdigest()
    assert MANIFEST.digest == hashlib.sha256(MANIFEST.encode()).hexdigest()


def test_equal_manifests_are_equal_bytes() -> None:
    """The order in which parts were listed leaves no trace."""
    backwards = dict(reversed(MANIFEST.parts.items()))
    assert dataclasses.replace(MANIFEST, parts=backwards).encode() == MANIFEST.encode()
    fields = {field.name for field in dataclasses.fields(Manifest)}
    changes: list[dict[str, Any]] = [{name: 9 if name != "parts" else {}} for name in fields]
    changed = {dataclasses.replace(MANIFEST, **change).digest for change in changes}
    assert len(changed | {MANIFEST.digest}) == len(fields) + 1


@given(place=st.integers(0), change=st.integers(1, 255))
def test_a_tampered_manifest_is_refused(place: int, change: int) -> None:
    """One changed byte is another digest than the head names."""
    content = bytearray(MANIFEST.encode())
    content[place % len(content)] ^= change
    with pytest.raises(PartError, match="digest"):
        decode_manifest(bytes(content), MANIFEST.digest)


@given(content=st.binary(max_size=200))
def test_no_bytes_raise_anything_else(content: bytes) -> None:
    """Bytes of the right digest that are no manifest are a PartError."""
    with pytest.raises(PartError):
        decoded(content)


WRONG = [
    ("format", 1),
    ("format", None),
    ("format", 2.0),
    ("version", -1),
    ("version", 1.0),
    ("version", True),
    ("version", "7"),
    ("version", 2**53 + 1),
    ("learned_through", None),
    ("samples", [1]),
    ("classes", {}),
    ("top_blocks", -1),
    ("top_blocks", 2.0),
    ("top_blocks", None),
    ("gate", []),
    ("gate", "held back"),
    ("gate", 1),
    ("parent", None),
    ("parent", 7),
    ("parent", "version 6"),
    ("fingerprint", ["f"]),
    ("fingerprint", ""),
    ("fingerprint", "F" * 64),
    ("parts", []),
    ("parts", None),
    ("parts", "fusion"),
    ("parts", {"fusion": None}),
    ("parts", {"fusion": "short"}),
    ("parts", {"fusion": "\ud800" * 64}),
    ("parts", {"fusion": list(PART)}),
    ("extra", 1),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: repr(value)[:20])
def test_a_field_of_the_wrong_kind_is_refused(field: str, value: object) -> None:
    """Each field is of its own kind; one that we do not know is none of ours."""
    fields = json.loads(MANIFEST.encode()) | {field: value}
    with pytest.raises(PartError):
        decoded(canonical(fields))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Manifest)])
def test_a_missing_field_is_refused(field: str) -> None:
    """Every field is needed, the format above all."""
    fields = json.loads(MANIFEST.encode())
    del fields[field]
    with pytest.raises(PartError):
        decoded(canonical(fields))


@pytest.mark.parametrize(
    "content", [b"[]", b"7", b'"format"', b"null", b"[" * 100_000, b"1" * 5000, b"\xff\xfe"]
)
def test_json_of_another_shape_is_refused(content: bytes) -> None:
    """Lists, numbers, strings, deep nesting and huge numbers are no manifest."""
    with pytest.raises(PartError):
        decoded(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content + b" ",
        lambda content: b'{"version":6,' + content[1:],
        lambda content: content.replace(b'"samples":40', b'"samples":4e1'),
    ],
    ids=["blank", "twice", "exponent"],
)
def test_only_the_canonical_bytes_are_taken(change: Callable[[bytes], bytes]) -> None:
    """Other bytes of equal meaning have another digest than the version that they would make."""
    assert decoded(MANIFEST.encode()) == MANIFEST
    with pytest.raises(PartError):
        decoded(change(MANIFEST.encode()))


def test_a_huge_manifest_is_not_read() -> None:
    """Above a megabyte it is refused by its size alone."""
    with pytest.raises(PartError, match="at most"):
        decoded(b" " * (MANIFEST_BYTES_MAX + 1))


def test_a_part_is_what_its_name_says() -> None:
    """The bytes are handed through when their digest is the name; else the reason is said."""
    assert check_part(b"a part", PART) == b"a part"
    with pytest.raises(PartError, match="no longer stored"):
        check_part(None, PART)
    with pytest.raises(PartError, match="damaged"):
        check_part(b"a pert", PART)


def test_a_part_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part above the limit is refused before its digest is computed."""
    monkeypatch.setattr("everlens.artifact.PART_BYTES_MAX", 5)
    with pytest.raises(PartError, match="over 5"):
        check_part(b"a part", PART)
