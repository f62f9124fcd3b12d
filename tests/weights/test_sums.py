"""Weighted sums, against sums written out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from mapmerge_core.weights.sums import weighted_sums


def written_out(base: Tensor, rows: Tensor, c: np.ndarray) -> Tensor:
    """The sum, each product rounded to the dtype before it is added."""
    total = base.clone()
    for row, coefficient in zip(rows, c.tolist(), strict=True):
        if coefficient != 0:
            total = total + torch.tensor(coefficient, dtype=base.dtype) * row
    return total


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 8, 9, 17])
@pytest.mark.parametrize("size", [1, 63, 5000])
@pytest.mark.parametrize("m", [1, 3])
def test_every_sum_has_the_bits_of_the_sum_written_out(dtype: torch.dtype, n: int, size: int, m: int) -> None:
    base, rows = random(size, dtype=dtype), random(n, size, dtype=dtype)
    C, out = np.random.default_rng(n).uniform(-1, 1, (m, n)), torch.full((m, size), torch.nan, dtype=dtype)
    weighted_sums(base, rows, C, out)
    assert all(torch.equal(found, written_out(base, rows, c)) for found, c in zip(out, C, strict=True))


def test_the_number_of_threads_changes_nothing() -> None:
    base, rows, C = random(300_001), random(3, 300_001), np.array([[0.1, -0.7, 1.3]])
    before, sums = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            sums.append(torch.empty(1, 300_001))
            weighted_sums(base, rows, C, sums[-1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(sums[0][0], written_out(base, rows, C[0]))
    assert all(torch.equal(sums[0], other) for other in sums[1:])


def test_rows_with_a_coefficient_of_zero_are_left_out() -> None:
    base, rows, out = (
        torch.tensor([-0.0, 1.0]),
        torch.tensor([[0.5, 0.5], [torch.inf, 0.0]]),
        torch.empty(3, 2),
    )
    weighted_sums(base, rows, np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), out)
    assert torch.signbit(out[0, 0]), "-0 + 0 · v would be +0"
    assert out[0].tolist() == [0, 1]
    assert out[1].tolist() == [0.5, 1.5]
    assert out[2].tolist() == [torch.inf, 1]


def test_slices_of_longer_rows_are_summed_where_they_lie() -> None:
    base, rows, out = random(100), random(4, 100), torch.zeros(100)
    c = np.array([0.3, 0.1, 0.0, -0.2])
    weighted_sums(base[10:60], rows[:, 10:60], c[None], out[10:60][None])
    assert torch.equal(out[10:60], written_out(base[10:60], rows[:, 10:60], c))
    assert not out[:10].any()
    assert not out[60:].any()


def test_it_works_where_no_machine_code_can_be_kept() -> None:
    program = """
import numba.core.caching as caching, numpy as np, torch
caching.CacheImpl._locator_classes = []
from mapmerge_core.weights.sums import weighted_sums
out = torch.empty(1, 2)
weighted_sums(torch.tensor([1.0, 2.0]), torch.tensor([[4.0, 8.0]]), np.array([[0.5]]), out)
print(out.tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[[3.0, 6.0]]\n"
