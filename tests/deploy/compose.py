"""docker-compose.yml as an engine sees it: variables replaced, anchors merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<how>:?-)(?P<default>[^}]*))?\}")


def variables() -> set[str]:
    """Return the names of all variables of the file."""
    text = "\n".join(line for line in _text().splitlines() if not line.lstrip().startswith("#"))
    return {match["name"] for match in _VARIABLE.finditer(text)}


def load(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the file with its variables taken from `environment`, as Compose does it."""
    given = environment or {}

    def value(match: re.Match[str]) -> str:
        name, how = match["name"], match["how"]
        if name in given and (given[name] or how != ":-"):
            return given[name]
        assert how, f"{name} has no default: a plain `docker compose up` would warn"
        return match["default"]

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: resolved(child) for name, child in node.items()}
        if isinstance(node, list):
            return [resolved(child) for child in node]
        return _VARIABLE.sub(value, node) if isinstance(node, str) else node

    loaded: dict[str, Any] = resolved(yaml.safe_load(_text()))
    return loaded


def _text() -> str:
    return FILE.read_text(encoding="utf-8")
