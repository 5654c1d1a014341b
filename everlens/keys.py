"""
API keys: what is kept of a token, in which file, and whether a token is good.

A token is `evl_<id>_<secret>` and is shown once. Kept is its SHA-256: the secret has 256 random
bits, so that a slow hash would protect nothing more. The file is written whole or not at all, and
is refused when others may read it or when it is damaged.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from everlens.errors import KeysError
from everlens.records import clean_name

FORMAT = 1

Scope = Literal["classify", "learn", "classes", "read", "admin"]
"""Ask; teach classes that are known; teach new ones; see what is learnt; decide what serves."""

SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_SCOPES: tuple[Scope, ...] = ("classify", "learn", "classes", "read")

_PREFIX = "evl_"
_ID = slice(len(_PREFIX), len(_PREFIX) + 8)
_TOKEN_CHARACTERS_MAX = 128  # more is not hashed: a header may be long
_NAME_CHARACTERS_MAX = 100
_NOBODYS_SHA256 = "0" * 64


class ApiKey(BaseModel):
    """What is kept of one token. A revoked key stays, so that its id is never given again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str = Field(min_length=1, max_length=_NAME_CHARACTERS_MAX)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    scopes: tuple[Scope, ...]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked: bool = False
    rate_per_s: float | None = Field(None, gt=0, allow_inf_nan=False)  # None: the service's own

    def good(self, now: datetime) -> bool:
        """Return whether the key is neither revoked nor expired."""
        return not self.revoked and (self.expires_at is None or now < self.expires_at)


class KeyRing:
    """All keys of a service. Empty means that there are none: nobody has to show one."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = {key.id: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self._keys.values())

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def find(self, token: str, now: datetime) -> ApiKey | None:
        """Return the key of a token that is good now; the time it takes tells nothing else."""
        key = self._keys.get(token[_ID])
        # Compared also where there is no such id, so that ids cannot be found out by the clock.
        kept = _NOBODYS_SHA256 if key is None else key.sha256
        same = hmac.compare_digest(_sha256(token), kept)
        return key if key is not None and same and key.good(now) else None


class _File(BaseModel):
    """The file's content."""

    model_config = ConfigDict(extra="forbid")

    format: int
    keys: tuple[ApiKey, ...]


def read_ring(path: Path) -> KeyRing:
    """
    Return the keys of a file; none where there is no file.

    Raises:
        KeysError: the file cannot be read, is damaged, or others than its owner may read it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read()
    except FileNotFoundError:
        return KeyRing()
    except OSError as error:
        raise KeysError(
            f"cannot read the API keys in {path}: {error.strerror}; the file belongs to the user "
            "that runs the service"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeysError(f"others have access to the API keys in {path} ({mode:o}); chmod 600 it")
    return KeyRing(_parsed(content, path))


def _parsed(content: bytes, path: Path) -> tuple[ApiKey, ...]:
    try:
        file = _File.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise KeysError(
            f"the API keys in {path} are damaged ({place}: {first['msg']}); restore the file"
        ) from None  # its text has what was read, which is nobody's business
    if file.format != FORMAT:
        raise KeysError(
            f"{path} has format {file.format}, this everlens reads {FORMAT}; go on with the "
            "everlens that wrote it"
        )
    if len({key.id for key in file.keys}) < len(file.keys):
        raise KeysError(f"the API keys in {path} are damaged (an id is there twice); restore it")
    return file.keys


def add_key(
    path: Path,
    name: str,
    *,
    scopes: Iterable[Scope] = DEFAULT_SCOPES,
    now: datetime,
    expires_at: datetime | None = None,
    rate_per_s: float | None = None,
) -> tuple[ApiKey, str]:
    """
    Make a key, write it to the file, and return it with its token, which is kept nowhere.

    Raises:
        KeysError: the name is not printable, or the file is not as it must be.
    """
    try:
        name = clean_name(name, field="the name", characters_max=_NAME_CHARACTERS_MAX)
    except ValueError as error:
        raise KeysError(f"{error}; give the key a name that people know it by") from error
    with _locked(path):
        ring = read_ring(path)
        key_id = _new_id(ring)
        token = f"{_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
        asked = set(scopes)
        key = ApiKey(
            id=key_id,
            name=name,
            sha256=_sha256(token),
            scopes=tuple(scope for scope in SCOPES if scope in asked),
            created_at=now,
            expires_at=expires_at,
            rate_per_s=rate_per_s,
        )
        _write(path, (*ring, key))
    return key, token


def revoke_key(path: Path, key_id: str) -> ApiKey:
    """
    Mark a key as revoked, for good, and return it.

    Raises:
        KeysError: there is no such key, or the file is not as it must be.
    """
    with _locked(path):
        keys = {key.id: key for key in read_ring(path)}
        if key_id not in keys:
            raise KeysError(f"there is no key {key_id} in {path}; `everlens keys list` shows all")
        keys[key_id] = keys[key_id].model_copy(update={"revoked": True})
        _write(path, keys.values())
    return keys[key_id]


def _sha256(token: str) -> str:
    return hashlib.sha256(token[:_TOKEN_CHARACTERS_MAX].encode(errors="replace")).hexdigest()


def _new_id(ring: KeyRing) -> str:
    while (key_id := secrets.token_hex(4)) in ring:
        pass
    return key_id


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file against another command that changes it; its directory is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
    except OSError as error:
        raise KeysError(
            f"cannot write the API keys to {path}: {error.strerror}; set EVERLENS_KEYS_FILE or "
            "EVERLENS_DATA_DIR to a place that can be written"
        ) from error


def _write(path: Path, keys: Iterable[ApiKey]) -> None:
    """Replace the file by one with these keys; after a crash it is the old one or the new one."""
    content = _File(format=FORMAT, keys=tuple(keys)).model_dump_json(indent=2).encode() + b"\n"
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
