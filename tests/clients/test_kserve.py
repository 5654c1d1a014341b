"""Triton's own client speaks the KServe v2 protocol with us."""

from __future__ import annotations

import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from everlens.model.backbone import Backbone
from service.resizing import to_size
from tests.clients.conftest import teach
from tests.system.processes import PATIENCE_S

pytestmark = pytest.mark.system

NAMES = ["heron", "stork", "crane"]


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=60)
    yield client
    client.close()


def tensor(name: str, values: list[bytes] | list[str] | np.ndarray, **how: bool):
    """Return an input as its client makes them."""
    array = values if isinstance(values, np.ndarray) else np.array(values, dtype=object)
    kind = "BYTES" if array.dtype == object else "FP32"
    return triton.InferInput(name, list(array.shape), kind).set_data_from_numpy(array, **how)


def lines(result: triton.InferResult, row: int = 0) -> list[tuple[str, float]]:
    """Return the answer for one picture."""
    labels, scores = result.as_numpy("label")[row], result.as_numpy("score")[row]
    return [
        (label.decode() if isinstance(label, bytes) else label, round(float(score), 4))
        for label, score in zip(labels, scores, strict=True)
    ]


def test_it_finds_the_server_and_the_model(client) -> None:
    """Health, readiness, metadata: the model is ready, in the versions that it names."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("everlens")
    assert "everlens" == client.get_server_metadata()["name"]
    about = client.get_model_metadata("everlens")
    assert {"image", "pixels", "labels"} == {tensor["name"] for tensor in about["inputs"]}
    for version in about["versions"]:
        assert client.is_model_ready("everlens", version)
        assert about["name"] == client.get_model_metadata("everlens", version)["name"]
    assert not client.is_model_ready("everlens", "987654321")
    assert not client.is_model_ready("another")


def test_pictures_as_bytes(client, url, pictures) -> None:
    """Two pictures in one request, all binary: the answers are those of /classify."""
    both = [pictures["cat"], pictures["rocket"]]
    result = client.infer(
        "everlens",
        [tensor("image", both), tensor("labels", NAMES)],
        request_id="mine",
    )
    answer = result.get_response()
    assert ("everlens", "mine") == (answer["model_name"], answer["id"])
    assert (2, 3) == result.as_numpy("label").shape == result.as_numpy("samples").shape
    assert (2,) == result.as_numpy("prediction_id").shape
    for row, picture in enumerate(both):
        form = {"labels": NAMES, "version": answer["model_version"]}
        files = {"image": picture}
        ours = httpx.post(f"{url}/classify", data=form, files=files, timeout=PATIENCE_S).json()
        assert [line["label"] for line in ours["predictions"]] == [
            label for label, _ in lines(result, row)
        ]
        scores = [line["score"] for line in ours["predictions"]]
        assert scores == pytest.approx([score for _, score in lines(result, row)], abs=2e-3)


def test_pixels_are_what_the_models_own_preprocessing_gives(
    client, pictures, tiny_clip: Backbone
) -> None:
    """The same picture as file and as normalised pixels gets the same answer."""
    picture = np.array(Image.open(io.BytesIO(pictures["coffee"])))
    level = to_size(picture, 1, tiny_clip.pixels)
    pixels = tiny_clip.images([level]).numpy()
    file = io.BytesIO()
    Image.fromarray(level).save(file, "PNG")
    labels = tensor("labels", NAMES)
    by_file = client.infer("everlens", [tensor("image", [file.getvalue()]), labels])
    version = by_file.get_response()["model_version"]
    by_pixels = client.infer("everlens", [tensor("pixels", pixels), labels], model_version=version)
    assert lines(by_file) == lines(by_pixels)
    in_json = [tensor("pixels", pixels, binary_data=False), labels]
    outputs = [triton.InferRequestedOutput("label", binary_data=False)]
    by_json = client.infer("everlens", in_json, outputs=outputs, model_version=version)
    assert ["label"] == [output["name"] for output in by_json.get_response()["outputs"]]
    assert [label for label, _ in lines(by_file)] == by_json.as_numpy("label")[0].tolist()


def test_the_version_is_named_and_may_be_asked_for(client, url, pictures) -> None:
    """`model_version` is the one that answered; a new one answers as soon as it is there."""
    teach(url, pictures["rocket"], "ours for triton")
    image = tensor("image", [pictures["rocket"]])
    newest = client.infer("everlens", [image])
    assert "ours for triton" in {label for label, _ in lines(newest)}
    version = newest.get_response()["model_version"]
    assert int(version) >= 1
    for asked in (version, "0"):
        labels = tensor("labels", ["ours for triton", *NAMES])
        answered = client.infer("everlens", [image, labels], model_version=asked)
        assert asked == answered.get_response()["model_version"]


def test_refusals_are_sentences(client, pictures) -> None:
    """What its client shows says what to do."""
    image = tensor("image", [pictures["cat"]])
    no_picture = tensor("image", [b"no picture"])
    raw = np.full((1, 3, 32, 32), 255, np.float32)
    for inputs, sentence in [
        ([tensor("labels", NAMES)], "either `image` or `pixels`"),
        ([image, tensor("images", NAMES)], "`image` or `pixels`"),
        ([tensor("pixels", raw)], "own preprocessing"),
        ([tensor("pixels", raw[:, :, :8])], r"send FP32 \[N, 3, 32, 32\]"),
        ([tensor("pixels", np.full_like(raw, np.nan))], "own preprocessing"),
        ([no_picture], "JPEG, PNG or WebP"),
        ([image, tensor("labels", ["heron", "heron"])], "repeats 'heron'"),
        ([tensor("image", [pictures["cat"]] * 65)], "send 1 to 64"),
    ]:
        with pytest.raises(InferenceServerException, match=sentence) as refused:
            client.infer("everlens", inputs)
        assert refused.value.status() in {"415", "422"}
    with pytest.raises(InferenceServerException, match="ask for it by that name"):
        client.infer("resnet", [image])
    with pytest.raises(InferenceServerException, match="is not kept"):
        client.infer("everlens", [image], model_version="987654321")
    with pytest.raises(InferenceServerException, match="Content-Encoding"):
        client.infer("everlens", [image], request_compression_algorithm="gzip")
