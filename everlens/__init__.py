"""
Everlens: an image classifier that learns while it serves.

The way of the data, and the room of each step:

    ① HTTP → ② admission → ③ stream → ④ batch → ⑤ learner → ⑥ commit → ⑦ publication
        → ⑧ hot swap → ⑨ answer

This package is what the two halves must agree on: records and their bytes (`records`, `wire`,
`pixels`), what is published (`artifact`), the stream and the head (`bus`), and the one forward
path that both learns and answers (`model`). `service` speaks HTTP (①②⑧⑨), `worker` alone changes
weights (④⑤⑥⑦). Importing `everlens` loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everlens.client import ApiError, AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["ApiError", "AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> object:
    """Return a part of the client; imported when it is asked for, since the halves need none."""
    if name in {"ApiError", "AsyncClient", "Client"}:
        from everlens import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
