"""Task vectors that stay on disk or low-rank: models are merged tensor by tensor."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import Tensor

from mapmerge_core.errors import MapMergeError, PointError
from mapmerge_core.weights.io.checkpoints import files_kept_open
from mapmerge_core.weights.io.checks import check_coefficients, describe, is_finite, too_large
from mapmerge_core.weights.io.keys import adapt, compared
from mapmerge_core.weights.vectors.changes import Changes
from mapmerge_core.weights.vectors.modules import load_part, module_tensors, write_if_other
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike
    from torch import nn

    from mapmerge_core.weights.io.adapters import Adapter
    from mapmerge_core.weights.io.checks import Described, StateDict
    from mapmerge_core.weights.io.hub import HubRef


@dataclass(frozen=True)
class _Written:
    """Where the tensors of a module lay that was written, to see whether it was moved or cast since.

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


class StreamedVectors:
    """As `TaskVectors`, but models are not held: θ(c) = θ_pre + Σ c_n v_n is computed tensor by tensor.

    Fine-tuned models are read when a tensor is merged, adapters are kept as their low-rank factors. A merge
    needs memory for a few copies of the largest tensor. Each tensor is computed in float32 (float64 where the
    pre-trained model is float64) on `device`, and rounded to the pre-trained checkpoint's dtype. The
    pre-trained model's values are kept where no model differs, outside ``part``, and in integer or boolean
    tensors. Tensors that are tied in the files are merged as often as the files hold them, but written into a
    module once.

    Keys, shapes and dtypes are compared at once. NaN and infinity are found by the first of `l1_ratios`,
    `l2_ratios`, `cosines`, `differing` and `layers`, which read everything once, or by the merge that uses
    them.

    Build one with `from_state_dicts` or `open_vectors`.

    Args:
        changes: The models.
        device: Where merges are computed.

    Attributes:
        names: The fine-tuned models' names, in the order of the coefficients.
        part: The prefix of the keys that are merged, ``""`` for all.
        n_parameters: How many floating-point parameters ``part`` has, as the files hold them.
        device: Where merges are computed.
    """

    def __init__(self, changes: Changes, device: torch.device | str = "cpu") -> None:
        self.names = tuple(changes.models)
        self.part = changes.part
        self.device = torch.device(device)
        described = [changes.described[key] for key in changes.keys]
        self.n_parameters = sum(d.shape.numel() for d in described if d.dtype.is_floating_point)
        self._changes = changes
        self._written: weakref.WeakKeyDictionary[nn.Module, _Written] = weakref.WeakKeyDictionary()

    @classmethod
    def from_state_dicts(
        cls, pretrained: StateDict, finetuned: Mapping[str, StateDict | Adapter], *, part: str = ""
    ) -> StreamedVectors:
        """Take models that read tensors when asked (and tell shapes by ``describe``), or any others.

        Args:
            pretrained: The model that all others started from. It is not copied: don't write to it.
            finetuned: For each name such a model with the pre-trained one's keys and shapes, or an adapter.
            part: Merge only keys with this prefix; other keys of fine-tuned models are ignored.

        Raises:
            CheckpointError: There is no fine-tuned model, no key starts with ``part``, keys or shapes don't
                match, or an adapter holds NaN or infinity; the sentence names the model and the tensor.
        """
        return cls(Changes(pretrained, finetuned, part))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def described(self) -> Mapping[str, Described]:
        """The shape and dtype of every tensor of a merged model, in the pre-trained model's order."""
        return self._changes.described

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the tensors that are merged; for adapters alone all that they have factors for.

        Raises:
            CheckpointError: A tensor holds NaN or infinity.
        """
        return self._changes.touched if self._changes.only_adapters else self._changes.survey.changed

    def to(self, device: torch.device | str) -> StreamedVectors:
        """Return the same task vectors merging on ``device`` (this object if it does already)."""
        device = torch.device(device)
        return self if device == self.device else StreamedVectors(self._changes, device)

    def merge(self, c: ArrayLike) -> dict[str, Tensor]:
        """Return θ(c) with all the pre-trained model's keys and its dtypes, which takes a model's memory.

        Args:
            c: N coefficients.

        Raises:
            PointError: ``c`` has another length, holds NaN or infinity, or leads to numbers too large.
            CheckpointError: A tensor of a model holds NaN or infinity, or can't be read any more.
        """
        row = self._checked(c)
        return {key: self._finite(key, row).to(self.device) for key in self.described}

    def tensors(self, c: ArrayLike) -> Iterator[tuple[str, Tensor]]:
        """Return the tensors of θ(c) by name, one at a time on the CPU, bit for bit what `merge` gives.

        Numbers too large for a tensor's dtype come as infinity.

        Raises:
            PointError: ``c`` has another length, or holds NaN or infinity.
            CheckpointError: On the way, where a tensor of a model holds NaN or infinity, or can't be read.
        """
        row = self._checked(c)
        return ((key, self._tensor(key, row).cpu()) for key in self.described)

    @torch.no_grad()
    def merge_into(self, module: nn.Module, c: ArrayLike) -> None:
        """Make ``module`` the model θ(c), in place, one tensor at a time.

        Tensors that are not merged are written only the first time, and after the module was moved or cast.

        Args:
            module: A module whose state dict has the pre-trained model's keys and shapes, in any float dtype;
                it may have more names for tensors that are tied to others.
            c: N coefficients.

        Raises:
            PointError: ``c`` has another length, holds NaN or infinity, or leads to numbers too large.
            CheckpointError: The module's keys or shapes are not the pre-trained model's, or a tensor of a
                model holds NaN or infinity, or can't be read any more.
        """
        row = self._checked(c)
        targets = module_tensors(module, self.described)
        before = self._written.pop(module, None)  # an error on the way leaves it half-written
        now = _Written.of(targets)
        again = before is None or before.places != now.places
        with files_kept_open():
            for key, target in targets.items():
                if key in self._changes.may_change:
                    self._merge_into(key, row, target)
                elif again:
                    write_if_other(target, self._finite(key, row))
        self._written[module] = now

    def load_into(self, module: nn.Module, state_dict: StateDict) -> None:
        """Make ``module`` any other model, in place, with the rounding of `merge_into`.

        Args:
            module: A module as for `merge_into`.
            state_dict: A model with the pre-trained one's keys in ``part``; its other keys are ignored.

        Raises:
            CheckpointError: The keys or shapes of ``module`` or ``state_dict`` are not the pre-trained
                model's.
        """
        self.release(module)
        load_part(module, state_dict, self.described, self.part)

    def release(self, module: nn.Module) -> None:
        """Forget that ``module`` was merged into: after others wrote to it, every tensor is written anew."""
        self._written.pop(module, None)

    def l1_ratios(self) -> np.ndarray:
        """Return |v_n|_1 / |θ_pre|_1 over ``part`` for each task vector, shape (N,)."""
        return self._changes.survey.l1_of / self._changes.survey.l1

    def l2_ratios(self) -> np.ndarray:
        """Return |v_n|_2 / |θ_pre|_2 over ``part`` for each task vector, shape (N,)."""
        return np.sqrt(np.diag(self._changes.survey.gram)) / self._changes.survey.l2

    def cosines(self) -> np.ndarray:
        """Return the cosine similarity of each pair of task vectors, shape (N, N); 0 for a zero vector."""
        gram = self._changes.survey.gram
        norms = np.sqrt(np.diag(gram))
        norms = np.where(norms > 0, norms, 1)
        cosines: np.ndarray = gram / (norms[:, None] * norms)
        return cosines

    def differing(self) -> dict[str, int]:
        """Return for each fine-tuned model how many tensors of ``part`` fine-tuning changed."""
        return dict(self._changes.survey.differing)

    def _checked(self, c: ArrayLike) -> np.ndarray:
        return check_coefficients(self.names, c)

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


class _Renamed(Mapping[str, Tensor]):
    """A model's tensors under other names, read when asked for."""

    def __init__(self, model: StateDict, described: Mapping[str, Described], origins: Mapping[str, str]) -> None:
        self._model, self._described, self._origins = model, described, origins

    def __getitem__(self, name: str) -> Tensor:
        return self._model[self._origins[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)

    def describe(self, name: str) -> Described:
        return self._described[self._origins[name]]


Vectors = TaskVectors | StreamedVectors
"""Task vectors, wherever they lie."""


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
        finetuned: A checkpoint, or an adapter, for each name. They may have other names for the same tensors,
            such as another library's (see `adapt`).
        part: Merge only keys with this prefix.
        without: Names of tensors that are left out of all models, such as heads.
        on_disk: Whether to leave the models on disk; by default if task vectors would fill more than half of
            the free memory, of this machine or of ``device``. Adapters always lead to `StreamedVectors`.
        device: Where they will be merged; they are opened on the CPU.
        rounded: Hold task vectors that are kept in memory in bfloat16.

    Raises:
        CheckpointError: As for `TaskVectors.from_files` and `StreamedVectors`.
    """
    from mapmerge_core.weights.io.adapters import is_adapter, read_adapter
    from mapmerge_core.weights.io.checkpoints import open_state_dict
    from mapmerge_core.weights.io.hub import fetch, parse_source

    origin = fetch(parse_source(pretrained))
    sources = {name: fetch(parse_source(source)) for name, source in finetuned.items()}
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


def adapted(model: StateDict, base: StateDict, part: str, without: Collection[str]) -> StateDict:
    """A fine-tuned model's tensors that count, under its base's names, left on disk where possible."""
    return adapt_lazily(choose(model, compared(model, base, without)), base, part)


def choose(model: StateDict, names: Sequence[str]) -> StateDict:
    """Some of a model's tensors, left on disk."""
    return model if len(names) == len(model) else _Renamed(model, describe(model), {n: n for n in names})


def adapt_lazily(model: StateDict, base: StateDict, part: str) -> StateDict:
    """As `adapt`, but leaves tensors on disk where they only have other names."""
    described = describe(model)
    outline, outline_of_base = _outline(described), _outline(describe(base))
    adapted = adapt(outline, outline_of_base, part)
    if adapted is outline:
        return model
    origins = {id(tensor): name for name, tensor in outline.items()}
    if all(id(tensor) in origins for tensor in adapted.values()):
        return _Renamed(model, described, {name: origins[id(tensor)] for name, tensor in adapted.items()})
    return adapt(dict(model), dict(base), part)


def _outline(described: Mapping[str, Described]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in described.items()}


def _are_large(base: StateDict, n_models: int, part: str, device: torch.device, n_bytes: int) -> bool:
    """Whether θ_pre in float32 and N task vectors of so many bytes a number fill half of the free memory."""
    n = sum(shape.numel() for name, (shape, _) in describe(base).items() if name.startswith(part))
    free: int = psutil.virtual_memory().available
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return n * (4 + n_bytes * n_models) > free / 2
