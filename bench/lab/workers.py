"""Trials side by side, a process each, with results that outlast a run that was stopped."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bench.lab import suite
from bench.lab.suite import Trial
from bench.lab.trial import Recording, recording
from bench.packs import REPOSITORY
from everlens.model.backbone import load_backbone
from everlens.model.runtime import choose_device, make_deterministic
from everlens.settings import Settings, load_settings


def run_all(jobs: list[tuple[Trial, int]], folder: Path, out: Path, processes: int) -> None:
    """
    Run the trials that have no result yet, side by side, and print a line for each.

    Args:
        jobs: trials and seeds.
        folder: of the packs.
        out: where results lie, one file a trial and seed.
        processes: how many run at once.
    """
    key = _key(folder)
    left = [job for job in jobs if not _is_there(_path(out, *job), key)]
    print(f"{len(jobs) - len(left)} of {len(jobs)} trials are there", file=sys.stderr, flush=True)
    if not left:
        return
    names = [(trial.name, trial.source, seed) for trial, seed in left]
    # Fresh interpreters: threads of torch do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, (folder, out)) as pool:
        running = [pool.submit(_run_one, name) for name in names]
        try:
            for done, future in enumerate(as_completed(running), start=1):
                print(f"[{done}/{len(left)}] {future.result()}", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_folder, _out = Path(), Path()
_recordings: dict[str, Recording] = {}


def _begin(folder: Path, out: Path) -> None:
    global _folder, _out
    _folder, _out = folder, out
    suite.one_thread()
    make_deterministic()


def _run_one(job: tuple[str, str, int]) -> str:
    name, source, seed = job
    trial = next(t for t in suite.every_trial(source) if (t.name, t.source) == (name, source))
    settings = load_settings()
    if source not in _recordings:
        _recordings.clear()  # one source at a time: each holds its features in memory
        _recordings[source] = _recording(source, settings)
    started = time.monotonic()
    figures = trial.figures(_recordings[source], seed, settings)
    seconds = time.monotonic() - started
    path = _path(_out, trial, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(
        json.dumps({"key": _key(_folder), "seconds": seconds, "figures": figures})
    )
    unfinished.replace(path)
    return f"{name}, seed {seed}: {suite.line_of(figures)} ({seconds:.0f} s)"


def _recording(source: str, settings: Settings) -> Recording:
    backbone = load_backbone(
        settings.model,
        settings.pretrained,
        device=choose_device(settings.device),
        templates=settings.templates,
    )
    blocks = settings.top_blocks or backbone.top_blocks
    return recording(backbone, source, _folder, _out / "cache", blocks)


def _path(out: Path, trial: Trial, seed: int) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in trial.name)
    # Two folders of one name are two sources.
    source = hashlib.sha256(trial.source.encode()).hexdigest()[:8]
    return out / "trials" / f"{name}-{source}-{seed}.json"


def figures_of(out: Path, trial: Trial, seed: int) -> dict[str, Any]:
    """Return the result of a trial."""
    figures: dict[str, Any] = json.loads(_path(out, trial, seed).read_text())["figures"]
    return figures


def _is_there(path: Path, key: str) -> bool:
    return path.exists() and json.loads(path.read_text())["key"] == key


def _key(folder: Path) -> str:
    """Return what a result depends on: settings, pictures, and the code that learns and asks."""
    digest = hashlib.sha256(f"{load_settings().model_dump_json()} {folder.resolve()}".encode())
    for package in ("everlens/model", "worker", "bench"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if path.name not in {"report.py", "workers.py"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()
