"""A learned Pareto set: one base model and low-rank tensors that turn a preference into a merged model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mapmerge_core.errors import CheckpointError, MapMergeError
from mapmerge_core.search.preferences import normalise
from mapmerge_core.weights.io.checks import check_coefficients
from mapmerge_core.weights.export.writing import save_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from mapmerge_core.weights.vectors.layout import Slot
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

# What libraries of models call the modules that attend, and matrices that hold q, k and v in one.
_ATTENTION = ("attn", "attention")
_FUSED = ("qkv", "in_proj", "c_attn", "query_key_value")
_FORMAT = "mapmerge-pareto-set"


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
        """Its view of the tensor, or of anything with the tensor's last two dimensions."""
        return matrix[..., self.row : self.row + self.c, self.column : self.column + self.d]


def find_blocks(vectors: TaskVectors, patterns: Sequence[str] | None = None) -> tuple[Block, ...]:
    """The matrices to personalise, in the order of ``vectors.layers``.

    Args:
        vectors: The task vectors; tensors that no fine-tuning changed are left alone.
        patterns: Names of tensors, in which ``*`` stands for anything; by default the attention projections
            of a transformer.

    Raises:
        CheckpointError: A pattern names no merged matrix, there is no attention, or no matrix at all.
    """
    matrices = [slot for group in vectors.groups for slot in group.slots if len(slot.shape) == 2]
    if not matrices:
        raise CheckpointError("These models have no weight matrices to personalise: choose another method.")
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
        n_tasks: K.
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
        """Makes the parameters at their start."""
        self.A = nn.ParameterList(
            [_kaiming(block.c, self.rank, self.rank, generator) for block in self.blocks]
        )
        self.B = nn.ParameterList([_kaiming(block.d, self.rank, block.d, generator) for block in self.blocks])
        self.G = nn.ParameterList(
            [nn.Parameter(torch.zeros(self.rank, self.rank, self.n_tasks)) for _ in self.blocks]
        )

    def factors(self, i: int, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Two matrices, c x r and d x r, whose product L Rᵀ is what γ (K,) adds to block ``i``."""
        return self.A[i] @ (self.G[i] @ gamma), self.B[i]

    def squared_norm(self) -> Tensor:
        """‖𝒲‖²_F of all blocks' tensors 𝒲 = G x₁ A x₂ B, whose K slices are A G_k Bᵀ (each c x d)."""
        total: Tensor = self.G[0].new_zeros(())
        for A, B, G in zip(self.A, self.B, self.G, strict=True):
            # tr(G_kᵀ AᵀA G_k BᵀB), summed over k: r x r products only.
            total = total + (torch.einsum("ij,jlk,lm->imk", A.T @ A, G, B.T @ B) * G).sum()
        return total

    @property
    def n_parameters(self) -> int:
        """How many parameters it adds: Σ r (c + d) + r² K over the blocks."""
        return sum(parameter.numel() for parameter in self.parameters())


def _kaiming(rows: int, columns: int, fan_in: int, generator: torch.Generator) -> nn.Parameter:
    bound = (6 / fan_in) ** 0.5
    return nn.Parameter((torch.rand(rows, columns, generator=generator) * 2 - 1) * bound)


class ParetoSet:
    """All models θ(γ) = θ_pre + Σ_k λ_k V_k + Σ_k γ_k A G_k Bᵀ of one Pareto Merging (its equation 6).

    Args:
        vectors: The task vectors V.
        lambdas: λ, L x N: a row for each of ``vectors.layers``.
        personalisation: A, B and G.

    Attributes:
        names: The K = N tasks, in the order of γ.
        n_extra: Parameters that the set holds beside a merged model.

    Raises:
        PointError: ``lambdas`` is not L x N, or holds NaN or infinity.
    """

    def __init__(self, vectors: TaskVectors, lambdas: ArrayLike, personalisation: Personalisation) -> None:
        self.names = vectors.names
        self.lambdas = np.asarray(lambdas, dtype=np.float64)
        self.personalisation = personalisation
        self.n_extra = personalisation.n_parameters
        self._vectors = vectors = vectors.to("cpu")
        self._base = vectors.flats_of_layers(self.lambdas)
        places = {slot.name: (slot, g) for g, group in enumerate(vectors.groups) for slot in group.slots}
        self._places = [places[block.tensor] for block in personalisation.blocks]

    @torch.no_grad()
    def merge(self, gamma: ArrayLike) -> dict[str, Tensor]:
        """Returns θ(γ) with all the pre-trained model's keys and its dtypes, on the CPU.

        Args:
            gamma: K non-negative weights, one of which is positive; they are divided by their sum.

        Raises:
            SearchError: They aren't.
        """
        weights = torch.from_numpy(normalise(gamma, len(self.names)))
        flats = [flat.clone() for flat in self._base]
        for i, (block, (slot, g)) in enumerate(zip(self.personalisation.blocks, self._places, strict=True)):
            left, right = self.personalisation.factors(i, weights.to(torch.float32))
            block.of(slot.view(flats[g])).addmm_(left.to(flats[g].dtype), right.T.to(flats[g].dtype))
        return self._vectors.state_dict_of(flats)

    def save(self, path: Path | str, recipe: Mapping[str, Any]) -> None:
        """Writes λ, A, B and G as one safetensors file, and the recipe with all names into its header.

        Raises:
            ExportError: The file can't be written.
        """
        path = Path(path)
        tensors = {"lambda": torch.from_numpy(self.lambdas), **self.personalisation.state_dict()}
        header = {
            "format": _FORMAT,
            "tasks": self.names,
            "layers": self._vectors.layers,
            "blocks": [asdict(block) for block in self.personalisation.blocks],
            "recipe": recipe,
        }
        beside = path.with_name(f".{path.name}.part")  # so that the file is there whole, or not at all
        save_tensors(beside, tensors, {_FORMAT: json.dumps(header)})
        beside.replace(path)

    @classmethod
    def read(cls, path: Path | str, vectors: TaskVectors) -> ParetoSet:
        """Reads what `save` wrote.

        Args:
            path: The file.
            vectors: The task vectors that it was learned from.

        Raises:
            CheckpointError: It can't be read, is no such file, or belongs to other models.
        """
        header = read_header(path)
        if tuple(header["tasks"]) != vectors.names or tuple(header["layers"]) != vectors.layers:
            raise CheckpointError(f"{path} was learned from other models: choose those of its recipe.")
        try:
            blocks = _blocks_in(header, vectors)
            with safe_open(path, framework="pt") as file:
                lambdas = check_coefficients(
                    vectors.names, file.get_tensor("lambda").numpy(), len(vectors.layers)
                )
                personalisation = Personalisation(blocks, len(vectors), file.get_tensor("A.0").shape[1])
                personalisation.load_state_dict(
                    {name: file.get_tensor(name) for name in personalisation.state_dict()}
                )
        except (MapMergeError, SafetensorError, RuntimeError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"{path} is damaged: train the set again.") from error
        return cls(vectors, lambdas, personalisation.requires_grad_(requires_grad=False))


def _blocks_in(header: Mapping[str, Any], vectors: TaskVectors) -> list[Block]:
    """The blocks that a file's header lists.

    Raises:
        TypeError, ValueError: They are no blocks, or none of these models.
    """
    blocks = [Block(**values) for values in header["blocks"]]
    if not blocks or not set(blocks) <= set(find_blocks(vectors, ["*"])):
        raise ValueError("unknown blocks")
    return blocks


def read_header(path: Path | str) -> dict[str, Any]:
    """The names and the recipe of a learned set's file.

    Raises:
        CheckpointError: It can't be read, or is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_FORMAT)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read ({error}): train the set again.") from error
    if text is None:
        raise CheckpointError(f"{path} holds no learned Pareto set: choose a file that Pareto Merging wrote.")
    try:
        header: dict[str, Any] = json.loads(text)
        if all(isinstance(header[name], list) for name in ("tasks", "layers", "blocks")):
            return header
    except (ValueError, TypeError, KeyError):
        pass
    raise CheckpointError(f"{path} is damaged: train the set again.")
