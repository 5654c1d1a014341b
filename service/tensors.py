"""
Tensors of the KServe v2 protocol ⇄ arrays: as JSON, or as bytes behind the JSON. ①

The bytes are the "binary tensor data extension", which Triton's clients use unless told otherwise:
a header says how long the JSON is, each tensor in it how many bytes are its own, in their order.

Shape suffixes: none; a tensor has the shape that it says.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from service.problems import Problem, field_problem
from service.schemas import INTEGER_MAX, Strict

HEADER_LENGTH = "Inference-Header-Content-Length"

_DIMENSIONS_MAX = 8
# Far more pictures and names than any request of ours has, and read in a moment.
_ELEMENTS_MAX = 2**16
_LENGTH = struct.Struct("<I")

Array = np.ndarray[Any, Any]
Size = Field(ge=0, le=INTEGER_MAX)


class TensorParametersIn(Strict):
    """Where a tensor's data is."""

    binary_data_size: int | None = Field(
        None, ge=0, le=INTEGER_MAX, description="Bytes of its data behind the JSON."
    )


class TensorIn(Strict):
    """A tensor, with its data here or behind the JSON."""

    name: str
    shape: list[int] = Field(max_length=_DIMENSIONS_MAX, examples=[[1]])
    datatype: Literal["BYTES", "FP32"]
    parameters: TensorParametersIn = TensorParametersIn()
    data: list[Any] | None = Field(None, description="In row-major order, flat or nested.")


class Bytes:
    """What stands behind the JSON, taken piece by piece."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)

    def take(self, size: int, name: str) -> memoryview:
        """
        Return the next so many bytes.

        Raises:
            Problem: there are fewer.
        """
        if size > len(self._content):
            raise field_problem(name, f"says {size} bytes, {len(self._content)} are left")
        taken, self._content = self._content[:size], self._content[size:]
        return taken

    def check_empty(self) -> None:
        """Return when all bytes were taken; raises a Problem for those that no tensor wants."""
        if self._content:
            raise Problem("bad-request", f"{len(self._content)} bytes belong to no tensor")


def split(content: bytes, header_length: str | None) -> tuple[bytes, Bytes]:
    """
    Return the JSON of a request, and what stands behind it.

    Raises:
        Problem: the header is no number, or larger than the body.
    """
    if header_length is None:
        return content, Bytes(b"")
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 16):
        raise Problem("bad-request", f"{HEADER_LENGTH} is not a number")
    length = int(header_length)
    if length > len(content):
        raise Problem("bad-request", f"{HEADER_LENGTH} is larger than the body")
    return content[:length], Bytes(content[length:])


def read(tensor: TensorIn, behind: Bytes) -> Array:
    """
    Return a tensor's data in its shape: of float32, or of objects that are bytes or text.

    Raises:
        Problem: 422 with what is wrong.
    """
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise field_problem(tensor.name, "give it `data`, or `binary_data_size` and bytes")
    count = math.prod(tensor.shape)
    if any(length < 1 for length in tensor.shape) or count > INTEGER_MAX:
        raise field_problem(tensor.name, f"cannot have the shape {tensor.shape}")
    if size is None:
        values = _from_json(tensor)
    elif tensor.datatype == "BYTES":
        values = _objects(_elements(behind.take(size, tensor.name), tensor.name))
    else:
        if size != 4 * count:
            raise field_problem(tensor.name, f"has {size} bytes, {count} numbers have {4 * count}")
        values = np.frombuffer(behind.take(size, tensor.name), "<f4")
    if values.size != count:
        message = f"has {values.size} elements, the shape {tensor.shape} has {count}"
        raise field_problem(tensor.name, message)
    return values.reshape(tensor.shape)


def written(name: str, values: Array, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """Return a tensor's description, and the bytes behind the JSON: none where it has its data."""
    about: dict[str, Any] = {"name": name, "shape": list(values.shape)}
    about["datatype"] = _DATATYPES[values.dtype.kind]
    if not binary:
        return about | {"data": values.ravel().tolist()}, b""
    if values.dtype.kind == "O":
        words = [word.encode() for word in values.ravel()]
        data = b"".join(_LENGTH.pack(len(word)) + word for word in words)
    else:
        data = values.tobytes()
    return about | {"parameters": {"binary_data_size": len(data)}}, data


_DATATYPES = {"O": "BYTES", "f": "FP32", "i": "INT64"}


def _from_json(tensor: TensorIn) -> Array:
    flat = _flat(tensor.data or [])
    kinds = (str,) if tensor.datatype == "BYTES" else (int, float)
    # A truth value is a number to Python.
    if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in flat):
        raise field_problem(tensor.name, f"has data that is not {tensor.datatype}")
    return _objects(flat) if tensor.datatype == "BYTES" else np.array(flat, np.float32)


def _flat(data: Sequence[Any]) -> list[Any]:
    """Return the elements of nested lists in order; the reader of the body bounds their depth."""
    flat = []
    for element in data:
        if isinstance(element, list):
            flat += _flat(element)
        else:
            flat.append(element)
    return flat


def _objects(elements: Sequence[Any]) -> Array:
    """Return an array of objects; numpy would cut bytes at their last zero."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _elements(data: memoryview, name: str) -> list[bytes]:
    """Return the elements of a BYTES tensor: each four bytes of length, then itself."""
    elements: list[bytes] = []
    place = 0
    while place < len(data):
        if len(elements) == _ELEMENTS_MAX:
            raise field_problem(name, f"has more than {_ELEMENTS_MAX} elements")
        start = place + _LENGTH.size
        if start > len(data):
            raise field_problem(name, "ends within the length of an element")
        (length,) = _LENGTH.unpack(data[place:start])
        place = start + length
        if place > len(data):
            raise field_problem(name, "ends within an element")
        elements.append(bytes(data[start:place]))
    return elements
