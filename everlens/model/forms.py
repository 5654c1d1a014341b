"""
What a part may hold, looked at before anything in it is believed. ⑧

Whoever can write to the log's server can store any bytes under their right digest. So the length of
a part's header is looked at before it is parsed, and names, dtypes, dimensions and numbers of its
tensors before they are used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from everlens.errors import PartError

# A header may name a million tensors in 100 MB, which are gigabytes once they are objects.
HEADER_BYTES_MAX = 1 << 20
_LENGTH_BYTES = 8


class Form(NamedTuple):
    """Of one tensor."""

    dtype: torch.dtype
    dimensions: int


_VECTORS = Form(torch.float32, 2)
_TEXT = Form(torch.uint8, 1)

# Kind of part → its tensors; see the table in `everlens.model.parts`.
_FORMS: dict[str, dict[str, Form]] = {
    "classes": {"names": _TEXT, "text_CE": _VECTORS},
    "evidence": {"count_C": Form(torch.int64, 1), "mean_CD": _VECTORS},
    "record": {"record_CR": _VECTORS, "curve_CN2": Form(torch.uint8, 3)},
    "factor": {"factor_DD": _VECTORS},
    "fusion": {"fusion": Form(torch.float64, 1)},
}
_LOW_RANK = ("image.", "text.")  # of an adapter, as many as there are maps


def kind_of(name: str) -> str:
    """Return what a part is by its name: `evidence/3` and `adapter/0` hold the same."""
    prefix, _, leaf = name.partition("/")
    if leaf == "factor":
        return leaf
    return "evidence" if prefix == "adapter" and leaf else prefix


def read_tensors(content: bytes, name: str) -> dict[str, Tensor]:
    """
    Return the tensors of a part, all of whose numbers are finite.

    Raises:
        PartError: a header that is too long, or a number that is not finite.
        SafetensorError, KeyError, TypeError, ValueError: it is no safetensors blob, or one with
            numbers of a kind that no part has.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    if length > min(HEADER_BYTES_MAX, len(content) - _LENGTH_BYTES):
        raise PartError(f"part {name} has {len(content)} bytes and a header of {length}")
    tensors: dict[str, Tensor] = load(content)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise PartError(f"part {name} holds a number that is not finite in {key}")
    return tensors


def all_finite(tensor: Tensor) -> bool:
    """Return whether no number is NaN or infinite; numpy looks in a tenth of torch's time."""
    if tensor.device.type != "cpu":
        return bool(tensor.isfinite().all())
    return bool(np.isfinite(tensor.detach().numpy()).all())


def check_form(tensors: Mapping[str, Tensor], name: str) -> None:
    """
    Return when these can be the tensors of the part of this name.

    Raises:
        PartError: a tensor too few or too many, or one of another dtype or number of dimensions.
    """
    kind = kind_of(name)
    if kind == "adapter":
        forms = {key: _VECTORS for key in tensors if key.startswith(_LOW_RANK)} | {"spec": _TEXT}
    else:
        forms = dict(_FORMS[kind])
    if name.startswith("adapter/") and "text_CE" in tensors:
        forms["text_CE"] = _VECTORS
    if forms.keys() != tensors.keys():
        odd = sorted(forms.keys() ^ tensors.keys())[:3]
        raise PartError(f"part {name} has other tensors than one of its kind: {odd}")
    for key, form in forms.items():
        if Form(tensors[key].dtype, tensors[key].ndim) != form:
            raise PartError(
                f"part {name} has {key} as {tensors[key].ndim} dimensions of {tensors[key].dtype}"
            )


def read_json(text: Tensor, bytes_max: int) -> Any:
    """
    Return the value that stands in a tensor of bytes.

    Raises:
        PartError: it is longer than anything we would write there.
        ValueError, RecursionError: it is no JSON.
    """
    if len(text) > bytes_max:
        raise PartError(f"{len(text)} bytes of JSON, at most {bytes_max} are read")
    return json.loads(text.numpy().tobytes())
