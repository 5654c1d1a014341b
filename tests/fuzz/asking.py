"""An everlens of its own for schemathesis to ask, and schemathesis's command line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.tiny_clip import write_tiny_clip
from tests.system.processes import (
    PATIENCE_S,
    ROOT,
    Started,
    clean_environment,
    everlens_up,
    free_port,
    started,
)

_READY_S = 120


@contextlib.contextmanager
def running(folder: Path, **settings: str) -> Iterator[tuple[Started, str]]:
    """Give an everlens with a tiny CLIP that has learnt the description's examples, and its URL."""
    port = free_port()
    environment = clean_environment(
        data_dir=str(folder / "data"),
        port=str(port),
        model=str(write_tiny_clip(folder / "tiny-vit")),
        pretrained="random",
        **settings,
    )
    with started(everlens_up(), environment, folder / "up.log") as launcher:
        launcher.until_said("Ctrl-C here stops everything", _READY_S)
        url = f"http://127.0.0.1:{port}"
        teach = httpx.get(f"{url}/openapi.json", timeout=PATIENCE_S).json()["paths"]["/samples"][
            "post"
        ]
        examples = teach["requestBody"]["content"]["application/json"]["examples"]
        sample = examples["one"]["value"]
        httpx.post(f"{url}/samples", json=sample, timeout=PATIENCE_S).raise_for_status()
        query = {"image": sample["image"], "wait_for": sample["id"]}
        httpx.post(f"{url}/classify", json=query, timeout=PATIENCE_S).raise_for_status()
        yield launcher, url


def schemathesis(folder: Path, url: str, *words: str) -> Started:
    """Start schemathesis with these words against the service at `url`."""
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file"]
    command += [str(Path(__file__).with_name("schemathesis.toml")), *words, "--url", url]
    environment = {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT)}
    return Started(command, dict(os.environ) | environment, folder / "schemathesis.log")


def requests_by_status(url: str) -> Counter[str]:
    """Return how many requests the service has answered with each status, by its own count."""
    text = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    counted: Counter[str] = Counter()
    for status, count in re.findall(
        r'^everlens_http_requests_total\{.*status="(\d+)"\} (\S+)', text, re.MULTILINE
    ):
        counted[status] += int(float(count))
    return counted
