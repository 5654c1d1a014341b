"""The servers that a user would run instead: how each is installed, started and asked."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.load import HOST, Stream, form_of, http_request
from bench.packs import REPOSITORY
from bench.running import Process, free_port, plain_environment, started
from bench.serve.peers.environments import python_with

_HERE = Path(__file__).parent
_JSON = {"Content-Type": "application/json"}
_LITSERVE = ("litserve==0.2.19", "open_clip_torch==3.3.0")
# The newest `transformers` has no place for its BetterTransformer; its pictures need aiohttp.
_INFINITY = (
    "infinity-emb[server,torch,vision]==0.0.78",
    "aiohttp",
    "transformers==4.47.1",
    "typer==0.12.5",
    "click==8.1.8",
)

_LITSERVE_BATCHES = (8, 32)  # as small as ours are, and as large as they may become


@dataclass(frozen=True, slots=True)
class Peer:
    """
    A server to measure beside ours.

    Args:
        name: in the table.
        kind: plain, litserve or infinity.
        precision: of its weights, as torch names it.
        batch: pictures in one pass at most, of LitServe, which wants to be told.
    """

    name: str
    kind: str
    precision: str = "float32"
    batch: int = 0


def peers(*, installed: bool, bfloat16: bool) -> list[Peer]:
    """
    Return whom to measure.

    Args:
        installed: also those that need an environment of their own.
        bfloat16: also the stronger variants, where the processor multiplies bfloat16.
    """
    found = []
    for precision in ("float32", "bfloat16")[: 1 + bfloat16]:
        found.append(Peer(f"plain FastAPI, {precision}", "plain", precision))
        if installed:
            found += [
                Peer(f"LitServe, {precision}, batches of {batch}", "litserve", precision, batch)
                for batch in _LITSERVE_BATCHES
            ]
    if installed:
        found.append(Peer("infinity, float32", "infinity"))
    return found


@contextlib.contextmanager
def running(
    peer: Peer, model: str, labels: Sequence[str], folder: Path, environments: Path
) -> Iterator[Process]:
    """
    Give the peer, while it starts.

    Raises:
        PeerError: it cannot be installed.
    """
    port = free_port()
    words = _words(peer, model, labels, port, environments.resolve())
    # Each as its documentation has it: threads and waiting are its own defaults.
    environment = plain_environment() | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    path = "/openapi.json" if peer.kind == "plain" else "/health"
    name = f"{peer.kind}-{peer.precision}-{peer.batch}"
    ready = partial(_answers, f"http://{HOST}:{port}{path}")
    with started(name, words, folder, environment, port=port, ready=ready) as process:
        yield process


def _words(
    peer: Peer, model: str, labels: Sequence[str], port: int, environments: Path
) -> list[str | Path]:
    asked = ["--model", model, "--port", str(port), "--precision", peer.precision, "--labels"]
    match peer.kind:
        case "plain":
            return [sys.executable, "-P", _HERE / "plain.py", *asked, *labels]
        case "litserve":
            python = python_with(environments / "litserve", _LITSERVE)
            batches = ["--batch", str(peer.batch)]
            return [python, "-P", _HERE / "litserved.py", *batches, *asked, *labels]
    python = python_with(environments / "infinity", _INFINITY)
    folder = environments / "infinity" / "clip"
    served = _HERE / "infinity_served.py", folder, "v2", "--model-id", folder
    engine = "--engine", "torch", "--device", "cpu", "--dtype", "float32", "--no-bettertransformer"
    return [python, "-P", *served, *engine, "--port", str(port), "--host", HOST]


def stream(peer: Peer, bodies: Sequence[bytes], connections: int) -> Stream:
    """Return connections that each send one JPEG after the other, in the form the peer takes."""
    return Stream([_request(peer, body) for body in bodies], connections)


def _request(peer: Peer, body: bytes) -> bytes:
    if peer.kind == "plain":
        form, headers = form_of(body)
        return http_request("POST", "/classify", form, headers)
    encoded = base64.b64encode(body).decode()
    if peer.kind == "litserve":
        return http_request("POST", "/predict", json.dumps({"image": encoded}).encode(), _JSON)
    asked = {"model": "clip", "modality": "image", "input": [f"data:image/jpeg;base64,{encoded}"]}
    return http_request("POST", "/embeddings", json.dumps(asked).encode(), _JSON)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
