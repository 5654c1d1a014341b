"""What tests of the forward path share: one thread, small models in folders, no network."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from everlens.model.backbone import Backbone, load_backbone
from everlens.model.runtime import import_torchvision

import_torchvision()  # before open_clip, which imports it


@pytest.fixture
def calls_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The hosts that were asked for: with the hub out of reach and an empty cache, none."""
    asked: list[str] = []

    def refuse(host: str, *_: object, **__: object) -> None:
        asked.append(str(host))
        raise OSError(f"no network in tests: {host}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return asked


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function: the folder of a small model with weights, by the name of its kind."""
    from tests.unit.model.folders import CONFIGS, write_model

    root, made = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_model(root / kind, CONFIGS[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def small_model(model_folder: Callable[[str], Path]) -> Callable[[str], Backbone]:
    """A function: a small model as our base model, by the name of its kind."""
    made: dict[str, Backbone] = {}

    def backbone(kind: str) -> Backbone:
        if kind not in made:
            made[kind] = load_backbone(str(model_folder(kind)), device=torch.device("cpu"))
        return made[kind]

    return backbone


@pytest.fixture(scope="session")
def starter_model() -> Backbone:
    """The starter."""
    return load_backbone("starter", device=torch.device("cpu"))
