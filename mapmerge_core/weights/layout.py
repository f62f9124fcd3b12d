"""How checkpoints become flat buffers: what fits together, what is merged, and where each tensor lies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mapmerge_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np

StateDict = Mapping[str, Tensor]

# Views start at multiples of this many elements: kernels are faster on aligned weights.
_ALIGNMENT = 16
# Rounding through a narrower dtype works in pieces that stay in a CPU's cache, so it needs no second model.
_PIECE = 1 << 18


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in its group's flat buffer, and its dtype in the pre-trained checkpoint."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    start: int

    def columns(self, buffer: Tensor) -> Tensor:
        """This tensor's stretch of a buffer's last dimension (d)."""
        return buffer[..., self.start : self.start + self.shape.numel()]

    def view(self, flat: Tensor) -> Tensor:
        """This tensor as a view of a flat buffer (d,)."""
        return self.columns(flat).view(self.shape)


@dataclass(frozen=True)
class Group:
    """The tensors that are computed in one dtype: θ_pre is ``base`` (d,), the task vectors are ``V`` (N x d).

    ``narrow`` lists the stretches (dtype, start, stop) of the buffer that the checkpoint stores in a narrower
    dtype.
    """

    slots: tuple[Slot, ...]
    base: Tensor
    V: Tensor
    narrow: tuple[tuple[torch.dtype, int, int], ...]

    def cast(self, coefficients: np.ndarray) -> Tensor:
        """Coefficients (float64) in this group's dtype and on its device."""
        return torch.tensor(coefficients).to(self.V.dtype).to(self.V.device)

    def write(self, c: np.ndarray, flat: Tensor) -> None:
        """Writes θ(c), rounded as the checkpoint would store it, into ``flat`` (d,)."""
        torch.addmv(self.base, self.V.T, self.cast(c), out=flat)
        for dtype, start, stop in self.narrow:
            for piece in flat[start:stop].split(_PIECE):
                piece.copy_(piece.to(dtype))


@dataclass(frozen=True)
class Layout:
    """Everything that is computed once from the checkpoints.

    Attributes:
        order: All keys of the pre-trained model, in its order.
        groups: The tensors that are merged.
        kept: The tensors that keep the pre-trained model's values.
        aliases: The key that holds the same tensor, for each key that is tied to an earlier one.
        differing: How many tensors of the part differ from the pre-trained model's, for each fine-tuned
            model.
        n_parameters: How many floating-point parameters the part has.
        l1: |θ_pre|_1 over them.
        l2: |θ_pre|_2 over them.
    """

    order: tuple[str, ...]
    groups: tuple[Group, ...]
    kept: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    differing: Mapping[str, int]
    n_parameters: int
    l1: float
    l2: float


def lay_out(pretrained: StateDict, finetuned: Mapping[str, StateDict], part: str) -> Layout:
    """Checks that the models fit together and lays out what differs; ``kept`` tensors are not copied.

    Raises:
        CheckpointError: See `TaskVectors.from_state_dicts`.
    """
    keys = _check_models(pretrained, finetuned, part)
    aliases = _find_aliases(keys, [pretrained, *finetuned.values()])
    floats = [key for key in keys if key not in aliases and pretrained[key].is_floating_point()]
    changed = {
        name: {key for key in keys if _differs(sd[key], pretrained[key])} for name, sd in finetuned.items()
    }
    by_dtype = defaultdict(list)
    for key in floats:
        if any(key in keys_of_one for keys_of_one in changed.values()):
            by_dtype[_arithmetic_dtype(pretrained[key])].append(key)
    groups = tuple(_lay_out_group(dtype, group, pretrained, finetuned) for dtype, group in by_dtype.items())
    merged = {slot.name for group in groups for slot in group.slots}
    return Layout(
        order=tuple(pretrained),
        groups=groups,
        kept={key: tensor for key, tensor in pretrained.items() if key not in merged and key not in aliases},
        aliases=aliases,
        differing={name: len(keys_of_one) for name, keys_of_one in changed.items()},
        n_parameters=sum(pretrained[key].numel() for key in floats),
        l1=sum(float(torch.linalg.vector_norm(_compute(pretrained[key]), 1)) for key in floats),
        l2=sum(float(torch.linalg.vector_norm(_compute(pretrained[key]))) ** 2 for key in floats) ** 0.5,
    )


def check_keys(model: str, keys: Collection[str], expected: Collection[str]) -> None:
    """Compares a model's keys with the pre-trained model's.

    Raises:
        CheckpointError: Keys are missing or extra; the first is named, the rest counted.
    """
    for problem, found in (
        ("lacks", [key for key in expected if key not in keys]),
        ("has", [key for key in keys if key not in expected]),
    ):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            contrast = "has" if problem == "lacks" else "lacks"
            raise CheckpointError(
                f"{model} {problem} the tensor '{found[0]}'{more}, which the pre-trained model {contrast}: "
                "all models must share one architecture."
            )


def check_shape(model: str, key: str, tensor: Tensor, expected: Tensor) -> None:
    """Compares a tensor's shape with the pre-trained model's.

    Raises:
        CheckpointError: The shapes differ; both are quoted.
    """
    if tensor.shape != expected.shape:
        raise CheckpointError(
            f"The tensor '{key}' has shape {tuple(tensor.shape)} in {model} but {tuple(expected.shape)} "
            "in the pre-trained model: all models must share one architecture."
        )


def _check_models(pretrained: StateDict, finetuned: Mapping[str, StateDict], part: str) -> list[str]:
    """Returns the keys in ``part`` after checking every model's."""
    if not finetuned:
        raise CheckpointError("There is no fine-tuned model: a merge needs at least one.")
    keys = [key for key in pretrained if key.startswith(part)]
    if not keys:
        prefixes = ", ".join(sorted({key.split(".")[0] + "." * ("." in key) for key in pretrained})) or "none"
        raise CheckpointError(
            f"No tensor of the pre-trained model starts with '{part}': its keys start with {prefixes}."
        )
    expected = dict.fromkeys(keys)
    for name, state_dict in finetuned.items():
        found = dict.fromkeys(key for key in state_dict if key.startswith(part))
        check_keys(f"The model '{name}'", found, expected)
    _check_finite("the pre-trained model", pretrained, pretrained)
    for name, state_dict in finetuned.items():
        for key in keys:
            check_shape(f"the model '{name}'", key, state_dict[key], pretrained[key])
            if state_dict[key].is_floating_point() != pretrained[key].is_floating_point():
                raise CheckpointError(
                    f"The tensor '{key}' is {_dtype_name(state_dict[key])} in the model '{name}' but "
                    f"{_dtype_name(pretrained[key])} in the pre-trained model: "
                    "quantized models can't be merged."
                )
        _check_finite(f"the model '{name}'", state_dict, expected)
    return keys


def _check_finite(model: str, state_dict: StateDict, keys: Collection[str]) -> None:
    for key in keys:
        if state_dict[key].is_floating_point() and not state_dict[key].isfinite().all():
            kind = "NaN" if state_dict[key].isnan().any() else "infinity"
            raise CheckpointError(
                f"The tensor '{key}' of {model} holds {kind}: this checkpoint can't be merged."
            )


def _find_aliases(keys: Sequence[str], models: Sequence[StateDict]) -> dict[str, str]:
    """Maps each key that is the same memory as an earlier key, in every model, to that key."""
    first: dict[tuple, str] = {}
    aliases = {}
    for key in keys:
        if models[0][key].numel() == 0:
            continue
        memory = (
            *tuple((m[key].data_ptr(), m[key].stride(), m[key].dtype) for m in models),
            models[0][key].shape,
        )
        if first.setdefault(memory, key) != key:
            aliases[key] = first[memory]
    return aliases


def _arithmetic_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _compute(tensor: Tensor) -> Tensor:
    return tensor.to(_arithmetic_dtype(tensor))


def _differs(tensor: Tensor, base: Tensor) -> bool:
    if tensor.dtype != base.dtype:
        tensor, base = tensor.double(), base.double()
    return not torch.equal(tensor, base)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _lay_out_group(
    dtype: torch.dtype, keys: Sequence[str], pretrained: StateDict, finetuned: Mapping[str, StateDict]
) -> Group:
    """Copies the tensors ``keys`` into flat buffers, those of one checkpoint dtype next to each other."""
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
