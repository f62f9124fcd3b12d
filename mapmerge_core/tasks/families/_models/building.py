"""Models of other libraries, built and loaded so that whatever is wrong ends in one sentence."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mapmerge_core.errors import CheckpointError, reason_of
from mapmerge_core.files import DAMAGED

Model = TypeVar("Model", bound=nn.Module)


def called(module: nn.Module, parameters: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Call a module with tensors in the place of its own parameters; ``parameters`` may be empty."""
    return functional_call(module, dict(parameters), args, kwargs) if parameters else module(*args, **kwargs)


@contextmanager
def building(sentence: str) -> Iterator[None]:
    """Turn whatever a wrong name or configuration makes another library raise into one sentence.

    Args:
        sentence: Its beginning: who can't build what, from what.

    Raises:
        CheckpointError: Instead of the library's errors.
    """
    try:
        yield
    except DAMAGED as error:
        reason = reason_of(error) if str(error).strip() else "it holds a value that is not allowed"
        raise CheckpointError(f"{sentence}: {reason}.") from error


def load_exactly(model: nn.Module, state_dict: Mapping[str, Tensor], path: Path | str, architecture: str) -> None:
    """Load a checkpoint into a model; tensors of its dtype stay in their file until they are written to.

    Raises:
        CheckpointError: A name or a shape of the one is not the other's.
    """
    expected = model.state_dict()
    for name in [*expected, *state_dict]:
        if name not in state_dict:
            problem = f"lacks the tensor '{name}'"
        elif name not in expected:
            problem = f"holds the tensor '{name}', which the architecture lacks"
        elif state_dict[name].shape != expected[name].shape:
            own, wanted = tuple(state_dict[name].shape), tuple(expected[name].shape)
            problem = f"holds '{name}' with shape {own} where the architecture has {wanted}"
        else:
            continue
        raise CheckpointError(f"{path} does not fit the architecture {architecture}: it {problem}.")
    weights = {name: tensor.to(expected[name].dtype) for name, tensor in state_dict.items()}
    # Tied tensors of either would be torn apart, or tied to others.
    model.load_state_dict(weights, assign=_are_apart(expected) and _are_apart(weights))


def _are_apart(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether no two tensors begin at the same place in memory."""
    places = {(tensor.untyped_storage().data_ptr(), tensor.storage_offset()) for tensor in tensors.values()}
    return len(places) == len(tensors)


def narrow_copy(model: Model, dtype: torch.dtype, parts: tuple[str, ...]) -> Model:
    """Return a copy of a model for merges in another dtype.

    Args:
        model: Any module.
        dtype: A narrower one.
        parts: Prefixes of the tensors that have it; the copy shares all others with the model.
    """
    copies: dict[int, Tensor] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if not name.startswith(parts) or not tensor.is_floating_point():
            copies.setdefault(id(tensor), tensor)
        elif isinstance(tensor, nn.Parameter):
            copies[id(tensor)] = nn.Parameter(tensor.detach().to(dtype), requires_grad=tensor.requires_grad)
        else:
            copies[id(tensor)] = tensor.to(dtype)
    return copy.deepcopy(model, memo=dict(copies))
