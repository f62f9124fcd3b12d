"""Other structures than A G Bᵀ for what a preference adds to a matrix (reviews, and Appendix 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mapmerge_core.merges._pareto_set import Personalisation


class Nothing(Personalisation):
    """No preference changes anything: what is left is one set of λ, as AdaMerging has it."""

    def make(self, generator: torch.Generator) -> None:
        """Makes no parameters."""

    def factors(self, i: int, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Two matrices without columns, whose product is zero."""
        block = self.blocks[i]
        return gamma.new_zeros(block.c, 0), gamma.new_zeros(block.d, 0)

    def squared_norm(self) -> Tensor:
        """Zero."""
        return torch.zeros(())


class SumOfLoras(Personalisation):
    """Σ_k γ_k A_k B_kᵀ with A_k (c x r) and B_k (d x r) of each task's own: K r (c + d) parameters a block.

    As in Dimitriadis et al., "Pareto Low-Rank Adapters", ICLR 2025, the reviews' [2, 3].
    """

    def make(self, generator: torch.Generator) -> None:
        """Makes A (K x c x r), which starts at zero, and B (K x d x r) by Kaiming's uniform distribution."""
        shapes = [(block.c, block.d) for block in self.blocks]
        self.A = nn.ParameterList([torch.zeros(self.n_tasks, c, self.rank) for c, _ in shapes])
        self.B = nn.ParameterList([_uniform((self.n_tasks, d, self.rank), d, generator) for _, d in shapes])

    def factors(self, i: int, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """All tasks' matrices side by side, A's weighed: c x K r and d x K r."""
        weighed = gamma[:, None, None] * self.A[i]
        return torch.cat(tuple(weighed), dim=1), torch.cat(tuple(self.B[i]), dim=1)

    def squared_norm(self) -> Tensor:
        """Σ ‖A_k B_kᵀ‖²_F over tasks and blocks."""
        total: Tensor = self.A[0].new_zeros(())
        for A, B in zip(self.A, self.B, strict=True):
            total = total + ((A.mT @ A) * (B.mT @ B)).sum()
        return total


class OuterProducts(SumOfLoras):
    """(Σ_k γ_k A_k) (Σ_k γ_k B_k)ᵀ: a sum of r outer products of vectors that are linear in γ.

    The stored text of Appendix 5 lost both of its formulas. This is taken for variation 2, and the same with
    a single product, (A γ) ∘ (B γ), for variation 1. ‖𝒲‖ is that of the models for one task alone each.
    """

    def factors(self, i: int, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """The tasks' matrices, added up by preference: c x r and d x r."""
        return torch.einsum("k,kcr->cr", gamma, self.A[i]), torch.einsum("k,kdr->dr", gamma, self.B[i])


class OuterProduct(OuterProducts):
    """(A γ) ∘ (B γ) with A (c x K) and B (d x K): one outer product, K (c + d) parameters a block."""

    def make(self, generator: torch.Generator) -> None:
        """Makes A and B, one column for each task."""
        self.rank = 1
        super().make(generator)


class SingularValues(Personalisation):
    """A diag(σ, s γ) Bᵀ where A is c x (r + K) and B d x (r + K): a preference as singular values.

    SVD-LoRA of Zhong et al., "Panacea: Pareto Alignment via Preference Adaptation for LLMs", NeurIPS 2024,
    the reviews' [6]. The r values σ serve all preferences, and s is a scale; both start at zero, A and B from
    Kaiming's uniform distribution.
    """

    def make(self, generator: torch.Generator) -> None:
        """Makes A and B, and σ with s behind it (r + 1)."""
        n = self.rank + self.n_tasks
        self.A = nn.ParameterList([_uniform((block.c, n), n, generator) for block in self.blocks])
        self.B = nn.ParameterList([_uniform((block.d, n), block.d, generator) for block in self.blocks])
        self.values = nn.ParameterList([torch.zeros(self.rank + 1) for _ in self.blocks])

    def factors(self, i: int, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """A with its columns scaled, and B: c x (r + K) and d x (r + K)."""
        return self.A[i] * self._diagonal(i, gamma), self.B[i]

    def squared_norm(self) -> Tensor:
        """Σ ‖A diag(σ, s e_k) Bᵀ‖²_F over tasks and blocks: the sum weighed by γ is what γ adds."""
        total: Tensor = self.A[0].new_zeros(())
        for i, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            products = (A.T @ A) * (B.T @ B)
            for gamma in torch.eye(self.n_tasks, dtype=A.dtype, device=A.device):
                diagonal = self._diagonal(i, gamma)
                total = total + (diagonal[:, None] * products * diagonal).sum()
        return total

    def _diagonal(self, i: int, gamma: Tensor) -> Tensor:
        values = self.values[i]
        return torch.cat([values[:-1], values[-1] * gamma])


STRUCTURES: dict[str, tuple[str, type[Personalisation]]] = {
    "tensor": ("A G Bᵀ (the paper's)", Personalisation),
    "loras": ("Weighted sum of LoRAs", SumOfLoras),
    "singular": ("Singular values (SVD-LoRA)", SingularValues),
    "outer_1": ("Outer product, variation 1", OuterProduct),
    "outer_2": ("Outer product, variation 2", OuterProducts),
}
"""Titles and classes, by what recipes call them."""


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Kaiming's uniform distribution, as `Personalisation` starts from it."""
    bound = math.sqrt(6 / fan_in)
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
