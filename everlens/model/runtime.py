"""What must be so before torch computes: threads, determinism, and a torchvision that imports."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from everlens.errors import ModelError
from everlens.model.packed import can_pack


def set_threads(threads: int) -> None:
    """Let torch use this many threads; call once, before the first forward pass."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def use_threads_here(threads: int) -> None:
    """
    Let torch use this many threads for what the calling thread computes.

    It is what threads that start later begin with as well, so that each says it for itself.
    """
    torch.set_num_threads(threads)


@contextmanager
def fewer_threads_here(parts: int) -> Iterator[int]:
    """Let torch use one in `parts` of its threads for what the calling thread computes; say how many."""
    whole = torch.get_num_threads()
    each = max(1, whole // parts)
    use_threads_here(each)
    try:
        yield each
    finally:
        use_threads_here(whole)


def make_deterministic() -> None:
    """Refuse operations whose result is not a function of their inputs (of the learner)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Else every buffer is filled with NaN before it is written: a twelfth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def choose_device(name: str) -> torch.device:
    """
    Return the device of that name; `auto` takes CUDA where there is one.

    Raises:
        ModelError: CUDA was asked for and torch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(
            f"EVERLENS_DEVICE={name} is not a device; use auto, cpu or cuda"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"EVERLENS_DEVICE={name}, but torch sees no CUDA device; install a CUDA build of "
            "torch or set EVERLENS_DEVICE=cpu"
        )
    return device


def precision_of(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the processor multiplies it itself; elsewhere that would be slower."""
    if device.type == "cuda":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        half = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if half else torch.float32


def fingerprint_of_numerics(threads: int) -> str:
    """Return what the bits of a result depend on besides the inputs: versions, CPU, threads."""
    capability = torch.backends.cpu.get_cpu_capability()
    dtype = precision_of(torch.device("cpu"))
    precision = str(dtype).removeprefix("torch.")
    if dtype == torch.float32 and can_pack(dtype):
        precision += " packed"  # by another library, which adds up in another order
    return f"torch {torch.__version__}, {capability}, {precision}, {threads} threads"


def import_torchvision() -> None:
    """
    Import torchvision, also where a CUDA build of it meets a CPU build of torch.

    Its compiled part then cannot load, and its Python part fails on operators that part would
    have declared. We use neither operator; declaring their shapes is enough. Only done after the
    plain import failed, since a second declaration beside the real one is an error.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
        importlib.import_module("torchvision")
