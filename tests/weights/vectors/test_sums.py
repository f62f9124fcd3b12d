"""Weighted sums, against sums written out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from mapmerge_core.weights.vectors.sums import ROUNDED_TO, Sums, make_sums, multiply, weighted_sums


def written_out(base: Tensor, rows: Tensor, c: np.ndarray) -> Tensor:
    """The sum, each product rounded to the dtype before it is added."""
    total = base.clone()
    for row, coefficient in zip(rows, c.tolist(), strict=True):
        if coefficient != 0:
            total = total + torch.tensor(coefficient, dtype=base.dtype) * row.to(base.dtype)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rounded", ["rows", "sums", "both"])
@pytest.mark.parametrize("n", [1, 8, 20])
@pytest.mark.parametrize("m", [1, 3])
def test_rows_and_sums_can_be_bfloat16(dtype: torch.dtype, rounded: str, n: int, m: int) -> None:
    size = 70_000  # several pieces
    base, rows = random(size, dtype=dtype), random(n, size, dtype=dtype)
    rows = rows if rounded == "sums" else rows.bfloat16()
    out = torch.full((m, size), torch.nan, dtype=dtype if rounded == "rows" else torch.bfloat16)
    C = np.random.default_rng(n).uniform(-1, 1, (m, n))
    C[0] = 0  # the pre-trained model
    weighted_sums(base, rows, C, out)
    sums = [written_out(base, rows, c).to(out.dtype) for c in C]
    assert all(torch.equal(found, expected) for found, expected in zip(out, sums, strict=True))
    by_matrix = torch.empty_like(out)
    multiply(Sums(base, rows, by_matrix), C)
    torch.testing.assert_close(by_matrix, out)


@pytest.mark.parametrize("base_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 11])
@pytest.mark.parametrize("to", ["as computed", "bfloat16"])
def test_differences_of_models_are_taken_as_they_are_added(
    base_dtype: torch.dtype, dtype: torch.dtype, n: int, to: str
) -> None:
    size = 70_000
    wide = torch.float64 if torch.float64 in (base_dtype, dtype) else torch.float32
    base = random(size).to(base_dtype if wide == torch.float32 else torch.float64)
    models = [(base.float() + 0.01 * random(size + k)[:size]).to(dtype) for k in range(n)]
    base[:100] = -0.0
    for model in models:
        model[:100] = -0.0
    C = np.random.default_rng(n).uniform(-1, 1, (1, n))
    out = torch.full((1, size), torch.nan, dtype=wide if to == "as computed" else torch.bfloat16)
    rounded = base.dtype if base.dtype in ROUNDED_TO else None
    make_sums([Sums(base, models, out, rounded, are_models=True)], C)
    differences = torch.stack([model.to(wide) - base.to(wide) for model in models])
    expected = written_out(base.to(wide), differences, C[0]).to(rounded or wide).to(out.dtype)
    assert torch.equal(out[0], expected)
    assert torch.signbit(out[0, :100]).all(), "what doesn't differ keeps its bits"


def awkward() -> Tensor:
    """Numbers of every size, halfway between float16's and bfloat16's, above the largest, and none."""
    bits = torch.arange(-(2**31), 2**31, 99_991).to(torch.int32)
    halves = [(torch.arange(0, 2**31 - 2**n, 2**n + 2 ** (n - 1)) & -(2 ** (n - 1))) for n in (13, 16)]
    special = torch.tensor([0.0, -0.0, 65504, 65519.996, 65520, 2**-14, 2**-24, 2**-25, 3.4e38, torch.inf])
    every = [bits, *(half[:: max(1, len(half) // 50_000)].to(torch.int32) for half in halves)]
    return torch.cat([*(each.view(torch.float32) for each in every), special, -special, special * torch.nan])


@pytest.mark.parametrize("n", [1, 9])
@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_sums_are_rounded_as_torch_rounds(dtype: torch.dtype | None, to: torch.dtype, n: int) -> None:
    numbers = awkward()
    assert len(numbers) > 100_000
    out = torch.empty(1, len(numbers), dtype=to)
    # The sum is the last row: all else is zero.
    rows = torch.cat([torch.zeros(n - 1, len(numbers)), numbers[None]])
    expected = (torch.zeros(len(numbers)) + numbers if n > 1 else numbers).to(dtype or to).to(to)
    known = ~expected.isnan()
    sums = Sums(torch.full_like(numbers, -0.0), rows, out, dtype)
    for make in (lambda C: make_sums([sums], C), lambda C: multiply(sums, C)):
        out.zero_()
        make(np.ones((1, n)))
        assert torch.equal(out[0].isnan(), ~known)
        assert torch.equal(out[0][known], expected[known])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16])
def test_without_terms_the_base_is_copied(dtype: torch.dtype, to: torch.dtype) -> None:
    base = torch.tensor([1.0, -0.0, 0.1], dtype=dtype)
    out = torch.zeros(2, 3, dtype=to if dtype != torch.float64 or to == torch.bfloat16 else dtype)
    make_sums([Sums(base, [base, base], out, are_models=True)], np.zeros((2, 2)))
    assert torch.equal(out[0], base.to(out.dtype))
    assert torch.equal(out[1], out[0])
    assert torch.signbit(out[:, 1]).all()


def test_every_float16_is_read_as_torch_reads_it() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite()]
    out = torch.empty(1, len(finite))
    make_sums([Sums(torch.full_like(finite, -1.0), [finite], out, are_models=True)], np.ones((1, 1)))
    assert torch.equal(out[0], -1 + (finite.float() + 1))
    special = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=torch.float16)
    out = torch.empty(1, 3)
    make_sums([Sums(torch.zeros(3), [special], out, are_models=True)], np.ones((1, 1)))
    assert torch.equal(out[0, :2], special[:2].float())
    assert out[0, 2].isnan()


def test_the_number_of_threads_changes_nothing() -> None:
    sizes, C = (300_001, 5, 70_000), np.array([[0.1, -0.7, 1.3]])
    terms = [(random(size), random(3, size)) for size in sizes]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append([torch.full((1, size), torch.nan) for size in sizes])
            make_sums([Sums(*each, out) for each, out in zip(terms, found[-1], strict=True)], C)
    finally:
        torch.set_num_threads(before)
    for outs in found:
        for (base, rows), out in zip(terms, outs, strict=True):
            assert torch.equal(out[0], written_out(base, rows, C[0]))


def test_rows_with_a_coefficient_of_zero_are_left_out() -> None:
    base, rows, out = (torch.tensor([-0.0, 1.0]), torch.tensor([[0.5, 0.5], [torch.inf, 0.0]]), torch.empty(3, 2))
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
from mapmerge_core.weights.vectors.sums import weighted_sums
out = torch.empty(1, 2)
weighted_sums(torch.tensor([1.0, 2.0]), torch.tensor([[4.0, 8.0]]), np.array([[0.5]]), out)
print(out.tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[[3.0, 6.0]]\n"
