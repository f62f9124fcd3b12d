"""Averages of models by weights w, tensor after tensor: SLERP, Fisher merging and RegMean."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mapmerge_core.errors import MapMergeError
from mapmerge_core.files import DAMAGED
from mapmerge_core.merges._state import damaged, read_state, write_state
from mapmerge_core.merges._statistics import Gram, fisher_diagonals, gram_matrices
from mapmerge_core.merges.base import Merge, PreparedMerge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from mapmerge_core.weights.vectors.layout import Slot
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

# Beyond this cosine, either way, two vectors count as parallel, and the arc between them as a line (the
# constant that implementations share, mergekit's among them).
_PARALLEL = 0.9995
# Relative to a Gram matrix's mean diagonal: far below what a layer's inputs span, above float32's rounding.
_RIDGE = 1e-6
# How often it grows tenfold: rounding of wide layers, off-diagonals and all, may outweigh the first.
_RIDGES = 5
# Added to the ridge, for layers whose inputs are all zero.
_TINY = 1e-30


class PreparedAverage(PreparedMerge):
    """A merge by a weight for each model; a model of weight 1 comes out as it is.

    Args:
        merge: Which one.
        vectors: N task vectors in memory, on the evaluator's device.
        exported: The same on the CPU.
    """

    def __init__(self, merge: Merge, vectors: TaskVectors, exported: TaskVectors) -> None:
        super().__init__(merge.space(exported.names), vectors, exported)
        self.merge, self._fast, self._exact = merge, vectors, exported

    @abstractmethod
    def merged(self, w: np.ndarray, slot: Slot, base: Tensor, V: Tensor) -> Tensor:
        """Return a merged tensor's `d` entries.

        Args:
            w: A `N` array of weights, at least two of which are positive, divided by the largest: all 1 where
                they are equal, so that nothing is rounded then.
            slot: The tensor's name and shape.
            base: The pre-trained model's `d` entries.
            V: The task vectors' entries, `N x d`, on the same device.
        """

    def write(self, module: nn.Module, x: ArrayLike) -> None:
        self._fast.load_into(module, self._merged(self._fast, x))

    def write_exact(self, module: nn.Module, x: ArrayLike) -> None:
        self._exact.load_into(module, self._merged(self._exact, x))

    def tensors(self, x: ArrayLike) -> Iterator[tuple[str, Tensor]]:
        return iter(self._merged(self._exact, x).items())

    @torch.no_grad()
    def _merged(self, vectors: TaskVectors, x: ArrayLike) -> dict[str, Tensor]:
        w = self.space.point(x)
        if w.max() == w.sum():
            return vectors.merge(w > 0)
        w = w / w.max()
        flats = [torch.zeros_like(group.base) for group in vectors.groups]
        for group, flat in zip(vectors.groups, flats, strict=True):
            for slot in group.slots:
                base, V = slot.columns(group.base), slot.columns(group.V)
                slot.columns(flat).copy_(self.merged(w, slot, base, V))
        return vectors.state_dict_of(flats)


class PreparedSlerp(PreparedAverage):
    """Two models' tensors on the arc between them.

    With φ the angle between a tensor's weights θ_1 and θ_2 and x = (1 − t, t),
    θ = (sin((1 − t) φ) θ_1 + sin(t φ) θ_2) / sin φ, not scaled to unit length first;
    (1 − t) θ_1 + t θ_2 where |cos φ| > 0.9995 or one of them is zero.
    """

    def merged(self, w: np.ndarray, slot: Slot, base: Tensor, V: Tensor) -> Tensor:
        del slot
        first, second = base + V[0], base + V[1]
        t = float(w[1] / w.sum())
        # In float64: the last bits of float32 sums depend on the number of threads, and would show.
        a, b = first.cpu().double(), second.cpu().double()
        norms = float(torch.linalg.vector_norm(a)), float(torch.linalg.vector_norm(b))
        if min(norms) == 0:
            return torch.lerp(first, second, t)
        cosine = float(torch.dot(a, b)) / (norms[0] * norms[1])
        if abs(cosine) > _PARALLEL:
            return torch.lerp(first, second, t)
        angle = math.acos(cosine)
        return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


class PreparedStatistics(PreparedAverage):
    """An average that weighs parameters by statistics of each model.

    Args:
        merge: Whose settings tell how.
        vectors: N task vectors in memory, on the evaluator's device.
        exported: The same on the CPU.
        statistics: For each model what `collect` returns.

    Attributes:
        collect: Returns one model's statistics by parameter, on the CPU.

    Raises:
        MapMergeError: There aren't statistics for each model.
    """

    collect: ClassVar[Callable[..., Mapping[str, Any]]]

    def __init__(
        self, merge: Merge, vectors: TaskVectors, exported: TaskVectors, statistics: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__(merge, vectors, exported)
        if len(statistics) != len(exported):
            raise MapMergeError(
                f"The {len(exported)} models ({', '.join(exported.names)}) need statistics each, but those "
                f"of {len(statistics)} came."
            )
        self.statistics = statistics

    @staticmethod
    @abstractmethod
    def pack(name: str, statistic: Any) -> tuple[str, Tensor]:  # noqa: ANN401 - a tensor or a Gram
        """Return the name and the tensor that stand for a parameter's statistic in a file."""

    @staticmethod
    @abstractmethod
    def unpack(name: str, tensor: Tensor, shapes: Mapping[str, list[int]]) -> tuple[str, Any]:
        """Return a parameter's name and its statistic, given the shapes of all parameters.

        Raises:
            KeyError, ValueError, IndexError, RuntimeError: They don't fit.
        """

    def save(self, path: Path) -> None:
        tensors = {}
        for n, own in enumerate(self.statistics):
            for name, statistic in own.items():
                packed, tensor = self.pack(name, statistic)
                tensors[f"{n}.{packed}"] = tensor
        write_state(path, self.merge, self._exact, tensors)

    @classmethod
    def read(cls, path: Path, merge: Merge, vectors: TaskVectors, exported: TaskVectors) -> Self:
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file can't be read, is damaged, or is of another merge or other models.
        """
        header, tensors = read_state(path, merge, exported)
        statistics: list[dict[str, Any]] = [{} for _ in range(len(exported))]
        try:
            for key, tensor in tensors.items():
                n, _, packed = key.partition(".")
                name, statistic = cls.unpack(packed, tensor, header["layers"])
                statistics[int(n)][name] = statistic
        except DAMAGED as error:
            raise damaged(path, merge) from error
        return cls(merge, vectors, exported, statistics)


class PreparedFisher(PreparedStatistics):
    """θ = Σ w_n F_n θ_n / Σ w_n F_n, elementwise, with diagonal Fishers F (the paper's closed form).

    Values below the floor are raised to it, so that a parameter that no model's data depends on is averaged,
    not divided by zero. Tensors without a Fisher (buffers) are averaged.
    """

    collect = staticmethod(fisher_diagonals)

    def merged(self, w: np.ndarray, slot: Slot, base: Tensor, V: Tensor) -> Tensor:
        own = [fishers[slot.name] for fishers in self.statistics if slot.name in fishers]
        if len(own) < len(V):
            return base + _weighted_mean(w, V)
        F = torch.stack([fisher.flatten().to(V) for fisher in own]).clamp_(min=self.merge.settings.floor)
        F.mul_(_column(w, V))
        return base + (F * V).sum(dim=0) / F.sum(dim=0)

    @staticmethod
    def pack(name: str, statistic: Tensor) -> tuple[str, Tensor]:
        return name, statistic

    @staticmethod
    def unpack(name: str, tensor: Tensor, shapes: Mapping[str, list[int]]) -> tuple[str, Tensor]:
        return name, tensor.view(shapes[name])


class PreparedRegMean(PreparedStatistics):
    """W = (Σ w_n G_n)⁻¹ Σ w_n G_n W_n for a weight of shape in x out (RegMean's closed form).

    G_n is model n's Gram matrix with its off-diagonal entries scaled; parameters without Gram matrices are
    averaged. Solved in float64. Every G_n gets one ridge, 10⁻⁶ of their mean diagonal, which hardly matters
    but where no model's inputs reach: there weights are averaged. Where float32's rounding has left Σ w_n G_n
    indefinite even so, as it may with ``off_diagonal`` 1 and fewer rows than inputs, the ridge grows tenfold
    until it is not.
    """

    collect = staticmethod(gram_matrices)

    def __init__(
        self, merge: Merge, vectors: TaskVectors, exported: TaskVectors, statistics: Sequence[Mapping[str, Gram]]
    ) -> None:
        super().__init__(merge, vectors, exported, statistics)
        self._products: dict[str, list[Tensor]] = {}

    def merged(self, w: np.ndarray, slot: Slot, base: Tensor, V: Tensor) -> Tensor:
        own = [grams[slot.name] for grams in self.statistics if slot.name in grams]
        if len(own) < len(V):
            return base + _weighted_mean(w, V)
        # Where float64 is slow or missing, the CPU is faster.
        device = V.device if V.device.type == "cuda" else torch.device("cpu")
        axis = own[0].axis
        changes = [v.to(device, torch.float64).movedim(axis, 0) for v in V.view(-1, *slot.shape)]
        products = self._products_of(slot.name, own, changes, device)
        total = torch.zeros_like(own[0].matrix, dtype=torch.float64, device=device)
        diagonal = torch.zeros_like(total[0])
        weighted, plain = torch.zeros_like(products[0]), torch.zeros_like(products[0])
        for w_n, gram, product, change in zip(w.tolist(), own, products, changes, strict=True):
            G, d = self._scaled(gram, device)
            total.add_(G.mul_(w_n))
            diagonal.add_(w_n * d)
            weighted.add_(product, alpha=w_n)
            plain.add_(change, alpha=w_n)
        n = float(w.sum())
        ridge = _RIDGE * float(diagonal.mean()) / n + _TINY
        for _ in range(_RIDGES):
            total.diagonal().copy_(diagonal + n * ridge)
            factor, failed = torch.linalg.cholesky_ex(total)
            if not failed:
                break
            ridge *= 10
        else:
            raise MapMergeError("RegMean can't use Gram matrices that hold NaN or infinity: check the models.")
        solution = torch.cholesky_solve(weighted + ridge * plain, factor)
        return base + solution.movedim(0, axis).flatten().to(V)

    def _scaled(self, gram: Gram, device: torch.device) -> tuple[Tensor, Tensor]:
        """G_n with its off-diagonal entries scaled, but for its diagonal, and that."""
        scale, G = self.merge.settings.off_diagonal, gram.matrix.to(device, torch.float64)
        return scale * G, scale * G.diagonal() + (1 - scale) * G.diagonal()

    def _products_of(
        self, name: str, grams: Sequence[Gram], changes: Sequence[Tensor], device: torch.device
    ) -> list[Tensor]:
        """G_n v_n in float64, which a CPU takes long for and computes once."""
        if device.type == "cpu" and name in self._products:
            return self._products[name]
        products = []
        for gram, change in zip(grams, changes, strict=True):
            G, diagonal = self._scaled(gram, device)
            G.diagonal().copy_(diagonal)
            products.append(G @ change)
        if device.type == "cpu":
            self._products[name] = products
        return products

    @staticmethod
    def pack(name: str, statistic: Gram) -> tuple[str, Tensor]:
        return f"{statistic.axis}.{name}", statistic.matrix

    @staticmethod
    def unpack(name: str, tensor: Tensor, shapes: Mapping[str, list[int]]) -> tuple[str, Gram]:
        axis, _, layer = name.partition(".")
        n_inputs = shapes[layer][{"0": 0, "1": 1}[axis]]
        return layer, Gram(tensor.view(n_inputs, n_inputs), int(axis))


def _column(w: np.ndarray, V: Tensor) -> Tensor:
    return torch.from_numpy(w).to(V)[:, None]


def _weighted_mean(w: np.ndarray, V: Tensor) -> Tensor:
    """Σ w_n v_n / Σ w_n of `N x d` task vectors."""
    return (V * _column(w, V)).sum(dim=0) / float(w.sum())
