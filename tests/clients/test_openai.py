"""OpenAI's own client fetches vectors of texts and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from everlens.model.backbone import Backbone
from service.resizing import to_size
from tests.clients.conftest import teach

pytestmark = pytest.mark.system


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0) as client:
        yield client


def uri(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


@torch.inference_mode()
def test_vectors_are_those_of_the_frozen_model(client, pictures, tiny_clip: Backbone) -> None:
    """As it asks unless told otherwise (base64): unit vectors of a text and a picture."""
    (model,) = client.models.list()
    inputs = ["a photo of a cat", uri(pictures["cat"]), "cat"]
    answer = client.embeddings.create(input=inputs, model=model.id)
    vectors = np.array([line.embedding for line in answer.data])
    assert [0, 1, 2] == [line.index for line in answer.data]
    assert np.ones(3) == pytest.approx(np.linalg.norm(vectors, axis=1), abs=1e-5)
    pixels = np.array(Image.open(io.BytesIO(pictures["cat"])))
    image = tiny_clip.images([to_size(pixels, 1, tiny_clip.pixels)])
    expected = [
        tiny_clip.text_embedding("a photo of a cat"),
        torch.nn.functional.normalize(tiny_clip.image_tower(image).embedding_BE, dim=-1)[0],
        tiny_clip.text_embedding("cat"),
    ]
    # The picture is another decoder's, and seen in bfloat16.
    for vector, wanted, within in zip(vectors, expected, (1e-5, 0.03, 1e-5), strict=True):
        assert vector @ wanted.numpy() > 1 - within
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_both_encodings_are_the_same_numbers(client, pictures) -> None:
    model = client.models.list().data[0].id
    asked = {"input": uri(pictures["rocket"]), "model": model}
    (plain,) = client.embeddings.create(**asked, encoding_format="float").data
    (packed,) = client.embeddings.create(**asked, encoding_format="base64").data
    numbers = np.frombuffer(base64.b64decode(packed.embedding), "<f4")
    assert np.array_equal(np.array(plain.embedding, np.float32), numbers)


def test_what_is_learnt_moves_no_vector(client, url, pictures) -> None:
    """So they may be stored."""
    model = client.models.list().data[0].id
    asked = {"input": uri(pictures["coffee"]), "model": model}
    before = client.embeddings.create(**asked).data[0].embedding
    teach(url, pictures["coffee"], "a cup")
    assert before == client.embeddings.create(**asked).data[0].embedding


def test_refusals_are_sentences(client, pictures) -> None:
    """Another model is refused and not imitated; so is what cannot be done."""
    with pytest.raises(openai.NotFoundError, match="ask for it by that name"):
        client.embeddings.create(input="cat", model="text-embedding-3-small")
    model = client.models.list().data[0].id
    assert model == client.models.retrieve(model).id
    refused_inputs: list[tuple[dict[str, Any], str]] = [
        ({"input": [[1, 2, 3]]}, "string"),
        ({"input": ""}, "is empty"),
        ({"input": "cat " * 60}, "longer than what the text tower reads"),
        ({"input": "cat", "dimensions": 3}, "cannot be cut"),
        ({"input": "data:image/jpeg,cat"}, "not base64"),
        ({"input": ["cat"] * 65}, "send at most 64"),
    ]
    for wrong, sentence in refused_inputs:
        with pytest.raises(openai.UnprocessableEntityError, match=sentence):
            client.embeddings.create(model=model, **wrong)
    with pytest.raises(openai.APIStatusError, match="JPEG, PNG or WebP") as refused:
        client.embeddings.create(model=model, input=["cat", "data:image/jpeg;base64,bm9uZQ=="])
    assert 415 == refused.value.status_code
