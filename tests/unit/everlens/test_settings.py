"""Settings come from the environment, or from files that only their owner reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlens.errors import SettingsError
from everlens.settings import load_settings


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of secrets, as systemd and containers have one."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("EVERLENS_REDIS_URL", raising=False)
    return tmp_path


def test_a_setting_may_be_a_file(secrets: Path) -> None:
    """What others may not see need not stand in an environment; a line's end is no part of it."""
    (secrets / "everlens_redis_url").write_text("redis://a:b@log:6379\n")
    (secrets / "metrics-key").write_text("somebody else's")

    assert load_settings().redis_url == "redis://a:b@log:6379"


def test_the_environment_goes_before_a_file(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one start can be given another value."""
    (secrets / "everlens_redis_url").write_text("redis://file")
    monkeypatch.setenv("EVERLENS_REDIS_URL", "redis://environment")

    assert load_settings().redis_url == "redis://environment"


def test_a_misspelt_file_refuses_the_start(secrets: Path) -> None:
    """As a misspelt variable does."""
    (secrets / "everlens_redis_ulr").write_text("redis://file")

    with pytest.raises(SettingsError, match="EVERLENS_REDIS_ULR"):
        load_settings()


def test_without_secrets_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is not there is no mistake."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "gone"))

    assert load_settings().log_format == "text"
