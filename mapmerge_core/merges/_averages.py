"""Averages of models weighted by what their data says: Fisher merging and RegMean."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mapmerge_core.errors import MapMergeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

# Relative to a Gram matrix's mean diagonal: far below what a layer's inputs span, above float32's rounding.
_RIDGE = 1e-6
# How often it grows tenfold: rounding of wide layers, off-diagonals and all, may outweigh the first.
_RIDGES = 5
# Added to the ridge, for layers whose inputs are all zero.
_TINY = 1e-30


class Gram(NamedTuple):
    """What a linear layer's inputs X (rows x in) say about its weight.

    Attributes:
        matrix: XᵀX divided by the number of rows, in x in.
        axis: The axis of the weight that meets the inputs: 1 for X Wᵀ (W is out x in), 0 for X W.
    """

    matrix: Tensor
    axis: int


def fisher_merge(
    vectors: TaskVectors, fishers: Sequence[Mapping[str, Tensor]], floor: float = 1e-6
) -> dict[str, Tensor]:
    """Averages models, each parameter weighted by the Fisher information of each model about it.

    θ = Σ F_n θ_n / Σ F_n, elementwise (Matena and Raffel, "Merging Models with Fisher-Weighted Averaging",
    NeurIPS 2022: the closed form for diagonal Fishers, with equal λ). Values below ``floor`` are raised to
    it, so that a parameter that no model's data depends on is averaged, not divided by zero.

    Args:
        vectors: N task vectors.
        fishers: For each of them the diagonal Fisher of the model θ_pre + v_n: non-negative tensors of the
            parameters' shapes. Tensors without one (buffers) are averaged.
        floor: The smallest weight.

    Returns:
        A state dict as `TaskVectors.merge` gives.

    Raises:
        MapMergeError: There isn't one Fisher for each task vector, or ``floor`` is not positive.
    """
    _check_one_each(vectors, fishers, "Fisher diagonal")
    check_floor(floor)
    flats = [torch.empty_like(group.base) for group in vectors.groups]
    for group, flat in zip(vectors.groups, flats, strict=True):
        for slot in group.slots:
            base, V = slot.columns(group.base), slot.columns(group.V)
            if all(slot.name in fisher for fisher in fishers):
                F = torch.stack([fisher[slot.name].flatten().to(V) for fisher in fishers]).clamp_(min=floor)
                change = (F * V).sum(dim=0) / F.sum(dim=0)
            else:
                change = V.mean(dim=0)
            torch.add(base, change, out=slot.columns(flat))
    return vectors.state_dict_of(flats)


def regmean_merge(
    vectors: TaskVectors, grams: Sequence[Mapping[str, Gram]], off_diagonal: float = 0.9
) -> dict[str, Tensor]:
    """Gives each linear layer the weight whose outputs are nearest to those of the models on their own data.

    W = (Σ G_n)⁻¹ Σ G_n W_n for a weight of shape in x out, where G_n is model n's Gram matrix with its
    off-diagonal entries scaled (Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language
    Models", ICLR 2023: RegMean's closed form); parameters without Gram matrices are averaged. Solved in
    float64 on the CPU. Every G_n gets one ridge, 10⁻⁶ of their mean diagonal, which hardly matters but where
    no model's inputs reach: there weights are averaged. Where float32's rounding has left Σ G_n indefinite
    even so, as it may with ``off_diagonal`` 1 and fewer rows than inputs, the ridge grows tenfold until it
    is not.

    Args:
        vectors: N task vectors.
        grams: For each of them the Gram matrices of the model θ_pre + v_n, by parameter.
        off_diagonal: The scale of the off-diagonal entries, from 0 to 1; 1 is the least-squares solution.

    Returns:
        A state dict as `TaskVectors.merge` gives.

    Raises:
        MapMergeError: There isn't one set of Gram matrices for each task vector, one isn't finite, or
            ``off_diagonal`` is outside [0, 1].
    """
    _check_one_each(vectors, grams, "set of Gram matrices")
    check_off_diagonal(off_diagonal)
    flats = [torch.empty_like(group.base) for group in vectors.groups]
    for group, flat in zip(vectors.groups, flats, strict=True):
        for slot in group.slots:
            base, V = slot.columns(group.base), slot.columns(group.V)
            of_layer = [gram[slot.name] for gram in grams if slot.name in gram]
            if len(of_layer) == len(grams):
                change = _nearest_outputs(V.view(-1, *slot.shape), of_layer, off_diagonal).flatten()
            else:
                change = V.mean(dim=0)
            torch.add(base, change, out=slot.columns(flat))
    return vectors.state_dict_of(flats)


def check_floor(floor: float) -> None:
    """Refuses a floor of Fisher merging that isn't positive (MapMergeError)."""
    if not floor > 0:
        raise MapMergeError(f"The floor of Fisher merging must be above 0, not {floor:g}.")


def check_off_diagonal(off_diagonal: float) -> None:
    """Refuses a scale of RegMean's off-diagonals outside [0, 1] (MapMergeError)."""
    if not 0 <= off_diagonal <= 1:
        raise MapMergeError(f"RegMean's scale of off-diagonals must be from 0 to 1, not {off_diagonal:g}.")


def _nearest_outputs(V: Tensor, grams: Sequence[Gram], off_diagonal: float) -> Tensor:
    """Merges one layer's task vectors (N x its shape); θ_pre drops out of the equation."""
    total = weighted = plain = torch.zeros((), dtype=torch.float64)
    for v, (matrix, axis) in zip(V, grams, strict=True):
        G = matrix.cpu().double()
        G = off_diagonal * G + (1 - off_diagonal) * torch.diag(G.diagonal())
        change = v.cpu().double().movedim(axis, 0)
        total, weighted, plain = total + G, weighted + G @ change, plain + change
    diagonal = total.diagonal()
    ridge = _RIDGE * float(diagonal.mean()) / len(grams) + _TINY
    for _ in range(_RIDGES):
        regular = total + torch.diag(torch.full_like(diagonal, len(grams) * ridge))
        factor, failed = torch.linalg.cholesky_ex(regular)
        if not failed:
            break
        ridge *= 10
    else:
        raise MapMergeError("RegMean can't use Gram matrices that hold NaN or infinity: check the models.")
    solution = torch.cholesky_solve(weighted + ridge * plain, factor)
    return solution.movedim(0, grams[0].axis).to(V.dtype).to(V.device)


def _check_one_each(vectors: TaskVectors, statistics: Sequence, what: str) -> None:
    if len(statistics) != len(vectors):
        raise MapMergeError(
            f"The {len(vectors)} task vectors ({', '.join(vectors.names)}) need one {what} each, "
            f"but {len(statistics)} came."
        )
