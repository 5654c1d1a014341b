"""The class tables: a change touches its own chunk, and large tables answer as small ones do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from everlens.artifact import Manifest, digest_of
from everlens.errors import PartError
from everlens.model import chunks as of_chunks
from everlens.model import forms
from everlens.model import parts as published
from everlens.model.backbone import Backbone
from everlens.model.chunks import Pieces
from everlens.model.classes import CHUNK, EVIDENCE_CHUNK, chunks_of, precision, table
from everlens.model.fusion import Fusion
from everlens.model.heads import EvidenceHead, class_vectors, evidence_scores, text_logits
from everlens.model.snapshot import CURVE_BINS, RECORD, Snapshot, Views, base_snapshot
from tests.reference import evidence as reference

CLASSES = 2 * CHUNK + 100
WIDTH, JOINT = 16, 8
# Float16 keeps eleven bits: a score, with its scale, is rounded by up to 2^-11 = 4.9e-4 of itself, and
# the vectors' own rounding is mostly averaged away.
HALF = 6e-4


class Published:
    """Parts of made-up classes, to be changed one at a time."""

    def __init__(self, backbone: Backbone, classes: int = CLASSES) -> None:
        self.backbone = backbone
        generator = Generator().manual_seed(classes)
        self.names = [f"class {k}" for k in range(classes)]
        self.text_CE = functional.normalize(torch.randn(classes, JOINT, generator=generator))
        self.mean_CD = torch.rand(classes, WIDTH, generator=generator)
        self.count_C = torch.arange(1, classes + 1)
        self.factor_DD = torch.rand(WIDTH, WIDTH, generator=generator).tril() + torch.eye(WIDTH)

    def contents(self) -> dict[str, bytes]:
        classes = len(self.names)
        contents = {
            "fusion": published.encode_fusion(Fusion()),
            "evidence/factor": published.encode_factor(self.factor_DD),
        }
        for number, span in chunks_of(classes):
            contents[f"classes/{number}"] = published.encode_classes(
                self.names[span], self.text_CE[span]
            )
            contents[f"record/{number}"] = published.encode_record(
                torch.full((span.stop - span.start, len(RECORD)), float(number)),
                torch.zeros(span.stop - span.start, CURVE_BINS, 2, dtype=torch.uint8),
            )
        for number, span in chunks_of(classes, EVIDENCE_CHUNK):
            contents[f"evidence/{number}"] = published.encode_evidence(
                self.mean_CD[span], self.count_C[span]
            )
        return contents

    def build(self, previous: Snapshot | None = None) -> Snapshot:
        """Build the version, from those parts alone that the previous one does not have."""
        contents = self.contents()
        digests = {name: digest_of(content) for name, content in contents.items()}
        manifest = Manifest(1, "", self.backbone.fingerprint, 1, 1, len(self.names), 2, digests)
        lent = previous or base_snapshot(self.backbone, 2)
        new = [contents[name] for name in published.changed_parts(manifest, lent)]
        blobs = {digest_of(content): content for content in new}
        return published.build_snapshot(self.backbone, manifest, blobs, previous)


@pytest.fixture
def made(small_model: Callable[[str], Backbone]) -> Published:
    return Published(small_model("vit"))


def views(pictures: int) -> Views:
    generator = Generator().manual_seed(pictures)
    embedding_BE = functional.normalize(torch.randn(pictures, JOINT, generator=generator))
    return Views(embedding_BE, torch.rand(pictures, WIDTH, generator=generator), None, None)


def chunks(snapshot: Snapshot) -> dict[str, tuple[object, ...]]:
    assert snapshot.evidence is not None
    return {
        "names": snapshot.classes.names.chunks,
        "text": snapshot.classes.text_CE.chunks,
        "record": snapshot.record,
        "evidence": snapshot.evidence.vector_CD.chunks,
    }


def changed(before: Snapshot, after: Snapshot) -> dict[str, list[int]]:
    """Return the chunks of `after` that are not the very ones of `before`."""
    old, new = chunks(before), chunks(after)
    return {
        kind: [
            k for k, one in enumerate(new[kind]) if k >= len(old[kind]) or one is not old[kind][k]
        ]
        for kind in new
    }


class Work:
    """What a build reads and computes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: list[str] = []
        self.rows = 0
        self.walked = 0
        read, whiten = forms.read_tensors, class_vectors

        def reading(content: bytes, name: str) -> dict[str, Tensor]:
            self.parts.append(name)
            return read(content, name)

        def whitening(factor_DD: Tensor, mean_CD: Tensor) -> Tensor:
            self.rows += len(mean_CD)
            return whiten(factor_DD, mean_CD)

        once = Pieces.once

        def walking(self: Pieces, key: Hashable, make: Callable[[], Any]) -> Any:
            work.walked += 1
            return once(self, key, make)

        work = self
        monkeypatch.setattr(of_chunks, "read_tensors", reading)
        monkeypatch.setattr(of_chunks, "class_vectors", whitening)
        monkeypatch.setattr(Pieces, "once", walking)


def test_a_sample_of_one_class_touches_no_other_chunk(
    made: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part is read, the vectors of 64 classes are made, all else is the version before."""
    first = made.build()
    work = Work(monkeypatch)
    made.mean_CD[CHUNK + 70] += 0.5
    made.count_C[CHUNK + 70] += 1
    second = made.build(first)
    assert changed(first, second) == {"names": [], "text": [], "record": [], "evidence": [1]}
    assert work.parts == [f"evidence/{(CHUNK + 70) // EVIDENCE_CHUNK}"]
    assert work.rows == EVIDENCE_CHUNK
    third = made.build(second)
    assert changed(second, third) == {"names": [], "text": [], "record": [], "evidence": []}
    assert work.rows == EVIDENCE_CHUNK


def test_a_new_class_touches_the_last_chunks(
    made: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name, text, record and evidence are new; those of full chunks stay."""
    first = made.build()
    work = Work(monkeypatch)
    made.names.append("one more")
    made.text_CE = torch.cat([made.text_CE, made.text_CE[:1]])
    made.mean_CD = torch.cat([made.mean_CD, made.mean_CD[:1]])
    made.count_C = torch.cat([made.count_C, torch.tensor([1])])
    second = made.build(first)
    assert changed(first, second) == {kind: [2] for kind in chunks(first)}
    assert len(work.parts) == 3
    assert work.rows <= EVIDENCE_CHUNK
    assert second.classes.names.find("one more") == CLASSES
    assert second.samples("one more") == 1
    assert first.classes.names.find("one more") == -1


def test_a_swap_walks_through_what_changed(
    small_model: Callable[[str], Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One label more is as much work among eight chunks as among two."""
    work = Work(monkeypatch)
    walked = []
    for chunks in (2, 8):
        made = Published(small_model("vit"), chunks * CHUNK)
        first = made.build()
        work.walked = 0
        made.count_C[70] += 1
        made.build(first)
        walked.append(work.walked)
    assert walked[0] == walked[1] > 0


def test_a_history_of_changes_gives_the_bits_of_a_start(made: Published) -> None:
    """A restarted learner scores to the last bit as one that went through all versions."""
    snapshot = made.build()
    for index in (3, 70, CHUNK, CLASSES - 1, 71):
        made.mean_CD[index] = made.mean_CD[index].flip(0)
        made.count_C[index] += 1
        snapshot = made.build(snapshot)
    anew = made.build()
    for pictures in (1, 3):
        found, expected = (
            s.scores(views(pictures), None, s.classes.text_CE) for s in (snapshot, anew)
        )
        assert torch.equal(found.text_BK, expected.text_BK)
        assert found.evidence_BK is not None
        assert expected.evidence_BK is not None
        assert torch.equal(found.evidence_BK, expected.evidence_BK)
        assert torch.equal(found.count_K, expected.count_K)


@pytest.mark.parametrize("place", [0, CHUNK - 1, CHUNK, CLASSES - 2])
def test_a_name_of_another_chunk_is_refused(made: Published, place: int) -> None:
    """Twice in the table is twice, whether all chunks are new or one of them."""
    first = made.build()
    made.names[-1] = made.names[place]
    with pytest.raises(PartError, match="twice"):
        pytest.fail(f"taken: {made.build()}")
    with pytest.raises(PartError, match="twice"):
        pytest.fail(f"taken: {made.build(first)}")


def test_a_chunk_of_names_that_comes_again_is_refused(made: Published) -> None:
    """Also where its digest is one that was found good."""
    first = made.build()
    made.names[CHUNK : 2 * CHUNK] = made.names[:CHUNK]
    made.text_CE[CHUNK : 2 * CHUNK] = made.text_CE[:CHUNK]
    with pytest.raises(PartError, match="twice"):
        pytest.fail(f"taken: {made.build(first)}")


@pytest.mark.parametrize("pictures", [1, 3])
def test_many_classes_are_scored_as_the_reference_does(pictures: int) -> None:
    """In half precision a cosine is at most 6e-4 from the one in float64, alone or in a batch."""
    rng = np.random.default_rng(pictures)
    seen, classes = rng.random((40, 24)), CHUNK + 30
    means = rng.random((classes, 24))
    inverse = reference.metric(seen)
    factor = np.linalg.inv(np.linalg.cholesky(np.linalg.inv(inverse)))
    factor_DD, mean_CD = torch.from_numpy(factor).float(), torch.from_numpy(means).float()
    head = EvidenceHead(factor_DD, table(class_vectors(factor_DD, mean_CD)))
    assert head.vector_CD.chunks[0].vector_CD.dtype == torch.float16
    asked = rng.random((pictures, 24))
    found = evidence_scores(head, torch.from_numpy(asked).float(), None).numpy()
    some = rng.choice(classes, 60, replace=False)
    expected = np.array([[reference.score(x, means[c], inverse) for c in some] for x in asked])
    np.testing.assert_allclose(found[:, some], expected, atol=HALF, rtol=0)
    picked = evidence_scores(head, torch.from_numpy(asked).float(), some.tolist()).numpy()
    np.testing.assert_allclose(picked, expected, atol=HALF, rtol=0)
    text = means / np.linalg.norm(means, axis=1, keepdims=True)
    image = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    logits = text_logits(
        torch.from_numpy(image).float(), table(torch.from_numpy(text).float()), 50.0
    )
    np.testing.assert_allclose(logits.numpy() / 50.0, image @ text.T, atol=HALF, rtol=0)


def test_one_chunk_is_scored_in_full_precision() -> None:
    """What fits a processor's cache gains nothing from fewer bits; a GPU reads fast enough."""
    assert precision(CHUNK, torch.device("cpu")) == torch.float32
    assert precision(CHUNK + 1, torch.device("cpu")) == torch.float16
    assert precision(100_000, torch.device("cuda")) == torch.float32
    vector_CD, x_BD = torch.randn(CHUNK, 12), torch.randn(3, 12)
    assert torch.equal(table(vector_CD).products(x_BD), x_BD @ vector_CD.T)


def test_a_class_without_a_vector_has_no_score() -> None:
    """A zero row, and a class beyond the table, say nothing instead of zero."""
    vector_CD = torch.eye(CHUNK + 5, 6) + 0.1
    vector_CD[CHUNK + 1] = 0.0
    some = dataclasses.replace(table(vector_CD), classes=CHUNK + 20)
    product_BC = some.products(torch.ones(2, 6))
    nothing = [CHUNK + 1, *range(CHUNK + 5, CHUNK + 20)]
    assert product_BC[0].isnan().nonzero()[:, 0].tolist() == nothing
    assert product_BC.isnan().all(dim=0).sum() == len(nothing)
    row_KD = some.at([0, -1, CHUNK + 1, CHUNK + 2, CHUNK + 7, 2 * CHUNK])
    assert row_KD.any(dim=1).tolist() == [True, False, False, True, False, False]
    assert torch.equal(row_KD[[0, 3]], vector_CD[[0, CHUNK + 2]].half().float())


@torch.no_grad()
def test_classes_without_a_label_are_left_out(made: Published) -> None:
    """A forgotten class takes no share, and the names stand in the order of the answer."""
    gone = [1, CHUNK, CLASSES - 1]
    made.count_C[gone] = 0
    snapshot = made.build()
    names = [name for k, name in enumerate(made.names) if k not in gone]
    assert list(snapshot.learnt) == names
    assert [snapshot.classes.place(name) for name in made.names[:3]] == [0, -1, 1]
    assert snapshot.classes.place(made.names[-2]) == len(names) - 1
    assert snapshot.classes.place("walrus") == -1
    found = snapshot.answer(views(2), None, snapshot.classes.text_CE)
    index = [snapshot.classes.names.find(name) for name in names]
    asked = snapshot.answer(views(2), names, snapshot.classes.text_CE.at(index))
    torch.testing.assert_close(found.probability_BK, asked.probability_BK, atol=1e-3, rtol=0.02)
    best: Any = snapshot.rank(snapshot.learnt, found.probability_BK[0], 1)[0]
    assert best.label == names[int(found.probability_BK[0].argmax())]
