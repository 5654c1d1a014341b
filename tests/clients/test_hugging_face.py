"""Hugging Face's own client asks which of some names fits."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import httpx
import pytest
from huggingface_hub import InferenceClient, close_session
from huggingface_hub.errors import HfHubHTTPError

from tests.clients.conftest import at_one_version, teach
from tests.system.processes import PATIENCE_S

pytestmark = pytest.mark.system

NAMES = ["heron", "stork", "crane"]


@pytest.fixture
def client(url: str) -> Iterator[InferenceClient]:
    yield InferenceClient(f"{url}/hf/zero-shot-image-classification", timeout=PATIENCE_S)
    close_session()


def test_its_answer_is_that_of_classify(client, url, pictures) -> None:
    """All candidates come, the best first, with the scores of /classify at the same version."""
    scored, ours = at_one_version(
        url,
        lambda: (
            client.zero_shot_image_classification(pictures["cat"], NAMES),
            httpx.post(
                f"{url}/classify",
                data={"labels": NAMES},
                files={"image": pictures["cat"]},
                timeout=PATIENCE_S,
            ).json()["predictions"],
        ),
    )
    assert sorted(NAMES) == sorted(line.label for line in scored)
    assert [line["label"] for line in ours] == [line.label for line in scored]
    assert [line["score"] for line in ours] == pytest.approx(
        [line.score for line in scored], abs=2e-3
    )
    assert 1 == pytest.approx(sum(line.score for line in scored), abs=1e-4)


def test_what_was_learnt_counts(client, url, pictures) -> None:
    """One label raises its name; the model is a random one, so it need not come first."""
    ours = f"rocket {uuid.uuid4().hex[:6]}"
    names = [ours, *NAMES]

    def score() -> float:
        lines = client.zero_shot_image_classification(pictures["rocket"], names)
        return {line.label: float(line.score) for line in lines}[ours]

    before = score()
    teach(url, pictures["rocket"], ours)
    assert score() > before


def test_a_refusal_is_a_sentence(client, pictures) -> None:
    """What its client shows says what to do."""
    with pytest.raises(HfHubHTTPError, match="labels repeats 'heron'; name each once"):
        client.zero_shot_image_classification(pictures["cat"], ["heron", "heron"])
    with pytest.raises(HfHubHTTPError, match="EVERLENS_TEMPLATES"):
        client.zero_shot_image_classification(
            pictures["cat"], NAMES, hypothesis_template="it is {}"
        )
    with pytest.raises(HfHubHTTPError, match="JPEG, PNG or WebP"):
        client.zero_shot_image_classification(b"no picture", NAMES)
