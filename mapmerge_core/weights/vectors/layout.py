"""How checkpoints become flat buffers: what fits together, what is merged, and where each tensor lies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mapmerge_core.weights.io.checks import (
    Described,
    StateDict,
    arithmetic_dtype,
    check_any,
    check_finite,
    check_models,
    describe,
    differs,
    refuse_complex,
)
from mapmerge_core.weights.vectors.sums import Sums, weighted_sums

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Group", "Layout", "Slot", "StateDict", "lay_out"]

# Views start at multiples of this many elements: kernels are faster on aligned weights.
_ALIGNMENT = 16


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in its group's flat buffer, and its dtype in the pre-trained checkpoint."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    start: int

    def columns(self, buffer: Tensor) -> Tensor:
        """Return this tensor's stretch of a buffer's last dimension (d)."""
        return buffer[..., self.start : self.start + self.shape.numel()]

    def view(self, flat: Tensor) -> Tensor:
        """Return this tensor as a view of a flat buffer (d,)."""
        return self.columns(flat).view(self.shape)


@dataclass(frozen=True)
class Group:
    """The tensors that are computed in one dtype: θ_pre is ``base`` (d,), the task vectors are ``V`` (N x d).

    Where ``V`` is rounded to bfloat16, each tensor has a group of its own. ``narrow`` lists the stretches (dtype,
    start, stop) of the buffer that the checkpoint stores in a narrower dtype.
    """

    slots: tuple[Slot, ...]
    base: Tensor
    V: Tensor
    narrow: tuple[tuple[torch.dtype, int, int], ...]

    def sums(self, flat: Tensor) -> list[Sums]:
        """Return the sums that make θ(c), rounded as the checkpoint would store it, in ``flat`` (d,)."""
        # Those of the arithmetic's own dtype lie before, between or after the narrow stretches.
        ends = [0, *(end for _, *stretch in self.narrow for end in stretch), len(flat)]
        wide = [(None, start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=True)]
        return [
            Sums(self.base[start:stop], self.V[:, start:stop], flat[None, start:stop], dtype)
            for dtype, start, stop in [*self.narrow, *wide]
            if start < stop
        ]

    def merged(self, c: np.ndarray, slot: Slot, memory: Tensor) -> Tensor:
        """Return one tensor of θ(c), rounded likewise, in the first elements of ``memory``."""
        flat = memory[: slot.shape.numel()]
        weighted_sums(slot.columns(self.base), slot.columns(self.V), c[None], flat[None])
        return flat.view(slot.shape).to(slot.dtype)


@dataclass(frozen=True)
class Layout:
    """Everything that is computed once from the checkpoints.

    Attributes:
        described: All tensors of the pre-trained model, in its order.
        groups: The tensors that are merged.
        kept: The tensors that keep the pre-trained model's values.
        aliases: The key that holds the same tensor, for each key that is tied to an earlier one.
        differing: How many tensors of the part differ from the pre-trained model's, for each fine-tuned model.
        n_parameters: How many floating-point parameters the part has.
        l1: |θ_pre|_1 over them.
        l2: |θ_pre|_2 over them.
    """

    described: Mapping[str, Described]
    groups: tuple[Group, ...]
    kept: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    differing: Mapping[str, int]
    n_parameters: int
    l1: float
    l2: float


def lay_out(pretrained: StateDict, finetuned: Mapping[str, StateDict], part: str, *, rounded: bool = False) -> Layout:
    """Check that the models fit together and lay out what differs; ``kept`` tensors are not copied.

    With ``rounded`` task vectors are held in bfloat16, and θ_pre isn't copied either, unless its dtype is narrower than
    the arithmetic's.

    Raises:
        CheckpointError: See `TaskVectors.from_state_dicts`.
    """
    check_any(finetuned)
    described = describe(pretrained)
    keys = check_models(described, {name: describe(model) for name, model in finetuned.items()}, part)
    for key, tensor in pretrained.items():
        check_finite("the pre-trained model", key, tensor)
    for name, model in finetuned.items():
        for key in keys:
            check_finite(f"the model '{name}'", key, model[key])
    aliases = _find_aliases(keys, [pretrained, *finetuned.values()])
    floats = [key for key in keys if key not in aliases and pretrained[key].is_floating_point()]
    changed = {name: {key for key in keys if differs(sd[key], pretrained[key])} for name, sd in finetuned.items()}
    for name, keys_of_one in changed.items():
        for key in keys_of_one:
            if pretrained[key].is_complex():
                raise refuse_complex(f"the model '{name}'", key)
    by_dtype = defaultdict(list)
    for key in floats:
        if any(key in keys_of_one for keys_of_one in changed.values()):
            by_dtype[arithmetic_dtype(pretrained[key].dtype)].append(key)
    if rounded:
        names = [key for group in by_dtype.values() for key in group]
        groups = tuple(_lay_out_rounded(key, pretrained, finetuned) for key in names)
    else:
        groups = tuple(_lay_out_group(*group, pretrained, finetuned) for group in by_dtype.items())
    merged = {slot.name for group in groups for slot in group.slots}
    return Layout(
        described=described,
        groups=groups,
        kept={key: tensor for key, tensor in pretrained.items() if key not in merged and key not in aliases},
        aliases=aliases,
        differing={name: len(keys_of_one) for name, keys_of_one in changed.items()},
        n_parameters=sum(pretrained[key].numel() for key in floats),
        l1=sum(float(torch.linalg.vector_norm(_compute(pretrained[key]), 1)) for key in floats),
        l2=sum(float(torch.linalg.vector_norm(_compute(pretrained[key]))) ** 2 for key in floats) ** 0.5,
    )


def _find_aliases(keys: Sequence[str], models: Sequence[StateDict]) -> dict[str, str]:
    """Map each key that is the same memory as an earlier key, in every model, to that key."""
    first: dict[tuple, str] = {}
    aliases = {}
    for key in keys:
        if models[0][key].numel() == 0:
            continue
        memory = (*tuple((m[key].data_ptr(), m[key].stride(), m[key].dtype) for m in models), models[0][key].shape)
        if first.setdefault(memory, key) != key:
            aliases[key] = first[memory]
    return aliases


def _compute(tensor: Tensor) -> Tensor:
    return tensor.to(arithmetic_dtype(tensor.dtype))


def _lay_out_group(
    dtype: torch.dtype, keys: Sequence[str], pretrained: StateDict, finetuned: Mapping[str, StateDict]
) -> Group:
    """Copy the tensors ``keys`` into flat buffers, those of one checkpoint dtype next to each other."""
    slots, stretches, size = [], [], 0
    for narrow in sorted({pretrained[key].dtype for key in keys}, key=str):
        start = size
        for key in keys:
            if pretrained[key].dtype == narrow:
                slots.append(Slot(key, pretrained[key].shape, narrow, size))
                size += -(-pretrained[key].numel() // _ALIGNMENT) * _ALIGNMENT
        if narrow != dtype:
            stretches.append((narrow, start, size))
    base, V = torch.zeros(size, dtype=dtype), torch.zeros(len(finetuned), size, dtype=dtype)
    for slot in slots:
        slot.view(base).copy_(pretrained[slot.name])
        for row, state_dict in zip(V, finetuned.values(), strict=True):
            slot.view(row).copy_(state_dict[slot.name]).sub_(slot.view(base))
    return Group(tuple(slots), base, V, tuple(stretches))


def _lay_out_rounded(name: str, pretrained: StateDict, finetuned: Mapping[str, StateDict]) -> Group:
    """Return a group of one tensor with its task vectors in bfloat16, whose range is float32's."""
    tensor = pretrained[name]
    base = _compute(tensor).reshape(-1)  # stays in its file, where it is memory-mapped
    V = torch.empty(len(finetuned), len(base), dtype=torch.bfloat16)
    for row, model in zip(V, finetuned.values(), strict=True):
        row.copy_(model[name].to(base.dtype).reshape(-1) - base)
    narrow = () if tensor.dtype == base.dtype else ((tensor.dtype, 0, len(base)),)
    return Group((Slot(name, tensor.shape, tensor.dtype, 0),), base, V, narrow)
