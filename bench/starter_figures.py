"""
What the starter's towers see on the packs, and how often that is right without a label.

Shape suffixes: B pictures of a batch, P pictures, C classes, D features, N ImageNet classes, E
joint space.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.packs import Pack, read_pack, to_square
from everlens.model.starter import MEAN, SIZE, STD, StarterParts
from everlens.model.starter.image_tower import FEATURES, ImageHead, build_image_tower
from everlens.model.starter.weights import read_image_weights

Resize = Literal["shortest", "squash"]

BATCH = 16
TEST_PACKS = ("caltech", "pacs", "cifar10")


class Pictures(NamedTuple):
    """Pictures as the frozen image tower sees them below the joint space, with their labels."""

    feature_PD: Tensor
    logits_PN: Tensor
    label_P: Tensor
    domain_P: Tensor
    classes: tuple[str, ...]
    domain_names: tuple[str, ...]

    def where(self, chosen_P: Tensor) -> Pictures:
        """Return the pictures that the boolean mask chooses."""
        return self._replace(
            feature_PD=self.feature_PD[chosen_P],
            logits_PN=self.logits_PN[chosen_P],
            label_P=self.label_P[chosen_P],
            domain_P=self.domain_P[chosen_P],
        )


class Figures(NamedTuple):
    """Zero-shot top-1 of one pack, each value a share of pictures; `mean` is over classes."""

    top1: float
    mean: float
    by_domain: dict[str, float]


def see(name: str, pack: Pack, resize: Resize) -> Pictures:
    """Return features and ImageNet logits of a pack; reports pictures a second."""
    weights = read_image_weights()
    classifier, bias = weights["_fc.weight"], weights["_fc.bias"]
    # The glue is not there yet: this head's ways into the joint space are never looked at.
    unused_head = {
        "classifier.weight": classifier,
        "classifier.bias": bias,
        "named.weight": torch.zeros(1, len(bias)),
        "named.bias": torch.zeros(1),
        "straight.weight": torch.zeros(1, FEATURES),
        "straight.bias": torch.zeros(1),
        "straight_share": torch.zeros(()),
    }
    tower = build_image_tower(weights, unused_head)
    started = time.monotonic()
    with torch.inference_mode():
        seen = [tower(pixels_BCHW).feature_BD for pixels_BCHW in batches(pack, resize)]
    feature_PD = torch.cat(seen)
    rate = len(feature_PD) / (time.monotonic() - started)
    print(f"see      {name}, {resize}: {len(feature_PD)} pictures, {rate:.0f} a second", flush=True)
    return Pictures(
        # Cloned out of inference mode's tensors, which plain arithmetic may not be handed.
        feature_PD=feature_PD.clone(),
        logits_PN=F.linear(feature_PD, classifier, bias).clone(),
        label_P=torch.from_numpy(pack.labels),
        domain_P=torch.from_numpy(pack.domains),
        classes=pack.classes,
        domain_names=pack.domain_names,
    )


def batches(pack: Pack, resize: Resize) -> Iterator[Tensor]:
    """Yield the pictures as the tower takes them, B×3×H×W float32."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    squares = (to_square(picture, SIZE, resize) for picture in pack.pictures())
    while square_list := list(itertools.islice(squares, BATCH)):
        pixels_BHWC = torch.stack(square_list)
        yield (pixels_BHWC.permute(0, 3, 1, 2) / 255 - mean) / std


@torch.inference_mode()
def class_texts(starter: StarterParts, names: Sequence[str]) -> Tensor:
    """Return the zero-shot text vectors, C×E, of unit length: the mean over the templates."""
    spoken = [
        F.normalize(starter.text_tower(starter.tokenize(texts)).embedding_BE, dim=1)
        for texts in ([template.format(name) for name in names] for template in starter.templates)
    ]
    return F.normalize(torch.stack(spoken).mean(0), dim=1)


@torch.inference_mode()
def ways(head: nn.Module, feature_BD: Tensor) -> dict[str, Tensor]:
    """Return the image embedding by each way into the joint space alone, and by both."""
    assert isinstance(head, ImageHead)
    named_BE = F.normalize(head.named(head.classifier(feature_BD).softmax(1)), dim=1)
    straight_BE = F.normalize(head.straight(feature_BD), dim=1)
    both_BE = named_BE + head.straight_share * straight_BE
    return {"named": named_BE, "straight": straight_BE, "both": both_BE}


def measure(
    starter: StarterParts, folder: Path, packs: Sequence[str] = TEST_PACKS, *, step: int = 1
) -> dict[str, dict[str, Figures]]:
    """Return zero-shot figures on each `step`-th picture of the tests of `packs`, by pack and way."""
    figures = {}
    for name in packs:
        pack = read_pack(folder, name, "test").thinned(step)
        pictures = see(name, pack, starter.resize)
        text_CE = class_texts(starter, pack.classes)
        figures[name] = {
            way: score((embedding_PE @ text_CE.T).argmax(1), pictures)
            for way, embedding_PE in ways(starter.image_tower.head, pictures.feature_PD).items()
        }
    return figures


def score(predicted_P: Tensor, pictures: Pictures) -> Figures:
    """Return how often the predicted class is the label."""
    correct_P = (predicted_P == pictures.label_P).double()
    present = sorted(set(pictures.label_P.tolist()))
    by_class = [correct_P[pictures.label_P == label].mean() for label in present]
    return Figures(
        top1=correct_P.mean().item(),
        mean=torch.stack(by_class).mean().item(),
        by_domain={
            domain: correct_P[pictures.domain_P == index].mean().item()
            for index, domain in enumerate(pictures.domain_names)
        },
    )


def print_table(figures: dict[str, dict[str, Figures]]) -> None:
    """Print one line a pack and way, in per cent."""
    for pack, by_way in figures.items():
        for way, (top1, mean, by_domain) in by_way.items():
            domains = "  ".join(f"{domain} {100 * v:.1f}" for domain, v in by_domain.items())
            line = f"{pack:8} {way:9} top-1 {100 * top1:.1f}  class mean {100 * mean:.1f}"
            print(f"{line}  {domains}".rstrip())
