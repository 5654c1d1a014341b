"""
How accurate served answers are after so many labels a class: `python -m bench.few_shot`.

Streams each pack once, class by class (PACS one domain after another), through the worker's own
learner, and asks the served snapshot about the test split among all names of the pack.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bench.packs import Pack, data_folder, read_pack, to_square
from bench.replica import Replica, class_mean_accuracy
from everlens.model.backbone import Backbone, load_backbone
from everlens.model.runtime import choose_device, make_deterministic, set_threads
from everlens.pixels import Pixels
from everlens.settings import load_settings
from worker.__main__ import learner_config

# Labels a class; on PACS a class and domain.
SHOTS = {"caltech": (0, 1, 5, 15), "pacs": (0, 1, 3, 20)}


def squares(pack: Pack, backbone: Backbone) -> list[Pixels]:
    """Return all pictures of a pack at the model's size."""
    resize: Literal["squash", "shortest"] = (
        "squash" if backbone.pixels.resize == "squash" else "shortest"
    )
    return [to_square(picture, backbone.pixels.size, resize).numpy() for picture in pack.pictures()]


def order_of(pack: Pack, shots: int, seed: int) -> list[int]:
    """Return which pictures come, and when: domain by domain, class by class."""
    generator = np.random.default_rng(seed)
    order: list[int] = []
    for domain in np.unique(pack.domains):
        for label in range(len(pack.classes)):
            places = np.flatnonzero((pack.labels == label) & (pack.domains == domain))
            order += generator.permutation(places)[:shots].tolist()
    return order


def served_accuracy(
    backbone: Backbone,
    train: tuple[Pack, list[Pixels]],
    test: tuple[Pack, list[Pixels]],
    shots: int,
    seed: int,
) -> float:
    """Return the class-mean accuracy of served answers after `shots` labels a class."""
    settings = load_settings()
    replica = Replica(
        backbone,
        learner_config(settings, backbone),
        adapter_every_batches=settings.adapter_every_batches,
    )
    pack, pixels = train
    order = order_of(pack, shots, seed)
    for start in range(0, len(order), settings.batch_size):
        places = order[start : start + settings.batch_size]
        replica.learn([pixels[i] for i in places], [pack.classes[pack.labels[i]] for i in places])
        print(f"\r  {start + len(places)} of {len(order)}", end="", file=sys.stderr, flush=True)
    print("\r", end="", file=sys.stderr)
    if order:
        replica.publish_adapter()
    best = replica.best(test[1], pack.classes)
    return class_mean_accuracy(best, torch.from_numpy(test[0].labels))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table and, last, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.few_shot")
    parser.add_argument("--data", help="folder of packs")
    parser.add_argument("--packs", nargs="*", default=list(SHOTS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    folder = data_folder(options.data)
    if not folder.is_dir():
        print(f"no packs at {folder}; give their folder with --data", file=sys.stderr)
        return 2
    set_threads(2)
    make_deterministic()
    settings = load_settings()
    backbone = load_backbone(
        settings.model, settings.pretrained, device=choose_device(settings.device)
    )
    figures = {name: measure(backbone, folder, name, options.seeds) for name in options.packs}
    print(json.dumps({"model": backbone.name, "seeds": options.seeds, "accuracy": figures}))
    return 0


def measure(backbone: Backbone, folder: Path, name: str, seeds: int) -> dict[str, list[float]]:
    """Return mean and spread for each number of labels; prints them as they come."""
    splits = [read_pack(folder, name, "train"), read_pack(folder, name, "test")]
    train, test = ((pack, squares(pack, backbone)) for pack in splits)
    figures = {}
    for shots in SHOTS[name]:
        started = time.monotonic()
        repeats = range(seeds if shots else 1)
        values = [served_accuracy(backbone, train, test, shots, seed) for seed in repeats]
        mean, spread = float(np.mean(values)), float(np.std(values))
        figures[str(shots)] = [round(mean, 4), round(spread, 4)]
        seconds = time.monotonic() - started
        print(
            f"{name:10} {shots:3} labels  {mean:.3f} ± {spread:.3f}  ({seconds:.0f} s)", flush=True
        )
    return figures


if __name__ == "__main__":
    sys.exit(main())
