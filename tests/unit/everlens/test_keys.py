"""API keys: what is kept, who is let in, and what a file must be to be believed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlens import cli, keys
from everlens.errors import KeysError
from everlens.keys import DEFAULT_SCOPES, KeyRing, add_key, read_ring, revoke_key

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOON = NOW + timedelta(hours=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the keys will be, in a directory that is not there yet."""
    return tmp_path / "data" / "keys.json"


def test_a_token_is_found_and_not_kept(path: Path) -> None:
    """The token finds its key; the file holds its SHA-256 and no part of its secret."""
    key, token = add_key(path, "phone", now=NOW)

    assert read_ring(path).find(token, NOW) == key
    prefix, key_id, secret = token.split("_", 2)
    assert ("evl", key.id) == (prefix, key_id)
    assert len(secret) == 43  # 32 bytes
    content = path.read_text(encoding="utf-8")
    assert secret not in content
    assert hashlib.sha256(token.encode()).hexdigest() in content


def test_every_token_is_another(path: Path) -> None:
    """No two keys share an id or a secret, also with the same name."""
    tokens = {add_key(path, "twin", now=NOW)[1] for _ in range(20)}

    assert len({token[4:12] for token in tokens}) == len({token[13:] for token in tokens}) == 20


def test_what_a_key_may_do_is_what_was_asked_for(path: Path) -> None:
    """Scopes are kept as given, and without any are those of a plain client, never `admin`."""
    assert add_key(path, "plain", now=NOW)[0].scopes == DEFAULT_SCOPES
    assert "admin" not in DEFAULT_SCOPES
    assert add_key(path, "two", scopes=["read", "classify", "read"], now=NOW)[0].scopes == (
        "classify",
        "read",
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1] + ("A" if token[-1] != "A" else "B"),
        lambda token: token[:13],
        lambda token: token + "A",
        lambda token: token + "A" * 200,
        lambda token: "evl_00000000" + token[12:],
        lambda token: token[13:],
        lambda token: token.upper(),
        lambda _: "",
        lambda _: "ä" * 60,
        lambda _: "\ud800" * 60,
    ],
)
def test_another_token_finds_nothing(path: Path, change) -> None:
    """A token that differs anywhere, is cut, or is none at all finds no key."""
    _, token = add_key(path, "phone", now=NOW)

    assert read_ring(path).find(change(token), NOW) is None


@given(st.text(max_size=80))
def test_no_text_finds_a_key_or_breaks(text: str) -> None:
    """Whatever is shown, an answer comes, and it is no."""
    digest = hashlib.sha256(b"evl_0123abcd_secret").hexdigest()
    key = keys.ApiKey(id="0123abcd", name="k", sha256=digest, scopes=("read",), created_at=NOW)

    assert KeyRing([key]).find("evl_0123abcd_" + text, NOW) is None
    assert KeyRing([key]).find("evl_0123abcd_secret", NOW) == key


def test_a_key_expires_at_its_moment(path: Path) -> None:
    """Good until the moment before, not from it on."""
    _, token = add_key(path, "guest", now=NOW, expires_at=SOON)
    ring = read_ring(path)

    assert ring.find(token, SOON - timedelta(microseconds=1))
    assert ring.find(token, SOON) is None


def test_a_revoked_key_is_refused_and_stays_in_the_file(path: Path) -> None:
    """Revoking one leaves the others; a ring of revoked keys is not empty, so nothing opens."""
    key, token = add_key(path, "lost", now=NOW)
    _, other = add_key(path, "kept", now=NOW)

    revoke_key(path, key.id)
    revoke_key(path, key.id)  # twice is as good as once

    ring = read_ring(path)
    assert ring.find(token, NOW) is None
    assert ring.find(other, NOW)
    assert len(ring) == 2


def test_an_unknown_key_cannot_be_revoked(path: Path) -> None:
    """A mistyped id is said, and changes nothing."""
    _, token = add_key(path, "phone", now=NOW)

    with pytest.raises(KeysError, match="no key 0000zzzz"):
        revoke_key(path, "0000zzzz")

    assert read_ring(path).find(token, NOW)


def test_digests_are_compared_in_constant_time_also_for_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One `compare_digest` of two whole digests for each token, whether its id is known or not."""
    _, token = add_key(path, "phone", now=NOW)
    ring = read_ring(path)
    compared: list[tuple[int, int]] = []

    def spy(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", spy)
    for shown in (token, token[:-1] + "~", "evl_00000000_x", "", "x" * 10_000):
        ring.find(shown, NOW)

    assert compared == [(64, 64)] * 5


def test_no_ring_where_there_is_no_file(path: Path) -> None:
    """Without a file there are no keys, which is no error."""
    assert len(read_ring(path)) == 0


def test_the_file_is_its_owners_alone(path: Path) -> None:
    """Written with mode 600 whatever the umask, and again so after each change."""
    umask = os.umask(0)
    try:
        key, _ = add_key(path, "phone", now=NOW)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        revoke_key(path, key.id)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(umask)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666])
def test_a_file_that_others_can_touch_is_refused(path: Path, mode: int) -> None:
    """Read or write for group or world is refused, with the command that puts it right."""
    add_key(path, "phone", now=NOW)
    path.chmod(mode)

    with pytest.raises(KeysError, match="chmod 600"):
        read_ring(path)
    with pytest.raises(KeysError, match="chmod 600"):
        add_key(path, "other", now=NOW)


def damaged(content: bytes) -> list[bytes]:
    """Return versions of a file that nobody may believe."""
    record = json.loads(content)
    first = record["keys"][0]
    changes = [
        {"id": "no id"},
        {"sha256": "0" * 63},
        {"scopes": ["root"]},
        {"created_at": "2026-03-01T12:00:00"},  # in which zone
        {"expires_at": "never"},
        {"revoked": "perhaps"},
        {"rate_per_s": 0},
        {"rate_per_s": "NaN"},
        {"color": "red"},
        {"name": ""},
    ]
    spoilt = [
        *({**record, "keys": [first | change]} for change in changes),
        {"keys": [first]},
        {**record, "format": 2},
        {**record, "keys": [first, first]},
    ]
    whole = [json.dumps(each).encode() for each in spoilt]
    return [b"", b"null", b"[]", content[:-20], content[: len(content) // 2], b"\xff\xfe", *whole]


def test_a_damaged_file_is_refused_in_one_line(path: Path) -> None:
    """Cut, foreign, of another format, with a wrong field: refused, and never taken for empty."""
    key, _ = add_key(path, "phone", now=NOW)
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(KeysError, match=r"damaged|format 2") as refused:
            read_ring(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
        assert key.sha256 not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Something that is no file is an error that names it."""
    with pytest.raises(KeysError, match="Is a directory"):
        read_ring(tmp_path)


def test_a_crash_while_writing_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the new file cannot be made durable, the old one holds and no draft stays."""
    _, token = add_key(path, "phone", now=NOW)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeysError, match="No space left on device"):
        add_key(path, "other", now=NOW)

    assert [key.name for key in read_ring(path)] == ["phone"]
    assert read_ring(path).find(token, NOW)
    assert {each.name for each in path.parent.iterdir()} == {"keys.json", "keys.lock"}


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    """Commands wait for each other: none writes over what another has just added."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: add_key(path, f"key {n}", now=NOW)[0].id, range(24)))

    assert {key.id for key in read_ring(path)} == set(made)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\u202eb", "x" * 101])
def test_a_name_is_for_people(path: Path, name: str) -> None:
    """A name that cannot be read aloud is refused, and nothing is written."""
    with pytest.raises(KeysError, match="the name"):
        add_key(path, name, now=NOW)
    assert not path.exists()


# The command


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with a data directory; returns where the keys will be."""
    monkeypatch.setenv("EVERLENS_DATA_DIR", str(tmp_path))
    return tmp_path / "keys.json"


def test_the_command_prints_the_token_alone(
    environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`$(everlens keys add NAME)` is a token; what it is for goes to standard error."""
    words = ["keys", "add", "lab", "--scope", "read", "--expires-days", "2", "--rate-per-s", "0.5"]
    assert cli.main(words) == 0

    out, error = capsys.readouterr()
    token = out.removesuffix("\n")
    key = read_ring(environment).find(token, datetime.now(UTC))
    assert key is not None
    assert (key.name, key.scopes, key.rate_per_s) == ("lab", ("read",), 0.5)
    assert key.expires_at is not None
    assert key.expires_at - key.created_at == timedelta(days=2)
    assert "may read" in error
    assert "every request" in error
    assert token not in error
    assert token[13:] not in environment.read_text(encoding="utf-8")


def test_the_command_lists_and_revokes(
    environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list has every key with its state, and no token; an unknown id is one line and 2."""
    assert cli.main(["keys", "list"]) == 0
    assert "no keys" in capsys.readouterr().out
    assert cli.main(["keys", "add", "[lab]"]) == 0
    token = capsys.readouterr().out.strip()
    assert cli.main(["keys", "revoke", token[4:12]]) == 0
    assert token[4:12] in capsys.readouterr().err
    assert cli.main(["keys", "list"]) == 0

    listed = capsys.readouterr().out
    assert token[4:12] in listed
    assert "[lab]" in listed
    assert "revoked" in listed
    assert token[13:] not in listed
    assert read_ring(environment).find(token, datetime.now(UTC)) is None
    assert cli.main(["keys", "revoke", "00000000"]) == 2
    assert "00000000" in capsys.readouterr().err


def test_the_command_uses_the_file_that_is_set(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`EVERLENS_KEYS_FILE` names another place than the data directory."""
    elsewhere = tmp_path / "secrets" / "everlens.json"
    monkeypatch.setenv("EVERLENS_KEYS_FILE", str(elsewhere))

    assert cli.main(["keys", "add", "lab"]) == 0

    assert len(read_ring(elsewhere)) == 1
    assert not environment.exists()


@pytest.mark.parametrize(
    "words", [["--expires-days", "0"], ["--rate-per-s", "0"], ["--rate-per-s", "inf"]]
)
def test_the_command_refuses_what_makes_no_sense(environment: Path, words: list[str]) -> None:
    """A key that is never good is not made."""
    with pytest.raises(SystemExit):
        cli.main(["keys", "add", "lab", *words])
    assert not environment.exists()
