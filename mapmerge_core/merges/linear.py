"""Merges that are sums of task vectors, as they are or transformed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mapmerge_core.merges.base import Merge, Needs, PreparedMerge
from mapmerge_core.search.spaces import Box, Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from mapmerge_core.weights.vectors.streamed import Vectors
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


class PreparedLinear(PreparedMerge):
    """θ(x) = θ_pre + Σ x_n v_n, for any task vectors, with their fast sums.

    Args:
        space: Where its points lie.
        vectors: Task vectors on the evaluator's device.
        exported: The same on the CPU.
        is_transformed: Whether these are not the study's own task vectors.
    """

    def __init__(self, space: Space, vectors: Vectors, exported: Vectors, *, is_transformed: bool = False) -> None:
        super().__init__(space, vectors, exported)
        self._is_transformed = is_transformed

    def write(self, module: nn.Module, x: ArrayLike) -> None:
        self.vectors.merge_into(module, self.space.point(x))

    def write_exact(self, module: nn.Module, x: ArrayLike) -> None:
        self.exported.merge_into(module, self.space.point(x))

    def tensors(self, x: ArrayLike) -> Iterator[tuple[str, Tensor]]:
        return self.exported.tensors(self.space.point(x))

    def coefficients(self, x: ArrayLike) -> np.ndarray | None:
        return None if self._is_transformed else self.space.point(x)


class LinearMerge(Merge):
    """A sum of task vectors as they are, or of what the merge makes of each of them.

    A subclass overrides `transform` where tensors are changed one by one, `transform_vectors` where a whole
    task vector or several of them decide, and neither (with ``needs.whole_models`` false) where task vectors
    stay as they are: then they may be of any kind, in bfloat16, on disk or in low rank.

    Attributes:
        high: The greatest coefficient.
        default: Every coefficient of the baseline.
    """

    needs = Needs(whole_models=True)
    high: ClassVar[float] = 1.0
    default: ClassVar[float] = 0.3

    def space(self, models: Sequence[str]) -> Space:
        return Box(tuple(models), high=self.high, default=self.default)

    def transform(self, change: Tensor) -> Tensor:
        """Return what is merged in the place of what one model's fine-tuning changed of one tensor.

        Args:
            change: A tensor's difference to the pre-trained model's, which may be overwritten.

        Returns:
            A tensor of the same shape.
        """
        return change

    def transform_vectors(self, vectors: TaskVectors) -> TaskVectors:
        """Return what is merged in the place of the study's task vectors, which stay as they are."""
        from mapmerge_core.merges._sparse import transform_tensors

        return transform_tensors(vectors, lambda change, _: self.transform(change))

    def load(self, state: Path | None, vectors: Vectors, exported: Vectors) -> PreparedMerge:
        del state
        space = self.space(exported.names)
        if not self.needs.whole_models:
            return PreparedLinear(space, vectors, exported)
        from mapmerge_core.weights.vectors.streamed import in_memory

        transformed = self.transform_vectors(in_memory(exported))
        return PreparedLinear(space, transformed.to(vectors.device), transformed, is_transformed=True)
