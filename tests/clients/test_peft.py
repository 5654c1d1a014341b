"""An adapter that was learnt here is loaded elsewhere: by `peft`, on open_clip's own model."""

from __future__ import annotations

import io
import time
import warnings
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from everlens.bus.connect import connect
from everlens.bus.keys import Keys
from everlens.model.adapter import merged
from everlens.model.backbone import Backbone
from everlens.model.parts import decode_adapter
from service.resizing import to_size
from tests.clients.conftest import teach
from tests.system.processes import PATIENCE_S

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def tuned(url: str, pictures: dict[str, bytes]) -> int:
    """A version with an adapter."""
    for name in ("cat", "rocket"):
        teach(url, pictures[name], name)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for version in httpx.get(f"{url}/versions", timeout=PATIENCE_S).json()["versions"]:
            if version["adapter"]:
                return int(version["version"])
        time.sleep(0.1)
    raise AssertionError("no adapter was published within a minute")


@pytest.fixture
def part(log: str, url: str, tuned: int) -> bytes:
    """The adapter of that version as the service fetched it."""
    digest = httpx.get(f"{url}/versions/{tuned}", timeout=PATIENCE_S).json()["adapter"]
    client = connect(log)
    content = client.get(Keys("everlens").part(digest))
    client.close()
    assert isinstance(content, bytes)
    return content


@torch.inference_mode()
def test_the_image_features_are_those_that_answer(
    url: str,
    tuned: int,
    part: bytes,
    pictures: dict[str, bytes],
    tiny_clip: Backbone,
    tiny_folder: str,
    tmp_path: Path,
) -> None:
    """`peft` takes the downloaded files without a complaint, and bends open_clip's model as we do."""
    import open_clip  # not before our own code has: it wants a torchvision of the same build

    peft = pytest.importorskip("peft", reason="peft is not installed")
    answer = httpx.get(f"{url}/versions/{tuned}/adapter", timeout=PATIENCE_S).raise_for_status()
    assert "application/zip" == answer.headers["content-type"]
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
    torch.manual_seed(0)  # as the service makes a model of `random` weights
    library = open_clip.create_model(f"local-dir:{tiny_folder}", load_weights=False).eval()
    pixels = [np.array(Image.open(io.BytesIO(picture))) for picture in pictures.values()]
    images = tiny_clip.images([to_size(picture, 1, tiny_clip.pixels) for picture in pixels])
    frozen = library.encode_image(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of keys that are missing, say
        bent = peft.PeftModel.from_pretrained(library, str(tmp_path))
    tensors, spec = decode_adapter(part)
    trunk, top = tiny_clip.image_tower.cut(spec.top_blocks)
    own = {name.removeprefix("image."): tensor for name, tensor in tensors.items()}
    expected = merged(top, top, own, spec)(trunk(images)).embedding_BE
    got = bent.base_model.model.encode_image(images)
    assert torch.allclose(expected, got, atol=1e-5)
    assert (expected - frozen).abs().max() > 1e-3


def test_a_version_without_one_says_so(url: str) -> None:
    """The frozen model has none; a version that is not there is another matter."""
    for version, kind in [(0, "no-adapter"), (987654321, "unknown-version")]:
        answer = httpx.get(f"{url}/versions/{version}/adapter", timeout=PATIENCE_S)
        assert (404, f"/problems/{kind}") == (answer.status_code, answer.json()["type"])
