"""A learned Pareto set: one base model and low-rank tensors that turn a preference into a merged model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mapmerge_core.errors import CheckpointError, MapMergeError
from mapmerge_core.files import DAMAGED
from mapmerge_core.merges._state import damaged, read_state, write_state
from mapmerge_core.merges.base import PreparedMerge
from mapmerge_core.weights.io.checks import check_coefficients

if TYPE_CHECKING:
    from mapmerge_core.merges.pareto_merging import ParetoMerging
    from mapmerge_core.weights.vectors.layout import Slot
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

# What libraries of models call the modules that attend, and matrices that hold q, k and v in one.
_ATTENTION = ("attn", "attention")
_FUSED = ("qkv", "in_proj", "c_attn", "query_key_value")


@dataclass(frozen=True)
class Block:
    """A matrix that is personalised: rows and columns of a merged tensor, all of it or one of q, k and v.

    Attributes:
        tensor: The tensor's name.
        row: Its first row.
        column: Its first column.
        c: Its rows.
        d: Its columns.
    """

    tensor: str
    row: int
    column: int
    c: int
    d: int

    def of(self, matrix: Tensor) -> Tensor:
        """Return its view of the tensor, or of anything with the tensor's last two dimensions."""
        return matrix[..., self.row : self.row + self.c, self.column : self.column + self.d]


def find_blocks(vectors: TaskVectors, patterns: Sequence[str] | None = None) -> tuple[Block, ...]:
    """Return the matrices to personalise, in the order of ``vectors.layers``.

    Args:
        vectors: The task vectors; tensors that no fine-tuning changed are left alone.
        patterns: Names of tensors, in which ``*`` stands for anything; by default the attention projections
            of a transformer.

    Raises:
        CheckpointError: A pattern names no merged matrix, there is no attention, or no matrix at all.
    """
    matrices = [slot for group in vectors.groups for slot in group.slots if len(slot.shape) == 2]
    if not matrices:
        raise CheckpointError("These models have no weight matrices to personalise: choose another merge.")
    example = matrices[0].name
    if patterns is None:
        chosen = [slot for slot in matrices if _attends(slot.name)]
        if not chosen:
            raise CheckpointError(
                "These models have no attention projections to personalise: name the weight matrices, such "
                f"as '{example}'."
            )
    else:
        for pattern in patterns:
            if not any(fnmatchcase(slot.name, pattern) for slot in matrices):
                raise CheckpointError(
                    f"'{pattern}' names no weight matrix that is merged: write names as the checkpoint has "
                    f"them, with * for anything, such as '{example}'."
                )
        chosen = [slot for slot in matrices if any(fnmatchcase(slot.name, each) for each in patterns)]
    return tuple(block for slot in chosen for block in _blocks_of(slot))


def _attends(name: str) -> bool:
    """Whether it is a projection of attention, rather than one of its tables of positions."""
    *modules, kind = name.lower().split(".")
    in_attention = any(word in module for module in modules for word in _ATTENTION)
    return in_attention and kind.endswith("weight") and "bias" not in name.lower()


def _blocks_of(slot: Slot) -> list[Block]:
    """The tensor as one block, or as three where it holds q, k and v."""
    c, d = slot.shape
    if any(word in slot.name.lower() for word in _FUSED):
        if c == 3 * d:
            return [Block(slot.name, row, 0, d, d) for row in (0, d, 2 * d)]
        if d == 3 * c:  # as GPT-2's layers have it, transposed
            return [Block(slot.name, 0, column, c, c) for column in (0, c, 2 * c)]
    return [Block(slot.name, 0, 0, c, d)]


class Personalisation(nn.Module):
    """The tensors that a preference weighs: Σ_k γ_k A G_k Bᵀ for each block (Pareto Merging, equation 5).

    A (c x r) and B (d x r) start from Kaiming's uniform distribution as the layers x -> Bᵀx and z -> Az,
    so that they neither blow up nor shrink what passes; G (r x r x K) starts at zero, so that all models
    are the base model at first.

    Args:
        blocks: What is personalised.
        n_tasks: K, which is N: each task has a model.
        rank: r.
        seed: Of A and B.

    Raises:
        MapMergeError: The rank is below 1, or above a block's rows or columns.
    """

    def __init__(self, blocks: Sequence[Block], n_tasks: int, rank: int, seed: int = 0) -> None:
        super().__init__()
        most = min(min(block.c, block.d) for block in blocks)
        if not 1 <= rank <= most:
            raise MapMergeError(f"The rank must be from 1 to {most} for these models, not {rank}.")
        self.blocks, self.n_tasks, self.rank = tuple(blocks), n_tasks, rank
        self.make(torch.Generator().manual_seed(seed))

    def make(self, generator: torch.Generator) -> None:
        """Make the parameters at their start."""
        self.A = nn.ParameterList([_kaiming(block.c, self.rank, self.rank, generator) for block in self.blocks])
        self.B = nn.ParameterList([_kaiming(block.d, self.rank, block.d, generator) for block in self.blocks])
        self.G = nn.ParameterList([nn.Parameter(torch.zeros(self.rank, self.rank, self.n_tasks)) for _ in self.blocks])

    def factors(self, i: int, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return two matrices, c x r and d x r, whose product L Rᵀ is what γ (K,) adds to block ``i``."""
        return self.A[i] @ (self.G[i] @ gamma), self.B[i]

    def squared_norm(self) -> Tensor:
        """Return ‖𝒲‖²_F of all blocks' tensors 𝒲 = G x₁ A x₂ B, whose K slices are A G_k Bᵀ (each c x d)."""
        total: Tensor = self.G[0].new_zeros(())
        for A, B, G in zip(self.A, self.B, self.G, strict=True):
            # tr(G_kᵀ AᵀA G_k BᵀB), summed over k: r x r products only.
            total = total + (torch.einsum("ij,jlk,lm->imk", A.T @ A, G, B.T @ B) * G).sum()
        return total

    @property
    def n_parameters(self) -> int:
        """Return how many parameters it adds: Σ r (c + d) + r² K over the blocks."""
        return sum(parameter.numel() for parameter in self.parameters())


def _kaiming(rows: int, columns: int, fan_in: int, generator: torch.Generator) -> nn.Parameter:
    bound = (6 / fan_in) ** 0.5
    return nn.Parameter((torch.rand(rows, columns, generator=generator) * 2 - 1) * bound)


class PreparedParetoMerging(PreparedMerge):
    """All models θ(γ) = θ_pre + Σ_k λ_k V_k + Σ_k γ_k A G_k Bᵀ of one training run (equation 6).

    Args:
        merge: The merge and its settings.
        vectors: The N task vectors that it was learned from, on the evaluator's device.
        exported: The same on the CPU.
        lambdas: λ, an `L x N` array: a row for each of ``exported.layers``.
        personalisation: A, B and G, on the CPU.

    Attributes:
        n_extra: How many parameters the set holds beside a merged model.

    Raises:
        PointError: ``lambdas`` is not L x N, or holds NaN or infinity.
    """

    def __init__(
        self,
        merge: ParetoMerging,
        vectors: TaskVectors,
        exported: TaskVectors,
        lambdas: ArrayLike,
        personalisation: Personalisation,
    ) -> None:
        super().__init__(merge.space(exported.names), vectors, exported)
        self.lambdas = np.asarray(lambdas, dtype=np.float64)
        self.personalisation = personalisation
        self.n_extra = personalisation.n_parameters
        self._merge = merge
        self._exact = _Models(exported, self.lambdas, personalisation)
        self._fast = self._exact
        if vectors is not exported:
            on_device = copy.deepcopy(personalisation).to(vectors.device)
            self._fast = _Models(vectors, self.lambdas, on_device)

    def write(self, module: nn.Module, x: ArrayLike) -> None:
        self._fast.vectors.load_into(module, self._fast.at(self.space.point(x)))

    def write_exact(self, module: nn.Module, x: ArrayLike) -> None:
        self._exact.vectors.load_into(module, self._exact.at(self.space.point(x)))

    def tensors(self, x: ArrayLike) -> Iterator[tuple[str, Tensor]]:
        return iter(self._exact.at(self.space.point(x)).items())

    def save(self, path: Path) -> None:
        tensors = {"lambda": torch.from_numpy(self.lambdas), **self.personalisation.state_dict()}
        blocks = [asdict(block) for block in self.personalisation.blocks]
        write_state(path, self._merge, self._exact.vectors, tensors, blocks=blocks)

    @classmethod
    def read(
        cls, path: Path, merge: ParetoMerging, vectors: TaskVectors, exported: TaskVectors
    ) -> PreparedParetoMerging:
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file can't be read, is damaged, or is of another merge or other models.
        """
        header, tensors = read_state(path, merge, exported)
        try:
            blocks = [Block(**values) for values in header["blocks"]]
            if not blocks or not set(blocks) <= set(find_blocks(exported, ["*"])):
                raise damaged(path, merge)
            lambdas = check_coefficients(exported.names, tensors.pop("lambda").numpy(), len(exported.layers))
            personalisation = Personalisation(blocks, len(exported), tensors["A.0"].shape[1])
            personalisation.load_state_dict(tensors)
        except (MapMergeError, *DAMAGED) as error:
            raise damaged(path, merge) from error
        personalisation.requires_grad_(requires_grad=False)
        return cls(merge, vectors, exported, lambdas, personalisation)


class _Models:
    """A learned set on one device: the base model θ_pre + Σ λ_k V_k, and what a preference adds."""

    def __init__(self, vectors: TaskVectors, lambdas: np.ndarray, personalisation: Personalisation) -> None:
        self.vectors, self._personalisation = vectors, personalisation
        self._base = vectors.flats_of_layers(lambdas)
        places = {slot.name: (slot, g) for g, group in enumerate(vectors.groups) for slot in group.slots}
        self._places = [places[block.tensor] for block in personalisation.blocks]

    @torch.no_grad()
    def at(self, gamma: np.ndarray) -> dict[str, Tensor]:
        """Return θ(γ) with all the pre-trained model's keys and its dtypes."""
        weights = torch.tensor(gamma, dtype=torch.float32, device=self.vectors.device)
        flats = [flat.clone() for flat in self._base]
        for i, (block, (slot, g)) in enumerate(zip(self._personalisation.blocks, self._places, strict=True)):
            left, right = self._personalisation.factors(i, weights)
            block.of(slot.view(flats[g])).addmm_(left.to(flats[g].dtype), right.T.to(flats[g].dtype))
        return self.vectors.state_dict_of(flats)
