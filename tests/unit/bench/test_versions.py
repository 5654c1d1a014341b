"""Made-up versions are versions: a service's snapshot is built from them, and it answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.versions import Head, Versions, served
from everlens.bus.keys import Keys
from everlens.bus.stream import Stream
from everlens.bus.versions import Publisher
from everlens.model.backbone import Backbone
from everlens.pixels import Pixels


@pytest.fixture
def pictures() -> list[Pixels]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]


def test_a_version_answers_with_three_experts(tiny_clip: Backbone, pictures: list[Pixels]) -> None:
    """All classes are candidates of all experts, and the adapter sees something else."""
    snapshot = served(tiny_clip, Versions(tiny_clip, 1500, top_blocks=2).first())
    views = snapshot.see(pictures)
    text_CE = snapshot.classes.text_CE
    scores = snapshot.scores(views, None, text_CE)

    assert len(snapshot.classes.names) == scores.text_BK.shape[1] == 1500
    assert scores.evidence_BK is not None
    assert scores.adapter_BK is not None
    assert bool(scores.adapter_BK.isfinite().all())
    assert views.tuned_embedding_BE is not None
    assert not torch.equal(views.embedding_BE, views.tuned_embedding_BE)
    assert torch.allclose(
        snapshot.answer(views, None, text_CE).probability_BK.sum(dim=1), torch.ones(3)
    )


def test_a_version_without_an_adapter_has_no_second_top(tiny_clip: Backbone) -> None:
    """Then only the frozen experts answer."""
    version = Versions(tiny_clip, 10, top_blocks=2, adapter=False).first()

    assert served(tiny_clip, version).tuned_top is None
    assert not any(name.startswith("adapter") for name in version.manifest.parts)


def test_a_version_brings_what_changed_and_no_more(
    tiny_clip: Backbone, pictures: list[Pixels]
) -> None:
    """One class of 3,000: its chunk and the fusion; another adapter: itself and the fusion."""
    versions = Versions(tiny_clip, 3000, top_blocks=2)
    before = served(tiny_clip, versions.first())
    learnt = versions.learnt(2500)
    after = served(tiny_clip, learnt, before)
    tuned = versions.tuned()
    last = served(tiny_clip, tuned, after)

    changed = {n for n, d in learnt.manifest.parts.items() if d in learnt.contents}
    assert changed == {"evidence/39", "record/2", "fusion"}  # of 64 and of 1,024 classes
    assert after.samples("class 2500") == 2
    assert after.tuned_top is before.tuned_top
    assert len(tuned.contents) == 2
    assert last.tuned_top is not after.tuned_top
    seen, seen_before = last.see(pictures), after.see(pictures)
    assert torch.equal(seen.embedding_BE, seen_before.embedding_BE)
    assert seen.tuned_feature_BD is not None
    assert seen_before.tuned_feature_BD is not None
    assert not torch.equal(seen.tuned_feature_BD, seen_before.tuned_feature_BD)


def test_versions_become_the_head(tiny_clip: Backbone, log_url: str, namespace: str) -> None:
    """They are published one after the other as the learner does it."""
    versions, head = Versions(tiny_clip, 10, top_blocks=2), Head(log_url, namespace)
    for version in (versions.first(), versions.learnt(3), versions.tuned()):
        head.publish(version)

    found = Publisher(Stream(head.client, Keys(namespace))).head()
    head.close()
    assert found == (3, version.manifest.digest)
