"""
Make the starter model's glue again: `python -m bench.pretrain [--data FOLDER]`, six minutes.

Fitted on words: ImageNet's class names, the text vectors CLIP gives them, and the classifier that
comes with the image tower. The photos pack, which is no test split, gives two mean vectors and
chooses the settings; the test splits of the other packs are looked at once, after writing.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.packs import data_folder, read_pack
from bench.starter_figures import Pictures, Resize, measure, print_table, see
from everlens.model.starter import RESIZE, TEMPLATES, load_starter
from everlens.model.starter.text_tower import build_text_tower
from everlens.model.starter.tokenizer import WordPiece
from everlens.model.starter.weights import (
    GLUE_PATH,
    read_image_weights,
    read_text_weights,
    read_tokenizer_json,
)

# Shape suffixes: N ImageNet classes, S their synonyms, D image features, W text features, E joint
# space (as wide as W), P pictures, C class names to choose from.

EVERYDAY_DOMAIN = "imagen"


class Choice(NamedTuple):
    """
    One combination of settings.

    Args:
        clip_weight: length of CLIP's part of a class vector, MiniLM's own part being 1.
        text_ridge, classifier_ridge: λ as a share of the mean eigenvalue.
        temperature: of the softmax over ImageNet's classes.
        straight_share: weight of the linear way beside the named one.
    """

    clip_weight: float
    text_ridge: float
    classifier_ridge: float
    temperature: float
    straight_share: float


class Names(NamedTuple):
    """ImageNet's names as the text tower reads them, CLIP's vectors, and the names themselves."""

    synonym_SW: Tensor
    synonym_class_S: Tensor
    joined_NW: Tensor
    clip_NE: Tensor
    synonyms: list[frozenset[str]]

    def where(self, chosen_N: Tensor) -> Names:
        """Return the classes that the boolean mask chooses, as if there were no others."""
        chosen_S = chosen_N[self.synonym_class_S]
        place_N = chosen_N.cumsum(0) - 1
        return Names(
            synonym_SW=self.synonym_SW[chosen_S],
            synonym_class_S=place_N[self.synonym_class_S[chosen_S]],
            joined_NW=self.joined_NW[chosen_N],
            clip_NE=self.clip_NE[chosen_N],
            synonyms=list(itertools.compress(self.synonyms, chosen_N.tolist())),
        )


def choices() -> Iterator[Choice]:
    """Yield the grid; the first of equals wins, so the order is part of the result."""
    for values in itertools.product(
        (0.7, 1.0, 1.4), (0.1, 0.3), (0.1, 0.3), (1.0, 1.4, 2.0), (0.5, 0.7, 1.0, 1.4)
    ):
        yield Choice(*values)


def read_names(path: Path, read: TextReader) -> Names:
    """Return ImageNet's names and CLIP's centred class vectors from the archive at `path`."""
    with np.load(path, allow_pickle=False) as arrays:
        names = [str(name) for name in arrays["names"]]
        clip_NE = F.normalize(torch.from_numpy(arrays["text"].astype(np.float32)), dim=1)
    synonyms = [name.split(", ") for name in names]
    return Names(
        synonym_SW=read.mean([synonym for group in synonyms for synonym in group]),
        synonym_class_S=torch.tensor([i for i, group in enumerate(synonyms) for _ in group]),
        joined_NW=read.mean(names),
        clip_NE=F.normalize(clip_NE - clip_NE.mean(0), dim=1),
        synonyms=[frozenset(synonym.lower() for synonym in group) for group in synonyms],
    )


class TextReader:
    """The text tower below its projection: texts → MiniLM's unit vectors."""

    def __init__(self) -> None:
        weights = read_text_weights()
        width = len(weights["embeddings.LayerNorm.bias"])
        unused = {"weight": torch.zeros(1, width), "bias": torch.zeros(1)}
        self._tower = build_text_tower(weights, unused)
        self._tokenize = WordPiece(read_tokenizer_json())

    @torch.inference_mode()
    def each(self, names: list[str]) -> list[Tensor]:
        """Return one names × W tensor a template."""
        spoken = [[template.format(name) for name in names] for template in TEMPLATES]
        return [torch.cat([self._read(part) for part in _chunks(texts)]) for texts in spoken]

    def mean(self, names: list[str]) -> Tensor:
        """Return the mean over the templates, names × W."""
        return torch.stack(self.each(names)).mean(0)

    def _read(self, texts: list[str]) -> Tensor:
        return F.normalize(self._tower(self._tokenize(texts)).feature_BD, dim=1)


def _chunks(texts: list[str]) -> list[list[str]]:
    return [texts[start : start + 64] for start in range(0, len(texts), 64)]


def solve_ridge(input_XY: Tensor, target_XZ: Tensor, ridge: float) -> Tensor:
    """Return the Y × Z map of least squares with λ = `ridge` · mean eigenvalue of inputᵀinput."""
    gram_YY = input_XY.T @ input_XY
    damped_YY = gram_YY + ridge * gram_YY.diagonal().mean() * torch.eye(len(gram_YY))
    solution_YZ: Tensor = torch.linalg.solve(damped_YY, input_XY.T @ target_XZ)
    return solution_YZ


def fit(names: Names, classifier_ND: Tensor, photos: Pictures, choice: Choice) -> dict[str, Tensor]:
    """
    Return the glue for one choice, without the logit scale.

    A class vector has two parts side by side: MiniLM's own, and CLIP's. The text tower reaches the
    first exactly and the second by ridge regression. Since all that texts can reach has only W
    dimensions, both are turned into an orthonormal basis of it: no cosine's numerator changes.

    The straight way asks which class vectors an image feature would score high: the classifier's
    own weights are regressed on the class vectors, so that a name nobody trained on gets a row too.
    """
    centre_W = names.synonym_SW.mean(0)
    synonym_SW = F.normalize(names.synonym_SW - centre_W, dim=1)
    joined_NW = F.normalize(names.joined_NW - centre_W, dim=1)
    count_N = torch.bincount(names.synonym_class_S)
    class_NW = torch.zeros_like(joined_NW).index_add_(0, names.synonym_class_S, synonym_SW)
    class_NW = F.normalize(class_NW / count_N[:, None], dim=1)

    seen_XW = torch.cat([synonym_SW, joined_NW])
    clip_XE = torch.cat([names.clip_NE[names.synonym_class_S], names.clip_NE])
    to_clip_WE = solve_ridge(seen_XW, clip_XE, choice.text_ridge)
    length = (class_NW @ to_clip_WE).norm(dim=1).mean()
    both = torch.cat([torch.eye(len(centre_W)), choice.clip_weight / length * to_clip_WE], dim=1)
    basis, to_joint_EW = torch.linalg.qr(both.T)
    class_NE = F.normalize(torch.cat([class_NW, choice.clip_weight * names.clip_NE], dim=1), dim=1)
    class_NE = class_NE @ basis

    reachable_NE = F.normalize(class_NW @ to_joint_EW.T, dim=1)
    centred_ND = classifier_ND - classifier_ND.mean(0)
    straight_ED = solve_ridge(reachable_NE, centred_ND, choice.classifier_ridge)
    probability_PN = (photos.logits_PN / choice.temperature).softmax(1)
    return {
        "text.weight": to_joint_EW,
        "text.bias": -to_joint_EW @ centre_W,
        "image.named.weight": class_NE.T.contiguous(),
        "image.named.bias": -(probability_PN.mean(0) @ class_NE),
        "image.straight.weight": straight_ED,
        "image.straight.bias": -straight_ED @ photos.feature_PD.mean(0),
        "image.straight_share": torch.tensor(choice.straight_share),
        "temperature": torch.tensor(choice.temperature),
    }


def cosines(glue: dict[str, Tensor], photos: Pictures, spoken: list[Tensor]) -> Tensor:
    """Return pictures × names, computed as the towers' heads compute it."""
    reads = [F.linear(text_CW, glue["text.weight"], glue["text.bias"]) for text_CW in spoken]
    text_CE = F.normalize(torch.stack([F.normalize(text, dim=1) for text in reads]).mean(0), dim=1)
    probability_PN = (photos.logits_PN / glue["temperature"]).softmax(1)
    named_PE = F.linear(probability_PN, glue["image.named.weight"], glue["image.named.bias"])
    straight_PE = F.linear(
        photos.feature_PD, glue["image.straight.weight"], glue["image.straight.bias"]
    )
    straight_PE = glue["image.straight_share"] * F.normalize(straight_PE, dim=1)
    return F.normalize(F.normalize(named_PE, dim=1) + straight_PE, dim=1) @ text_CE.T


def fit_logit_scale(cosine_PC: Tensor, label_P: Tensor) -> float:
    """Return the multiplier, of a grid in steps of 3 %, with the least cross-entropy."""
    scales: list[float] = torch.logspace(0, 2, 156).tolist()
    return min(scales, key=lambda scale: F.cross_entropy(scale * cosine_PC, label_P).item())


class Jury(NamedTuple):
    """
    Photographs of everyday categories, on none of which anything was fitted but two means.

    Args:
        names, classifier_ND, photos: what the fit may know in front of this jury.
        pictures: the photographs it judges by; their logits are of the classes in `names`.
        spoken: the categories' names in each template, C×W each.
        label_P: index into the categories.
    """

    names: Names
    classifier_ND: Tensor
    photos: Pictures
    pictures: Pictures
    spoken: list[Tensor]
    label_P: Tensor

    def fit(self, choice: Choice) -> dict[str, Tensor]:
        """Return the glue that `choice` gives from what may be known."""
        return fit(self.names, self.classifier_ND, self.photos, choice)

    def cosines(self, glue: dict[str, Tensor]) -> Tensor:
        """Return this jury's pictures × its categories."""
        return cosines(glue, self.pictures, self.spoken)

    def score(self, glue: dict[str, Tensor]) -> float:
        """Return zero-shot top-1 on this jury's pictures."""
        correct_P = self.cosines(glue).argmax(1) == self.label_P
        return correct_P.double().mean().item()


def juries(
    names: Names, classifier_ND: Tensor, photos: Pictures, read: TextReader
) -> tuple[Jury, Jury]:
    """
    Return two juries with the same pictures: one that may know all of ImageNet's classes, and one
    that may not know a class whose name is a category, so that each category is new to it.
    """
    everyday_P = photos.domain_P == photos.domain_names.index(EVERYDAY_DOMAIN)
    labels = sorted(set(photos.label_P[everyday_P].tolist()))
    categories = [photos.classes[label] for label in labels]
    knowing = Jury(
        names=names,
        classifier_ND=classifier_ND,
        photos=photos,
        pictures=photos.where(everyday_P),
        spoken=read.each(categories),
        label_P=torch.tensor([labels.index(k) for k in photos.label_P[everyday_P].tolist()]),
    )
    asked = {category.lower() for category in categories}
    unasked_N = torch.tensor([not asked & synonyms for synonyms in names.synonyms])
    blind_photos = photos._replace(logits_PN=photos.logits_PN[:, unasked_N])
    blind = knowing._replace(
        names=names.where(unasked_N),
        classifier_ND=classifier_ND[unasked_N],
        photos=blind_photos,
        pictures=blind_photos.where(everyday_P),
    )
    print(f"juries   {len(labels)} categories, {int((~unasked_N).sum())} classes hidden from one")
    return knowing, blind


def choose(knowing: Jury, blind: Jury) -> tuple[Choice, dict[str, Tensor]]:
    """Return the choice that both juries together find best, and its glue with the logit scale."""
    best: tuple[float, Choice] | None = None
    for choice in choices():
        scores = [jury.score(jury.fit(choice)) for jury in (knowing, blind)]
        if best is None or sum(scores) > best[0]:
            best = (sum(scores), choice)
            print(f"choose   {scores[0]:.4f} {scores[1]:.4f}  {choice}", flush=True)
    assert best is not None
    glue = knowing.fit(best[1])
    scale = fit_logit_scale(knowing.cosines(glue), knowing.label_P)
    return best[1], {**glue, "logit_scale": torch.tensor(scale)}


def compare_resizes(folder: Path, glue: dict[str, Tensor], jury: Jury) -> dict[str, float]:
    """Return the jury's score for either way to make a picture square."""
    other: Resize = "squash" if RESIZE == "shortest" else "shortest"
    photos = see("photos", read_pack(folder, "photos", "train"), other)
    everyday_P = photos.domain_P == photos.domain_names.index(EVERYDAY_DOMAIN)
    other_jury = jury._replace(pictures=photos.where(everyday_P))
    scores: dict[str, float] = {RESIZE: jury.score(glue), other: other_jury.score(glue)}
    print(f"resize   {scores}", flush=True)
    return scores


def main() -> None:
    """Fit, choose, write, measure; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.pretrain")
    parser.add_argument("--data", help="folder of packs; default PACKS_DIR")
    parser.add_argument("--out", type=Path, default=GLUE_PATH, help="the file to write")
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    # One thread: sums in one order, and no waiting for a core that somebody else keeps busy.
    torch.set_num_threads(1)

    read = TextReader()
    names = read_names(folder / "imagenet-clip-text.npz", read)
    print(f"read     {len(names.synonym_SW)} names of {len(names.joined_NW)} classes", flush=True)
    photos = see("photos", read_pack(folder, "photos", "train"), RESIZE)
    knowing, blind = juries(names, read_image_weights()["_fc.weight"], photos, read)
    choice, glue = choose(knowing, blind)
    resizes = compare_resizes(folder, glue, knowing)
    halves = {name: tensor.half().contiguous() for name, tensor in glue.items()}
    # Not `save_file`, which leaves a file that only its owner can read.
    arguments.out.write_bytes(safetensors.torch.save(halves))
    print(f"write    {arguments.out.name}, {arguments.out.stat().st_size / 1e6:.1f} MB", flush=True)

    starter = load_starter(arguments.out)
    figures = measure(starter, folder)
    print_table(figures)
    report = {
        "choice": choice._asdict(),
        "logit_scale": starter.logit_scale,
        "resizes": resizes,
        "digest": starter.digest,
        "figures": {
            pack: {way: figure._asdict() for way, figure in by_way.items()}
            for pack, by_way in figures.items()
        },
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
