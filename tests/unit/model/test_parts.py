"""A version as parts and back: the same answers, unchanged pieces used again, damage refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Generator, Tensor
from torch.nn import functional

from everlens.artifact import Manifest, digest_of
from everlens.errors import PartError
from everlens.model import parts as published
from everlens.model.adapter import AdapterSpec, insert, merged, tensors_of
from everlens.model.backbone import Backbone
from everlens.model.classes import EVIDENCE_CHUNK, chunks_of, table
from everlens.model.fusion import Fused, Fusion, Scores, fuse
from everlens.model.heads import (
    EvidenceHead,
    class_vectors,
    evidence_feature,
    evidence_scores,
    text_logits,
)
from everlens.model.snapshot import CURVE_BINS, RECORD, Snapshot, base_snapshot
from everlens.model.tower import pooled
from everlens.pixels import Pixels
from tests.exact import in_float32
from tests.pictures import PHOTOGRAPHS, crops
from worker.learn.evidence import EvidenceSums, Head, head_of

SPEC = AdapterSpec(tune="image", top_blocks=2, rank=4, alpha=4.0)
FUSION = Fusion(3.0, 0.3, 1.25, 20.0, 0.6, 0.3, 25.0, 11.0, 0.25)
SHOWN = [3, 1, 2]  # labels of astronaut, cat, coffee; the rocket was never named
# Of astronaut, cat, coffee: the second has been scored too rarely for a best, the third never.
RECORDS_CR = torch.tensor(
    [
        [0.8125, 0.25, 1.5, 0.5, 0.75, 1.0],
        [0.0, math.nan, 1.0, 0.0, 0.0, 1.0],
        [math.nan, math.nan, 0.5, math.nan, math.nan, math.nan],
    ]
)


# Of a curve, bin by bin: answers, and right ones.
CURVES_CN2 = torch.zeros(3, CURVE_BINS, 2, dtype=torch.uint8)
CURVES_CN2[0, :2] = torch.tensor([[1, 0], [2, 2]])
CURVES_CN2[1, 9] = 255


class Version(NamedTuple):
    """What was learnt, before it is encoded."""

    backbone: Backbone
    names: list[str]
    text_CE: Tensor
    evidence: Head
    tuned: Head
    tuned_text_CE: Tensor  # of the first two classes
    tensors: dict[str, Tensor]

    def contents(self) -> dict[str, bytes]:
        return {
            "classes/0": published.encode_classes(self.names, self.text_CE),
            "evidence/factor": published.encode_factor(self.evidence.factor_DD),
            "evidence/0": published.encode_evidence(self.evidence.mean_CD, self.evidence.count_C),
            "adapter": published.encode_adapter(self.tensors, SPEC),
            "adapter/factor": published.encode_factor(self.tuned.factor_DD),
            # The adapter was fitted before the last class came.
            "adapter/0": published.encode_evidence(
                self.tuned.mean_CD[:2], self.tuned.count_C[:2], self.tuned_text_CE
            ),
            "fusion": published.encode_fusion(FUSION),
            "record/0": published.encode_record(RECORDS_CR, CURVES_CN2),
        }

    def manifest(self, contents: dict[str, bytes], classes: int = 3) -> Manifest:
        digests = {name: digest_of(content) for name, content in contents.items()}
        fingerprint, cut = self.backbone.fingerprint, SPEC.top_blocks
        return Manifest(5, "", fingerprint, 42, sum(SHOWN), classes, cut, digests)

    def build(
        self, contents: dict[str, bytes], previous: Snapshot | None = None, classes: int = 3
    ) -> Snapshot:
        blobs = {digest_of(content): content for content in contents.values()}
        return published.build_snapshot(
            self.backbone, self.manifest(contents, classes), blobs, previous
        )


@pytest.fixture(scope="module")
def version(small_model: Callable[[str], Backbone]) -> Version:
    backbone = in_float32(small_model("vit"))
    trunk, top = backbone.image_tower.cut(SPEC.top_blocks)
    bent = insert(top, SPEC, Generator().manual_seed(1))
    generator = Generator().manual_seed(2)
    for parameter in tensors_of(bent).values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    tensors = {f"image.{name}": t.detach() for name, t in tensors_of(bent).items()}
    heads = []
    with torch.no_grad():
        for end in (top, bent):
            sums = EvidenceSums(64)
            for c, (name, count) in enumerate(zip(PHOTOGRAPHS, SHOWN, strict=False)):
                hidden = trunk(backbone.images(crops(name, count, 32)))
                feature_BD = evidence_feature(
                    end(hidden).feature_BD, pooled(hidden), backbone.recipe
                )
                sums.add(feature_BD, [c] * count)
            heads.append(head_of(sums))
    names = list(PHOTOGRAPHS[:3])
    text_CE = torch.stack([backbone.name_embedding(name) for name in names])
    tuned_text_CE = functional.normalize(torch.randn(2, 32, generator=generator), dim=-1)
    return Version(backbone, names, text_CE, heads[0], heads[1], tuned_text_CE, tensors)


def query() -> list[Pixels]:
    return [part for name in PHOTOGRAPHS for part in crops(name, 5, 32)[3:]]


def expected_answer(version: Version, names: list[str]) -> Fused:
    """Return the answer from the tensors as they were before they were encoded."""
    backbone = version.backbone
    trunk, top = backbone.image_tower.cut(SPEC.top_blocks)
    tensors = {name.removeprefix("image."): t for name, t in version.tensors.items()}
    hidden = trunk(backbone.images(query()))
    frozen, tuned = top(hidden), merged(top, top, tensors, SPEC)(hidden)
    index = [version.names.index(n) if n in version.names else -1 for n in names]

    def scores(head: Head, classes: int, feature_BF: Tensor) -> Tensor:
        vectors = class_vectors(head.factor_DD, head.mean_CD[:classes])
        feature_BD = evidence_feature(feature_BF, pooled(hidden), backbone.recipe)
        return evidence_scores(EvidenceHead(head.factor_DD, table(vectors)), feature_BD, index)

    tuned_text_KE = torch.stack(
        [version.tuned_text_CE[c] if 0 <= c < 2 else torch.full((32,), math.nan) for c in index]
    )
    said = Scores(
        text_logits(
            functional.normalize(frozen.embedding_BE, dim=-1),
            torch.stack([backbone.name_embedding(name) for name in names]),
            backbone.logit_scale,
        ),
        scores(version.evidence, 3, frozen.feature_BD),
        scores(version.tuned, 2, tuned.feature_BD),
        text_logits(
            functional.normalize(tuned.embedding_BE, dim=-1), tuned_text_KE, backbone.logit_scale
        ),
        torch.tensor([SHOWN[c] if c >= 0 else 0 for c in index]),
    )
    return fuse(said, FUSION)


def answer(snapshot: Snapshot, pictures: list[Pixels], names: list[str] | None) -> Fused:
    views = snapshot.see(pictures)
    if names is None:
        return snapshot.answer(views, None, snapshot.classes.text_CE)
    text_KE = torch.stack([snapshot.backbone.name_embedding(name) for name in names])
    return snapshot.answer(views, names, text_KE)


@pytest.mark.parametrize("names", [["rocket", "cat", "walrus", "coffee"], ["cat"], ["walrus"]])
@torch.no_grad()
def test_a_built_snapshot_answers_as_before_it_was_encoded(
    version: Version, names: list[str]
) -> None:
    """Learnt and unseen names get the probabilities that the tensors themselves give."""
    snapshot = version.build(version.contents())
    found, expected = answer(snapshot, query(), names), expected_answer(version, names)
    # Encoding loses no bit; a table padded by a zero row may be added up in another order.
    torch.testing.assert_close(found.probability_BK, expected.probability_BK, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.known_B, expected.known_B, atol=1e-6, rtol=0)


@torch.no_grad()
def test_without_names_all_learnt_classes_are_ranked(version: Version) -> None:
    """None asks for the learnt classes in the order of their index."""
    snapshot = version.build(version.contents())
    found_BK = answer(snapshot, query(), None).probability_BK
    expected_BK = expected_answer(version, version.names).probability_BK
    # All columns in one product instead of picked ones may add in another order.
    torch.testing.assert_close(found_BK, expected_BK, atol=1e-6, rtol=0)
    ranked = snapshot.rank(version.names, found_BK[0], top=2)
    order = found_BK[0].argsort(descending=True).tolist()
    assert [line.label for line in ranked] == [version.names[k] for k in order[:2]]
    assert [line.samples for line in ranked] == [SHOWN[k] for k in order[:2]]
    assert ranked[0].score >= ranked[1].score


def test_a_snapshot_says_what_its_manifest_says(version: Version) -> None:
    """Version, digest, cursor, names, counts and constants come from the parts."""
    contents = version.contents()
    snapshot = version.build(contents)
    manifest = version.manifest(contents)
    assert (snapshot.version, snapshot.digest, snapshot.learned_through) == (5, manifest.digest, 42)
    assert tuple(snapshot.classes.names) == PHOTOGRAPHS[:3]
    assert snapshot.classes.count_C.tolist() == SHOWN
    assert snapshot.fusion == FUSION
    assert (snapshot.samples("coffee"), snapshot.samples("walrus")) == (2, 0)
    assert snapshot.adapter_text_CE is not None
    assert torch.equal(snapshot.adapter_text_CE.at([0, 1]), version.tuned_text_CE)
    assert not snapshot.adapter_text_CE.at([2]).any()


@torch.no_grad()
def test_a_frozen_text_tower_publishes_no_texts(version: Version) -> None:
    """Without tuned text vectors the names' own are used for all classes."""
    contents = version.contents()
    contents["adapter/0"] = published.encode_evidence(version.tuned.mean_CD, version.tuned.count_C)
    snapshot = version.build(contents)
    assert snapshot.adapter_text_CE is None
    text_KE = snapshot.classes.text_CE
    whole = snapshot.answer(snapshot.see(query()), None, text_KE)
    flipped = table(text_KE.at([2, 1, 0]))
    bent = dataclasses.replace(snapshot, adapter_text_CE=flipped)
    found = bent.answer(bent.see(query()), None, text_KE)
    assert not torch.equal(found.probability_BK, whole.probability_BK)


def test_equal_content_is_equal_bytes(version: Version) -> None:
    """A part's name follows from what it holds, so that what is unchanged is not sent."""
    assert version.contents() == version.contents()
    backwards = dict(reversed(version.tensors.items()))
    assert published.encode_adapter(backwards, SPEC) == version.contents()["adapter"]


def test_unchanged_pieces_are_used_again(version: Version) -> None:
    """A new version over the same parts shares towers, tables and tensors, not copies of them."""
    contents = version.contents()
    first = version.build(contents)
    changed = {**contents, "fusion": published.encode_fusion(Fusion(kappa=9.0))}
    second = published.build_snapshot(
        version.backbone,
        version.manifest(changed),
        {digest_of(changed["fusion"]): changed["fusion"]},
        previous=first,
    )
    assert second.fusion.kappa == 9.0
    assert second.trunk is first.trunk
    assert second.frozen_top is first.frozen_top
    assert second.tuned_top is first.tuned_top
    assert first.evidence is not None
    assert second.evidence is not None
    assert second.evidence.factor_DD is first.evidence.factor_DD
    shared = first.memo.keys() & second.memo.keys()
    assert all(second.memo[key] is first.memo[key] for key in shared)
    assert ("chunk", 0) in shared
    assert ("fusion", digest_of(contents["fusion"])) not in second.memo


def test_evidence_alone_keeps_the_tuned_top(version: Version) -> None:
    """Learning a sample makes new vectors from the old factor, and nothing else."""
    contents = version.contents()
    first = version.build(contents)
    mean_CD = version.evidence.mean_CD.clone()
    mean_CD[1] = mean_CD[0]
    fresh = published.encode_evidence(mean_CD, version.evidence.count_C + 1)
    second = version.build({**contents, "evidence/0": fresh}, previous=first)
    assert second.tuned_top is first.tuned_top
    assert second.evidence is not None
    assert first.evidence is not None
    assert torch.equal(second.evidence.vector_CD.at([1]), first.evidence.vector_CD.at([0]))
    assert second.classes.count_C.tolist() == [4, 2, 3]


def test_tops_side_by_side_have_the_bits_of_one_after_the_other(version: Version) -> None:
    """It is only faster, and needs no gradients in the other thread either."""
    snapshot = version.build(version.contents())
    assert snapshot.tuned_top is not None
    size = version.backbone.pixels.size
    hidden = snapshot.see_trunk([np.full((size, size, 3), 77, np.uint8)])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as beside:
            at_once = snapshot.look(hidden, beside=beside)
            assert beside.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for one, both in zip(snapshot.look(hidden), at_once, strict=True):
        assert one is not None
        assert both is not None
        assert torch.equal(one, both)
        assert not both.requires_grad


def test_what_the_frozen_top_saw_is_not_seen_again(version: Version) -> None:
    """Of a version that bends the same tower otherwise, the tuned views alone are new."""
    snapshot = version.build(version.contents())
    base = base_snapshot(version.backbone, SPEC.top_blocks)
    size = version.backbone.pixels.size
    hidden = snapshot.see_trunk([np.full((size, size, 3), 77, np.uint8)])
    found = snapshot.look(hidden, known=base.look(hidden))
    for one, other in zip(found, snapshot.look(hidden), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    assert base.look(hidden, known=found)[2:] == (None, None)


def test_the_first_version_has_the_towers_of_the_base(version: Version) -> None:
    """What was seen before anything was learnt need not be seen again."""
    contents = {k: v for k, v in version.contents().items() if not k.startswith("adapter")}
    base = base_snapshot(version.backbone, SPEC.top_blocks)
    first = version.build(contents, previous=base)
    assert first.trunk is base.trunk
    assert first.frozen_top is base.frozen_top


def test_before_the_first_adapter_there_is_no_tuned_top(version: Version) -> None:
    """Evidence alone is a version; it is cut where its manifest says, whatever was before."""
    contents = {k: v for k, v in version.contents().items() if not k.startswith("adapter")}
    base = base_snapshot(version.backbone, top_blocks=1)
    snapshot = version.build(contents, previous=base)
    assert snapshot.tuned_top is None
    assert snapshot.adapter is None
    assert len(snapshot.frozen_top.blocks) == SPEC.top_blocks != version.backbone.top_blocks
    blobs = {digest_of(content): content for content in contents.values()}
    deeper = dataclasses.replace(version.manifest(contents), top_blocks=0)
    found = published.build_snapshot(version.backbone, deeper, blobs, previous=snapshot)
    assert len(found.frozen_top.blocks) == 0


@pytest.mark.parametrize("top_blocks", [4, 1000])
def test_a_cut_that_the_tower_does_not_have_is_refused(version: Version, top_blocks: int) -> None:
    """More blocks in the top than there are in the tower is an error with a sentence."""
    contents = {k: v for k, v in version.contents().items() if not k.startswith("adapter")}
    blobs = {digest_of(content): content for content in contents.values()}
    assert len(version.backbone.image_tower.blocks) == 3
    far = dataclasses.replace(version.manifest(contents), top_blocks=top_blocks)
    with pytest.raises(PartError, match="cannot be cut"):
        published.build_snapshot(version.backbone, far, blobs)


def test_records_come_back_with_what_is_not_known(version: Version) -> None:
    """Each number as it was and NaN where there is none; for people, by name, as null."""
    snapshot = version.build(version.contents())
    torch.testing.assert_close(snapshot.record[0], RECORDS_CR, rtol=0, atol=0, equal_nan=True)
    said = dict(zip(RECORD, (0.8125, 0.25, 1.5, 0.5, 0.75, 1.0), strict=True))
    assert snapshot.about(0) == said
    assert snapshot.about(1)["recall"] == 0.0
    assert snapshot.about(1)["forgetting"] is None
    assert snapshot.about(2) == {**dict.fromkeys(RECORD), "weight": 0.5}
    assert torch.equal(snapshot.curve[0], CURVES_CN2)


def test_a_version_without_records_knows_nothing_of_a_class(version: Version) -> None:
    """The part may be missing: every figure is then unknown, none is zero."""
    contents = version.contents()
    del contents["record/0"]
    snapshot = version.build(contents)
    assert [snapshot.about(index) for index in range(3)] == [dict.fromkeys(RECORD)] * 3


def test_records_of_other_classes_are_refused(version: Version) -> None:
    """A row for each class and a column for each figure, no more and no fewer."""
    other = [
        (wrong_CR, CURVES_CN2)
        for wrong_CR in (RECORDS_CR[:2], RECORDS_CR[:, :5], RECORDS_CR.repeat(2, 1), RECORDS_CR[0])
    ]
    other += [
        (RECORDS_CR, wrong_CN2)
        for wrong_CN2 in (
            CURVES_CN2[:2],
            CURVES_CN2[:, :5],
            CURVES_CN2[:, :, :1],
            CURVES_CN2.flip(2),
        )
    ]
    for wrong_CR, wrong_CN2 in other:
        record = published.encode_record(wrong_CR, wrong_CN2)
        contents = version.contents() | {"record/0": record}
        with pytest.raises(PartError):
            pytest.fail(f"taken: {version.build(contents)}")


def test_more_classes_than_a_chunk_holds(version: Version) -> None:
    """1,030 classes lie in two chunks and are answered as one table."""
    count = 1030
    names = [f"class {k}" for k in range(count)]
    generator = Generator().manual_seed(4)
    text_CE = functional.normalize(torch.randn(count, 32, generator=generator), dim=-1)
    mean_CD = torch.randn(count, 64, generator=generator)
    count_C = torch.arange(1, count + 1)
    record_CR = torch.rand(count, len(RECORD), generator=generator)
    curve_CN2 = torch.arange(count).remainder(256).to(torch.uint8)[:, None, None]
    curve_CN2 = curve_CN2.repeat(1, CURVE_BINS, 2)
    contents = {
        "evidence/factor": published.encode_factor(version.evidence.factor_DD),
        "fusion": published.encode_fusion(FUSION),
    }
    for number, span in chunks_of(count):
        contents[f"classes/{number}"] = published.encode_classes(names[span], text_CE[span])
        contents[f"record/{number}"] = published.encode_record(record_CR[span], curve_CN2[span])
    for number, span in chunks_of(count, EVIDENCE_CHUNK):
        contents[f"evidence/{number}"] = published.encode_evidence(mean_CD[span], count_C[span])
    assert [s for _, s in chunks_of(count)] == [slice(0, 1024), slice(1024, 1030)]
    snapshot = version.build(contents, classes=count)
    assert list(snapshot.classes.names) == names
    found_CE = snapshot.classes.text_CE.at(range(count))
    assert torch.equal(found_CE, text_CE.half().float())
    assert torch.equal(snapshot.classes.count_C, count_C)
    assert torch.equal(torch.cat(snapshot.record), record_CR)
    assert torch.equal(torch.cat(snapshot.curve), curve_CN2)
    assert snapshot.evidence is not None
    expected_CD = class_vectors(version.evidence.factor_DD, mean_CD)
    vector_CD = snapshot.evidence.vector_CD.at(range(count))
    torch.testing.assert_close(vector_CD, expected_CD.half().float(), atol=3e-4, rtol=0)


def test_an_empty_version_is_the_base_model(version: Version) -> None:
    """Before the first sample there is a version all the same: names alone decide."""
    snapshot = version.build({"fusion": published.encode_fusion(FUSION)}, classes=0)
    base = base_snapshot(version.backbone, version.backbone.top_blocks)
    found = answer(snapshot, query(), ["cat", "rocket"])
    expected = answer(base, query(), ["cat", "rocket"])
    assert torch.equal(found.probability_BK, expected.probability_BK)
    assert snapshot.record == ()


def test_another_base_model_is_refused(version: Version) -> None:
    """A version made with other weights is not served, and the error says what to do."""
    contents = version.contents()
    foreign = dataclasses.replace(version.manifest(contents), fingerprint="0" * 64)
    blobs = {digest_of(content): content for content in contents.values()}
    with pytest.raises(PartError, match="EVERLENS_MODEL"):
        published.build_snapshot(version.backbone, foreign, blobs)


PARTS = (
    "classes/0",
    "evidence/factor",
    "evidence/0",
    "adapter",
    "adapter/factor",
    "adapter/0",
    "record/0",
    "fusion",
)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_was_not_fetched_is_refused(version: Version, name: str) -> None:
    """Every part that the manifest names is needed."""
    contents = version.contents()
    blobs = {digest_of(content): content for part, content in contents.items() if part != name}
    with pytest.raises(PartError, match="was not fetched"):
        published.build_snapshot(version.backbone, version.manifest(contents), blobs)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("damage", ["empty", "half", "text", "other"])
def test_a_part_that_is_something_else_is_refused(version: Version, name: str, damage: str) -> None:
    """Bytes that are no such part are refused, whatever they are, with the one error."""
    contents = version.contents()
    contents[name] = {
        "empty": b"",
        "half": contents[name][: len(contents[name]) // 2],
        "text": b"not a tensor at all, but long enough to have a header length",
        "other": save({"something": torch.zeros(2)}),
    }[damage]
    with pytest.raises(PartError):
        version.build(contents)


def of_another_shape(content: bytes) -> bytes:
    return save({k: t.unsqueeze(0).contiguous() for k, t in load(content).items()})


@pytest.mark.parametrize("name", PARTS[:-1])
def test_a_part_of_another_shape_is_refused(version: Version, name: str) -> None:
    """The right tensors with a dimension too many are no such part."""
    contents = version.contents()
    contents[name] = of_another_shape(contents[name])
    with pytest.raises(PartError):
        version.build(contents)


@pytest.mark.parametrize("constants", [[[1.0] * 9], [1.0] * 8, [1.0] * 10, []])
def test_a_fusion_of_another_shape_is_refused(version: Version, constants: list[float]) -> None:
    """The fusion has exactly nine constants."""
    contents = version.contents()
    contents["fusion"] = save({"fusion": torch.tensor(constants, dtype=torch.float64)})
    with pytest.raises(PartError):
        version.build(contents)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", PARTS)
def test_a_number_that_is_not_finite_is_refused(version: Version, name: str, number: float) -> None:
    """Not one such number in any part is served."""
    contents = version.contents()
    tensors = load(contents[name])
    key = next(k for k, t in tensors.items() if t.is_floating_point())
    tensors[key].view(-1)[-1] = number
    contents[name] = save(tensors)
    with pytest.raises(PartError, match="not finite"):
        version.build(contents)


def test_tables_that_contradict_each_other_are_refused(version: Version) -> None:
    """Names, text vectors, means and counts must be of as many classes as the manifest says."""
    contents, mean_CD = version.contents(), version.evidence.mean_CD
    count_C = version.evidence.count_C
    wrong = [
        {"classes/0": published.encode_classes(["a", "b"], version.text_CE)},
        {"classes/0": published.encode_classes(["a", "b", "a"], version.text_CE)},
        {"classes/0": published.encode_classes(version.names, version.text_CE[:2])},
        {"evidence/0": published.encode_evidence(mean_CD, count_C[:2])},
        {"evidence/0": published.encode_evidence(mean_CD[:, :5], count_C)},
        {"evidence/0": published.encode_evidence(mean_CD, -count_C)},
        {"evidence/0": published.encode_evidence(mean_CD * torch.tensor([[1], [1], [0]]), count_C)},
        {"evidence/0": published.encode_evidence(mean_CD, count_C.float())},
        {"evidence/0": published.encode_evidence(torch.cat([mean_CD, mean_CD]), count_C)},
        {"evidence/factor": published.encode_factor(version.evidence.factor_DD[:5])},
    ]
    for change in wrong:
        with pytest.raises(PartError):
            pytest.fail(f"taken: {version.build(contents | change)}")


@pytest.mark.parametrize(
    "change",
    [{"top_blocks": 0}, {"top_blocks": 4}, {"top_blocks": 1}, {"rank": 3}],
    ids=lambda change: f"{change}",
)
def test_a_spec_that_does_not_fit_is_refused(version: Version, change: dict[str, Any]) -> None:
    """An adapter of other blocks than it says, or than the tower has, is refused."""
    spec = dataclasses.replace(SPEC, **change)
    contents = version.contents()
    contents["adapter"] = published.encode_adapter(version.tensors, spec)
    with pytest.raises(PartError):
        version.build(contents)
