"""
The tables of the state, and what the learner's records are as rows of them. ⑥

A table's first column is its key, and its last one the digest of the row (`worker.rows`), which no
function here sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from everlens.errors import DamagedState
from worker.learn.learner import LearntRow
from worker.learn.replay import Exemplar
from worker.learn.tuning import Draw, Round

TABLES = (
    "classes",
    "samples",
    "forgotten",
    "given_up",
    "dead",
    "reports",
    "exemplars",
    "shelves",
    "waiting",
    "rounds",
    "records",
    "sums",
    "blobs",
)
SCHEMA = """
CREATE TABLE IF NOT EXISTS head (
    id INTEGER PRIMARY KEY CHECK (id = 1), record TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS classes (
    class_index INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, vector BLOB NOT NULL,
    digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS samples (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, batch INTEGER NOT NULL,
    class_index INTEGER NOT NULL, refused INTEGER NOT NULL, feature BLOB NOT NULL,
    digest BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS samples_by_batch ON samples (batch);
CREATE INDEX IF NOT EXISTS samples_by_class ON samples (class_index);
CREATE TABLE IF NOT EXISTS forgotten (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, class_index INTEGER NOT NULL,
    version INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS forgotten_by_version ON forgotten (version);
CREATE TABLE IF NOT EXISTS given_up (
    first INTEGER PRIMARY KEY, last INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS dead (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, reason TEXT NOT NULL, version INTEGER NOT NULL,
    digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS reports (
    seq INTEGER PRIMARY KEY, report TEXT NOT NULL, version INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS exemplars (
    seq INTEGER PRIMARY KEY, class_index INTEGER NOT NULL, text TEXT, image BLOB NOT NULL,
    trunk BLOB NOT NULL, held_out INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS exemplars_by_class ON exemplars (class_index);
CREATE TABLE IF NOT EXISTS waiting (
    seq INTEGER PRIMARY KEY, class_index INTEGER NOT NULL, text TEXT, trunk BLOB NOT NULL,
    digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS shelves (
    class_index INTEGER PRIMARY KEY, seen INTEGER NOT NULL, full INTEGER NOT NULL,
    digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    batch INTEGER PRIMARY KEY, plan TEXT NOT NULL, trunks BLOB NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    class_index INTEGER PRIMARY KEY, record BLOB NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS sums (
    class_index INTEGER PRIMARY KEY, labels INTEGER NOT NULL, total BLOB NOT NULL,
    refusals INTEGER NOT NULL, refused BLOB, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blobs (
    name TEXT PRIMARY KEY, content BLOB NOT NULL, digest BLOB NOT NULL);
"""


def sample_row(row: LearntRow) -> tuple[int, str, int, int, int, bytes]:
    """Return what the sums took from a sample as a row of `samples`."""
    refused, feature = int(row.refused), bytes_of(row.feature_D)
    return row.seq, row.id, row.batch, row.class_index, refused, feature


def exemplar_row(exemplar: Exemplar) -> tuple[int, int, str | None, bytes, bytes, int]:
    """Return a row of `exemplars`."""
    e = exemplar
    return e.seq, e.class_index, e.text, e.image, save({"x": e.trunk.contiguous()}), int(e.held_out)


def waiting_row(exemplar: Exemplar) -> tuple[int, int, str | None, bytes]:
    """Return a row of `waiting`; no step looks at a picture."""
    e = exemplar
    return e.seq, e.class_index, e.text, save({"x": e.trunk.contiguous()})


def round_row(drawn: Round) -> tuple[int, str, bytes]:
    """Return a row of `rounds`: whole, since what it sees may have left the buffer when it is taken."""
    seen = {e.seq: e for draw in drawn.draws for e in (*draw.new, *draw.replayed)}
    place = {seq: k for k, seq in enumerate(seen)}
    plan = {
        "classes": drawn.classes,
        "seen": [(e.seq, e.class_index, e.text) for e in seen.values()],
        "draws": [
            (draw.step, *([place[e.seq] for e in part] for part in (draw.new, draw.replayed)))
            for draw in drawn.draws
        ],
    }
    trunks = save({"x": torch.stack([e.trunk for e in seen.values()])})
    return drawn.batch, json.dumps(plan), trunks


def round_of(batch: int, plan: str, trunks: bytes) -> Round:
    """Return the round of a row."""
    fields = json.loads(plan)
    states = tensors_of(trunks, f"round {batch}")["x"]
    seen = [
        Exemplar(seq, class_index, text, b"", trunk)
        for (seq, class_index, text), trunk in zip(fields["seen"], states, strict=True)
    ]
    return Round(
        batch,
        fields["classes"],
        [
            Draw(step, [seen[k] for k in new], [seen[k] for k in replayed])
            for step, new, replayed in fields["draws"]
        ],
    )


def bytes_of(vector: Tensor) -> bytes:
    """Return a float32 vector as a value."""
    assert vector.dtype == torch.float32
    content: bytes = vector.contiguous().numpy().tobytes()
    return content


def vector_of(content: bytes) -> Tensor:
    """Return the vector of a value."""
    return torch.from_numpy(np.frombuffer(content, "<f4").copy())


def tensors_of(content: bytes, name: str) -> Mapping[str, Tensor]:
    """
    Return the tensors of a value.

    Raises:
        DamagedState: they are not, and `name` says of what.
    """
    try:
        return load(content)
    except SafetensorError as error:
        raise DamagedState(f"{name} in the state is damaged: {error}") from error
