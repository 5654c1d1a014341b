"""
The evidence in the state: a row for each class, and the gram. ⑥

As one value they were written whole for each class that changed, and with 84,000 classes of 1,488
features they were larger than what SQLite takes as one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from worker.learn.evidence import ClassSums, EvidenceSums, Refused
from worker.rows import Rows

_GRAM = "gram"  # of the table `blobs`


def save_sums(rows: Rows, sums: EvidenceSums, classes: Iterable[int]) -> None:
    """
    Write the sums as they are.

    Args:
        rows: the state, in a transaction.
        sums: all of them.
        classes: those that changed since they were written last.
    """
    rows.replace("blobs", [(_GRAM, _bytes(sums.gram_DD))])
    for index in classes:
        rows.replace("sums", [_row(index, sums.of_class(index))])


def saved_sums(rows: Rows) -> EvidenceSums | None:
    """Return the sums as they were written; None where none were yet."""
    found = rows.db.execute("SELECT content FROM blobs WHERE name = ?", (_GRAM,)).fetchone()
    if found is None:
        return None
    gram = _vector(found[0])
    sums = EvidenceSums(int(len(gram) ** 0.5))
    sums.gram_DD = gram.view_as(sums.gram_DD)
    (last,) = rows.db.execute("SELECT max(class_index) FROM sums").fetchone()
    sums.make_room(last + 1)
    written = rows.db.execute("SELECT class_index, labels, total, refusals, refused FROM sums")
    for index, labels, total, refusals, refused in written:
        sums.put(
            index,
            ClassSums(
                _vector(total), labels, Refused(_vector(refused), refusals) if refusals else None
            ),
        )
    return sums


def _row(index: int, of: ClassSums) -> tuple[int, int, bytes, int, bytes | None]:
    refused = of.refused
    return (
        index,
        of.count,
        _bytes(of.sum_D),
        0 if refused is None else refused.count,
        None if refused is None else _bytes(refused.sum_D),
    )


def _bytes(value: Tensor) -> bytes:
    assert value.dtype == torch.float64
    content: bytes = value.contiguous().numpy().astype("<f8", copy=False).tobytes()
    return content


def _vector(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, "<f8").copy())
