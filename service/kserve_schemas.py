"""The shapes of the KServe v2 protocol, as far as we speak it. ①"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from service.schemas import TOP_DEFAULT, TOP_MAX, Strict
from service.tensors import TensorIn


class OutputParametersIn(Strict):
    """How an output is sent."""

    binary_data: bool = False


class OutputIn(Strict):
    """An output that is wanted."""

    name: str = Field(examples=["label"])
    parameters: OutputParametersIn = OutputParametersIn()


class InferParametersIn(Strict):
    """What is asked of all pictures."""

    top: int = Field(TOP_DEFAULT, ge=1, le=TOP_MAX, description="How many names for a picture.")
    binary_data_output: bool = Field(False, description="Send all outputs behind the JSON.")


class InferIn(Strict):
    """Pictures, and the names to choose from."""

    id: str | None = Field(None, max_length=200, description="Comes back with the answer.")
    inputs: list[TensorIn] = Field(
        min_length=1,
        max_length=2,
        description="`image` (BYTES: JPEG, PNG or WebP; base64 in JSON) or `pixels` (FP32, "
        "N × 3 × size × size, as the model's own preprocessing gives them), and `labels` (BYTES): "
        "the candidates; without them, all learnt classes.",
    )
    outputs: list[OutputIn] = Field([], max_length=16, description="Left out: all.")
    parameters: InferParametersIn = InferParametersIn()


class LiveOut(Strict):
    """The process lives."""

    live: bool


class ReadyOut(Strict):
    """It may be asked."""

    ready: bool


class ModelReadyOut(Strict):
    """The model, or one version of it, may be asked."""

    name: str
    ready: bool


class ServerOut(Strict):
    """What answers, and what it can do beside the protocol's least."""

    name: str
    version: str
    extensions: list[str]


class TensorAboutOut(Strict):
    """A tensor's name and form; -1 stands for any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelAboutOut(Strict):
    """The model: its versions that may be asked, and its tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorAboutOut]
    outputs: list[TensorAboutOut]


class TensorOut(Strict):
    """An output, with its data here or behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, int] | None = None


class InferParametersOut(Strict):
    """How much the version has learnt."""

    learned_through: int = Field(ge=0)


class InferOut(Strict):
    """An answer: `label`, `score`, `samples` are N × top, the best first; `prediction_id` is N."""

    id: str | None = None
    # Pydantic keeps names that begin so for itself.
    model_config = ConfigDict(protected_namespaces=())
    model_name: str
    model_version: str
    parameters: InferParametersOut
    outputs: list[TensorOut]
