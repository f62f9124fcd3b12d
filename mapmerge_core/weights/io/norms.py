"""Norms of models and of their task vectors, and the inner products of these, summed in float64 block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mapmerge_core.weights.io.adapters import LowRank
from mapmerge_core.weights.io.checks import arithmetic_dtype

# Numbers of all task vectors that are compared at once; float32 sums over many more would lose digits.
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Norms:
    """Norms of a pre-trained model and of N task vectors.

    Attributes:
        gram: Inner products of the task vectors, N x N.
        l1_of: |v_n|_1, shape (N,).
        l1: |θ_pre|_1.
        l2: |θ_pre|_2.
    """

    gram: np.ndarray
    l1_of: np.ndarray
    l1: float
    l2: float

    @property
    def l1_ratios(self) -> np.ndarray:
        """|v_n|_1 / |θ_pre|_1, shape (N,); NaN or infinity where θ_pre is zero."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.l1_of / np.float64(self.l1))

    @property
    def l2_ratios(self) -> np.ndarray:
        """|v_n|_2 / |θ_pre|_2, shape (N,); NaN or infinity where θ_pre is zero."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.sqrt(np.diag(self.gram)) / np.float64(self.l2))

    @property
    def cosines(self) -> np.ndarray:
        """The cosine of each pair of task vectors, N x N; 0 for a zero vector."""
        norms = np.sqrt(np.diag(self.gram))
        norms = np.where(norms > 0, norms, 1)
        return np.asarray(self.gram / (norms[:, None] * norms))


class NormSums:
    """Sums for `Norms`, one tensor of all models after the other.

    Args:
        n: Number of task vectors.
        l1: |θ_pre|_1 of what was added before.
        l2: |θ_pre|_2 of it.
    """

    def __init__(self, n: int, l1: float = 0.0, l2: float = 0.0) -> None:
        self._gram, self._l1_of = np.zeros((n, n)), np.zeros(n)
        self._l1, self._l2_squared = l1, l2**2

    def add_base(self, tensor: Tensor) -> None:
        """Add a tensor of θ_pre, in pieces."""
        for piece in tensor.reshape(-1).split(_BLOCK):
            numbers = piece.to(arithmetic_dtype(tensor.dtype))
            self._l1 += float(torch.linalg.vector_norm(numbers, 1))
            self._l2_squared += float(torch.linalg.vector_norm(numbers)) ** 2

    def add_vectors(self, rows: Tensor, dtype: torch.dtype) -> None:
        """Add a tensor's stretch of the task vectors, N x d, computed in ``dtype``."""
        for block in rows.split(max(1, _BLOCK // len(rows)), dim=1):
            self._add_block(block.to(dtype))

    def add_changes(self, base: Tensor, changes: Sequence[LowRank | Tensor | None]) -> np.ndarray:
        """Add a tensor of all models; the inner products of two adapters come from their factors alone.

        Args:
            base: The pre-trained model's tensor.
            changes: For each model its own tensor, factors of its difference, or None where it has the base's.

        Returns:
            |v_n|_1 over this tensor, shape (N,).
        """
        if all(change is None for change in changes):
            return np.zeros(len(changes))
        dtype = arithmetic_dtype(base.dtype)
        rows = as_matrix(base)
        low_ranks = {i: change for i, change in enumerate(changes) if isinstance(change, LowRank)}
        is_dense = np.ones_like(self._gram)
        for i, one in low_ranks.items():
            for j, other in low_ranks.items():
                is_dense[i, j] = 0
                self._gram[i, j] += one.inner(other)
        models = [
            change.scaled_factors(dtype)
            if isinstance(change, LowRank)
            else None
            if change is None
            else as_matrix(change)
            for change in changes
        ]
        l1_of = np.zeros(len(changes))
        step = max(1, _BLOCK // max(1, rows.shape[1] * len(models)))
        for start in range(0, len(rows), step):
            here = slice(start, start + step)
            wide = rows[here].to(dtype)
            block = torch.zeros(len(models), *wide.shape, dtype=dtype)
            for difference, model in zip(block, models, strict=True):
                if isinstance(model, tuple):
                    torch.mm(model[0][here], model[1], out=difference)
                elif model is not None:
                    difference.copy_(model[here]).sub_(wide)
            l1_of += self._add_block(block.flatten(1), is_dense)
        return l1_of

    def norms(self) -> Norms:
        """Return what was added up."""
        gram = (self._gram + self._gram.T) / 2  # a matrix product may round its two halves differently
        return Norms(gram, self._l1_of, self._l1, self._l2_squared**0.5)

    def _add_block(self, rows: Tensor, weights: np.ndarray | float = 1.0) -> np.ndarray:
        l1_of: np.ndarray = torch.linalg.vector_norm(rows, 1, dim=1).double().cpu().numpy()
        self._l1_of += l1_of
        self._gram += weights * (rows @ rows.T).double().cpu().numpy()
        return l1_of


def matrix_shape(shape: torch.Size) -> torch.Size:
    """Return a tensor's shape with all dimensions but the first in one."""
    return torch.Size((shape[0], shape[1:].numel())) if len(shape) > 1 else torch.Size((1, shape.numel()))


def as_matrix(tensor: Tensor) -> Tensor:
    """Return a tensor as rows, as adapters' factors have it: with all dimensions but the first in one."""
    return tensor.reshape(matrix_shape(tensor.shape))
