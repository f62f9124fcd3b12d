"""Sparser task vectors: what TIES, DARE, DELLA and Model Breadcrumbs make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mapmerge_core.weights.vectors.streamed import Vectors, in_memory

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


def transform_tensors(
    vectors: TaskVectors, function: Callable[[Tensor, np.random.Generator], Tensor], seed: int = 0
) -> TaskVectors:
    """Return task vectors of which each tensor is what ``function`` makes of it.

    Args:
        vectors: N task vectors, left as they are.
        function: Called with a copy of what one model's fine-tuning changed of one tensor, and with random
            numbers of that model's own, which depend on ``seed`` and its place alone.
        seed: A whole number from 0 up.
    """
    matrices = [torch.zeros_like(group.V) for group in vectors.groups]
    for n in range(len(vectors)):
        rng = np.random.default_rng([seed, n])
        for group, V in zip(vectors.groups, matrices, strict=True):
            for slot in group.slots:
                slot.view(V[n]).copy_(function(slot.view(group.V[n]).clone(), rng))
    return vectors.transformed(matrices)


def trim(vectors: TaskVectors, keep: float) -> TaskVectors:
    """Keep the largest entries of each task vector and zero the rest (TIES, Algorithm 1, step 1).

    Magnitudes are compared over the whole vector, all merged tensors together. Entries as large as the
    smallest that is kept are kept, too.

    Args:
        vectors: N task vectors, left as they are.
        keep: The share of entries to keep, in (0, 1], rounded to a whole number of entries, at least one.
    """
    matrices = [torch.empty_like(group.V) for group in vectors.groups]
    for n in range(len(vectors)):
        threshold = _threshold(vectors, n, keep)
        for group, V in zip(vectors.groups, matrices, strict=True):
            torch.mul(group.V[n], group.V[n].abs() >= threshold, out=V[n])
    return vectors.transformed(matrices)


def trimmed(vectors: Vectors, exported: Vectors, keep: float | None) -> tuple[TaskVectors, TaskVectors]:
    """Return task vectors on the evaluator's device and on the CPU, trimmed unless ``keep`` is None.

    Raises:
        MapMergeError: They aren't held in memory, in float32.
    """
    if keep is None:
        return in_memory(vectors), in_memory(exported)
    kept = trim(in_memory(exported), keep)
    return kept.to(vectors.device), kept


def average_agreeing_(vectors: TaskVectors) -> TaskVectors:
    """Zero entries against the elected sign, and divide the others by how many models agree, in place.

    The sum of the rows is then TIES's disjoint mean (Algorithm 1, steps 2 and 3). A sign is that of the task
    vectors' sum; where that is zero all entries become zero.

    Args:
        vectors: N task vectors that nobody else uses; overwritten and returned.
    """
    for group in vectors.groups:
        V = group.V
        sign = torch.zeros_like(group.base)
        for row in V:
            sign.add_(row)
        sign.sign_()
        count = torch.zeros_like(group.base)
        for row in V:
            row.mul_(row * sign > 0)
            count.add_(row != 0)
        V.div_(count.clamp_(min=1))
    return vectors


def drop_at_random(change: Tensor, rng: np.random.Generator, drop: float) -> Tensor:
    """Zero each entry with probability ``drop`` and divide the others by 1 − ``drop`` (DARE, equation 1)."""
    return change.div_(1 - drop).masked_fill_(_uniform(change, rng) < drop, 0)


def drop_by_rank(change: Tensor, rng: np.random.Generator, density: float, epsilon: float) -> Tensor:
    """Zero entries at random, the small ones of a row rather than the large ones (DELLA's MagPrune).

    An entry is kept with a probability that rises evenly with the rank of its magnitude among those of its
    row (the whole of a vector), from ``density`` − ``epsilon`` to ``density`` + ``epsilon``, and is divided
    by it (Deep et al. 2024, section 3.1).
    """
    rows = change.reshape(len(change), -1) if change.ndim > 1 else change.reshape(1, -1)
    ranks = rows.abs().argsort(dim=1, stable=True).argsort(dim=1)
    kept = density - epsilon + 2 * epsilon * ranks / max(rows.shape[1] - 1, 1)
    kept = kept.to(change.dtype).view_as(change)
    return change.div_(kept).masked_fill_(_uniform(change, rng) < 1 - kept, 0)


def drop_outliers(change: Tensor, density: float, gamma: float) -> Tensor:
    """Zero the largest and the smallest entries of a tensor (Davari and Belilovsky 2024, equations 2 to 4).

    The share ``gamma`` of the largest goes first, then as many of the smallest as leave the share
    ``density``; fewer of the largest where these two are more than all.
    """
    n = change.numel()
    n_kept = int(density * n)
    start = max(0, n - n_kept - int(gamma * n))
    order = change.abs().flatten().argsort()
    mask = torch.zeros(n, dtype=torch.bool, device=change.device)
    mask[order[start : start + n_kept]] = True
    return change.mul_(mask.view_as(change))


def _uniform(like: Tensor, rng: np.random.Generator) -> Tensor:
    """Random numbers of a tensor's shape in [0, 1), float32, drawn on the CPU."""
    return torch.from_numpy(rng.random(tuple(like.shape), dtype=np.float32)).to(like.device)


def _threshold(vectors: TaskVectors, n: int, keep: float) -> float:
    """The magnitude of the smallest entry of v_n that is kept; 0 if nothing is merged."""
    n_entries = sum(slot.shape.numel() for group in vectors.groups for slot in group.slots)
    if n_entries == 0:
        return 0.0
    # The zeros between the tensors in the buffers are no entries, and change nothing at the top of the order.
    magnitudes = np.concatenate([group.V[n].abs().cpu().numpy() for group in vectors.groups])
    place = len(magnitudes) - max(1, round(keep * n_entries))
    magnitudes.partition(place)
    return float(magnitudes[place])
