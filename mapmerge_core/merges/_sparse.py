"""Sparser task vectors: TIES trims them and elects signs, DARE drops entries at random.

`trimmed`, `agreeing` and `dropped` make one vector at a time (`Rows`), for one-shot merges that hold no
second V; the transforms collect such rows into other `TaskVectors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mapmerge_core.errors import MapMergeError

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.layout import Slot
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

Rows = Callable[[int], list[Tensor]]
"""From n to v_n, in one buffer (d,) for each of `TaskVectors.groups`; it may be written to."""


def ties_trim(vectors: TaskVectors, keep: float = 0.2) -> TaskVectors:
    """Keeps the largest entries of each task vector and zeroes the rest (TIES, Algorithm 1, step 1).

    Yadav et al., TIES-Merging, NeurIPS 2023. Magnitudes are compared over the whole vector, all merged
    tensors together. Entries as large as the smallest that is kept are kept, too.

    Args:
        vectors: What is trimmed; left as it is.
        keep: The share of entries to keep, in (0, 1], rounded to a whole number of entries, at least one.

    Raises:
        MapMergeError: ``keep`` is not in (0, 1].
    """
    return _collect(vectors, trimmed(vectors, keep))


def elect_sign(vectors: TaskVectors) -> TaskVectors:
    """Zeroes the entries whose sign is not that of the task vectors' sum (TIES, Algorithm 1, step 2).

    Where the sum is zero no sign is elected, and all entries become zero.
    """
    return _collect(vectors, agreeing(vectors, lambda n: [group.V[n].clone() for group in vectors.groups]))


def dare_drop(vectors: TaskVectors, drop: float = 0.5, seed: int = 0) -> TaskVectors:
    """Zeroes entries of each task vector at random and divides the others by 1 − ``drop``.

    DARE, Yu et al., "Language Models are Super Mario", ICML 2024, equation 1. Each task vector has random
    numbers of its own, which depend on ``seed`` and its place alone, and are the same on every device.

    Args:
        vectors: What is made sparser; left as it is.
        drop: The probability that an entry is dropped, in [0, 1).
        seed: A whole number from 0 up.

    Raises:
        MapMergeError: ``drop`` is not in [0, 1), or ``seed`` is negative.
    """
    return _collect(vectors, dropped(vectors, drop, seed))


def apply_transform(vectors: TaskVectors, kind: str, *, keep: float, drop: float, seed: int) -> TaskVectors:
    """Returns the task vectors after a study's transform.

    Args:
        vectors: The study's; left as they are.
        kind: ``"ties_trim"`` (`ties_trim`), ``"ties"`` (the same, then `elect_sign`), or ``"dare"``
            (`dare_drop`).
        keep: For both of TIES.
        drop: For DARE.
        seed: For DARE.

    Raises:
        MapMergeError: The kind is unknown, or what it needs is out of range.
    """
    if kind == "ties_trim":
        return ties_trim(vectors, keep)
    if kind == "ties":
        return _collect(vectors, agreeing(vectors, trimmed(vectors, keep)))
    if kind == "dare":
        return dare_drop(vectors, drop, seed)
    raise MapMergeError(f"There is no transform '{kind}': choose ties_trim, ties or dare.")


def trimmed(vectors: TaskVectors, keep: float) -> Rows:
    """The task vectors as `ties_trim` makes them, with its errors."""
    if not 0 < keep <= 1:
        raise MapMergeError(f"TIES keeps a share of each task vector above 0 and at most 1, not {keep:g}.")
    thresholds = [_threshold(vectors, n, keep) for n in range(len(vectors))]

    def row(n: int) -> list[Tensor]:
        return [group.V[n] * (group.V[n].abs() >= thresholds[n]) for group in vectors.groups]

    return row


def dropped(vectors: TaskVectors, drop: float, seed: int) -> Rows:
    """The task vectors as `dare_drop` makes them, with its errors."""
    if not 0 <= drop < 1:
        raise MapMergeError(f"DARE drops a share of each task vector from 0 to below 1, not {drop:g}.")
    if seed < 0:
        raise MapMergeError(f"DARE's seed is a whole number from 0 up, not {seed}.")

    def row(n: int) -> list[Tensor]:
        rng = np.random.default_rng([seed, n])
        flats = [group.V[n] / (1 - drop) for group in vectors.groups]
        for group, flat in zip(vectors.groups, flats, strict=True):
            for slot in group.slots:
                slot.columns(flat).masked_fill_(_mask(slot, rng, drop).to(flat.device), 0)
        return flats

    return row


def agreeing(vectors: TaskVectors, rows: Rows) -> Rows:
    """The ``rows`` as `elect_sign` makes them."""
    signs = [torch.zeros_like(group.base) for group in vectors.groups]
    for n in range(len(vectors)):
        for sign, flat in zip(signs, rows(n), strict=True):
            sign.add_(flat)
    for sign in signs:
        sign.sign_()

    def row(n: int) -> list[Tensor]:
        return [flat.mul_(flat * sign > 0) for flat, sign in zip(rows(n), signs, strict=True)]

    return row


def _collect(vectors: TaskVectors, rows: Rows) -> TaskVectors:
    matrices = [torch.empty_like(group.V) for group in vectors.groups]
    for n in range(len(vectors)):
        for V, flat in zip(matrices, rows(n), strict=True):
            V[n] = flat
    return vectors.transformed(matrices)


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


def _mask(slot: Slot, rng: np.random.Generator, drop: float) -> Tensor:
    """Whether each entry of a tensor is dropped (its number of entries), on the CPU."""
    return torch.from_numpy(rng.random(slot.shape.numel(), dtype=np.float32) < drop)
