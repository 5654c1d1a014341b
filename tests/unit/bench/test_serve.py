"""Rows of the serving bench over a small model: what they measure is what they say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.pictures import HEIGHT, WIDTH, photographs
from bench.serve import bare, names, overtaking, publication, stalls
from bench.serve.__main__ import BESIDE_BEFORE_S, measured
from bench.serve.findings import Findings
from bench.serve.peers.environments import PeerError, last_error, python_with
from bench.serve.stage import Options, Stage
from everlens.model.snapshot import Views
from everlens.pixels import Pixels, PixelSpec


@pytest.fixture
def options(tiny_folder: str, tmp_path: Path) -> Options:
    return Options(tiny_folder, "random", "cpu", 1, 0.1, peers=False, out=tmp_path)


@pytest.fixture
def stage(options: Options) -> Iterator[Stage]:
    threads = torch.get_num_threads()
    with Stage(options) as stage:
        assert stage.backbone is not None
        torch.set_num_threads(1)  # a model this small is slower on two
        yield stage
    torch.set_num_threads(threads)


def test_the_photographs_are_what_people_upload() -> None:
    """JPEG files of one size, all different, of tens of kilobytes."""
    bodies = photographs(8)

    assert len(set(bodies)) == 8
    assert all(20_000 < len(body) < 70_000 for body in bodies)
    assert bodies == photographs(8)


def test_the_bare_loop_decodes_as_the_service_does(tmp_path: Path) -> None:
    """Within the rounding of JPEG and resizing, its pixels are Pillow's."""
    (body,) = photographs(1)
    (tmp_path / "a.jpg").write_bytes(body)
    pixels = bare.decoded(body, PixelSpec(HEIGHT, "shortest"))
    left = (WIDTH - HEIGHT) // 2
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))[:, left : left + HEIGHT]

    assert np.abs(pixels.astype(int) - expected.astype(int)).mean() < 2


def test_the_bare_loop_counts_what_it_computed(stage: Stage) -> None:
    """Full batches alone, and no more images a second than the model was given."""
    snapshot = stage.snapshot(2)
    batches: list[int] = []

    def see(pixels: Sequence[Pixels]) -> Views:
        batches.append(len(pixels))
        return snapshot.see(pixels)

    rate = bare.rate(see, stage.bodies, stage.backbone.pixels, 4, 0.1)

    assert set(batches) == {4}
    assert 0 < rate <= 4 * (len(batches) - 1) / 0.1


def test_swaps_are_counted_in_tenths(stage: Stage) -> None:
    """Every third swap is met by a query, and the memory is looked at ten times."""
    found = stalls.measure(stage, 60)

    assert len(found.raw["stalls_s"]) == 20
    assert len(found.raw["memory_bytes"]) == 10
    assert min(found.raw["stalls_s"]) > 0


def test_growth_of_a_tail_is_told_from_its_noise() -> None:
    """A tail that doubles is seen to, one that only scatters is not, whatever the median does."""
    random = np.random.default_rng(0)
    steady = 5e-3 * random.lognormal(0, 0.3, 10_000)
    late = np.arange(10_000) / 10_000
    tail = np.where(random.random(10_000) < 0.1, 4.0, 1.0)

    flat = stalls.growth_of((steady * tail).tolist())
    assert 1 / stalls.FLAT < flat.low < 1 < flat.high < stalls.FLAT
    growing = stalls.growth_of((steady * tail ** (1 + late / 2)).tolist())
    assert stalls.FLAT < growing.low < 2 < growing.high


def test_a_publication_is_the_learners_own(stage: Stage) -> None:
    """The learner that knows made-up classes publishes them; all is measured but the first."""
    publishing = publication.Publishing(stage, 1100)
    first = publishing.manifest
    publishing.warm()
    seconds = publishing()

    (cost,) = publishing.costs
    assert seconds == cost.whole_s > cost.build_s > 0
    assert publishing.present.version == first.version + 2
    changed = {n for n, digest in publishing.manifest.parts.items() if digest != first.parts[n]}
    assert 0 < len(changed) < len(first.parts)


def test_a_known_name_is_not_encoded_again(stage: Stage) -> None:
    """The second query with the same names takes no text pass."""
    assert asyncio.run(names._encoded_again(stage)) == 0


def test_a_row_that_fails_says_why(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are measured all the same, and its line is not ok."""

    def fails(_: Stage) -> Findings:
        raise PeerError("nothing\nis there")

    rows = {"peers": fails, "alone": lambda _: Findings(figures={"added_p50_ms": 1.0})}
    monkeypatch.setattr("bench.serve.__main__.ROWS", rows)
    found = measured(options, ["peers", "alone"], time.monotonic())

    (line,) = found["peers"].lines
    assert line.measured == "not measured: nothing is there"
    assert line.ok is False
    assert found["alone"].figures == {"added_p50_ms": 1.0}


def test_what_nothing_is_asked_of_is_left_out_when_it_is_late(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line says how to see it. Whoever asks for other servers waits for them."""
    rows = {name: lambda _: Findings(figures={"measured": 1.0}) for name in ("peers", "alone")}
    monkeypatch.setattr("bench.serve.__main__.ROWS", rows)
    begun = time.monotonic() - BESIDE_BEFORE_S - 1
    found = measured(options, ["alone", "peers"], begun)

    assert found["alone"].figures == {"measured": 1.0}
    assert "--only peers" in found["peers"].lines[0].measured
    asked = measured(replace(options, peers=True), ["peers"], begun)
    assert asked["peers"].figures == {"measured": 1.0}


@pytest.mark.parametrize(
    ("ours", "whole", "ok"), [(14.0, True, True), (14.0, False, None), (12.0, False, False)]
)
def test_a_peer_that_is_missing_is_not_overtaken(ours: float, whole: bool, ok: bool | None) -> None:
    """It may have been the best one: the others alone cannot make the row ok, but they can miss it."""
    found = Findings()
    rates = {"everlens": [ours, ours], "plain": [5.0, 5.0], "infinity": [10.0, 10.0]}
    kinds = {"plain": "plain", "infinity": "infinity"}
    overtaking._compare(found, rates, kinds, peers_asked=True, whole=whole)

    assert found.lines[-1].ok is ok
    assert found.figures["over_best_peer"] == ours / 10


def test_a_peer_that_cannot_be_installed_says_pips_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not its warnings, and not the lines around them."""
    said = "WARNING: slow\nERROR: No matching distribution found for x\n\n[notice] a new pip\n"

    assert last_error(said) == "ERROR: No matching distribution found for x"
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(PeerError, match="nowhere"):
        python_with(tmp_path / "env", ["nothing"])
