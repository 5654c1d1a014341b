"""The version kept on this machine: what it holds, and that it answers while the log is away."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from everlens.artifact import Manifest, digest_of
from everlens.bus.server import EmbeddedServer
from everlens.bus.versions import Follower
from everlens.errors import LogUnavailable, PartError
from everlens.settings import Settings
from service.cache import VersionCache
from tests.unit.service.api import Api
from tests.unit.service.conftest import Start
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio


def version(number: int, parts: dict[str, bytes]) -> Manifest:
    digests = {name: digest_of(part) for name, part in parts.items()}
    return Manifest(number, "", "f" * 64, number, 1, 1, 2, digests)


def by_digest(parts: dict[str, bytes]) -> dict[str, bytes]:
    return {digest_of(part): part for part in parts.values()}


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    """Manifest and parts come back; parts that no version names any more are gone."""
    cache = VersionCache(tmp_path / "kept")
    assert cache.load() is None
    first, second = {"a": b"one", "b": b"two"}, {"a": b"one", "b": b"other"}
    cache.keep(version(1, first), by_digest(first))
    assert cache.load() == (version(1, first), by_digest(first))
    cache.keep(version(2, second), {digest_of(b"other"): b"other"})
    assert VersionCache(tmp_path / "kept").load() == (version(2, second), by_digest(second))
    assert len(list((tmp_path / "kept").iterdir())) == 3


@pytest.mark.parametrize("damage", ["part", "manifest", "missing"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    """Neither a part nor a manifest with other bytes is believed."""
    cache = VersionCache(tmp_path)
    parts = {"a": b"one"}
    cache.keep(version(1, parts), by_digest(parts))
    part = tmp_path / digest_of(b"one")
    match damage:
        case "part":
            part.write_bytes(b"0ne")
        case "missing":
            part.unlink()
        case _:
            written = (tmp_path / "manifest").read_bytes()
            (tmp_path / "manifest").write_bytes(written.replace(b'"samples":1', b'"samples":2'))
    with pytest.raises(PartError):
        cache.load()


def test_directory_that_was_emptied_keeps_nothing_half(tmp_path: Path) -> None:
    """With a part missing that only an earlier version wrote, nothing is kept until it is given."""
    cache = VersionCache(tmp_path)
    parts = {"a": b"one", "b": b"two"}
    assert cache.keep(version(1, parts), by_digest(parts)) == []
    os.remove(tmp_path / digest_of(b"one"))  # noqa: PTH107
    again = replace(version(2, parts), samples=9)
    assert cache.keep(again, {}) == [digest_of(b"one")]
    assert cache.load() is None
    assert cache.keep(again, {digest_of(b"one"): b"one"}) == []
    assert cache.load() == (again, by_digest(parts))


def test_what_is_given_is_written_over_what_lies_there(tmp_path: Path) -> None:
    """A power cut may have left a part short under its digest."""
    cache = VersionCache(tmp_path)
    parts = {"a": b"one", "b": b"two"}
    cache.keep(version(1, parts), by_digest(parts))
    (tmp_path / digest_of(b"one")).write_bytes(b"o")
    cache.keep(version(2, parts), by_digest(parts))
    assert cache.load() == (version(2, parts), by_digest(parts))


async def test_what_a_full_disk_did_not_take_is_kept_with_the_next_version(
    api: Api, photos, monkeypatch
) -> None:
    """The parts that it lacks are fetched, though the service itself has them."""
    cache = api.model.swaps.cache

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(VersionCache, "_write", full)
        await api.served(api.publish({"cat": photos["cat"]}, learned_through=1))
        await asyncio.wrap_future(api.service._builder.submit(lambda: None))  # behind the swap
    assert cache.load() is None
    second = api.publish({"cat": photos["rocket"]}, learned_through=2)
    await api.served(second)
    await until(lambda: cache.load() is not None)
    manifest, parts = cache.load() or (None, {})
    assert (manifest, set(parts)) == (second, set(second.parts.values()))


async def test_restart_without_the_log_answers_as_before(
    started: Start, settings: Settings, photos
) -> None:
    """A service that starts while the log is away answers with the last version, marked stale."""
    async with started(settings) as api:
        await api.served(api.publish(photos, learned_through=4))
        await until(lambda: api.model.swaps.cache.load() is not None)  # written behind the swap
        before = (await api.ask(photos["cat"])).json()
        assert (await api.client.get("/readyz")).json()["stale"] is False

    away = settings.model_copy(update={"redis_url": "unix:///nowhere/redis.sock"})
    async with started(away) as api:
        ready = (await api.client.get("/readyz")).json()
        assert (ready["version"], ready["stale"]) == (1, True)
        after = (await api.ask(photos["cat"])).json()
        for answer in (before, after):
            answer.pop("prediction_id")
        assert before == after
        assert (await api.teach("cat", photos["cat"])).status_code == 503


async def test_log_that_comes_back_ends_the_stale_answers(
    started: Start, settings: Settings, photos, tmp_path: Path
) -> None:
    """As soon as the log answers, what it says counts."""
    async with started(settings) as api:
        await api.served(api.publish(photos, learned_through=4))
        await until(lambda: api.model.swaps.cache.load() is not None)  # written behind the swap
    server = EmbeddedServer(tmp_path / "log", maxmemory_bytes=64 << 20)
    async with started(settings.model_copy(update={"redis_url": server.url})) as api:
        assert api.model.swaps.stale
        server.start()
        try:
            await until(lambda: not api.model.swaps.stale)
        finally:
            server.stop()


async def test_log_that_goes_away_behind_its_head_leaves_the_version_kept_here(
    started: Start, settings: Settings, photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head was read, its parts cannot be: what is kept answers, and what is away is said."""
    async with started(settings) as api:
        await api.served(api.publish(photos, learned_through=4))
        await until(lambda: api.model.swaps.cache.load() is not None)  # written behind the swap

        async def away(*_: object) -> bytes:
            raise LogUnavailable("gone for a moment")

        monkeypatch.setattr(Follower, "part", away)
        api.publish({"cat": photos["rocket"]}, learned_through=5)
    async with started(settings) as api:
        ready = (await api.client.get("/readyz")).json()
        assert (ready["version"], ready["stale"]) == (1, True)


@pytest.mark.parametrize("damaged", [False, True])
async def test_restart_fetches_what_it_does_not_keep(
    started: Start, settings: Settings, photos, fetched: list[str], damaged: bool
) -> None:
    """Of the newest version, that is; what lies here damaged it does not have."""
    async with started(settings) as api:
        first = api.publish(photos, learned_through=4)
        await api.served(first)
        await until(lambda: api.model.swaps.cache.load() is not None)  # written behind the swap
        directory = api.model.swaps.cache.directory
    if damaged:
        (directory / first.parts["evidence/0"]).write_bytes(b"not a part")
    fetched.clear()
    async with started(settings) as api:
        assert sorted(fetched) == (sorted(set(first.parts.values())) if damaged else [])
        ready = (await api.client.get("/readyz")).json()
        assert (ready["version"], ready["stale"]) == (1, False)
        await until(lambda: api.model.swaps.cache.load() is not None)


async def test_cache_that_cannot_be_read_is_none(
    started: Start, settings: Settings, photos
) -> None:
    """The frozen base answers, as without a cache."""
    async with started(settings) as api:
        await api.served(api.publish(photos, learned_through=4))
        await until(lambda: api.model.swaps.cache.load() is not None)
        manifest = api.model.swaps.cache.directory / "manifest"
    manifest.unlink()
    manifest.mkdir()
    away = settings.model_copy(update={"redis_url": "unix:///nowhere/redis.sock"})
    async with started(away) as api:
        assert (await api.client.get("/readyz")).json()["version"] == 0


async def test_service_without_a_cache_starts_with_the_frozen_base(
    started: Start, settings: Settings, photo
) -> None:
    """A first start while the log is away answers zero-shot."""
    away = settings.model_copy(update={"redis_url": "unix:///nowhere/redis.sock"})
    async with started(away) as api:
        assert (await api.ask(photo, labels=["a", "b"])).json()["version"] == 0
        assert (await api.client.get("/readyz")).json()["stale"] is False
