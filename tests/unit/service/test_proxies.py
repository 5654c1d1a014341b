"""Whose word on who asks is taken: that of the proxies that the settings name, and of nobody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from everlens.errors import SettingsError
from everlens.settings import Settings
from service.__main__ import check_address, server_config

pytestmark = pytest.mark.anyio


async def address_seen(trusted: str, peer: str, forwarded: str) -> str:
    """Return the address that the application behind uvicorn sees a request come from."""
    seen: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["client"][0])

    config = server_config(application, Settings(trusted_proxies=trusted), asyncio.Protocol)
    config.load()
    headers = [(b"x-forwarded-for", forwarded.encode())]
    scope = {"type": "http", "client": (peer, 40_000), "scheme": "http", "headers": headers}
    await config.loaded_app(scope, None, None)
    return seen[0]


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "172.18.0.1"])
async def test_nobody_is_believed_without_being_named(peer, monkeypatch):
    """Neither who comes from loopback, nor whom uvicorn's own variable names."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    assert await address_seen("", peer, "203.0.113.7") == peer


@pytest.mark.parametrize("peer", ["127.0.0.1", "172.18.0.1"])
async def test_a_named_proxy_is_believed(peer):
    """The last address that is not a proxy's counts: what a client wrote before it is its own."""
    trusted = "127.0.0.1, 172.16.0.0/12"
    assert await address_seen(trusted, peer, "203.0.113.7") == "203.0.113.7"
    assert await address_seen(trusted, peer, "10.0.0.1, 203.0.113.7, 172.18.0.9") == "203.0.113.7"
    assert await address_seen(trusted, "198.51.100.1", "203.0.113.7") == "198.51.100.1"


@pytest.mark.parametrize("wrong", ["proxy.example", "*", "172.16.0.1/12", "127.0.0.1;::1"])
def test_what_is_no_address_is_refused(wrong: str, tmp_path: Path):
    """Uvicorn would take it for a name, which no connection ever has."""
    settings = Settings(redis_url="unix:///x", data_dir=tmp_path, trusted_proxies=wrong)
    with pytest.raises(SettingsError, match="EVERLENS_TRUSTED_PROXIES"):
        check_address(settings)
    check_address(settings.model_copy(update={"trusted_proxies": "127.0.0.1,fd00::/8"}))
