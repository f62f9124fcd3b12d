"""Task vectors, wherever they lie: what can be asked of them."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from mapmerge_core.weights.io.checks import Described, StateDict, check_coefficients
from mapmerge_core.weights.vectors.modules import load_part

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from mapmerge_core.weights.io.norms import Norms


class Vectors(ABC):
    """A pre-trained model θ_pre and N task vectors v_n = θ_n − θ_pre, merged to θ(c) = θ_pre + Σ c_n v_n.

    Attributes:
        names: The fine-tuned models' names, in the order of the coefficients.
        part: The prefix of the keys that are merged, ``""`` for all.
        n_parameters: How many floating-point parameters ``part`` has.
    """

    def __init__(self, names: Sequence[str], part: str, n_parameters: int) -> None:
        self.names = tuple(names)
        self.part = part
        self.n_parameters = n_parameters
        # What is remembered of each module that was merged into.
        self._modules: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self.names)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where merges are computed."""

    @property
    @abstractmethod
    def described(self) -> Mapping[str, Described]:
        """The shape and dtype of every tensor of a merged model, in the pre-trained model's order."""

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """The names of the L tensors that are merged; tied ones once, where that is known."""

    @property
    @abstractmethod
    def norms(self) -> Norms:
        """Norms and inner products over ``part``, computed when first asked for."""

    @abstractmethod
    def differing(self) -> dict[str, int]:
        """Return for each fine-tuned model how many tensors of ``part`` fine-tuning changed."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Return the same task vectors, merged on ``device`` (this object if they are already)."""

    @abstractmethod
    def merge(self, c: ArrayLike) -> dict[str, Tensor]:
        """Return θ(c) with all the pre-trained model's keys and its dtypes.

        Tensors that are not merged may be returned as they are held, not copied: don't write into them.

        Args:
            c: N coefficients.

        Raises:
            PointError: ``c`` has another length, or holds NaN or infinity; or, of models on disk, leads to numbers too
                large.
            CheckpointError: A tensor of a model on disk holds NaN or infinity, or can't be read any more.
        """

    @abstractmethod
    def tensors(self, c: ArrayLike) -> Iterator[tuple[str, Tensor]]:
        """Return the tensors of θ(c) by name, one at a time on the CPU, bit for bit what `merge` gives.

        Numbers too large for a tensor's dtype come as infinity.

        Raises:
            PointError: ``c`` has another length, or holds NaN or infinity.
            CheckpointError: On the way, as for `merge`.
        """

    @abstractmethod
    def merge_into(self, module: nn.Module, c: ArrayLike) -> None:
        """Make ``module`` the model θ(c), in place.

        Tensors that are not merged are written only the first time, and after the module was moved or cast.

        Args:
            module: A module whose state dict has the pre-trained model's keys and shapes, in any float dtype; it may
                have more names for tensors that are tied to others.
            c: N coefficients.

        Raises:
            PointError: As for `merge`.
            CheckpointError: The module's keys or shapes are not the pre-trained model's, or as for `merge`.
        """

    def load_into(self, module: nn.Module, state_dict: StateDict) -> None:
        """Make ``module`` any other model, in place, with the rounding of `merge_into`.

        Args:
            module: A module as for `merge_into`.
            state_dict: A model with the pre-trained one's keys in ``part``; its other keys are ignored.

        Raises:
            CheckpointError: The keys or shapes of ``module`` or ``state_dict`` are not the pre-trained model's.
        """
        self.release(module)
        load_part(module, state_dict, self.described, self.part)

    def release(self, module: nn.Module) -> None:
        """Forget that ``module`` was merged into: after others wrote to it, every tensor is written anew."""
        self._modules.pop(module, None)

    def l1_ratios(self) -> np.ndarray:
        """Return |v_n|_1 / |θ_pre|_1 over ``part`` for each task vector, shape (N,)."""
        return self.norms.l1_ratios

    def l2_ratios(self) -> np.ndarray:
        """Return |v_n|_2 / |θ_pre|_2 over ``part`` for each task vector, shape (N,)."""
        return self.norms.l2_ratios

    def cosines(self) -> np.ndarray:
        """Return the cosine similarity of each pair of task vectors, shape (N, N); 0 for a zero vector."""
        return self.norms.cosines

    def _checked(self, coefficients: ArrayLike, rows: int | None = None) -> np.ndarray:
        return check_coefficients(self.names, coefficients, rows)
