"""Tensors that get longer: the same rows, moved now and then."""

from __future__ import annotations

import math

import torch

from worker.learn.room import lengthened


def test_rows_stay_and_new_ones_are_filled() -> None:
    """Whatever was in the memory that a row comes into."""
    tensor = lengthened(torch.zeros(0, 3, dtype=torch.float64), 2)
    tensor[:] = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    tensor = lengthened(tensor, 3, math.nan)
    tensor[2] = 7.0
    shorter = tensor[:2]
    again = lengthened(shorter, 4)
    assert again.tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0], [0, 0, 0]]
    assert lengthened(again, 4) is again
    assert lengthened(again, 1) is again


def test_a_thousand_new_classes_move_the_others_ten_times() -> None:
    """The memory doubles, so that each class is copied about once."""
    tensor, copied = torch.zeros(0, 2), 0
    for length in range(1, 1001):
        before, place = len(tensor), tensor.data_ptr()
        tensor = lengthened(tensor, length)
        tensor[-1] = length
        copied += before if tensor.data_ptr() != place else 0
    assert copied < 2 * 1000
    assert tensor[:, 0].tolist() == list(range(1, 1001))
