"""Task vectors that stay on disk or in low rank, and how task vectors of any kind are opened."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor, nn

from mapmerge_core.errors import MapMergeError, PointError
from mapmerge_core.weights.io.adapters import Adapter, read_adapter
from mapmerge_core.weights.io.checkpoints import files_kept_open, open_state_dict
from mapmerge_core.weights.io.checks import Described, StateDict, describe, is_finite, too_large
from mapmerge_core.weights.io.hub import HubRef, fetch, is_adapter
from mapmerge_core.weights.io.keys import adapted, choose
from mapmerge_core.weights.vectors.base import Vectors
from mapmerge_core.weights.vectors.changes import Changes
from mapmerge_core.weights.vectors.modules import module_tensors, write_if_other
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from mapmerge_core.weights.io.norms import Norms

__all__ = ["StreamedVectors", "Vectors", "in_memory", "open_vectors"]


@dataclass(frozen=True)
class _Written:
    """Where a module's tensors lay when it was written: elsewhere, if it was moved or cast since.

    Attributes:
        places: Address, dtype and device of each.
        held: The smallest one's memory, kept so that after a cast there and back it has another address.
    """

    places: tuple[tuple[int, torch.dtype, torch.device], ...]
    held: Tensor | None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> _Written:
        places = tuple((tensor.data_ptr(), tensor.dtype, tensor.device) for tensor in tensors.values())
        floats = [tensor for tensor in tensors.values() if tensor.is_floating_point() and tensor.numel()]
        smallest = min(floats, key=lambda tensor: tensor.nbytes, default=None)
        return cls(places, None if smallest is None else smallest.detach())


class StreamedVectors(Vectors):
    """Task vectors that stay on disk or in low rank: θ(c) is computed tensor by tensor, and no model is held.

    Fine-tuned models are read when a tensor is merged, adapters are kept as their low-rank factors. A merge needs
    memory for a few copies of the largest tensor. Each tensor is computed in float32 (float64 where the pre-trained
    model is float64) on `device`, and rounded to the pre-trained checkpoint's dtype. The pre-trained model's values are
    kept where no model differs, outside ``part``, and in integer or boolean tensors. Tensors that are tied in the files
    are merged as often as the files hold them, but written into a module once.

    Keys, shapes and dtypes are compared at once. NaN and infinity are found by the first of `norms`, `differing` and
    `layers`, which read everything once, or by the merge that uses them.

    Build one with `from_state_dicts` or `open_vectors`.

    Args:
        changes: The models.
        device: Where merges are computed.
    """

    def __init__(self, changes: Changes, device: torch.device | str = "cpu") -> None:
        described = [changes.described[key] for key in changes.keys]
        n_parameters = sum(d.shape.numel() for d in described if d.dtype.is_floating_point)
        super().__init__(tuple(changes.models), changes.part, n_parameters)
        self._device = torch.device(device)
        self._changes = changes

    @classmethod
    def from_state_dicts(
        cls, pretrained: StateDict, finetuned: Mapping[str, StateDict | Adapter], *, part: str = ""
    ) -> StreamedVectors:
        """Take models that read a tensor when asked for it (and have a method ``describe``), or any others.

        Args:
            pretrained: The model that all others started from. It is not copied: don't write to it.
            finetuned: For each name such a model with the pre-trained one's keys and shapes, or an adapter.
            part: Merge only keys with this prefix; other keys of fine-tuned models are ignored.

        Raises:
            CheckpointError: There is no fine-tuned model, no key starts with ``part``, keys or shapes don't match, or
                an adapter holds NaN or infinity; the sentence names the model and the tensor.
        """
        return cls(Changes(pretrained, finetuned, part))

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def described(self) -> Mapping[str, Described]:
        return self._changes.described

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the tensors that are merged; for adapters alone all that they have factors for.

        Raises:
            CheckpointError: A tensor holds NaN or infinity.
        """
        return self._changes.touched if self._changes.only_adapters else self._changes.survey.changed

    def to(self, device: torch.device | str) -> StreamedVectors:
        device = torch.device(device)
        return self if device == self.device else StreamedVectors(self._changes, device)

    def merge(self, c: ArrayLike) -> dict[str, Tensor]:
        row = self._checked(c)
        return {key: self._finite(key, row).to(self.device) for key in self.described}

    def tensors(self, c: ArrayLike) -> Iterator[tuple[str, Tensor]]:
        row = self._checked(c)
        return ((key, self._tensor(key, row).cpu()) for key in self.described)

    @torch.no_grad()
    def merge_into(self, module: nn.Module, c: ArrayLike) -> None:
        row = self._checked(c)
        targets = module_tensors(module, self.described)
        before: _Written | None = self._modules.pop(module, None)  # an error on the way leaves it half-written
        now = _Written.of(targets)
        again = before is None or before.places != now.places
        with files_kept_open():
            for key, target in targets.items():
                if key in self._changes.may_change:
                    self._merge_into(key, row, target)
                elif again:
                    write_if_other(target, self._finite(key, row))
        self._modules[module] = now

    @property
    def norms(self) -> Norms:
        return self._changes.survey.norms

    def differing(self) -> dict[str, int]:
        return dict(self._changes.survey.differing)

    def _tensor(self, key: str, row: np.ndarray) -> Tensor:
        if key in self._changes.may_change:
            return self._changes.merged(key, row, self.device)
        return self._changes.kept(key)

    def _merge_into(self, key: str, row: np.ndarray, target: Tensor) -> None:
        if self.device.type != "cpu" or not self._changes.merge_into(key, row, target):
            target.copy_(self._finite(key, row))
        elif not is_finite(target):
            # Numbers that the checkpoint's dtype has may be too large for the module's.
            self._changes.check_sources(key)
            target.copy_(self._finite(key, row))

    def _finite(self, key: str, row: np.ndarray) -> Tensor:
        tensor = self._tensor(key, row)
        if not is_finite(tensor):
            raise PointError(too_large(key, tensor.dtype))
        return tensor


def in_memory(vectors: Vectors) -> TaskVectors:
    """Return task vectors whose entries can be seen and changed.

    Raises:
        MapMergeError: They stay on disk or in low rank, or are rounded to bfloat16.
    """
    if isinstance(vectors, TaskVectors):
        if vectors.is_rounded:
            raise MapMergeError(
                "These task vectors are held in bfloat16, so only their sums can be computed: hold them in "
                "float32 for this."
            )
        return vectors
    raise MapMergeError(
        "These task vectors are low-rank, or too large for the memory and left on disk, so only their "
        "sums can be computed: choose a merge by coefficients, without a transform."
    )


def open_vectors(
    pretrained: Path | str | HubRef,
    finetuned: Mapping[str, Path | str | HubRef],
    *,
    part: str = "",
    without: Collection[str] = (),
    on_disk: bool | None = None,
    device: torch.device | str = "cpu",
    rounded: bool = False,
) -> Vectors:
    """Open task vectors as they suit these models: in memory if they fit well, else tensor by tensor.

    Args:
        pretrained: The checkpoint that the others started from.
        finetuned: A checkpoint, or an adapter, for each name. They may have other names for the same tensors, such as
            another library's (see `adapt`).
        part: Merge only keys with this prefix.
        without: Names of tensors that are left out of all models, such as heads.
        on_disk: Whether to leave the models on disk; by default if task vectors would fill more than half of the free
            memory, of this machine or of ``device``. Adapters always lead to `StreamedVectors`.
        device: Where they will be merged; they are opened on the CPU.
        rounded: Hold task vectors that are kept in memory in bfloat16.

    Raises:
        CheckpointError: As for `TaskVectors.from_files` and `StreamedVectors`.
    """
    origin = fetch(pretrained)
    sources = {name: fetch(source) for name, source in finetuned.items()}
    adapters = {name for name, path in sources.items() if is_adapter(path)}
    whole = open_state_dict(origin)
    base = choose(whole, [name for name in whole if name not in without])
    if on_disk is None:
        on_disk = _are_large(base, len(sources), part, torch.device(device), 2 if rounded else 4)
    if not adapters and not on_disk:
        return TaskVectors.from_files(origin, sources, part=part, without=without, rounded=rounded)
    models: dict[str, StateDict | Adapter] = {
        name: read_adapter(path, base, without)
        if name in adapters
        else adapted(open_state_dict(path), base, part, without)
        for name, path in sources.items()
    }
    return StreamedVectors.from_state_dicts(base, models, part=part)


def _are_large(base: StateDict, n_models: int, part: str, device: torch.device, n_bytes: int) -> bool:
    """Return whether θ_pre in float32 and N task vectors of so many bytes a number fill half of the free memory."""
    n = sum(shape.numel() for name, (shape, _) in describe(base).items() if name.startswith(part))
    free: int = psutil.virtual_memory().available
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return n * (4 + n_bytes * n_models) > free / 2
