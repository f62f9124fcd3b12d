"""One-shot merges from task vectors alone: TIES, DARE and SLERP.

Each returns a state dict as `TaskVectors.merge` does: with all of the pre-trained model's keys, its dtypes,
and its values where nothing is merged. (A model soup is ``vectors.merge`` of N times 1 / N, task arithmetic
of N times one scalar.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mapmerge_core.errors import MapMergeError
from mapmerge_core.merges._sparse import agreeing, dropped, trimmed

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors
    from mapmerge_core.merges._sparse import Rows

# Beyond this cosine, either way, two vectors count as parallel, and the arc between them as a line (the
# constant that implementations share, mergekit's among them).
_PARALLEL = 0.9995


def ties(vectors: TaskVectors, keep: float = 0.2, scale: float = 1.0) -> dict[str, Tensor]:
    """Trims, elects signs, and adds the mean of what agrees (Yadav et al., NeurIPS 2023, Algorithm 1).

    Args:
        vectors: What is merged.
        keep: See `transforms.ties_trim`.
        scale: λ, what the merged task vector is multiplied by.

    Raises:
        MapMergeError: ``keep`` is not in (0, 1], or ``scale`` is not finite.
    """
    return _disjoint_merge(vectors, trimmed(vectors, keep), scale)


def dare(vectors: TaskVectors, drop: float = 0.5, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Task arithmetic with one scalar on task vectors after DARE (Yu et al., ICML 2024, equation 1).

    Args:
        vectors: What is merged.
        drop: See `transforms.dare_drop`.
        seed: See `transforms.dare_drop`.
        scale: The coefficient of every task vector.

    Raises:
        MapMergeError: ``drop`` is not in [0, 1), ``seed`` is negative, or ``scale`` is not finite.
    """
    _check_scale(scale)
    rows = dropped(vectors, drop, seed)
    flats = [group.base.clone() for group in vectors.groups]
    for n in range(len(vectors)):
        for flat, row in zip(flats, rows(n), strict=True):
            flat.add_(row, alpha=scale)
    return vectors.state_dict_of(flats)


def dare_ties(
    vectors: TaskVectors, drop: float = 0.5, seed: int = 0, scale: float = 1.0
) -> dict[str, Tensor]:
    """As `ties`, with DARE's random drop (and its rescaling) in the place of the trimming.

    Args:
        vectors: What is merged.
        drop: See `transforms.dare_drop`.
        seed: See `transforms.dare_drop`.
        scale: λ, what the merged task vector is multiplied by.

    Raises:
        MapMergeError: ``drop`` is not in [0, 1), ``seed`` is negative, or ``scale`` is not finite.
    """
    return _disjoint_merge(vectors, dropped(vectors, drop, seed), scale)


def slerp(vectors: TaskVectors, t: float = 0.5) -> dict[str, Tensor]:
    """Moves each tensor from the first model's to the second's along the arc between them.

    With φ the angle between a tensor's weights θ_1 and θ_2, θ = (sin((1 − t) φ) θ_1 + sin(t φ) θ_2) / sin φ
    (Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985), not scaled to unit length first;
    (1 − t) θ_1 + t θ_2 where |cos φ| > 0.9995 or one of them is zero.

    Args:
        vectors: Two of them.
        t: From 0 (the first model) to 1 (the second).

    Raises:
        MapMergeError: There are not two models, or ``t`` is not in [0, 1].
    """
    if len(vectors) != 2:
        raise MapMergeError(
            f"SLERP merges two models, not {len(vectors)} ({', '.join(vectors.names)}): choose exactly two."
        )
    if not 0 <= t <= 1:
        raise MapMergeError(f"SLERP's t lies between 0 (the first model) and 1 (the second), not at {t:g}.")
    flats = [torch.zeros_like(group.base) for group in vectors.groups]
    for group, flat in zip(vectors.groups, flats, strict=True):
        for slot in group.slots:
            first, second = (slot.columns(group.base) + slot.columns(V) for V in group.V)
            slot.columns(flat).copy_(_slerp(first, second, t))
    return vectors.state_dict_of(flats)


def _slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """A point on the arc between two vectors (d,)."""
    # In float64: the last bits of float32 sums depend on the number of threads, and would show in the result.
    a, b = first.cpu().double(), second.cpu().double()
    norms = float(torch.linalg.vector_norm(a)), float(torch.linalg.vector_norm(b))
    if min(norms) == 0:
        return torch.lerp(first, second, t)
    cosine = float(torch.dot(a, b)) / (norms[0] * norms[1])
    if abs(cosine) > _PARALLEL:
        return torch.lerp(first, second, t)
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def _disjoint_merge(vectors: TaskVectors, rows: Rows, scale: float) -> dict[str, Tensor]:
    """Elects signs and adds ``scale`` times the mean over the vectors that agree (TIES, steps 2 and 3)."""
    _check_scale(scale)
    rows = agreeing(vectors, rows)
    sums = [torch.zeros_like(group.base) for group in vectors.groups]
    counts = [torch.zeros_like(group.base) for group in vectors.groups]
    for n in range(len(vectors)):
        for total, count, row in zip(sums, counts, rows(n), strict=True):
            total.add_(row)
            count.add_(row != 0)
    merged = [
        group.base + scale * (total / count.clamp_(min=1))
        for group, total, count in zip(vectors.groups, sums, counts, strict=True)
    ]
    return vectors.state_dict_of(merged)


def _check_scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise MapMergeError(f"A merge can't be scaled by {scale:g}: give a finite number.")
