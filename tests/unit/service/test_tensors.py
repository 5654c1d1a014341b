"""Tensors that lie about their sizes are refused, whoever sends them; none of them is our fault."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from service.problems import Problem
from service.tensors import Bytes, TensorIn, read
from tests.unit.service.api import Api

pytestmark = pytest.mark.anyio


def tensor(kind: str, shape: list[int], size: int) -> TensorIn:
    """Return a tensor whose data stands behind the JSON."""
    about = {"name": "image", "datatype": kind, "shape": shape}
    return TensorIn.model_validate(about | {"parameters": {"binary_data_size": size}})


def bytes_tensor(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def test_what_is_sent_is_what_is_read() -> None:
    """Elements keep their zeros at the end; numbers are little-endian, in row-major order."""
    data = bytes_tensor(b"a\0", b"", "ä".encode())
    found = read(tensor("BYTES", [3, 1], len(data)), Bytes(data))
    assert found.tolist() == [[b"a\0"], [b""], ["ä".encode()]]
    numbers = np.arange(6, dtype="<f4")
    found = read(tensor("FP32", [2, 3], 24), Bytes(numbers.tobytes()))
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("shape", "data", "sentence"),
    [
        ([1], bytes_tensor(b"abc")[:-1], "ends within an element"),
        ([1], struct.pack("<I", 2**32 - 1), "ends within an element"),
        ([2], bytes_tensor(b"abc") + b"\0\0", "ends within the length"),
        ([2], bytes_tensor(b"abc"), "has 1 elements"),
        ([2**17], bytes(4 * 2**17), "more than 65536 elements"),
    ],
)
def test_elements_that_lie_about_their_length(shape, data, sentence) -> None:
    """Neither past the end nor for ever: each is a sentence."""
    with pytest.raises(Problem, match=sentence):
        read(tensor("BYTES", shape, len(data)), Bytes(data))
    with pytest.raises(Problem, match="bytes, 3 are left"):
        read(tensor("BYTES", shape, 4), Bytes(b"abc"))


@pytest.mark.parametrize("kind", ["FP32", "BYTES"])
@pytest.mark.parametrize(
    "shape", [[0, 2**64 - 1], [0, 2**62, 2**62], [2**62, 0], [-1, -1], [2**62, 4], [0]]
)
async def test_shapes_that_no_array_has(api: Api, kind, shape) -> None:
    """Empty ones too, whatever their other sides say."""
    about = {"inputs": [{"name": "image", "datatype": kind, "shape": shape, "data": []}]}
    response = await api.client.post(
        "/v2/models/everlens/infer",
        content=json.dumps(about),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 422, response.text
    assert "cannot have the shape" in response.json()["detail"]
